"""How many images a pass takes at once where memory is short: a batch that does not fit is halved and computed again."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor

from oodbench.models.device import is_out_of_memory, release_memory


class BatchLimit:
    """The most images of a batch; it is halved whenever memory is short.

    most: None for as many as are given. say: receives one line each time.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.most: int | None = None
        self._before: int | None = None

    def each(self, rows: np.ndarray, images: Tensor, compute: Callable[[np.ndarray, Tensor], None]) -> None:
        """Call ``compute(rows, images)`` for a batch, or in order for parts of it that fit in memory.

        ``compute`` keeps nothing of a part if it raises that memory is short; for one image, that error is raised here.
        """
        self._before, start = self.most, 0
        while start < len(rows):
            part = slice(start, start + (self.most or len(rows)))
            size = len(rows[part])
            try:
                compute(rows[part], images[part])
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            else:
                start += size
                continue
            self.halve(size, images.device)  # after the error is gone, which holds what the part allocated

    def halve(self, size: int, device: torch.device) -> None:
        """Halve the batch size, which memory was too short for, from now on."""
        self.most = size // 2
        release_memory(device)
        self._say(f"memory of {device} is too short for batches of {size} images; using {self.most} from now on")

    def restore(self) -> None:
        """Take as many images as before the current batch: not their number, but a detector, needs too much memory."""
        self.most = self._before


_current = ContextVar[BatchLimit | None]("batch_limit", default=None)


@contextmanager
def limited(say: Callable[[str], None]) -> Iterator[None]:
    """Within this context, all passes share one limit."""
    token = _current.set(BatchLimit(say))
    try:
        yield
    finally:
        _current.reset(token)


def batch_limit() -> BatchLimit:
    """The limit of the run, or a new one for a pass outside a run."""
    return _current.get() or BatchLimit(lambda line: warnings.warn(line, stacklevel=2))
