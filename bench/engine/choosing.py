"""The protocol ``validation``: the setting of each detector is chosen once for all sets, on images that are never tested."""

from typing import NamedTuple

import numpy as np

from oodbench import metrics
from oodbench.detector import Detector
from oodbench.heads import HEADS, Head


class Choice(NamedTuple):
    """The unsupervised head at the setting that was chosen, and the scores that it gives the images of either side."""

    head: Head
    in_scores: np.ndarray
    out_scores: np.ndarray
    auroc: float


def choose(detector: Detector, inside: np.ndarray, outside: np.ndarray) -> Choice:
    """The setting with the highest AUROC, the first of several; of statistics (n, S, D) and (m, S, D).

    A head that calibrates does so on the same in-distribution images. Nothing is fitted to the anomalous ones.
    """
    choices = (_at(detector, inside, outside, setting) for setting in range(inside.shape[1]))
    return max(choices, key=lambda choice: choice.auroc)


def _at(detector: Detector, inside: np.ndarray, outside: np.ndarray, setting: int) -> Choice:
    at = slice(setting, setting + 1)
    head = HEADS[detector.unsupervised_head]()
    head.setting_ = setting
    head.calibrate(inside[:, at])
    scores = head.score(inside[:, at]), head.score(outside[:, at])
    return Choice(head, *scores, metrics.auroc(*scores))
