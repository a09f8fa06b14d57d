"""95 % intervals of FPR95 and AUPR, from the stored scores and nothing else. Records hold the one of AUROC."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import betaincinv

from oodbench import metrics
from oodbench.errors import BadData, UsageError
from oodbench.metrics import REPLICATES, TAIL, Clusters
from oodbench.registry import unknown
from oodbench.results.recompute import clusters_of

FIGURES = ("aupr_out", "aupr_in", "fpr95")
STEP = 500  # replicates at a time, so that they stay in the processor's memory
KEPT = 4  # draws; of 10,000 base images they take 40 MB each
MOST = 500_000  # base images, for which a bootstrap takes 6 GB
Interval = tuple[float, float]


class Bootstrap:
    """Draws the test images of a pair of sets again and again; keeps what it draws, and its memory, from call to call.

    One sort of each side serves all replicates: sample i counts as often as its base image was drawn, and what a threshold
    accepts is a cumulated weight.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._drawn: dict[tuple[int, int, int], np.ndarray] = {}
        self._memory: dict[str, np.ndarray] = {}

    def replicates(
        self, inside: np.ndarray, outside: np.ndarray, clusters: Clusters, figures: Sequence[str] = FIGURES
    ) -> dict[str, np.ndarray]:
        """Each figure (REPLICATES,) of scores (n,) and (m,), whose ``clusters`` are drawn."""
        in_order, out_order = np.argsort(inside), np.argsort(outside)
        inside, outside = inside[in_order], outside[out_order]
        in_place, out_place = clusters.inside[in_order], clusters.outside[out_order]
        # How many samples of the other side (or of the own one) are below each sample, or up to it.
        in_below_out, out_below_out = (np.searchsorted(side, outside, "left") for side in (inside, outside))
        in_up_to_in, out_up_to_in = (np.searchsorted(side, inside, "right") for side in (inside, outside))
        found: dict[str, list[np.ndarray]] = {figure: [] for figure in figures}
        for drawn in self._weights(clusters.strata):  # (C, STEP)
            in_weights, out_weights = self._taken(drawn, in_place, "a"), self._taken(drawn, out_place, "b")
            below_in, below_out = self._cumulated(in_weights, "c"), self._cumulated(out_weights, "d")
            if "fpr95" in figures:
                accepted = _first_row(below_in, np.ceil(0.95 * below_in[-1].astype(np.float64) - 1e-6))  # (STEP,)
                up_to = out_up_to_in[accepted - 1]
                found["fpr95"].append(below_out[up_to, np.arange(len(up_to))] / below_out[-1])
            if "aupr_out" in figures:  # of what is rejected
                mine, other = self._taken(below_out, out_below_out, "e"), self._taken(below_in, in_below_out, "f")
                np.subtract(below_out[-1], mine, out=mine)
                np.subtract(below_in[-1], other, out=other)
                found["aupr_out"].append(_average_precision(out_weights, mine, other) / below_out[-1])
            if "aupr_in" in figures:  # of what is accepted
                mine, other = self._taken(below_in, in_up_to_in, "e"), self._taken(below_out, out_up_to_in, "f")
                found["aupr_in"].append(_average_precision(in_weights, mine, other) / below_in[-1])
        return {figure: np.concatenate(parts) for figure, parts in found.items()}

    def _weights(self, strata: tuple[int, int, int]) -> np.ndarray:
        """How often each replicate draws each cluster (steps, C, STEP): float32, which holds whole numbers up to 2^24."""
        if strata not in self._drawn:
            drawn = metrics.draws(strata, self._seed, REPLICATES).astype(np.float32)
            for earlier in list(self._drawn)[: 1 - KEPT]:
                del self._drawn[earlier]
            self._drawn[strata] = np.ascontiguousarray(drawn.reshape(len(drawn), -1, STEP).swapaxes(0, 1))
        return self._drawn[strata]

    def _cumulated(self, weights: np.ndarray, name: str) -> np.ndarray:
        """Sums (samples + 1, STEP) of the first rows. Row by row, which is faster than np.cumsum along the first axis."""
        found = self._room(len(weights) + 1, name)
        found[0] = 0
        for before, weight, after in zip(found, weights, found[1:], strict=False):
            np.add(before, weight, out=after)
        return found

    def _taken(self, rows: np.ndarray, places: np.ndarray, name: str) -> np.ndarray:
        return np.take(rows, places, axis=0, out=self._room(len(places), name), mode="clip")

    def _room(self, rows: int, name: str) -> np.ndarray:
        """Memory for (rows, STEP), the same each time: new memory takes longer than the sums."""
        if name not in self._memory or len(self._memory[name]) < rows:
            self._memory[name] = np.empty((rows, STEP), np.float32)
        return self._memory[name][:rows]


