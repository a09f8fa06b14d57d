"""Figures of class probabilities: accuracy, expected calibration error, negative log-likelihood and Brier score."""

from typing import Any

import numpy as np

from oodbench.errors import BadData
from oodbench.results.facts import ProbabilityFigures

BINS = 15  # as in Guo et al. 2017
# The Brier score is the mean of the squared error Σ_c (p_c − [c = label])², in [0, 2] (Brier 1950): a sum over classes.
COLUMNS = ("confidence", "right", "probability of the label", "squared error")


def evaluate_probabilities(probabilities: Any, labels: Any) -> ProbabilityFigures:
    """Accuracy, ECE, NLL and Brier score of probabilities (N, classes), whose rows sum to 1, and labels (N,).

    Raises BadData for probabilities of another shape, negative, not finite or not summing to 1, and for other labels.
    """
    return figures(per_image(probabilities, labels))


def per_image(probabilities: Any, labels: Any) -> np.ndarray:
    """What the figures need of each image, float64 (N, 4): ``COLUMNS``. Raises as ``evaluate_probabilities``."""
    values, classes = _checked(probabilities, labels)
    rows = np.arange(len(classes))
    target = np.zeros_like(values)
    target[rows, classes] = 1
    right = values.argmax(1) == classes  # of equal ones the first counts
    return np.column_stack([values.max(1), right, values[rows, classes], ((values - target) ** 2).sum(1)])


def figures(images: np.ndarray) -> ProbabilityFigures:
    """All figures from ``per_image`` columns (N, 4)."""
    confidence, right, own, squared_error = images.T
    return ProbabilityFigures(
        accuracy=float(right.mean()),
        ece=expected_calibration_error(confidence, right),
        nll=negative_log_likelihood(own),
        brier=float(squared_error.mean()),
    )


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Σ_b (n_b / N) · |accuracy of bin b − mean confidence of bin b|, in [0, 1] (Guo et al., ICML 2017, arXiv 1706.04599).

    ``confidence`` (N,) is the largest probability, ``right`` (N,) whether it is the label's. Bins are equally wide,
    ((b − 1)/B, b/B], and 0 belongs to the first.
    """
    place = np.searchsorted(np.arange(1, bins) / bins, confidence)  # how many inner edges are below
    # Of bin b: n_b · (accuracy − mean confidence), so that an empty one adds nothing.
    return float(np.abs(np.bincount(place, weights=right - confidence, minlength=bins)).sum() / len(right))


def negative_log_likelihood(own: np.ndarray) -> float:
    """Mean −log p(label), in nats, of the labels' probabilities (N,).

    A probability of 0 counts as the smallest float64, so that the mean stays finite.
    """
    return float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())


def _checked(probabilities: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    values, classes = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or 0 in values.shape or classes.shape != values.shape[:1]:
        raise BadData(
            f"probabilities have shape {values.shape} for labels of shape {classes.shape}; give (N, classes) and (N,)"
        )
    sums = values.sum(1)
    if not np.isfinite(values).all() or (values < -1e-6).any() or (np.abs(sums - 1) > 1e-4).any():
        raise BadData(
            f"probabilities are negative, not finite, or do not sum to 1 (smallest {values.min():.3g}, sums"
            f" {sums.min():.3g} to {sums.max():.3g}); normalise them"
        )
    if classes.dtype.kind not in "iu":  # of bools too, which would select rows instead of classes
        raise BadData(f"labels are {classes.dtype}; give whole numbers, the index of each image's class")
    if classes.min() < 0 or classes.max() >= values.shape[1]:
        raise BadData(f"labels lie in {classes.min()} to {classes.max()}, and there are {values.shape[1]} classes")
    return np.maximum(values, 0), classes  # slightly negative values are rounding errors
