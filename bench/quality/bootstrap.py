"""Figures of a quality metric in bootstrap replicates: all replicates at once, from sums over groups of images."""

from collections.abc import Iterator

import numpy as np

from oodbench.metrics import REPLICATES, draws
from oodbench.quality.mapping import TINY, curves, near, standardised, starts

STEP = 100  # replicates at a time, so that they stay in the processor's memory
PAIRS = 2**22  # pairs of images at a time
CURVES = 64  # at a time
ALIKE = 1e-9  # share of a curve's sum of squares up to which it is a line in a replicate


class Replicates:
    """1000 replicates that draw groups of images with replacement, all images of a group together.

    A figure of all replicates is float64 (1000,), and NaN where all values or all scores of a replicate are equal.

    Args:
        values, scores: float64 (N,).
        groups: int64 (N,), numbers from 0 without gaps.
    """

    def __init__(self, values: np.ndarray, scores: np.ndarray, groups: np.ndarray, seed: int) -> None:
        self._order = np.argsort(groups, kind="stable")
        self._values, self._scores, self._groups = values[self._order], scores[self._order], groups[self._order]
        self._first = np.searchsorted(self._groups, np.arange(groups.max() + 1))  # (G,) image of each group
        self._drawn = draws((len(self._first), 0, 0), seed, REPLICATES).astype(np.float64)  # (G, R)

    def srcc(self) -> np.ndarray:
        """Spearman's rank correlation of values and scores."""
        places = [_places(self._values), _places(self._scores)]
        found = np.empty(REPLICATES)
        for part in _parts(REPLICATES, STEP):
            weights = self._drawn[self._groups, part]  # (N, STEP)
            one, other = (_midranks(weights, *place) for place in places)
            product, ones, others = ((weights * a * b).sum(0) for a, b in ((one, other), (one, one), (other, other)))
            found[part] = _ratio(product, np.sqrt(ones * others))
        return found

    def krcc(self) -> np.ndarray:
        """Kendall's tau-b of values and scores. Copies of one image tie in both."""
        ranks = [np.unique(n, return_inverse=True)[1].astype(np.float32) for n in (self._values, self._scores)]
        drawn = self._drawn.astype(np.float32)  # which holds whole numbers up to 2^24
        sums = np.zeros((3, REPLICATES))  # concordant less discordant pairs, pairs of unequal values, pairs of unequal scores
        for rows in _parts(len(self._groups), max(1, PAIRS // len(self._groups))):
            one, other = (np.sign(rank[rows, None] - rank) for rank in ranks)  # (rows, N)
            weights = self._drawn[self._groups[rows]]  # (rows, R)
            for sum_, signs in zip(sums, (one * other, np.abs(one), np.abs(other)), strict=True):
                sum_ += (weights * (np.add.reduceat(signs, self._first, axis=1) @ drawn)).sum(0)
        return _ratio(sums[0], np.sqrt(sums[1] * sums[2]))

    def mapped(
        self, kind: str, parameters: tuple[float, ...], deviations: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """RMSE, PLCC (at least 0) and, with deviations (N,), the outlier ratio of the mapping, fitted in each replicate.

        A logistic one is the best curve of the grid of starts and of a finer grid around ``parameters``.
        """
        x, y, (centre, scale) = standardised(self._values, self._scores, kind)
        columns = np.stack([x, np.ones_like(x)], 1)
        grid = np.empty((0, len(x)))
        if kind == "logistic":
            around = near(parameters[1] * scale, (parameters[2] - centre) / scale)
            grid = np.concatenate([curves(x, *places).reshape(-1, len(x)) for places in (starts(x), around)])
        best = self._best(grid, x, y - y.mean()) if len(grid) else None
        rmse, plcc, outliers = np.empty((3, REPLICATES))
        sigma = None if deviations is None else deviations[self._order]
        for replicate in range(REPLICATES):
            weights = self._drawn[self._groups, replicate]
            total = weights.sum()
            fitted = columns if best is None else np.column_stack([grid[best[replicate]], columns])
            root = np.sqrt(weights)
            factors = np.linalg.lstsq(fitted * root[:, None], y * root, rcond=None)[0]
            error = y - fitted @ factors
            variance = float(weights @ (y - weights @ y / total) ** 2) / total
            squared = float(weights @ error**2) / total
            spread = float(weights @ (x - weights @ x / total) ** 2) / total
            usable = spread > TINY and variance > TINY * y.var()
            rmse[replicate] = np.sqrt(squared) if usable else np.nan
            plcc[replicate] = np.sqrt(max(0.0, 1 - squared / variance)) if usable else np.nan
            outliers[replicate] = np.nan if sigma is None else float(weights @ (np.abs(error) > 2 * sigma)) / total
        return rmse, plcc, None if sigma is None else outliers

    def _best(self, grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The row of the grid (M, N) that explains most of y minus its best line in x, in each replicate: int64 (R,)."""
        total = self._sums(np.ones_like(x))

        def covariance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
            return self._sums(one * other) / total - self._sums(one) * self._sums(other) / total**2

        most, best = np.full(REPLICATES, -1.0), np.zeros(REPLICATES, np.int64)
        slope, variance = _ratio(covariance(x, y), covariance(x, x)), covariance(x, x)
        for part in _parts(len(grid), CURVES):
            of_x = covariance(grid[part], x)  # (CURVES, R)
            of_rest = covariance(grid[part], y) - of_x * slope
            power = covariance(grid[part], grid[part]) - of_x * _ratio(of_x, variance)
            explained = np.divide(of_rest**2, power, out=np.zeros_like(power), where=power > ALIKE / len(x))
            row = explained.argmax(0)
            found = explained[row, np.arange(REPLICATES)]
            best, most = np.where(found > most, part.start + row, best), np.fmax(found, most)
        return best

    def _sums(self, numbers: np.ndarray) -> np.ndarray:
        """Sums (…, R) of numbers (…, N) in each replicate."""
        return np.asarray(np.add.reduceat(numbers, self._first, axis=-1) @ self._drawn)


def _places(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The order of numbers (N,), and how many are below each, or up to it."""
    order = np.argsort(numbers, kind="stable")
    below, up_to = (np.searchsorted(numbers[order], numbers, side) for side in ("left", "right"))
    return order, below, up_to


def _midranks(weights: np.ndarray, order: np.ndarray, below: np.ndarray, up_to: np.ndarray) -> np.ndarray:
    """Midranks (N, R) of images that occur as often as ``weights`` (N, R) says, with mean 0."""
    passed = np.zeros((len(order) + 1, weights.shape[1]))
    np.cumsum(weights[order], axis=0, out=passed[1:])
    return np.asarray((passed[below] + passed[up_to] - passed[-1]) / 2)


def _ratio(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """One divided by the other, NaN where the other is 0."""
    return np.divide(one, other, out=np.full(np.broadcast(one, other).shape, np.nan), where=other > 0)


def _parts(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
