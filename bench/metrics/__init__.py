"""How well scores separate anomalous from in-distribution images, computed from ranks only.

Conventions: positive = anomalous (``out``), a higher score = more anomalous, and a threshold t *accepts* a sample as
in-distribution iff its score is <= t. All figures are fractions in [0, 1] and depend only on the order of scores, so 1e300
is as good a score as 0.3; no score goes through a sigmoid, where large scores would tie.

The field's tools disagree on three of these figures, so compare across tools with care:

- AUPR: step-wise here, like scikit-learn's ``average_precision_score``; OpenOOD and pytorch-ood interpolate the curve
  with trapezoids. The two differ little, unless many scores tie: then trapezoids are optimistic (Davis & Goadrich 2006).
- FPR95: here at the threshold that accepts 95 % of in-distribution samples (Hendrycks & Gimpel 2017, Liang et al.
  2018); OpenOOD and pytorch-ood use the anomalous side as the positive class and fix 95 % of that.
- Detection error: with equal weight for both sides (Liang et al. 2018, Lee et al. 2018); others weight by prevalence.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from oodbench.errors import BadData
from oodbench.metrics.ranks import SORTED, Ranked

REPLICATES = 1000  # number of bootstrap replicates over clusters
BLOCK, PARTS = 256, 16  # scores whose weights are added up at once, and parts of that sum
AT_ONCE, MOST_ELEMENTS = 500, 2**24  # replicates, and replicates x samples, in memory at once: at most 250 megabytes
NORMAL_975 = 1.959963984540054  # the standard normal's 97.5 % quantile
SINGLE, DOUBLE = 5e-7, 1e-12  # relative spread of equal scores that are computed in float32, in float64
MOST_CLUSTERS, MOST_SAMPLES = 100_000, 10**7  # base images and samples of a bootstrap
TAIL = 0.025  # share outside a 95 % interval on each side
SMALL = 20  # samples of a side from which DeLong's interval is used


def alike(scores: np.ndarray) -> bool:
    """Whether scores (N,) differ by rounding at most: that of float32 if float32 holds them exactly, else that of float64.

    Softmax probabilities in float64 may differ by less than float32 resolves, and still separate images.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        single = np.array_equal(scores.astype(np.float32), scores)
        spread = float(np.ptp(scores))
    return bool(np.isfinite(spread)) and spread <= (SINGLE if single else DOUBLE) * float(np.abs(scores).max())


@dataclass(frozen=True)
class Metrics:
    """Figures of one detector on one in-distribution set (n scores) against one anomalous set (m scores).

    Attributes:
        auroc: P(anomalous > in-distribution) + P(equal) / 2 over all n·m pairs, the Mann-Whitney statistic.
        auroc_low, auroc_high: its 95 % interval (see ``evaluate``).
        aupr_out: average precision of the anomalous class, Σ (recall_k − recall_{k−1}) · precision_k over distinct
            thresholds; without skill it is m / (n + m).
        aupr_in: the same for the in-distribution class, on negated scores; without skill n / (n + m).
        fpr95: the share of anomalies accepted at the threshold that accepts 95 % of in-distribution samples
            (see ``fpr95``). 1 − fpr95 is what Lee et al. 2018 call TNR at 95 % TPR.
        detection_accuracy: ½ max over thresholds of (TPR + TNR), including a threshold that accepts nothing.
        detection_error: 1 − detection_accuracy = min ½ (FNR + FPR).
        detection_error_weighted: min over thresholds of (FN + FP) / (n + m): the share of all n + m samples that the
            best threshold gets wrong; it depends on the number of samples on each side.
    """

    auroc: float
    auroc_low: float
    auroc_high: float
    aupr_out: float
    aupr_in: float
    fpr95: float
    detection_accuracy: float
    detection_error: float
    detection_error_weighted: float


