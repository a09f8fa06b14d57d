"""Deep nearest neighbours (Sun, Ming, Zhu and Li, ICML 2022, arXiv 2204.06507)."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._bank import Bank
from oodbench.detectors._parameters import require_grid, require_whole
from oodbench.errors import Unsuitable
from oodbench.probe import Probe
from oodbench.training_set import FitSize

KS = (1, 10, 20, 50, 100, 200, 500, 1000, 3000, 5000)


class KNN(Detector):
    """Distance to the k-th nearest training feature, both normalised: ‖f/‖f‖ − r_(k)‖.

    k = 50 is the paper's for CIFAR-10. k is chosen on a validation shift if learning from one is allowed; ``ks`` are the
    paper's, without those larger than the training set.

    features (N, d) -> (N, settings) in [0, 2]. Keeps a bank of all training images, (training images, d), the paper's
    setting for CIFAR. The k-th nearest row is searched in the network's dtype, at least float32, block by block of the
    bank; its distance is then computed in float64. All k share one matrix of similarities, (N, rows of a block).
    """

    signals = ("features",)
    shift_head = "choose"
    bank_: list[Tensor]  # (training images, d), rows of norm 1, in blocks

    def __init__(self, k: int = 50, ks: Sequence[int] = KS) -> None:
        require_whole("knn", 1, k=k)
        require_grid("knn", 1, ks=ks)
        self.k, self.ks = k, sorted(ks)  # the last may be left out
        self.grid = [{"k": k} for k in self.ks]
        self._rows = Bank()

    def memory(self, size: FitSize) -> int:
        return size.itemsize * size.images * size.features

    def observe(self, probe: Probe) -> None:
        self._rows.add(_normalised(probe.features))

    def finish(self) -> None:
        bank, self._rows = self._rows, Bank()
        if len(bank) < self.k:
            raise Unsuitable(f"k = {self.k} neighbours, but only {len(bank)} training images; lower k or give more images")
        self.bank_ = bank.blocks()
        self.grid = [{"k": k} for k in self.ks if k <= len(bank)] or [self.setting]

    def statistics(self, probe: Probe) -> Tensor:
        features = _normalised(probe.features)
        found = self._nearest(features, [setting["k"] for setting in self.settings])
        neighbours = (self._rows_at(places, features) for places in found)
        return torch.stack([(features.double() - each.double()).norm(dim=1) for each in neighbours], 1)

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        """The place in the bank of the first row of each block, and the block."""
        start = 0
        for block in self.bank_:
            yield start, block
            start += block.shape[0]

    def _nearest(self, features: Tensor, ks: list[int]) -> list[Tensor]:
        """Places in the bank, (N,) for each k: the k-th largest similarity of each feature (N, d)."""
        # Search once per k: among equal values topk's choice depends on k, and must not depend on the grid.
        count = features.shape[0]  # not len(), which torch.export takes for a constant
        nothing = features.new_empty(count, 0), torch.empty(count, 0, dtype=torch.int64, device=features.device)
        found = dict.fromkeys(ks, nothing)
        for start, block in self._blocks():
            similar = features @ block.mT  # (N, block)
            for k, (best, places) in found.items():
                top, place = similar.topk(min(k, similar.shape[1]), 1)
                best, places = torch.cat([best, top], 1), torch.cat([places, place + start], 1)
                best, keep = best.topk(min(k, best.shape[1]), 1)  # descending
                found[k] = best, places.gather(1, keep)
        return [found[k][1][:, k - 1] for k in ks]

    def _rows_at(self, places: Tensor, features: Tensor) -> Tensor:
        """The rows of the bank (N, d) at these places (N,)."""
        found = features
        for start, block in self._blocks():
            within = (places >= start) & (places < start + block.shape[0])
            found = torch.where(within[:, None], block[(places - start).clamp(0, block.shape[0] - 1)], found)
        return found


def _normalised(features: Tensor) -> Tensor:
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)))
