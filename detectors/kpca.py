"""Kernel PCA (Fang, Tao, Lv, He, Huang and Yang, NeurIPS 2024, arXiv 2402.02949)."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._moments import ClassMoments, memory_of_moments
from oodbench.detectors._parameters import require_finite, require_seed, require_whole
from oodbench.probe import Probe
from oodbench.training_set import FitSize

MOST_MAPPED = 4096


class KernelPCA(Detector):
    """CoP: the reconstruction error of normalised features f̂ = f/‖f‖ by PCA, ‖(I − UUᵀ)(f̂ − mean f̂)‖.

    U are the fewest principal directions of training features that explain ``variance`` of their variance.

    The variant ``corp`` (CoRP) first maps f̂ to M random Fourier features of a Gaussian kernel, √(2/M) cos(√(2γ) Ωf̂ + u), and
    explains ``mapped_variance``. Ω is standard normal and u uniform in [0, 2π), drawn by ``seed`` (None: the run's). M is
    ``mapped``, by default 4096, or 4d for fewer than 1024 features d, as in the authors' experiments.

    The defaults are those of the authors' code for a ResNet-50 on ImageNet. For CIFAR-10 they take .85, and γ = 2 and .8.

    features (N, d) -> (N, 2), float64, at least 0. ``finish`` decomposes a matrix (M, M).
    """

    signals = ("features",)
    variants = ("corp",)
    mean_: Tensor  # of f̂: (d,)
    residual_: Tensor  # the directions that U leaves out: (d, d − q)
    mapped_mean_: Tensor  # of the mapped features: (M,)
    mapped_residual_: Tensor  # (M, M − q)
    frequencies_: Tensor  # √(2γ) Ω: (M, d)
    phases_: Tensor  # u: (M,)

    def __init__(
        self,
        variance: float = 0.99,
        mapped_variance: float = 0.5,
        gamma: float = 3.0,
        mapped: int | None = None,
        seed: int | None = None,
    ) -> None:
        require_finite("kpca", "between 0 and 1", variance=variance, mapped_variance=mapped_variance)
        require_finite("kpca", "above 0", gamma=gamma)
        if mapped is not None:
            require_whole("kpca", 2, 4 * MOST_MAPPED, mapped=mapped)
        require_seed("kpca", seed)
        self.variance, self.mapped_variance, self.gamma, self.mapped, self.seed = variance, mapped_variance, gamma, mapped, seed
        self._own, self._of_mapped = ClassMoments(1), ClassMoments(1)
        self._drawn: tuple[Tensor, Tensor] | None = None

    def memory(self, size: FitSize) -> int:
        count = self._count(size.features)
        drawn = 8 * 3 * count * size.features  # and the copies while they are drawn
        return memory_of_moments(size.features, 1) + memory_of_moments(count, 1) + drawn

    def _count(self, width: int) -> int:
        """M for features of this width."""
        return self.mapped or min(MOST_MAPPED, 4 * width)

    def observe(self, probe: Probe) -> None:
        features = F.normalize(probe.features.double())
        one_class = torch.zeros(len(features), dtype=torch.int64, device=features.device)
        if self._drawn is None:
            random, width = np.random.default_rng(self.random_seed), features.shape[1]
            count = self._count(width)
            frequencies = math.sqrt(2 * self.gamma) * random.standard_normal((count, width))
            phases = 2 * math.pi * random.random(count)
            self._drawn = torch.from_numpy(frequencies).to(features), torch.from_numpy(phases).to(features)
        self._own.add(features, one_class)
        self._of_mapped.add(_mapped(features, *self._drawn), one_class)

    def finish(self) -> None:
        self.mean_, self.residual_ = _residual(self._own, self.variance)
        self.mapped_mean_, self.mapped_residual_ = _residual(self._of_mapped, self.mapped_variance)
        assert self._drawn is not None
        self.frequencies_, self.phases_ = self._drawn
        self._own, self._of_mapped, self._drawn = ClassMoments(1), ClassMoments(1), None

    def statistics(self, probe: Probe) -> Tensor:
        features = F.normalize(probe.features.double())
        mapped = _mapped(features, self.frequencies_, self.phases_)
        own = ((features - self.mean_) @ self.residual_).norm(dim=1)
        return torch.stack([own, ((mapped - self.mapped_mean_) @ self.mapped_residual_).norm(dim=1)], 1)


def _mapped(features: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
    """Random Fourier features: (N, d) -> (N, M)."""
    return math.sqrt(2 / len(phases)) * torch.cos(features @ frequencies.T + phases)


def _residual(moments: ClassMoments, variance: float) -> tuple[Tensor, Tensor]:
    """The mean (d,) and the directions (d, d − q) but for the fewest q that explain this share of variance; at least one."""
    _, _, mean, covariance = moments.moments()
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    explained = values.clamp_min(0).flip(0).cumsum(0)
    kept = int((explained < variance * explained[-1]).sum()) + 1
    return mean, vectors[:, : max(1, len(values) - kept)].contiguous()
