"""Deep nearest neighbours (Sun, Ming, Zhu and Li, ICML 2022, arXiv 2204.06507)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._parameters import require_grid, require_whole
from oodbench.errors import Unsuitable
from oodbench.probe import Probe

BLOCK = 65536  # rows of the bank compared at once: limits memory to N·BLOCK similarities
KS = (1, 10, 20, 50, 100, 200, 500, 1000, 3000, 5000)


class KNN(Detector):
    """Distance to the k-th nearest training feature, both normalised: ‖f/‖f‖ − r_(k)‖.

    k = 50 is the paper's for CIFAR-10. k is chosen on a validation shift if learning from one is allowed; ``ks`` are the
    paper's, without those larger than the training set.

    features (N, d) -> (N, settings) in [0, 2]. Keeps a bank of all training images, (training images, d), the paper's
    setting for CIFAR. The k-th nearest row is searched in the network's dtype, at least float32; its distance is then
    computed in float64. All k share one matrix of similarities.
    """

    signals = ("features",)
    shift_head = "choose"
    bank_: Tensor  # (training images, d), rows of norm 1

    def __init__(self, k: int = 50, ks: Sequence[int] = KS) -> None:
        require_whole("knn", 1, k=k)
        require_grid("knn", 1, ks=ks)
        self.k, self.ks = k, sorted(ks)  # the last may be left out
        self.grid = [{"k": k} for k in self.ks]
        self._rows: list[Tensor] = []

    def observe(self, probe: Probe) -> None:
        self._rows.append(_normalised(probe.features))

    def finish(self) -> None:
        bank, self._rows = torch.cat(self._rows), []
        if len(bank) < self.k:
            raise Unsuitable(f"k = {self.k} neighbours, but only {len(bank)} training images; lower k or give more images")
        self.bank_ = bank
        self.grid = [{"k": k} for k in self.ks if k <= len(bank)] or [self.setting]

    def statistics(self, probe: Probe) -> Tensor:
        features = _normalised(probe.features)
        neighbours = (self.bank_[rows] for rows in self._nearest(features, [setting["k"] for setting in self.settings]))
        return torch.stack([(features.double() - each.double()).norm(dim=1) for each in neighbours], 1)

    def _nearest(self, features: Tensor, ks: list[int]) -> list[Tensor]:
        """Rows of the bank, (N,) for each k: the k-th largest similarity of each feature (N, d), block by block of the bank."""
        # Search once per k: among equal values topk's choice depends on k, and must not depend on the grid.
        count = features.shape[0]  # not len(), which torch.export takes for a constant
        nothing = features.new_empty(count, 0), torch.empty(count, 0, dtype=torch.int64, device=features.device)
        found = dict.fromkeys(ks, nothing)
        for start in range(0, len(self.bank_), BLOCK):
            similar = features @ self.bank_[start : start + BLOCK].T  # (N, block)
            for k, (best, rows) in found.items():
                top, place = similar.topk(min(k, similar.shape[1]), 1)
                best, rows = torch.cat([best, top], 1), torch.cat([rows, place + start], 1)
                best, keep = best.topk(min(k, best.shape[1]), 1)  # descending
                found[k] = best, rows.gather(1, keep)
        return [found[k][1][:, k - 1] for k in ks]


def _normalised(features: Tensor) -> Tensor:
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)))
