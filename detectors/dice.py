"""DICE: directed sparsification (Sun and Li, ECCV 2022, arXiv 2111.09805)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors import _last_layer
from oodbench.detectors._moments import Mean
from oodbench.detectors._parameters import require_finite, require_grid
from oodbench.probe import Probe

PERCENTILES = (10.0, 30.0, 50.0, 70.0, 90.0, 99.0)


class DICE(Detector):
    """Energy of M⊙W f + b, where the mask M keeps the weights that contribute most on training images.

    The contribution of a weight is W_ci·mean(f_i), mean over training images. The kept weights are those whose contribution
    lies above the p-th percentile of all contributions. p = 90 is that of the authors' code. p is chosen on a validation
    shift if learning from one is allowed; ``percentiles`` are our choice, from the range of the paper's ablation.

    features (N, d) -> (N, settings)
    """

    signals = ("features",)
    shift_head = "choose"
    mean_: Tensor  # of training features: (d,)
    thresholds_: list[float]  # at ``percentile``, then at each of ``percentiles``

    def __init__(self, percentile: float = 90.0, percentiles: Sequence[float] = PERCENTILES) -> None:
        require_finite("dice", "between 0 and 100", percentile=percentile)
        require_grid("dice", "between 0 and 100", percentiles=percentiles)
        self.percentile, self.percentiles = percentile, [*map(float, percentiles)]  # JSON values
        self.grid = [{"percentile": p} for p in self.percentiles]
        self._mean = Mean()
        self._weight: Tensor | None = None

    def observe(self, probe: Probe) -> None:
        self._weight = probe.classifier.weight_and_bias[0].double()
        self._mean.add(probe.features)

    def finish(self) -> None:
        self.mean_, self._mean = self._mean.mean(), Mean()
        contributions = (torch.as_tensor(self._weight) * self.mean_).cpu().numpy()  # (C, d)
        self._weight = None
        self.thresholds_ = np.percentile(contributions, [self.percentile, *self.percentiles]).tolist()

    def statistics(self, probe: Probe) -> Tensor:
        weight, bias = (part.double() for part in probe.classifier.weight_and_bias)
        features, contributions = probe.features.double(), weight * self.mean_
        thresholds = dict(zip([self.percentile, *self.percentiles], self.thresholds_, strict=True))
        columns = []
        for setting in self.settings:
            kept = torch.where(contributions > thresholds[setting["percentile"]], weight, 0.0)
            columns.append(_last_layer.energy(torch.addmm(bias, features, kept.T)))
        return torch.stack(columns, 1)
