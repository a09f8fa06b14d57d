"""Active learning: which images of a pool to label next, and how good a network is after each round.

``strategy`` is the contract of strategies, which are in ``oodbench.strategies``; ``pool`` is what they see of the images,
``protocol`` says how many images each round labels and how its network is trained, and ``training`` trains it.
"""

from oodbench.active_learning.pool import Pool
from oodbench.active_learning.strategy import Strategy, load_strategy

__all__ = ["Pool", "Strategy", "load_strategy"]
