"""Whether detectors differ: their AUROC on the same images, whose scores are correlated, and many comparisons at once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from oodbench.errors import BadData
from oodbench.metrics import NORMAL_975


class Difference(NamedTuple):
    """The difference of two areas under the ROC curve, on the same images.

    Attributes:
        auroc: the first minus the second, from -1 to 1.
        low, high: its 95 % interval.
        p: two-sided p value of no difference.
        n_in, n_out: images of either side.
    """

    auroc: float
    low: float
    high: float
    p: float
    n_in: int
    n_out: int


def difference(first: tuple[Any, Any], second: tuple[Any, Any], images: tuple[Any, Any] | None = None) -> Difference:
    """Compare two detectors by the paired test of DeLong, DeLong and Clarke-Pearson (1988).

    With ``images``, samples are not independent, and the variance is that of clusters (Obuchowski 1997): all samples that are
    one image are one cluster, on both sides. The interval and the test are normal, so they need some tens of images a side.
    Where the variance is 0, as for two detectors without an error, nothing is known: the interval is [-1, 1].

    Args:
        first, second: scores (n,) of in-distribution and (m,) of anomalous samples, higher = more anomalous; the second
            detector's are of the same samples, in the same order.
        images: the number of the image that each sample (n,) and (m,) was made from.

    Raises BadData for scores of different lengths, or of fewer than two images on a side.
    """
    sides = [[np.asarray(side, dtype=np.float64) for side in pair] for pair in (first, second)]
    shapes = [tuple(side.shape for side in pair) for pair in sides]
    n, m = (len(side) for side in sides[0])
    if shapes[0] != shapes[1] or shapes[0] != ((n,), (m,)):
        raise BadData(f"scores of shapes {shapes[0]} and {shapes[1]}; give both detectors' scores of the same samples")
    numbers = [np.arange(n), n + np.arange(m)] if images is None else [np.asarray(side) for side in images]
    if (given := [len(side) for side in numbers]) != [n, m]:
        raise BadData(f"images of {given} samples, but scores of {[n, m]}; give one number per sample")
    if min(len(np.unique(side)) for side in numbers) < 2:
        raise BadData("fewer than two images on a side, so their spread is not known; compare on a larger set")
    (one_in, one_out, one), (other_in, other_out, other) = (_components(*pair) for pair in sides)
    found = one - other
    # How far each sample pulls the difference: its variance is that of the sums over images.
    pull = np.concatenate([(one_in - other_in - found) / n, (one_out - other_out - found) / m])
    if images is None:
        variance = sum(part.var(ddof=1) * len(part) for part in (pull[:n], pull[n:]))
    else:
        _, number = np.unique(np.concatenate(numbers), return_inverse=True)
        sums = np.bincount(number, weights=pull)
        variance = (sums**2).sum() * len(sums) / (len(sums) - 1)
    if not variance > 0:
        return Difference(found, -1.0, 1.0, 1.0, n, m)
    reach = float(np.sqrt(variance))
    ends = found - NORMAL_975 * reach, found + NORMAL_975 * reach
    return Difference(found, max(-1.0, ends[0]), min(1.0, ends[1]), p_value(found, reach), n, m)


class Area(NamedTuple):
    """AUROC, and how far each sample pulls it.

    A pull is what a sample adds to the deviation of the figure from its expectation (DeLong et al. 1988), so pulls of several
    figures add up as the figures do, and the variance of a figure is that of the sum of its pulls.

    Attributes:
        auroc: the area, a fraction.
        inside, outside: pulls (n,) of in-distribution and (m,) of anomalous samples; either side's sum is 0.
    """

    auroc: float
    inside: np.ndarray
    outside: np.ndarray


def area(inside: np.ndarray, outside: np.ndarray) -> Area:
    """AUROC of scores (n,) of in-distribution and (m,) of anomalous samples, with its pulls."""
    of_inside, of_outside, auroc = _components(inside, outside)
    return Area(auroc, (of_inside - auroc) / len(inside), (of_outside - auroc) / len(outside))


def deviation(sums: Sequence[np.ndarray]) -> float:
    """The standard deviation of a figure, from the sums (C,) of the pulls of each of C independent images.

    With several arrays, the images of one may be those of another, and nothing is known of which: the standard deviations are
    added, which is at least as wide as necessary.
    """
    return sum(float(np.sqrt((of @ of) * len(of) / (len(of) - 1))) for of in sums if len(of) > 1)


def p_value(figure: float, spread: float) -> float:
    """Two-sided p value of no difference, normal; 1 where the standard deviation is 0, so that nothing is known."""
    if not spread > 0:
        return 1.0
    from scipy.special import ndtr

    return float(2 * ndtr(-abs(figure) / spread))


def holm(p_values: Any) -> np.ndarray:
    """p values (k,) of k comparisons, adjusted by Holm's step-down method (Scandinavian Journal of Statistics 6, 1979).

    An adjusted one below 5 % is significant, and the probability that any of these is so by chance is at most 5 %.
    """
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    stepped = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _components(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The share of right pairs of each in-distribution sample (n,) and of each anomalous one (m,), ties counting half, and the
    area; one sort for all."""
    n, m = len(inside), len(outside)
    scores = np.concatenate([inside, outside])
    order = np.argsort(scores)
    ascending, is_inside = scores[order], order < n
    ends = np.append(ascending[1:] != ascending[:-1], True)  # the last of each distinct score
    place = np.cumsum(ends) - ends  # which distinct score each has
    last = np.flatnonzero(ends)
    in_up_to = np.cumsum(is_inside)[last]
    out_up_to = last + 1 - in_up_to
    in_below = (in_up_to - np.diff(in_up_to, prepend=0) / 2) / n
    out_below = (out_up_to - np.diff(out_up_to, prepend=0) / 2) / m
    found = np.empty(n + m)
    found[order] = np.where(is_inside, 1 - out_below[place], in_below[place])
    return found[:n], found[n:], float(found[n:].mean())
