"""A seeded random sample of training images, streamed: which images it holds does not depend on batches."""

import numpy as np
import torch
from torch import Tensor


class Sample:
    """The images with the ``size`` smallest random keys.

    Every image gets a key, also one that is left out, so that an image has the same key for every batch size. Once the
    sample is full, an image takes the place of the one with the largest key, so that memory holds the sample once.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._random = size, np.random.default_rng(seed)
        self._keys = torch.empty(0, dtype=torch.float64)  # (kept,)
        self._columns: list[Tensor] = []  # (size, …) each
        self._kept = 0

    def add(self, columns: list[Tensor], chosen: Tensor) -> None:
        """Add what is kept of each image, columns (n, …), of the images that are ``chosen``, bool (n,)."""
        keys = torch.from_numpy(self._random.random(len(chosen)))
        rows = torch.nonzero(chosen.cpu())[:, 0]
        before = len(self._keys)
        every = torch.cat([self._keys, keys[rows]])
        kept = every.topk(min(self._size, len(every)), largest=False).indices  # keys are on the CPU: there are few
        stays = torch.zeros(len(every), dtype=torch.bool)
        stays[kept] = True
        new = torch.nonzero(stays[before:])[:, 0]
        places = torch.cat([torch.nonzero(~stays[:before])[:, 0], torch.arange(before, self._size)])[: len(new)]
        self._keys = torch.cat([self._keys, every.new_empty(len(kept) - before)])
        self._keys[places] = every[before + new]
        if not self._columns:
            self._columns = [column.new_empty(self._size, *column.shape[1:]) for column in columns]
        for column, source in zip(self._columns, columns, strict=True):
            column[places.to(column.device)] = source[rows[new].to(source.device)]

    def __len__(self) -> int:
        return len(self._keys)

    def columns(self) -> list[Tensor]:
        """What was added of the images in the sample, in the order of their keys: (kept, …) each."""
        order = self._keys.argsort()
        return [column[order.to(column.device)] for column in self._columns]
