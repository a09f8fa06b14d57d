"""IW-SSIM (Wang and Li, IEEE TIP 2011)."""

from torch import Tensor

from oodbench.quality.metric import QualityMetric
from oodbench.quality_metrics._images import grey
from oodbench.quality_metrics._piq import by_piq


class IWSSIM(QualityMetric):
    """MS-SSIM with pixels weighted by their information content, computed by piq.

    The weight of a pixel of each scale of a Laplacian pyramid is the information that both images hold there, in a Gaussian
    scale mixture model of 3x3 neighbours and the parent pixel of the reference. Luma is rounded to whole numbers.
    """

    smallest_side = 161

    def compare(self, references: Tensor, distorted: Tensor) -> Tensor:
        return by_piq("iw-ssim", "information_weighted_ssim", grey(references), grey(distorted))
