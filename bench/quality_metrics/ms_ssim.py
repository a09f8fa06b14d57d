"""MS-SSIM (Wang, Simoncelli and Bovik, Asilomar 2003)."""

from torch import Tensor

from oodbench.quality.metric import QualityMetric
from oodbench.quality_metrics._images import grey
from oodbench.quality_metrics._piq import by_piq


class MSSSIM(QualityMetric):
    """Structural similarity of the luma at five scales, computed by piq.

    The product over scales of the mean contrast and structure term of SSIM, and at the coarsest of all its terms, with the
    exponents .0448, .2856, .3001, .2363 and .1333. Each scale is averaged over 2x2 pixels from the one before. Luma is
    rounded to whole numbers; piq computes in float32, which is many times faster than float64.
    """

    smallest_side = 161

    def compare(self, references: Tensor, distorted: Tensor) -> Tensor:
        return by_piq("ms-ssim", "multi_scale_ssim", grey(references).float(), grey(distorted).float())