def intervals(
    in_scores: Any,
    out_scores: Any,
    figures: Sequence[str] = FIGURES,
    *,
    in_clusters: Any = None,
    out_clusters: Any = None,
    seed: int = 0,
    bootstrap: Bootstrap | None = None,
) -> dict[str, Interval]:
    """The 95 % interval of each figure, (low, high), for scores of in-distribution (n,) and anomalous samples (m,).

    From a bootstrap of 1000 replicates, seeded, that draws samples of each side with replacement, or with ``in_clusters``
    (n,) and ``out_clusters`` (m,) the base images that they were made from, all copies of one together, as
    ``oodbench.evaluate`` does for AUROC. That of AUPR has the replicates' standard deviation on the logit scale, because
    images that are drawn twice bias the replicates themselves; where all pairs agree, it goes to what AUPR would be if as
    many images as may go unseen ranked on the wrong side. That of FPR95 is the middle 95 % of the replicates, and never
    narrower than the exact interval (Clopper and Pearson 1934) of the share accepted at the threshold as it is.

    ``bootstrap``: one of the same seed, which many calls share to save time.

    Raises UsageError for an unknown figure, BadData as ``oodbench.evaluate`` and for more than 500,000 base images.
    """
    for figure in figures:
        if figure not in FIGURES:
            raise UsageError(unknown("figure", figure, FIGURES, f"intervals are computed of {', '.join(FIGURES)}"))
    found = metrics.evaluate(in_scores, out_scores)
    inside, outside = (np.asarray(scores, dtype=np.float64) for scores in (in_scores, out_scores))
    n, m = len(inside), len(outside)
    clusters = metrics.clusters_of(in_clusters, out_clusters, n, m) or Clusters(np.arange(n), n + np.arange(m), (n, m, 0))
    if (count := sum(clusters.strata)) > MOST:
        raise BadData(
            f"{count:,} base images are too many for the intervals of {', '.join(FIGURES)}, which draw them 1000 times; give"
            f" the scores of at most {MOST:,}, or take the interval of AUROC, which needs no draws"
        )
    drawn = (bootstrap or Bootstrap(seed)).replicates(inside, outside, clusters, figures)
    _, only_out, shared = clusters.strata
    unseen = 1 - TAIL ** (1 / max(1, clusters.independent_pairs))
    ends = {}
    for figure in figures:
        value = getattr(found, figure)
        if clusters.independent_pairs < 2:
            low, high = 0.0, 1.0
        elif figure == "fpr95":
            low, high = metrics.percentile_interval(drawn[figure], value)
            exact = _exact_share(value, only_out + shared)
            low, high = min(low, exact[0]), max(high, exact[1])
        elif found.auroc == 1:
            mine, other = (m, n) if figure == "aupr_out" else (n, m)
            recalled = np.arange(1, mine + 1)
            low, high = float((recalled / (recalled + unseen * other)).mean()), 1.0  # the unseen share ranks before all others
        elif found.auroc == 0 or min(inside.min(), outside.min()) == max(inside.max(), outside.max()):
            low, high = value * (1 - unseen), value + (1 - value) * unseen
        else:
            low, high = metrics.logit_interval(value, float(drawn[figure].std(dtype=np.float64, ddof=1)))
        ends[figure] = (low, high)
    return ends


def intervals_of(
    arrays: Mapping[str, np.ndarray], figures: Sequence[str] = FIGURES, *, seed: int = 0, bootstrap: Bootstrap | None = None
) -> dict[str, Interval]:
    """The intervals from the arrays of a record by role; options as of ``intervals``."""
    clusters = clusters_of(arrays)
    return intervals(arrays["in_scores"], arrays["out_scores"], figures, seed=seed, bootstrap=bootstrap, **clusters)


def _average_precision(weights: np.ndarray, mine: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Σ weight · precision (STEP,) over the samples of a side; those drawn no times have no part in it.

    weights, and how many samples of this side and of the other are beyond each: (side, STEP).
    """
    other += mine
    np.maximum(other, 1, out=other)
    mine /= other
    mine *= weights
    return np.asarray(mine.sum(axis=0))


def _first_row(cumulated: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The first row (R,) of ascending columns (rows, R) that reaches ``wanted`` (R,): binary search in all at once."""
    columns = np.arange(len(wanted))
    low, high = np.zeros(len(wanted), np.int64), np.full(len(wanted), len(cumulated) - 1)
    while (low < high).any():
        middle = (low + high) // 2
        enough = cumulated[middle, columns] >= wanted
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return low


def _exact_share(share: float, of: int) -> Interval:
    """The interval of Clopper and Pearson for a share of ``of`` independent images."""
    hits = share * of
    low = betaincinv(hits, of - hits + 1, TAIL) if hits > 0 else 0.0
    high = betaincinv(hits + 1, of - hits, 1 - TAIL) if hits < of else 1.0
    return float(low), float(high)
