"""Deep nearest neighbours (Sun, Ming, Zhu and Li, ICML 2022, arXiv 2204.06507)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.detector import Detector
from oodbench.errors import Unsuitable, UsageError
from oodbench.probe import Probe

BLOCK = 65536  # rows of the bank compared at once: limits memory to N·BLOCK similarities


class KNN(Detector):
    """Distance to the k-th nearest training feature, both normalised: ‖f/‖f‖ − r_(k)‖, k = 50.

    features (N, d) -> (N,) in [0, 2]. Keeps a bank of all training images, (training images, d), the paper's setting for
    CIFAR. The k-th nearest row is searched in the network's dtype, at least float32; its distance is then computed in
    float64.
    """

    signals = ("features",)
    bank_: Tensor  # (training images, d), rows of norm 1

    def __init__(self, k: int = 50) -> None:
        if not isinstance(k, int) or k < 1:
            raise UsageError(f"knn: k = {k}; give a whole number of at least 1")
        self.k = k
        self._rows: list[Tensor] = []

    def observe(self, probe: Probe) -> None:
        self._rows.append(_normalised(probe.features))

    def finish(self) -> None:
        bank, self._rows = torch.cat(self._rows), []
        if len(bank) < self.k:
            raise Unsuitable(f"k = {self.k} neighbours, but only {len(bank)} training images; lower k or give more images")
        self.bank_ = bank

    def statistics(self, probe: Probe) -> Tensor:
        features = _normalised(probe.features)
        neighbours = self.bank_[self._kth_nearest(features)]  # (N, d)
        return (features.double() - neighbours.double()).norm(dim=1)

    def _kth_nearest(self, features: Tensor) -> Tensor:
        """Rows of the bank, (N,): the k-th largest similarity of each feature (N, d), block by block of the bank."""
        best = features.new_empty(len(features), 0)
        rows = torch.empty(len(features), 0, dtype=torch.int64, device=features.device)
        for start in range(0, len(self.bank_), BLOCK):
            similar = features @ self.bank_[start : start + BLOCK].T  # (N, block)
            top, place = similar.topk(min(self.k, similar.shape[1]), 1)
            best, rows = torch.cat([best, top], 1), torch.cat([rows, place + start], 1)
            best, keep = best.topk(min(self.k, best.shape[1]), 1)  # descending
            rows = rows.gather(1, keep)
        return rows[:, self.k - 1]


def _normalised(features: Tensor) -> Tensor:
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)))
