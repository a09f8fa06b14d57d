"""ReAct: rectified activations (Sun, Guo and Li, NeurIPS 2021, arXiv 2111.12797)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors import _last_layer
from oodbench.detectors._bank import Bank
from oodbench.detectors._parameters import require_finite, require_grid
from oodbench.errors import Unsuitable
from oodbench.probe import Probe
from oodbench.training_set import FitSize

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
        self._features = Bank()

    def memory(self, size: FitSize) -> int:
        return 2 * max(4, size.itemsize) * size.held_out * size.features  # and a copy, sorted in part

    def observe(self, probe: Probe) -> None:
        features = probe.features[probe.held_out]
        self._features.add(features.to(torch.promote_types(features.dtype, torch.float32)))

    def finish(self) -> None:
        blocks, self._features = self._features.blocks(), Bank()
        if not blocks:
            raise Unsuitable("needs held-out training images, but there are none; give more training images")
        values = torch.cat([block.flatten() for block in blocks]).cpu().numpy()
        self.thresholds_ = percentiles_of(values, [self.percentile, *self.percentiles])

    def statistics(self, probe: Probe) -> Tensor:
        features = probe.features
        thresholds = dict(zip([self.percentile, *self.percentiles], self.thresholds_, strict=True))
        clipped = (features.clamp_max(thresholds[setting["percentile"]]) for setting in self.settings)
        return torch.stack([_last_layer.energy(_last_layer.logits_of(each, probe.classifier)) for each in clipped], 1)


def percentiles_of(values: np.ndarray, percentiles: Sequence[float]) -> list[float]:
    """Linearly interpolated percentiles, as ``numpy.percentile`` gives of float64. Orders the values (n,) in place.

    ``numpy.percentile`` would copy them, and ``torch.quantile`` refuses more than 16 million.
    """
    places = np.asarray(percentiles) / 100 * (len(values) - 1)
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, len(values) - 1)
    values.partition(np.unique([below, above]))
    low, high = values[below].astype(np.float64), values[above].astype(np.float64)
    return (low + (high - low) * (places - below)).tolist()
