"""SSIM (Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 2004)."""

from torch import Tensor

from oodbench.quality.metric import QualityMetric
from oodbench.quality_metrics._images import grey
from oodbench.quality_metrics._piq import by_piq


class SSIM(QualityMetric):
    """Structural similarity of the luma, computed by piq.

    The mean over pixels of (2 μ_x μ_y + C₁)(2 σ_xy + C₂) / ((μ_x² + μ_y² + C₁)(σ_x² + σ_y² + C₂)), with moments in an
    11x11 Gaussian window (σ = 1.5), C₁ = (.01·255)² and C₂ = (.03·255)². Images whose shorter side has at least 384 pixels
    are averaged and subsampled first, by that side over 256, rounded. Luma is rounded to whole numbers; piq
    computes in float32, twenty times as fast as in float64.
    """

    smallest_side = 11

    def compare(self, references: Tensor, distorted: Tensor) -> Tensor:
        return by_piq("ssim", "ssim", grey(references).float(), grey(distorted).float())
