"""How good class probabilities are: accuracy, expected calibration error, negative log-likelihood, Brier score."""

from typing import Any

import numpy as np

from oodbench.errors import BadData

BINS = 15  # as in Guo et al. 2017


def evaluate_probabilities(probabilities: Any, labels: Any) -> dict[str, float]:
    """``accuracy``, ``ece``, ``nll`` and ``brier`` of probabilities (N, classes), whose rows sum to 1, and labels (N,).

    Raises BadData for probabilities of another shape, negative, not finite or not summing to 1, and for other labels.
    """
    values, classes = _checked(probabilities, labels)
    return {
        "accuracy": accuracy(values, classes),
        "ece": expected_calibration_error(values, classes),
        "nll": negative_log_likelihood(values, classes),
        "brier": brier_score(values, classes),
    }


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose largest probability (N, classes) is that of their label (N,); of equal ones the first counts."""
    return float((probabilities.argmax(1) == labels).mean())


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Σ_b (n_b / N) · |accuracy of bin b − mean confidence of bin b|, in [0, 1] (Guo et al., ICML 2017, arXiv 1706.04599).

    Confidence is the largest probability; bins are equally wide, ((b − 1)/B, b/B], and 0 belongs to the first.
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    place = np.searchsorted(np.arange(1, bins) / bins, confidence)  # how many inner edges lie below
    # Of bin b: n_b · (accuracy − mean confidence), so that an empty one adds nothing.
    return float(np.abs(np.bincount(place, weights=right - confidence, minlength=bins)).sum() / len(labels))


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean −log p(label), in nats. A probability of 0 counts as the smallest float64, so that the mean stays finite."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over images of Σ_c (p_c − [c = label])², in [0, 2] (Brier 1950): the sum over classes, not their mean."""
    target = np.zeros_like(probabilities)
    target[np.arange(len(labels)), labels] = 1
    return float(((probabilities - target) ** 2).sum(1).mean())


def _checked(probabilities: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    values, classes = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or 0 in values.shape or classes.shape != values.shape[:1]:
        raise BadData(
            f"probabilities have shape {values.shape} for labels of shape {classes.shape}; give (N, classes) and (N,)"
        )
    sums = values.sum(1)
    if not np.isfinite(values).all() or (values < 0).any() or (np.abs(sums - 1) > 1e-4).any():
        raise BadData(
            f"probabilities are negative, not finite, or do not sum to 1 (smallest {values.min():.3g}, sums"
            f" {sums.min():.3g} to {sums.max():.3g}); normalise them"
        )
    if classes.dtype.kind not in "iu":  # of bools too, which would select rows instead of classes
        raise BadData(f"labels are {classes.dtype}; give whole numbers, the index of each image's class")
    if classes.min() < 0 or classes.max() >= values.shape[1]:
        raise BadData(f"labels lie in {classes.min()} to {classes.max()}, and there are {values.shape[1]} classes")
    return values, classes
