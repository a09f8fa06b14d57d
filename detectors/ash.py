"""ASH: activation shaping (Djurisic, Bozanic, Ashok and Liu, ICLR 2023, arXiv 2209.09858), variant B."""

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors import _last_layer
from oodbench.probe import Probe


class ASH(Detector):
    """Energy of W f' + b, where f' keeps the k = d − round(dp/100) largest features, each set to Σf / k, and is 0 elsewhere.

    features (N, d), at least 0, -> (N,); p = 90. Raises Unsuitable on a network with negative features.
    """

    signals = ("features",)

    def __init__(self, percentile: float = 90.0) -> None:
        _last_layer.require_percentile("ash", percentile)
        self.percentile = percentile

    def statistics(self, probe: Probe) -> Tensor:
        features = probe.features.double()
        _, places = _last_layer.largest(features, self.percentile, probe.classifier)  # (N, k)
        share = features.sum(1, keepdim=True) / places.shape[1]
        shaped = torch.zeros_like(features).scatter(1, places, share.expand(-1, places.shape[1]))
        return _last_layer.energy(_last_layer.logits_of(shaped, probe.classifier))
