"""The contract of strategies: which images of a pool to label next."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from oodbench.active_learning.pool import Pool
from oodbench.errors import BadData, UsageError
from oodbench.hyperparameters import HasParameters, built


class Strategy(HasParameters, ABC):
    """Chooses images to label. Constructor arguments are hyper-parameters, kept in attributes of the same name."""

    name = ""  # by which it is registered

    @abstractmethod
    def select(self, pool: Pool, count: int, random: np.random.Generator) -> np.ndarray:
        """The rows of the pool to label, int (count,), each once.

        Draw all randomness from ``random``, and keep nothing for the next round, because a resumed run may begin with it.
        """


class Ranked(Strategy):
    """Takes the images with the highest scores; if scores are equal, those that come first in the pool."""

    @abstractmethod
    def scores(self, pool: Pool, random: np.random.Generator) -> np.ndarray:
        """How useful a label of each image is: (N,)."""

    def select(self, pool: Pool, count: int, random: np.random.Generator) -> np.ndarray:
        scores = np.asarray(self.scores(pool, random))
        if scores.shape != (len(pool),) or np.isnan(scores).any():
            raise BadData(f"strategy '{self.name}' gave scores {scores.shape}, not one number per image ({len(pool)},)")
        return np.argsort(-scores, kind="stable")[:count]


def load_strategy(name: str, **parameters: Any) -> Strategy:
    """A strategy by name, built in or from another package. Raises UsageError for unknown names and parameters."""
    made: Strategy = built("strategies", name, Strategy, parameters, "oodbench.active_learning.Strategy")
    made.name = name
    return made


def selected(strategy: Strategy, pool: Pool, count: int, random: np.random.Generator) -> np.ndarray:
    """What the strategy selects, int64 (count,).

    Raises UsageError if the pool has fewer images, and BadData if it does not give that many rows of the pool, each once.
    """
    if len(pool) < count:
        raise UsageError(f"a query of {count:,} images needs a pool of as many images, and {len(pool):,} are left; query fewer")
    rows = np.asarray(strategy.select(pool, count, random))
    wrong = ""
    if rows.shape != (count,) or rows.dtype.kind not in "iu":
        wrong = f"gave {rows.dtype} {rows.shape}, not {count} row numbers"
    elif rows.min() < 0 or rows.max() >= len(pool):
        wrong = f"gave row {int(rows.max() if rows.max() >= len(pool) else rows.min())}, but the pool has {len(pool):,}"
    elif len(np.unique(rows)) < count:
        values, counts = np.unique(rows, return_counts=True)
        wrong = f"gave row {int(values[counts.argmax()])} twice"
    if wrong:
        raise BadData(f"strategy '{strategy.name}' {wrong}; give each row of the pool to label once")
    return rows.astype(np.int64)
