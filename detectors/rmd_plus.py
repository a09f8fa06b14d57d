"""RMD++: relative Mahalanobis distances of normalised features (Müller and Hein, ICML 2025, arXiv 2505.18032)."""

import torch.nn.functional as F
from torch import Tensor

from oodbench.detectors.rmd import RelativeMahalanobis
from oodbench.probe import Probe


class RelativeMahalanobisPlusPlus(RelativeMahalanobis):
    """``rmd`` of features divided by their norm, f̂ = f/‖f‖: its means and precisions are those of f̂ on training images.

    features (N, d) -> (N,), float64; may be negative.
    """

    def penultimate(self, probe: Probe) -> Tensor:
        return F.normalize(probe.features.double())
