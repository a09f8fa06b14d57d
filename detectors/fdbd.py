"""fDBD: fast decision-boundary based detector (Liu and Qin, ICML 2024, arXiv 2312.11536)."""

import torch
from torch import Tensor

from oodbench.detectors._moments import OfMean, squared_distances
from oodbench.probe import Probe

RESOLUTION = 1e-12  # relative to the largest squared norm of weights: a smaller squared distance is rounding
LEAST = 1e-12  # smallest distance from the mean, so that the score stays finite


class FDBD(OfMean):
    """Minus the mean distance to the decision boundaries of other classes, in units of the distance from the training mean.

    −(1/(C − 1)) Σ_{c ≠ ŷ} |z_ŷ − z_c| / ‖w_ŷ − w_c‖ / ‖f − μ‖, with prediction ŷ, C classes, weights w of the last layer and
    μ the mean of training features. A class with the weights of ŷ has no boundary with it and adds nothing.

    features (N, d), logits (N, C) -> (N,), at most 0
    """

    signals = ("logits", "features")

    def statistics(self, probe: Probe) -> Tensor:
        weight, logits = probe.classifier.weight_and_bias[0].double(), probe.logits
        squares = squared_distances(weight[probe.prediction], weight)  # (N, C)
        apart = squares > RESOLUTION * weight.square().sum(1).max()
        gaps = logits.max(1, keepdim=True).values - logits  # (N, C)
        distances = torch.where(apart, gaps / squares.sqrt(), 0.0).sum(1) / max(1, logits.shape[1] - 1)
        return -distances / (probe.features.double() - self.mean_).norm(dim=1).clamp_min(LEAST)