def evaluate(
    in_scores: Any,
    out_scores: Any,
    *,
    in_clusters: Any = None,
    out_clusters: Any = None,
    seed: int = 0,
) -> Metrics:
    """All figures for scores of in-distribution (n,) and anomalous samples (m,), higher = more anomalous.

    The interval of AUROC is DeLong's (1988) on the logit scale, where it cannot leave [0, 1] and has better coverage than
    the symmetric one near 1 (Pepe 2003). With fewer than 20 samples on a side it covers too little, and is Newcombe's (2006,
    method 5). With ``in_clusters`` (n,) and ``out_clusters`` (m,), the base image that each sample was made from, samples
    are not independent; the interval is then a percentile bootstrap that draws base images with replacement, all copies of
    one together (1000 replicates, seeded). Equal ids on both sides are the same image. With more than 100,000 base images or
    ten million samples it is DeLong's with the variance of clusters (Obuchowski 1997), which takes less time and memory.

    If all pairs agree (AUROC is 0 or 1, or all scores tie), both would give an interval of width zero. The interval is then
    widened according to the number of independent pairs: AUROC 1 of 1000 samples per side has [.9963, 1]. If pairs disagree
    but there is only one independent pair (a single sample or base image on one side), nothing is known: [0, 1].

    Without clusters, memory holds a sorted copy of the scores, in their dtype if that is float32, and little else.

    Raises BadData for an empty side, scores that are not one-dimensional, or scores that are NaN or infinity. Infinity could
    be ranked, but it comes from an overflow that makes scores tie.
    """
    inside, outside = _checked(in_scores, "in-distribution"), _checked(out_scores, "anomalous")
    ranked = Ranked(inside, outside)
    area = ranked.area()
    n, m = len(inside), len(outside)
    clusters = clusters_of(in_clusters, out_clusters, n, m)
    pairs = clusters.independent_pairs if clusters else min(n, m)
    if area in (0, 1) or ranked.all_tie():
        low, high = _exact_interval(area, pairs)
    elif pairs < 2:
        low, high = 0.0, 1.0
    elif clusters and (sum(clusters.strata) > MOST_CLUSTERS or n + m > MOST_SAMPLES):
        low, high = logit_interval(area, _clustered_deviation(ranked, inside, outside, clusters, area))
    elif clusters:
        low, high = percentile_interval(bootstrap_auroc(inside, outside, clusters, seed), area)
    elif min(n, m) < SMALL:
        low, high = _newcombe_interval(area, n, m)
    else:
        low, high = _delong_interval(ranked, area)
    # The maximum is never below 1/2, the value of the threshold that accepts everything.
    accuracy, wrong, aupr_out, aupr_in = 0.5, n, 0.0, 0.0
    for counts in ranked:
        accepted_in, accepted_out = counts.accepted_in, counts.accepted_out
        rejected_out = m - accepted_out + counts.outside  # rejected as anomalous: score >= value
        rejected_in = n - accepted_in + counts.inside
        accuracy = max(accuracy, float((accepted_in / n + (m - accepted_out) / m).max() / 2))
        wrong = min(wrong, int((accepted_out + n - accepted_in).min()))
        aupr_out += float(counts.outside @ (rejected_out / (rejected_out + rejected_in)))
        aupr_in += float(counts.inside @ (accepted_in / (accepted_in + accepted_out)))
    return Metrics(
        auroc=area,
        auroc_low=low,
        auroc_high=high,
        aupr_out=aupr_out / m,
        aupr_in=aupr_in / n,
        fpr95=ranked.fpr95(),
        detection_accuracy=accuracy,
        detection_error=1 - accuracy,
        detection_error_weighted=wrong / (n + m),
    )


def auroc(in_scores: Any, out_scores: Any) -> float:
    """Area under the ROC curve of scores (n,) and (m,): the share of correctly ordered pairs, ties counting half."""
    return Ranked(_checked(in_scores, "in-distribution"), _checked(out_scores, "anomalous")).area()


