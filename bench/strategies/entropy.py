"""Entropy sampling (Settles, Active learning literature survey, 2009, section 3.1)."""

import numpy as np
from scipy.special import entr

from oodbench.active_learning.pool import Pool
from oodbench.active_learning.strategy import Ranked


class Entropy(Ranked):
    """Highest entropy −Σ_c p_c log p_c of the class probabilities, in nats."""

    def scores(self, pool: Pool, random: np.random.Generator) -> np.ndarray:
        found: np.ndarray = entr(pool.probabilities).sum(1)
        return found
