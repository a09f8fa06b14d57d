"""PSNR of colour images."""

from torch import Tensor

from oodbench.quality.metric import QualityMetric
from oodbench.quality_metrics._decibels import decibels


class PSNR(QualityMetric):
    """Peak signal-to-noise ratio in decibels, over all three colour channels.

    10 log₁₀(255² / MSE), the mean squared error of all values of the red, green and blue channel together: PSNRc in the files
    of TID2013. Identical images have 100,000 dB, as in the code of PSNR-HA, so that the value is finite.
    """

    def compare(self, references: Tensor, distorted: Tensor) -> Tensor:
        return decibels(((references.double() - distorted.double()) ** 2).mean((1, 2, 3)))
