"""Which rows of a table cannot be told from the best of their column: paired tests on the same images, from stored scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from oodbench.leaderboard.aggregate import APART, BENIGN, ROW, Tally, best_of
from oodbench.leaderboard.paired import MeanOfSets, Pulls, SetOfCells, set_weights
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.results.statistics import holm, p_value

Key = tuple[str, str, str]  # of a set: kind, name and content

LEVEL = 0.05  # of all comparisons of one column
TESTED = "auroc"  # the metric that has a paired test
RULE = (
    "Bold: the best of a protocol, the controls apart, and all rows that are not distinguishable from it at 5 % (DeLong's"
    " paired test on the same test images; Holm's method over the comparisons of a column)."
)
BEST_ALONE = "Bold: the best of a protocol, the controls apart; whether others differ from it was not tested"


def like_the_best(cells: pd.DataFrame, found: Tally, entrants: Sequence[list[int]], scores: StoredScores) -> list[set[int]]:
    """For each column of a tally the rows, by place, that are not distinguishable from the best of their protocol.

    Args:
        cells: one row per cell, of one model and in-distribution set.
        found: their tally of ``TESTED``.
        entrants: places of the rows of each protocol that compete.
        scores: where the scores of a cell are read.

    Rows that were tested on other images than the best, as after a run with other data, are not among them. Raises BadData
    where scores are missing or damaged.
    """
    scores.require_quick()
    alike: list[set[int]] = [set() for _ in range(found.values.shape[1])]
    measured = cells[(cells["status"] == "ok") & cells[TESTED].notna() & (cells["kind"] != BENIGN)]
    by_row: Any = dict(iter(measured.groupby(ROW, sort=False, dropna=False)))
    keys = found.values.index.to_list()
    for rows in entrants:
        protocol = _Protocol({row: by_row[keys[row]] for row in rows if keys[row] in by_row}, scores)
        columns: Any = found.values.columns
        for place, (group, name, content) in enumerate(columns):
            best, complete = best_of(found, place, rows, TESTED)
            if best is not None and BENIGN not in (group, name):
                alike[place] |= protocol.like(best, complete, group, name, content)
    return alike


class _Protocol:
    """The pulls of the rows of one protocol, by set."""

    def __init__(self, rows: dict[int, pd.DataFrame], scores: StoredScores) -> None:
        by_set: dict[Key, dict[int, list[dict[Any, Any]]]] = {}
        for row, cells in rows.items():
            for cell in cells.to_dict("records"):
                by_set.setdefault((cell["kind"], cell["dataset"], cell["content"]), {}).setdefault(row, []).append(cell)
        self._sets: dict[Key, SetOfCells] = {}
        self._pulls: dict[Key, dict[int, Pulls]] = {}
        self._means: dict[tuple[Key, ...], MeanOfSets] = {}
        in_scores: dict[int, dict[str, np.ndarray]] = {row: {} for row in rows}  # many sets share them
        for key, of in by_set.items():
            most = max(of.values(), key=len)
            layout = self._sets[key] = SetOfCells(most, scores)
            each = ((row, layout.pulls(cells, in_scores[row])) for row, cells in of.items())
            self._pulls[key] = {row: pulls for row, pulls in each if pulls is not None}

    def like(self, best: int, complete: Sequence[int], group: str, name: str, content: str) -> set[int]:
        """The rows of ``complete`` that are not distinguishable from the best in a column; without scores in common none."""
        sets = [key for key in self._sets if key == (group, name, content) or (group == "mean" and name == key[0])]
        if (group, name) == ("mean", "all"):
            sets = [key for key in self._sets if key[0] not in APART]
        pulls = {row: [self._pulls[key].get(row) for key in sets] for row in complete}
        known = {row: [one for one in of if one is not None] for row, of in pulls.items() if None not in of}
        others = [row for row in known if row != best]
        if best not in known or not others:
            return set()
        mean = self._means.get(tuple(sets))
        if mean is None:
            mean = self._means[tuple(sets)] = MeanOfSets([self._sets[key] for key in sets], set_weights(sets))
        p_values = [p_value(*mean.difference(known[best], known[row])) for row in others]
        return {row for row, p in zip(others, holm(p_values), strict=True) if p >= LEVEL}
