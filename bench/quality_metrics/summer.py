"""SUMMER (Temel and AlRegib, Signal Processing: Image Communication 70, 2019)."""

import torch
from torch import Tensor

from oodbench.quality.metric import QualityMetric
from oodbench.quality_metrics._images import resized

ERROR_SCALES, SPECTRUM_SCALES = (1, 2, 3, 4), (3, 4)


class SUMMER(QualityMetric):
    """Magnitude spectra of the error and ratios of the images' spectra, at several scales.

    With x the reference and y the distorted image, from 0 to 1,

        Q = Σ_{c, j = 1..4} mean |log(1 + |FFT(|box-resize(x_c − y_c, 2⁻ʲ)|)|)|,

    multiplied by log(1 + mean(|FFT x_cj| / |FFT y_cj|)) for each channel c and scale j = 3, 4, where x_cj is resized by 2⁻ʲ
    (bilinear, antialiased). The value is 5 (Q + 1)^(−1/3): 5 for identical images. The mean ratio is over all frequencies.
    If the spectrum of the distorted image has zeros, as that of a constant image does, rounding decides the value.
    """

    smallest_side = 32  # two pixels at the coarsest scale

    def compare(self, references: Tensor, distorted: Tensor) -> Tensor:
        x, y = references.double() / 255, distorted.double() / 255
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for scale in ERROR_SCALES:
            spectrum = torch.fft.fft2(resized(x - y, 2.0**-scale, "box").abs()).abs()
            total += spectrum.log1p().mean((2, 3)).sum(1)
        for scale in SPECTRUM_SCALES:
            own, other = (torch.fft.fft2(resized(image, 2.0**-scale, "triangle")).abs() for image in (x, y))
            total *= (own / other).mean((2, 3)).log1p().prod(1)
        return 5 * (total + 1) ** (-1 / 3)
