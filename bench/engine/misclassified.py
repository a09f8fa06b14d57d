"""Right and wrong answers of the network on one set, told apart by every detector: misclassification as detection.

Wrong answers are the anomalous side and right answers the in-distribution side. The statistics are those of the whole set, so
that a set which is tested or in-distribution needs no further pass.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from oodbench import protocols
from oodbench.detector import Detector
from oodbench.engine.statistics_cache import StatisticsCache
from oodbench.engine.trials import NOTHING, MeasuredTestSet, Trial
from oodbench.errors import Unsuitable, counted
from oodbench.heads import Head
from oodbench.protocols import Split

FEWEST = 10  # answers of either kind


class Answers(MeasuredTestSet):
    """A set of which right answers are one side and wrong answers the other."""

    def __init__(self, kind: str, cache: StatisticsCache, seed: int) -> None:
        super().__init__(kind, Unsuitable("nothing is learnt from correct and wrong predictions"), cache, cache, seed)

    @cached_property
    def copies(self) -> tuple[np.ndarray, np.ndarray] | None:
        (numbers,) = protocols.same_images(self.anomalous.images)
        return (numbers, numbers) if len(np.unique(numbers)) < len(numbers) else None


def trial_of(right: np.ndarray, name: str, heads: Mapping[Detector, Head], detectors: Sequence[Detector]) -> Trial:
    """The trial of the answers on the set of this name, of which ``right`` (N,) says whether they are right.

    Raises Unsuitable where too few are right, or wrong.
    """
    wrong = int((~right).sum())
    if min(wrong, len(right) - wrong) < FEWEST:
        raise Unsuitable(
            f"the network is wrong on {wrong} of {counted(len(right), 'image')} of {name}; {FEWEST} correct and {FEWEST} wrong"
            " predictions are needed"
        )
    split = Split(NOTHING, NOTHING, np.flatnonzero(right), NOTHING, NOTHING, np.flatnonzero(~right))
    return Trial(split, heads, {detector: [detector.setting] for detector in detectors})
