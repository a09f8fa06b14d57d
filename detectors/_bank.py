"""Rows of training images kept in blocks: each is held once, and nothing as large as all of them is allocated."""

from torch import Tensor

BLOCK = 8192  # rows


class Bank:
    """Rows (n, d), streamed into blocks of ``BLOCK`` rows; the cut does not depend on batches."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._used = 0  # rows of the last block

    def __len__(self) -> int:
        return max(0, len(self._blocks) - 1) * BLOCK + self._used

    def add(self, rows: Tensor) -> None:
        """Add rows (n, d)."""
        while len(rows):
            if not self._blocks or self._used == BLOCK:
                self._blocks.append(rows.new_empty(BLOCK, *rows.shape[1:]))
                self._used = 0
            some = rows[: BLOCK - self._used]
            self._blocks[-1][self._used : self._used + len(some)] = some
            self._used += len(some)
            rows = rows[len(some) :]

    def blocks(self) -> list[Tensor]:
        """The rows in order: (``BLOCK``, d) each, the last one shorter."""
        return self._blocks[:-1] + [block[: self._used].clone() for block in self._blocks[-1:]]
