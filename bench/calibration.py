"""Figures of class probabilities: accuracy, calibration, likelihood, Brier score and the area under the risk-coverage curve;
and the temperature that calibrates logits."""

from typing import Any

import numpy as np

from oodbench.errors import BadData
from oodbench.results.facts import ProbabilityFigures, RecognitionFigures

BINS = 15  # as in Guo et al. 2017
TEMPERATURES = (0.05, 20.0)  # the lowest and the highest that is fitted
# The Brier score is the mean of the squared error Σ_c (p_c − [c = label])², in [0, 2] (Brier 1950): a sum over classes.
COLUMNS = ("confidence", "right", "probability of the label", "squared error")
NEGATIVE, OFF_ONE = 1e-6, 1e-4  # how far rounding may put a probability below 0, and a sum of them from 1
LEAST = float(np.finfo(np.float64).tiny)  # what a probability of 0 counts as, so that its logarithm is finite


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
    place = _bin_of(confidence, bins)
    # Of bin b: n_b · (accuracy − mean confidence), so that an empty one adds nothing.
    return float(np.abs(np.bincount(place, weights=right - confidence, minlength=bins)).sum() / len(right))


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By bin of ``expected_calibration_error``, (bins,) each: images, accuracy and mean confidence, NaN where there is none."""
    place = _bin_of(confidence, bins)
    counts = np.bincount(place, minlength=bins)
    sums = (np.bincount(place, weights=values, minlength=bins) for values in (right, confidence))
    accuracy, mean = (np.divide(of, counts, out=np.full(bins, np.nan), where=counts > 0) for of in sums)
    return counts, accuracy, mean


def _bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.searchsorted(np.arange(1, bins) / bins, confidence)  # how many inner edges are below


def negative_log_likelihood(own: np.ndarray) -> float:
    """Mean −log p(label), in nats, of the labels' probabilities (N,).

    A probability of 0 counts as the smallest float64, so that the mean stays finite.
    """
    return float(-np.log(np.maximum(own, LEAST)).mean())


def recognition_figures(images: np.ndarray) -> RecognitionFigures:
    """All figures of a record of recognition, from ``per_image`` columns (N, 4)."""
    confidence, right = images[:, 0], images[:, 1]
    area = area_under_risk_coverage(confidence, right)
    return RecognitionFigures(**figures(images).model_dump(), aurc=area, excess_aurc=area - least_area(right))


def area_under_risk_coverage(confidence: np.ndarray, right: np.ndarray) -> float:
    """AURC = (1/N) Σ_k (share of wrong answers among the k most confident), in [0, 1], lower is better.

    ``confidence`` (N,) is any number that is higher for answers that are more likely ``right`` (N,). Equal ones are broken at
    random: each share is its expected value. Geifman and El-Yaniv, NeurIPS 2017, arXiv 1705.08500.
    """
    _, place = np.unique(-confidence, return_inverse=True)  # 0 for the most confident
    sizes = np.bincount(place)
    wrong = np.bincount(place, weights=1 - np.asarray(right, dtype=np.float64)) / sizes  # of one of these, as expected
    return float((np.repeat(wrong, sizes).cumsum() / np.arange(1, len(right) + 1)).mean())


def least_area(right: np.ndarray) -> float:
    """The AURC of the best possible order of these answers (N,): all right ones before all wrong ones.

    What an order has beyond it is its excess (Geifman, Uziel and El-Yaniv, ICLR 2019, arXiv 1805.08206).
    """
    return area_under_risk_coverage(np.asarray(right, dtype=np.float64), right)


def fitted_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T within ``TEMPERATURES`` for which softmax(logits / T) has the least NLL, of logits (N, classes) and labels (N,).

    Guo et al., ICML 2017, arXiv 1706.04599. NLL is convex in 1/T, so the root of its derivative is found (Brent's method).
    Where all answers are right, as on images that a network was trained on, NLL falls with T: then it is the lowest.

    Raises BadData for labels that are not classes of the logits.
    """
    from scipy.optimize import brentq
    from scipy.special import softmax

    _, classes = _checked(softmax(logits, axis=1), labels)
    centred = logits - logits.max(1, keepdims=True)
    own = centred[np.arange(len(classes)), classes].mean()

    def slope(inverse: float) -> float:
        """d NLL / d (1/T)."""
        return float((softmax(inverse * centred, axis=1) * centred).sum(1).mean() - own)

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if slope(low) >= 0:
        return TEMPERATURES[1]
    if slope(high) <= 0:
        return TEMPERATURES[0]
    return 1 / float(brentq(slope, low, high, xtol=1e-12))


def _checked(probabilities: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    values, classes = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or 0 in values.shape or classes.shape != values.shape[:1]:
        raise BadData(
            f"probabilities have shape {values.shape} for labels of shape {classes.shape}; give (N, classes) and (N,)"
        )
    sums = values.sum(1)
    if not np.isfinite(values).all() or (values < -NEGATIVE).any() or (np.abs(sums - 1) > OFF_ONE).any():
        raise BadData(
            f"probabilities are negative, not finite, or do not sum to 1 (smallest {values.min():.3g}, sums"
            f" {sums.min():.6g} to {sums.max():.6g}); normalise them, in float32 or float64"
        )
    if classes.dtype.kind not in "iu":  # of bools too, which would select rows instead of classes
        raise BadData(f"labels are {classes.dtype}; give whole numbers, the index of each image's class")
    if classes.min() < 0 or classes.max() >= values.shape[1]:
        lie = f"labels lie in {classes.min()} to {classes.max()}"
        raise BadData(f"{lie}, and there are {values.shape[1]} classes; give a probability of each")
    return np.maximum(values, 0), classes  # slightly negative values are rounding errors
