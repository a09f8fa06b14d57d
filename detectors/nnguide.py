"""NNGuide: nearest-neighbour guidance (Park, Jung and Teoh, ICCV 2023, arXiv 2309.14888)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._parameters import require_seed, require_whole
from oodbench.detectors._sample import Sample
from oodbench.errors import Unsuitable
from oodbench.probe import Probe
from oodbench.training_set import FitSize

BLOCK = 4096  # rows of the bank that are compared, and held in float64, at once
LEAST = 1e-12  # smallest norm, as in torch.nn.functional.normalize


class NNGuide(Detector):
    """Minus the energy guided by similar training images: −e(x)·mean of the k largest e_i ⟨f̂, f̂_i⟩, e = logsumexp z, f̂ = f/‖f‖.

    k = 100 is OpenOOD's; with a smaller bank, k is its size. The bank holds ``size`` training images, drawn by ``seed`` (None:
    the run's), or all of a smaller training set. 12,800 is 1 % of ImageNet's, as in the authors' experiments.

    features (N, d), logits (N, classes) -> (N,), float64. Keeps a bank (size, d).
    """

    signals = ("logits", "features")
    bank_: Tensor  # f_i, in the network's dtype: (size, d)
    scales_: Tensor  # e_i/‖f_i‖: (size,)

    def __init__(self, k: int = 100, size: int = 12_800, seed: int | None = None) -> None:
        require_whole("nnguide", 1, k=k, size=size)
        require_seed("nnguide", seed)
        self.k, self.size, self.seed = k, size, seed
        self._sample: Sample | None = None

    def memory(self, size: FitSize) -> int:
        return 2 * size.itemsize * min(self.size, size.images) * size.features

    def observe(self, probe: Probe) -> None:
        if self._sample is None:
            self._sample = Sample(self.size, self.random_seed)
        self._sample.add([probe.features, probe.logits.logsumexp(1)], torch.ones_like(probe.held_out))

    def finish(self) -> None:
        sample, self._sample = self._sample, None
        if sample is None or not len(sample):
            raise Unsuitable("saw no training images to fit on; give more training images")
        self.bank_, energies = sample.columns()
        norms = torch.linalg.vector_norm(self.bank_, dim=1, dtype=torch.float64)
        self.scales_ = energies / norms.clamp_min(LEAST)

    def statistics(self, probe: Probe) -> Tensor:
        features = F.normalize(probe.features.double())
        largest = features.new_empty(features.shape[0], 0)
        for bank, scales in zip(self.bank_.split(BLOCK), self.scales_.split(BLOCK), strict=True):
            similar = torch.cat([largest, features @ bank.double().T * scales], 1)
            largest = similar.topk(min(self.k, similar.shape[1]), 1).values
        return -largest.mean(1) * probe.logits.logsumexp(1)
