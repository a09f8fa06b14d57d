"""The control: images at random."""

import numpy as np

from oodbench.active_learning.pool import Pool
from oodbench.active_learning.strategy import Strategy


class Random(Strategy):
    """Images at random, each with the same probability."""

    def select(self, pool: Pool, count: int, random: np.random.Generator) -> np.ndarray:
        return random.permutation(len(pool))[:count]
