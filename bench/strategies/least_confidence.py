"""Least confidence (Lewis and Gale, A sequential algorithm for training text classifiers, SIGIR 1994)."""

import numpy as np

from oodbench.active_learning.pool import Pool
from oodbench.active_learning.strategy import Ranked


class LeastConfidence(Ranked):
    """Highest 1 − max_c p_c."""

    def scores(self, pool: Pool, random: np.random.Generator) -> np.ndarray:
        return 1 - pool.probabilities.max(1)
