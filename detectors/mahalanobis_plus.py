"""Mahalanobis++: distances of normalised features (Müller and Hein, ICML 2025, arXiv 2505.18032)."""

import torch.nn.functional as F
from torch import Tensor

from oodbench.detectors.mahalanobis import MahalanobisV
from oodbench.probe import Probe


class MahalanobisPlusPlus(MahalanobisV):
    """``mahalanobis-v`` of features divided by their norm: min_c ½ (f̂ − μ_c)ᵀ P (f̂ − μ_c), f̂ = f/‖f‖.

    The class means μ_c and the tied precision P are those of f̂ on training images.

    features (N, d) -> (N, 1), float64
    """

    def penultimate(self, probe: Probe) -> Tensor:
        return F.normalize(probe.features.double())
