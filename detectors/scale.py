"""SCALE (Xu, Chen, Franchi and Yao, ICLR 2024, arXiv 2310.00227)."""

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors import _last_layer
from oodbench.probe import Probe


class Scale(Detector):
    """Energy of W f·exp(Σf / Σ top-k f) + b, k = d − round(dp/100): all features scaled, none pruned.

    features (N, d), at least 0, -> (N,); p = 85. Raises Unsuitable on a network with negative features.
    """

    signals = ("features",)

    def __init__(self, percentile: float = 85.0) -> None:
        _last_layer.require_percentile("scale", percentile)
        self.percentile = percentile

    def statistics(self, probe: Probe) -> Tensor:
        features = probe.features.double()
        values, _ = _last_layer.largest(features, self.percentile, probe.classifier)
        # Features that are all 0 stay 0 for every factor.
        top = values.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        scaled = features * torch.exp(features.sum(1, keepdim=True) / top)
        return _last_layer.energy(_last_layer.logits_of(scaled, probe.classifier))
