"""BALD (Houlsby et al. 2011, arXiv 1112.5745) by dropout (Gal, Islam and Ghahramani, ICML 2017, arXiv 1703.02910)."""

import numpy as np
from scipy.special import entr

from oodbench.active_learning.pool import Pool
from oodbench.active_learning.strategy import Ranked
from oodbench.errors import UsageError

MOST_PASSES = 1000


class BALD(Ranked):
    """Highest H(p̄) − mean_t H(p_t) over T passes in which features are dropped before the last layer with probability p.

    BatchNorm stays in eval mode. badge's own code leaves it in training mode and has no dropout, and so measures the noise of
    BatchNorm. With introspective features, each pass goes through the network's last layer, then through H.
    """

    def __init__(self, passes: int = 10, p: float = 0.4) -> None:
        if not (isinstance(passes, int) and 2 <= passes <= MOST_PASSES):
            raise UsageError(f"bald: passes = {passes!r}; give a whole number between 2 and {MOST_PASSES}")
        if not (isinstance(p, float | int) and 0 < p < 1):
            raise UsageError(f"bald: p = {p!r}; give a number between 0 and 1")
        self.passes, self.p = passes, p

    def scores(self, pool: Pool, random: np.random.Generator) -> np.ndarray:
        mean, entropy = np.zeros_like(pool.probabilities), np.zeros(len(pool))
        for probabilities in pool.dropped(self.passes, self.p, random):
            mean += probabilities / self.passes
            entropy += entr(probabilities).sum(1) / self.passes
        found: np.ndarray = entr(mean).sum(1) - entropy
        return found