def fpr95(in_scores: Any, out_scores: Any) -> float:
    """The share of anomalies (m,) that are accepted while 95 % of in-distribution samples (n,) are accepted.

    The threshold is the smallest in-distribution score t such that at least 95 % of in-distribution scores are <= t:
    the k-th smallest, k = ⌈.95 n⌉, an integer computation without interpolation. An anomaly is accepted iff its score is
    <= t, so one that ties with the threshold is accepted, like the in-distribution samples there.
    """
    return Ranked(_checked(in_scores, "in-distribution"), _checked(out_scores, "anomalous")).fpr95()


def _delong_interval(ranked: Ranked, area: float) -> tuple[float, float]:
    """95 % interval after DeLong et al. 1988, in O(n log n) through midranks (Sun & Xu 2014), on the logit scale.

    The structural component of an anomalous sample is the share of in-distribution samples below it; that of an
    in-distribution sample is the share of anomalous samples above it. The variance of AUROC is the sum of their variances,
    each divided by its number of samples.
    """
    n, m = len(ranked.inside), len(ranked.outside)
    squares_in = squares_out = 0.0
    for counts in ranked:
        of_outside = (counts.accepted_in - counts.inside / 2) / n
        of_inside = 1 - (counts.accepted_out - counts.outside / 2) / m
        squares_out += float(counts.outside @ (of_outside - area) ** 2)
        squares_in += float(counts.inside @ (of_inside - area) ** 2)
    return logit_interval(area, float(np.sqrt(squares_out / (m - 1) / m + squares_in / (n - 1) / n)))


def _clustered_deviation(ranked: Ranked, inside: np.ndarray, outside: np.ndarray, clusters: "Clusters", area: float) -> float:
    """Standard deviation of AUROC after Obuchowski (Biometrics 53, 1997): DeLong's components are summed by cluster."""
    sums = np.zeros(sum(clusters.strata))
    for own, other, numbers, flip in (
        (inside, ranked.outside, clusters.inside, True),
        (outside, ranked.inside, clusters.outside, False),
    ):
        for start in range(0, len(own), SORTED):
            some = own[start : start + SORTED].astype(other.dtype, copy=False)
            below = (np.searchsorted(other, some, "left") + np.searchsorted(other, some, "right")) / (2 * len(other))
            pulls = ((1 - below if flip else below) - area) / len(own)
            np.add.at(sums, numbers[start : start + SORTED], pulls)
    return float(np.sqrt(sums @ sums * len(sums) / (len(sums) - 1)))


def logit_interval(share: float, deviation: float) -> tuple[float, float]:
    """The 95 % interval of a share in (0, 1) with this standard deviation, normal on the logit scale."""
    centre, reach = np.log(share / (1 - share)), NORMAL_975 * deviation / (share * (1 - share))
    low, high = 1 / (1 + np.exp(-np.clip([centre - reach, centre + reach], -700, 700)))
    return float(low), float(high)


def _newcombe_interval(area: float, n: int, m: int) -> tuple[float, float]:
    """95 % interval of Newcombe (Statistics in Medicine 25, 2006, part 2), method 5: a score interval.

    Its ends t solve |area − t| = 1.96 √V(t), with the variance of Hanley and McNeil (1982) at t and the mean of both
    numbers of samples in place of each.
    """
    others = (n + m) / 2 - 1

    def inside(t: float) -> bool:
        variance = t * (1 - t) * (1 + others * ((1 - t) / (2 - t) + t / (1 + t))) / (n * m)
        return (area - t) ** 2 <= NORMAL_975**2 * variance

    def end(outside: float) -> float:
        within = area
        for _ in range(60):  # bisection: to the last bit
            middle = (outside + within) / 2
            outside, within = (outside, middle) if inside(middle) else (middle, within)
        return within

    return end(0.0), end(1.0)


