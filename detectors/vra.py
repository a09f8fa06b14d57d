"""VRA: variational rectified activation (Xu, Lian, Liu and Tao, NeurIPS 2023, arXiv 2302.11716)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors import _last_layer
from oodbench.detectors._bank import Bank
from oodbench.detectors._parameters import require_finite, require_grid
from oodbench.errors import Unsuitable, UsageError
from oodbench.probe import Probe
from oodbench.training_set import FitSize

LOWS = (50.0, 60.0, 70.0)
HIGHS = (85.0, 90.0, 95.0, 99.0)
FEATURES = 64  # whose percentiles are computed at once


class VRA(Detector):
    """Energy of W f' + b, where f' is f with 0 below x₁ and x₂ above x₂, percentiles of each feature in distribution.

    x₁ and x₂ are the ``low``-th and the ``high``-th percentile of held-out in-distribution images, for each feature on its
    own as in the authors' code; 60 and 95 are its values for CIFAR-100. Both are chosen on a validation shift if learning
    from one is allowed; ``lows`` and ``highs`` are our choice.

    features (N, d) -> (N, settings)
    """

    signals = ("features",)
    calibrates = True
    shift_head = "choose"
    thresholds_: Tensor  # x₁ and x₂ at ``low`` and ``high``, then at each of ``lows`` and each of ``highs``: (levels, d)

    def __init__(
        self, low: float = 60.0, high: float = 95.0, lows: Sequence[float] = LOWS, highs: Sequence[float] = HIGHS
    ) -> None:
        require_finite("vra", "between 0 and 100", low=low, high=high)
        require_grid("vra", "between 0 and 100", lows=lows, highs=highs)
        for name, least, most in (("low", low, high), ("lows", max(lows), min(highs))):
            if least >= most:
                raise UsageError(f"vra: {name} = {least!r}; give percentiles below {most!r}, the one to cap at")
        self.low, self.high = low, high
        self.lows, self.highs = [*map(float, lows)], [*map(float, highs)]  # JSON values
        self.grid = [{"low": a, "high": b} for a in self.lows for b in self.highs]
        self._features = Bank()

    @property
    def _levels(self) -> list[float]:
        return [self.low, self.high, *self.lows, *self.highs]

    def memory(self, size: FitSize) -> int:
        return size.held_out * (size.itemsize * size.features + 8 * 3 * FEATURES)

    def observe(self, probe: Probe) -> None:
        self._features.add(probe.features[probe.held_out])

    def finish(self) -> None:
        blocks, self._features = self._features.blocks(), Bank()
        if not blocks:
            raise Unsuitable("needs held-out training images, but there are none; give more training images")
        found = []
        for start in range(0, blocks[0].shape[1], FEATURES):
            some = torch.cat([block[:, start : start + FEATURES] for block in blocks]).double().cpu().numpy()
            found.append(np.percentile(some, self._levels, axis=0))
        self.thresholds_ = torch.from_numpy(np.concatenate(found, 1)).to(blocks[0].device)

    def statistics(self, probe: Probe) -> Tensor:
        features = probe.features.double()
        thresholds = dict(zip(self._levels, self.thresholds_, strict=True))
        columns = []
        for setting in self.settings:
            low, high = thresholds[setting["low"]], thresholds[setting["high"]]
            shaped = torch.where(features < low, 0.0, features).minimum(high)
            columns.append(_last_layer.energy(_last_layer.logits_of(shaped, probe.classifier)))
        return torch.stack(columns, 1)
