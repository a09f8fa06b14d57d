"""ASH: activation shaping (Djurisic, Bozanic, Ashok and Liu, ICLR 2023, arXiv 2209.09858), variant B."""

from collections.abc import Sequence

import torch
from torch import Tensor

from oodbench.detectors._last_layer import Shaping

PERCENTILES = (65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0)


class ASH(Shaping):
    """Energy of W f' + b, where f' keeps the k = d − round(dp/100) largest features, each set to Σf / k, and is 0 elsewhere.

    p = 90 is the example of the paper's abstract and OpenOOD's setting; of 64 features it keeps 6. p is chosen on a
    validation shift if learning from one is allowed; ``percentiles`` are those that OpenOOD tries.

    features (N, d), at least 0, -> (N, settings). Raises Unsuitable on a network with negative features.
    """

    def __init__(self, percentile: float = 90.0, percentiles: Sequence[float] = PERCENTILES) -> None:
        super().__init__("ash", percentile, percentiles)

    def shaped(self, features: Tensor, values: Tensor, places: Tensor) -> Tensor:
        share = features.sum(1, keepdim=True) / places.shape[1]
        return torch.zeros_like(features).scatter(1, places, share.expand(-1, places.shape[1]))
