"""A seeded random sample of training images, streamed: which images it holds does not depend on batches."""

import numpy as np
import torch
from torch import Tensor


class Sample:
    """The images with the ``size`` smallest random keys, in the order of these.

    Every image gets a key, also one that is left out, so that an image has the same key for every batch size.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._random = size, np.random.default_rng(seed)
        self._keys: Tensor | None = None  # (kept,)
        self.columns: list[Tensor] = []  # (kept, …) each

    def add(self, columns: list[Tensor], chosen: Tensor) -> None:
        """Add what is kept of each image, columns (n, …), of the images that are ``chosen``, bool (n,)."""
        keys = torch.from_numpy(self._random.random(len(chosen))).to(chosen.device)[chosen]
        columns = [column[chosen] for column in columns]
        if self._keys is not None:
            keys = torch.cat([self._keys, keys])
            columns = [torch.cat(pair) for pair in zip(self.columns, columns, strict=True)]
        self._keys, kept = keys.topk(min(self._size, len(keys)), largest=False)
        self.columns = [column[kept] for column in columns]
