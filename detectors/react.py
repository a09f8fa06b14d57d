"""ReAct: rectified activations (Sun, Guo and Li, NeurIPS 2021, arXiv 2111.12797)."""

import numpy as np
import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors import _last_layer
from oodbench.probe import Probe


class ReAct(Detector):
    """Energy of W·min(f, c) + b, with c the 90th percentile of all features of held-out in-distribution images together.

    features (N, d) -> (N,)
    """

    signals = ("features",)
    calibrates = True
    threshold_: float

    def __init__(self, percentile: float = 90.0) -> None:
        _last_layer.require_percentile("react", percentile)
        self.percentile = percentile
        self._features: list[Tensor] = []

    def observe(self, probe: Probe) -> None:
        self._features.append(probe.features[probe.held_out])

    def finish(self) -> None:
        features, self._features = torch.cat(self._features), []
        # numpy's, because torch.quantile refuses more than 16 million values.
        self.threshold_ = float(np.percentile(features.double().cpu().numpy(), self.percentile))

    def statistics(self, probe: Probe) -> Tensor:
        clipped = probe.features.clamp_max(self.threshold_)
        return _last_layer.energy(_last_layer.logits_of(clipped, probe.classifier))