def _exact_interval(area: float, pairs: int) -> tuple[float, float]:
    """The interval if all pairs agree, so that no spread can be estimated.

    ``pairs`` of them are independent; if another outcome were more probable than ``other``, all of them would agree in less
    than 2.5 % of cases.
    """
    other = 1 - TAIL ** (1 / pairs) if pairs else 1.0
    return area * (1 - other), area + (1 - area) * other


def binomial_interval(count: int, of: int, confidence: float = 1 - 2 * TAIL) -> tuple[float, float]:
    """Exact interval of Clopper and Pearson (1934) of the share of ``count`` in ``of`` independent cases."""
    from scipy.stats import binomtest

    found = binomtest(count, of).proportion_ci(confidence)
    return float(found.low), float(found.high)


class Clusters(NamedTuple):
    """Base images, numbered from 0: first those only on the in side, then only on the out side, then the shared ones.

    Each of these strata is sampled separately: both sides keep their number of base images, and neither is ever empty.
    """

    inside: np.ndarray  # int64 (n,), the number of each sample's base image
    outside: np.ndarray  # int64 (m,)
    strata: tuple[int, int, int]  # base images on the in-distribution side only, on the anomalous side only, on both

    @property
    def independent_pairs(self) -> int:
        """Number of (in, out) pairs that can be formed without using a base image twice."""
        only_in, only_out, shared = self.strata
        return min(only_in + shared, only_out + shared, sum(self.strata) // 2)


def clusters_of(in_ids: Any, out_ids: Any, n: int, m: int) -> Clusters | None:
    """Numbered clusters from ids of any kind (n,), (m,); None if neither is given."""
    if in_ids is None and out_ids is None:
        return None
    sides = []
    for ids, size, side in ((in_ids, n, "in-distribution"), (out_ids, m, "anomalous")):
        shape = () if ids is None else np.shape(ids)
        if shape != (size,):
            given = "no base-image ids" if ids is None else f"base-image ids of shape {shape}"
            raise BadData(f"{given} for {size} {side} scores; give one per score on both sides, or none at all")
        sides.append(np.asarray(ids))
    ids, cluster = np.unique(np.concatenate(sides), return_inverse=True)
    has_in, has_out = np.zeros((2, len(ids)), dtype=bool)
    has_in[cluster[:n]] = has_out[cluster[n:]] = True
    stratum = np.where(has_in & has_out, 2, np.where(has_out, 1, 0))
    number = np.empty(len(ids), dtype=np.int64)
    number[np.argsort(stratum, kind="stable")] = np.arange(len(ids))
    only_in, only_out, shared = np.bincount(stratum, minlength=3).tolist()
    return Clusters(number[cluster[:n]], number[cluster[n:]], (only_in, only_out, shared))


def bootstrap_auroc(
    inside: np.ndarray, outside: np.ndarray, clusters: Clusters, seed: int, replicates: int = REPLICATES
) -> np.ndarray:
    """AUROC (replicates,) of resampled clusters, each sample weighted by how often its cluster was drawn.

    For each position of a stratum, a replicate draws one of the stratum's clusters. One sort is used for all replicates,
    and the draws are shared by all scores with the same seed and the same numbers of base images. Blocks of scores are small
    enough for the processor's cache; whole arrays would take twice as long.
    """
    drawn = draws(clusters.strata, seed, replicates)  # (C, R)
    in_order, out_order = np.argsort(inside), np.argsort(outside)
    in_rows, out_rows = clusters.inside[in_order], clusters.outside[out_order]
    below, up_to = (np.searchsorted(inside[in_order], outside[out_order], side) for side in ("left", "right"))
    ranks = [below] if np.array_equal(below, up_to) else [below, up_to]
    passed = np.zeros((BLOCK + 1, replicates), dtype=np.int32)  # weight of the lowest scores: exact, at most 255 n
    won, total_out = np.zeros((2, replicates), dtype=np.int64)
    for first in range(0, len(inside) + 1, BLOCK):
        passed[0] = passed[-1]
        _cumulate(passed, drawn[in_rows[first : first + BLOCK]])
        exact = np.int32 if int(passed[-1].max()) * BLOCK * 255 < 2**31 else np.int64  # holds the sum of BLOCK products
        for rank in ranks:
            start, end = np.searchsorted(rank, (first, first + BLOCK))
            for row in range(start, end, BLOCK):
                rows = slice(row, min(row + BLOCK, end))
                weights = drawn[out_rows[rows]]
                won += np.einsum("mr,mr->r", passed[rank[rows] - first], weights, dtype=exact)
                total_out += weights.sum(0, dtype=np.int32)
    return won / (passed[-1] * total_out)  # with ties, both count each pair twice


def _cumulate(passed: np.ndarray, weights: np.ndarray) -> None:
    """Write to ``passed[1:]`` (BLOCK, R) its first row plus the cumulative sum of ``weights`` (at most BLOCK, R).

    As ``numpy.cumsum(axis=0)``, but adds whole rows, which are contiguous in memory, of several parts at once.
    """
    sums = passed[1:]
    sums[: len(weights)], sums[len(weights) :] = weights, 0
    parts = sums.reshape(PARTS, BLOCK // PARTS, -1)
    for row in range(1, BLOCK // PARTS):
        parts[:, row] += parts[:, row - 1]
    parts[0] += passed[0]
    for part in range(1, PARTS):
        parts[part] += parts[part - 1, -1]


def _at_once(samples: int) -> int:
    """How many replicates of this many samples to compute at once."""
    return max(1, min(AT_ONCE, MOST_ELEMENTS // samples))


@lru_cache(maxsize=4)  # a run's cells of one protocol share their draws; at 10,000 base images each takes 10 MB
def draws(strata: tuple[int, int, int], seed: int, replicates: int) -> np.ndarray:
    """How often each replicate draws each cluster: uint8 (C, replicates), read-only; replicates are contiguous in memory.

    A byte is enough: drawing one of more than 255 clusters that often has a probability of less than 1 / 256!.
    """
    ends = np.repeat(np.cumsum(strata), strata)  # (C,) end of each cluster's stratum
    starts = ends - np.repeat(strata, strata)
    random = np.random.default_rng(seed)
    found = np.empty((len(ends), replicates), dtype=np.uint8)
    step = _at_once(len(ends))
    for first in range(0, replicates, step):
        rows = min(step, replicates - first)
        drawn = random.integers(starts, ends, size=(rows, len(ends)))
        drawn += np.arange(rows)[:, None] * len(ends)
        found[:, first : first + rows] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).T
    found.flags.writeable = False
    return found


def percentile_interval(replicates: np.ndarray, area: float) -> tuple[float, float]:
    """The middle 95 % of replicates, extended to include the estimate.

    An image drawn twice adds weight to the pairs of its own copies. If these pairs alone matter (a shift so mild that it
    moves all scores equally), all replicates are on one side of the estimate.
    """
    low, high = np.quantile(replicates, [TAIL, 1 - TAIL])
    return min(float(low), area), max(float(high), area)


def _checked(scores: Any, side: str) -> np.ndarray:
    """float64 (n,), or float32 as given. Raises BadData for anything else."""
    try:
        values = np.asarray(scores)
        values = values if values.dtype == np.float32 else values.astype(np.float64, copy=False)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadData(f"{side} scores are not an array of numbers ({error}); give one number per sample") from error
    if values.ndim != 1:
        raise BadData(f"{side} scores have shape {values.shape}; give one score per sample, shape (n,)")
    if len(values) == 0:
        raise BadData(f"there are no {side} scores; AUROC needs at least one sample on each side")
    finite = np.isfinite(values)
    if not finite.all():
        raise BadData(
            f"{len(values) - finite.sum()} of {len(values)} {side} scores are not finite (NaN or infinity), the first in"
            f" position {int(np.argmin(finite))}; fix the detector that gave them"
        )
    return values
