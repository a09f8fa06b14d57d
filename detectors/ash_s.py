"""ASH-S: activation shaping (Djurisic, Bozanic, Ashok and Liu, ICLR 2023, arXiv 2209.09858), variant S."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from oodbench.detectors._last_layer import Shaping, scale_of
from oodbench.detectors.ash import PERCENTILES


class ASHS(Shaping):
    """Energy of W f' + b, where f' is f·exp(Σf / Σ kept f) at the k = d − round(dp/100) largest features and 0 elsewhere.

    p and the grid are those of ``ash``, variant B. p is chosen on a validation shift if learning from one is allowed.

    features (N, d), at least 0, -> (N, settings). Raises Unsuitable on a network with negative features.
    """

    quick: ClassVar[dict[str, Any]] = {"percentile": 65.0}  # of 16 features 90 keeps 2, whose sum says little

    def __init__(self, percentile: float = 90.0, percentiles: Sequence[float] = PERCENTILES) -> None:
        super().__init__("ash-s", percentile, percentiles)

    def shaped(self, features: Tensor, values: Tensor, places: Tensor) -> Tensor:
        return torch.zeros_like(features).scatter(1, places, values * scale_of(features, values))
