"""Margin sampling (Scheffer, Decomain and Wrobel, Active hidden Markov models for information extraction, IDA 2001)."""

import numpy as np

from oodbench.active_learning.pool import Pool
from oodbench.active_learning.strategy import Ranked


class Margin(Ranked):
    """Highest −(p₁ − p₂), with p₁ and p₂ the two largest class probabilities."""

    def scores(self, pool: Pool, random: np.random.Generator) -> np.ndarray:
        two = np.partition(pool.probabilities, -2, 1)[:, -2:]
        return two[:, 0] - two[:, 1]
