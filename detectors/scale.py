"""SCALE (Xu, Chen, Franchi and Yao, ICLR 2024, arXiv 2310.00227)."""

from collections.abc import Sequence

from torch import Tensor

from oodbench.detectors._last_layer import Shaping, scale_of

PERCENTILES = (50.0, 55.0, 60.0, 65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0)


class Scale(Shaping):
    """Energy of W f·exp(Σf / Σ top-k f) + b, k = d − round(dp/100): all features scaled, none pruned.

    p = 85 is the paper's, chosen for wide networks: of 64 features it keeps 10. p is chosen on a validation shift if
    learning from one is allowed; ``percentiles`` are those of the configuration in the authors' code.

    features (N, d), at least 0, -> (N, settings). Raises Unsuitable on a network with negative features.
    """

    def __init__(self, percentile: float = 85.0, percentiles: Sequence[float] = PERCENTILES) -> None:
        super().__init__("scale", percentile, percentiles)

    def shaped(self, features: Tensor, values: Tensor, places: Tensor) -> Tensor:
        return features * scale_of(features, values)
