"""ReAct: rectified activations (Sun, Guo and Li, NeurIPS 2021, arXiv 2111.12797)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors import _last_layer
from oodbench.detectors._parameters import require_finite, require_grid
from oodbench.probe import Probe

PERCENTILES = (85.0, 90.0, 95.0, 99.0)


class ReAct(Detector):
    """Energy of W·min(f, c) + b, with c the p-th percentile of all features of held-out in-distribution images together.

    p = 90 is the paper's. p is chosen on a validation shift if learning from one is allowed; ``percentiles`` are those that
    OpenOOD has tried.

    features (N, d) -> (N, settings)
    """

    signals = ("features",)
    calibrates = True
    shift_head = "choose"
    thresholds_: list[float]  # c at ``percentile``, then at each of ``percentiles``

    def __init__(self, percentile: float = 90.0, percentiles: Sequence[float] = PERCENTILES) -> None:
        require_finite("react", "between 0 and 100", percentile=percentile)
        require_grid("react", "between 0 and 100", percentiles=percentiles)
        self.percentile, self.percentiles = percentile, [*map(float, percentiles)]  # JSON values
        self.grid = [{"percentile": p} for p in self.percentiles]
        self._features: list[Tensor] = []

    def observe(self, probe: Probe) -> None:
        self._features.append(probe.features[probe.held_out])

    def finish(self) -> None:
        features, self._features = torch.cat(self._features), []
        # numpy's, because torch.quantile refuses more than 16 million values.
        thresholds = np.percentile(features.double().cpu().numpy(), [self.percentile, *self.percentiles])
        self.thresholds_ = thresholds.tolist()

    def statistics(self, probe: Probe) -> Tensor:
        features = probe.features
        thresholds = dict(zip([self.percentile, *self.percentiles], self.thresholds_, strict=True))
        clipped = (features.clamp_max(thresholds[setting["percentile"]]) for setting in self.settings)
        return torch.stack([_last_layer.energy(_last_layer.logits_of(each, probe.classifier)) for each in clipped], 1)
