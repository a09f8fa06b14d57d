"""FSIM (Zhang, Zhang, Mou and Zhang, IEEE TIP 2011)."""

from typing import ClassVar

from torch import Tensor

from oodbench.quality.metric import QualityMetric
from oodbench.quality_metrics._piq import by_piq


class FSIM(QualityMetric):
    """Similarity of phase congruency and of gradients, computed by piq.

    The mean over pixels of S_P·S_G, weighted by the larger phase congruency, with similarities (2uv + T)/(u² + v² + T) of
    phase congruency (T = .85) and of the Scharr gradient magnitude (T = 160) of the luma of YIQ. Images whose shorter side
    has at least 384 pixels are averaged and subsampled first.
    """

    smallest_side = 3  # the window of the gradient filter
    chromatic: ClassVar[bool] = False

    def compare(self, references: Tensor, distorted: Tensor) -> Tensor:
        return by_piq(self.name or "fsim", "fsim", references.double(), distorted.double(), chromatic=self.chromatic)
