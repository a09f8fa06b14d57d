"""NNGuide: nearest-neighbour guidance (Park, Jung and Teoh, ICCV 2023, arXiv 2309.14888)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._parameters import require_seed, require_whole
from oodbench.detectors._sample import Sample
from oodbench.errors import Unsuitable
from oodbench.probe import Probe

BLOCK = 65536  # rows of the bank compared at once: limits memory to N·BLOCK similarities


class NNGuide(Detector):
    """Minus the energy guided by similar training images: −e(x)·mean of the k largest e_i ⟨f̂, f̂_i⟩, e = logsumexp z, f̂ = f/‖f‖.

    k = 100 is OpenOOD's; with a smaller bank, k is its size. The bank holds ``size`` training images, drawn by ``seed`` (None:
    the run's), or all of a smaller training set. 12,800 is 1 % of ImageNet's, as in the authors' experiments.

    features (N, d), logits (N, classes) -> (N,), float64. Keeps a bank (size, d).
    """

    signals = ("logits", "features")
    bank_: Tensor  # e_i f̂_i: (size, d)

    def __init__(self, k: int = 100, size: int = 12_800, seed: int | None = None) -> None:
        require_whole("nnguide", 1, k=k, size=size)
        require_seed("nnguide", seed)
        self.k, self.size, self.seed = k, size, seed
        self._sample: Sample | None = None

    def observe(self, probe: Probe) -> None:
        self._sample = self._sample or Sample(self.size, self.random_seed)
        self._sample.add([probe.features, probe.logits.logsumexp(1)], torch.ones_like(probe.held_out))

    def finish(self) -> None:
        sample, self._sample = self._sample, None
        if sample is None or not len(sample.columns[0]):
            raise Unsuitable("saw no training images to fit on; give more training images")
        features, energies = sample.columns
        self.bank_ = F.normalize(features.double()) * energies[:, None]

    def statistics(self, probe: Probe) -> Tensor:
        features = F.normalize(probe.features.double())
        largest = features.new_empty(features.shape[0], 0)
        for start in range(0, len(self.bank_), BLOCK):
            similar = torch.cat([largest, features @ self.bank_[start : start + BLOCK].T], 1)
            largest = similar.topk(min(self.k, similar.shape[1]), 1).values
        return -largest.mean(1) * probe.logits.logsumexp(1)
