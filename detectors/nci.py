"""NCI: neural collapse inspired detector (Liu and Qin, CVPR 2025, arXiv 2311.01479)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from oodbench.detectors._moments import OfMean
from oodbench.detectors._parameters import require_finite, require_grid
from oodbench.probe import Probe

ALPHAS = (0.0001, 0.001, 0.01, 0.1)
LEAST = 1e-12  # smallest distance from the mean, so that the score stays finite


class NCI(OfMean):
    """−(w_ŷ·(f − μ) / ‖f − μ‖ + α‖f‖₁): how little features point along the weights of the predicted class ŷ.

    w are the weights of the last layer and μ is the mean of training features. α = 1e-4 is the default of the authors'
    code. α is chosen on a validation shift if learning from one is allowed; ``alphas`` are those of that code.

    features (N, d), logits (N, C) -> (N, settings)
    """

    signals = ("logits", "features")
    shift_head = "choose"

    def __init__(self, alpha: float = 0.0001, alphas: Sequence[float] = ALPHAS) -> None:
        super().__init__()
        require_finite("nci", "of at least 0", alpha=alpha)
        require_grid("nci", "of at least 0", alphas=alphas)
        self.alpha, self.alphas = alpha, [*map(float, alphas)]  # JSON values
        self.grid = [{"alpha": a} for a in self.alphas]

    def statistics(self, probe: Probe) -> Tensor:
        features = probe.features.double()
        centred = features - self.mean_
        weight = probe.classifier.weight_and_bias[0].double()[probe.prediction]  # (N, d)
        along = (weight * centred).sum(1) / centred.norm(dim=1).clamp_min(LEAST)
        size = features.abs().sum(1)
        return -torch.stack([along + setting["alpha"] * size for setting in self.settings], 1)
