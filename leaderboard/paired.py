"""Figures of rows of a table compared on the same images: how far each image pulls the mean of several AUROCs.

The figure of a set is a mean over its cells (levels, repeats), and that of a kind is a mean over sets, so their pulls are means
of the cells' (``results.statistics``). An image counts once, however many cells it is in: the in-distribution images that all
sets are tested against, and the copies of them that corruptions and attacks are made of.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from oodbench.leaderboard.aggregate import REPEATS, SET, counts_as
from oodbench.leaderboard.plots.stored import ROLES, StoredScores
from oodbench.results.statistics import area, deviation

Rows = tuple[np.ndarray, np.ndarray]  # of either side
SPLIT = ROLES[2:]
FAR = 2**40  # more than any number of an image


class Pulls(NamedTuple):
    """The figure of a row on one set, and the sums of its pulls by image: (C,) for each group of images."""

    figure: float
    sums: dict[str, np.ndarray]


class SetOfCells:
    """The cells that the figure of a set comes from, and their images, as one row has them; others must have the same.

    Images are in groups: cells that are tested against the same in-distribution images share their numbers.
    """

    def __init__(
        self, cells: Sequence[Mapping[str, Any]], scores: StoredScores, only: Mapping[Any, Rows] | None = None
    ) -> None:
        """``only``: by ``place_of``, the rows of either side that count; by default all that were tested."""
        self._scores = scores
        weights = cell_weights(cells)
        self.cells = {place_of(cell): weight for cell, weight in zip(cells, weights, strict=True)}
        self._tested: dict[Any, tuple[Any, ...]] = {}
        self._kept: dict[Any, Rows] = {}  # positions among the scores
        self._groups: dict[Any, str] = {}
        ids: dict[Any, np.ndarray] = {}
        for number, cell in enumerate(cells):
            place, record = place_of(cell), scores.record(cell)
            arrays = scores.arrays(cell)
            self._tested[place] = tested(record)
            self._groups[place] = record.in_fingerprint
            rows = rows_of(arrays)
            kept = rows if only is None else only[place]
            at = [np.isin(of, wanted).nonzero()[0] for of, wanted in zip(rows, kept, strict=True)]
            self._kept[place] = at[0], at[1]
            ids[place] = np.concatenate([
                _numbers(arrays, "in", rows[0][at[0]], 0), _numbers(arrays, "out", rows[1][at[1]], FAR * (1 + number)),
            ])  # fmt: skip
        self.ids: dict[str, np.ndarray] = {}
        self._inverse: dict[Any, np.ndarray] = {}
        for group in dict.fromkeys(self._groups.values()):
            places = [place for place, of in self._groups.items() if of == group]
            self.ids[group], inverse = np.unique(np.concatenate([ids[place] for place in places]), return_inverse=True)
            ends = np.cumsum([len(ids[place]) for place in places])[:-1]
            self._inverse |= dict(zip(places, np.split(inverse, ends), strict=True))

    def pulls(self, cells: Iterable[Mapping[str, Any]], in_scores: dict[str, np.ndarray]) -> Pulls | None:
        """Those of a row with these cells, or None where it lacks one, or was tested on other images.

        ``in_scores``: the row's scores of in-distribution images so far, by hash, which many sets share.
        """
        by_place = {place_of(cell): cell for cell in cells}
        if by_place.keys() != self.cells.keys():
            return None
        figure, sums = 0.0, {group: np.zeros(len(ids)) for group, ids in self.ids.items()}
        for place, cell in by_place.items():
            record = self._scores.record(cell)
            if tested(record) != self._tested[place]:
                return None
            arrays = self._scores.arrays(cell, ROLES[:2], in_scores)
            in_scores[record.arrays["in_scores"]] = arrays["in_scores"]
            kept, weight, sums_of_group = self._kept[place], self.cells[place], sums[self._groups[place]]
            found = area(arrays["in_scores"][kept[0]], arrays["out_scores"][kept[1]])
            figure += weight * found.auroc
            pulls = np.concatenate([found.inside, found.outside])
            sums_of_group += weight * np.bincount(self._inverse[place], pulls, len(sums_of_group))
        return Pulls(figure, sums)


class MeanOfSets:
    """A mean over sets with these weights, and which of their images are one image."""

    def __init__(self, sets: Sequence[SetOfCells], weights: Sequence[float]) -> None:
        self.weights = list(weights)
        self._inverse: dict[str, np.ndarray] = {}
        for group in dict.fromkeys(group for of in sets for group in of.ids):
            # Of anomalous images that no in-distribution image is copied to, every set has its own.
            own = (
                np.where(of.ids[group] >= FAR, of.ids[group] + 1000 * FAR * (1 + n), of.ids[group])
                for n, of in enumerate(sets)
                if group in of.ids
            )
            self._inverse[group] = np.unique(np.concatenate(list(own)), return_inverse=True)[1]

    def difference(self, first: Sequence[Pulls], second: Sequence[Pulls]) -> tuple[float, float]:
        """The first row's mean minus the second's, and the standard deviation of the difference."""
        pairs = list(zip(first, second, self.weights, strict=True))
        figure = sum(weight * (one.figure - other.figure) for one, other, weight in pairs)
        sums = []
        for group, inverse in self._inverse.items():
            pulls = [weight * (one.sums[group] - other.sums[group]) for one, other, weight in pairs if group in one.sums]
            sums.append(np.bincount(inverse, np.concatenate(pulls)))
        return figure, deviation(sums)


def place_of(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    """Level (-1: none) of a cell, and which of ``REPEATS`` it is."""
    return -1.0 if pd.isna(cell["level"]) else float(cell["level"]), *(cell[name] for name in REPEATS)


def tested(record: Any) -> tuple[Any, ...]:
    """What tells whether two cells were tested on the same images: the content of both sides and the split."""
    split = (record.arrays.get(role) for role in SPLIT)
    return record.in_fingerprint, record.fingerprint, record.n_in, record.n_out, *split


def rows_of(arrays: Mapping[str, np.ndarray]) -> Rows:
    """The rows of either side that scores are of."""
    inside, outside = (
        arrays[f"{side}_test"] if f"{side}_test" in arrays else np.arange(len(arrays[f"{side}_scores"]))
        for side in ("in", "out")
    )
    return inside, outside


def _numbers(arrays: Mapping[str, np.ndarray], side: str, rows: np.ndarray, own: int) -> np.ndarray:
    """The number of the image of each row: of in-distribution images and of their copies the same in all sets, of others
    from ``own`` on."""
    if f"{side}_base" not in arrays:
        return rows + own
    numbers = arrays[f"{side}_base"][rows]
    return np.where(numbers <= arrays["in_base"].max(), numbers, numbers + own)


def cell_weights(cells: Sequence[Mapping[str, Any]]) -> list[float]:
    """The weight of each cell in the figure of its set, a mean over repeats and then over levels."""
    levels = [place_of(cell)[0] for cell in cells]
    return [1 / len(set(levels)) / levels.count(level) for level in levels]


def set_weights(sets: Sequence[tuple[str, str, str]]) -> list[float]:
    """The weight of each set (``SET``) in a mean: corruptions of one base count as one, and attacks on it."""
    assert len(SET) == 3
    counted = [(kind, counts_as(kind, dataset, content)) for kind, dataset, content in sets]
    return [1 / len(set(counted)) / counted.count(of) for of in counted]
