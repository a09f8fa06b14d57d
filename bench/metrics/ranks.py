"""Scores of two sides in order, counted block by block, so that memory holds little beside the sorted scores."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SORTED = 2**20  # scores of a side that are counted at once: about 150 megabytes, however many there are


class Counts(NamedTuple):
    """How many samples of each side have each distinct score of a block, ascending: int64 (U,) each."""

    inside: np.ndarray
    outside: np.ndarray
    accepted_in: np.ndarray  # how many have this score or a smaller one, also of earlier blocks
    accepted_out: np.ndarray


class Ranked:
    """The scores of both sides, sorted; iterating gives the counts of distinct scores block by block, in ascending order."""

    def __init__(self, inside: np.ndarray, outside: np.ndarray) -> None:
        dtype = np.result_type(inside, outside)
        self.inside, self.outside = (np.sort(side.astype(dtype, copy=False)) for side in (inside, outside))
        self._few = list(self._counted()) if max(len(inside), len(outside)) <= SORTED else None

    def __iter__(self) -> Iterator[Counts]:
        return self._counted() if self._few is None else iter(self._few)

    def _counted(self) -> Iterator[Counts]:
        starts = [0, 0]
        while starts != [len(self.inside), len(self.outside)]:
            sides = list(zip((self.inside, self.outside), starts, strict=True))
            # Up to a score that ends no more than SORTED scores of either side, unless more are equal.
            ends = [side[start + SORTED - 1] for side, start in sides if start + SORTED < len(side)]
            stops = [int(np.searchsorted(side, min(ends), "right")) if ends else len(side) for side, _ in sides]
            parts = [side[start:stop] for (side, start), stop in zip(sides, stops, strict=True)]
            ends_of_ties = [_ends(part) for part in parts]
            scores = np.concatenate([part[own] for part, own in zip(parts, ends_of_ties, strict=True)])
            order = np.argsort(scores, kind="stable")  # of two ascending runs: it merges them
            last = _ends(scores[order])
            many = np.zeros((2, len(scores)), dtype=np.int64)
            cut = len(ends_of_ties[0])
            many[0, :cut], many[1, cut:] = (np.diff(own, prepend=-1) for own in ends_of_ties)
            accepted = [start + row[order].cumsum()[last] for row, start in zip(many, starts, strict=True)]
            counts = [np.diff(upto, prepend=start) for upto, start in zip(accepted, starts, strict=True)]
            yield Counts(*counts, *accepted)
            starts = stops

    def all_tie(self) -> bool:
        return bool(self.inside[0] == self.inside[-1] == self.outside[0] == self.outside[-1])

    def area(self) -> float:
        """Twice the in-distribution samples below each anomalous one, ties counting half: an integer, over all pairs."""
        won = sum(int((2 * counts.accepted_in - counts.inside) @ counts.outside) for counts in self)
        return won / (2 * len(self.inside) * len(self.outside))

    def fpr95(self) -> float:
        threshold = self.inside[-(-95 * len(self.inside) // 100) - 1]
        return int(np.searchsorted(self.outside, threshold, "right")) / len(self.outside)


def _ends(ascending: np.ndarray) -> np.ndarray:
    """The place of the last of each group of equal scores."""
    return np.flatnonzero(np.append(ascending[1:] != ascending[:-1], np.ones(min(1, len(ascending)), dtype=bool)))
