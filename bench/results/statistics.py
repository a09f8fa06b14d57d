"""Whether two detectors differ on one set: their AUROC on the same images, whose scores are correlated."""

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
    from scipy.special import ndtr

    reach = float(np.sqrt(variance))
    ends = found - NORMAL_975 * reach, found + NORMAL_975 * reach
    return Difference(found, max(-1.0, ends[0]), min(1.0, ends[1]), float(2 * ndtr(-abs(found) / reach)), n, m)


def _components(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The share of right pairs of each in-distribution sample (n,) and of each anomalous one (m,), and the area."""
    in_order, out_order = np.sort(inside), np.sort(outside)

    def below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
        """The share of ``others``, sorted, that is below each value; ties count half."""
        return (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / (2 * len(others))

    of_outside = below(outside, in_order)
    return 1 - below(inside, out_order), of_outside, float(of_outside.mean())
