"""SR-SIM (Zhang and Li, ICIP 2012)."""

from torch import Tensor

from oodbench.quality.metric import QualityMetric
from oodbench.quality_metrics._piq import by_piq


class SRSIM(QualityMetric):
    """Similarity of spectral residual saliency and of gradients, computed by piq.

    The saliency-weighted mean over pixels of S_V·√S_G, with similarities (2uv + C)/(u² + v² + C) of the spectral residual
    saliency (C = .4) and of the Scharr gradient magnitude (C = 225) of the luma of YIQ. Images whose shorter side has at
    least 384 pixels are averaged and subsampled first.
    """

    smallest_side = 40

    def compare(self, references: Tensor, distorted: Tensor) -> Tensor:
        return by_piq("sr-sim", "srsim", references.double(), distorted.double())
