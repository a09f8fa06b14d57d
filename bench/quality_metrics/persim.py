"""PerSIM (Temel and AlRegib, ICIP 2015, arXiv 1811.07417)."""

import torch
from torch import Tensor

from oodbench.quality.metric import QualityMetric
from oodbench.quality_metrics._images import filtered, lab, laplacian_of_gaussian, resized, rounded

SCALES = ((1.0, 13, 10.0), (0.6, 4, 8.0), (0.4, 2, 7.0))  # factor, side and sigma of the Laplacian of Gaussian
STABILISER = 0.001


class PerSIM(QualityMetric):
    """Similarity of Laplacians of the lightness and of chroma in CIELAB, at three scales.

    Both images are resized by 1, .6 and .4 (bicubic) and converted to 8-bit CIELAB (L·255/100, a + 128, b + 128). At each
    scale s(u, v) = |(2uv + .001)/(u² + v² + .001)| compares a, b, and L after a Laplacian of Gaussian of 13, 4 and 2 pixels
    and σ of 10, 8 and 7. The maps are resized back; with l, a, b the cube roots of their products over scales,

        PerSIM = (mean over pixels of min(l⁴, a², b²))²⁵.

    Everything follows the authors' code, where the 2x2 filter is zero, so that lightness does not count at the coarsest scale.
    """

    smallest_side = 5  # two pixels at the coarsest scale

    def compare(self, references: Tensor, distorted: Tensor) -> Tensor:
        product = torch.ones(references.shape, dtype=torch.float64, device=references.device)
        for factor, size, sigma in SCALES:
            laplacian = laplacian_of_gaussian(size, sigma)
            similar = _similarity(_features(references, factor, laplacian), _features(distorted, factor, laplacian))
            product *= similar if factor == 1 else resized(similar, references.shape[-2:]).abs()
        lightness, a, b = (product ** (1 / 3)).unbind(1)
        return torch.minimum(lightness**4, torch.minimum(a**2, b**2)).mean((1, 2)) ** 25


def _features(images: Tensor, factor: float, laplacian: Tensor) -> Tensor:
    """uint8 RGB (N, 3, H, W) -> the filtered lightness, a and b at one scale: (N, 3, h, w)."""
    own = images if factor == 1 else resized(images, factor)
    scale, offset = (
        torch.tensor(values, dtype=torch.float64, device=images.device) for values in ((2.55, 1, 1), (0, 128, 128))
    )
    found = rounded(lab(own) * scale[:, None, None] + offset[:, None, None])
    found[:, :1] = filtered(found[:, :1], laplacian, "symmetric")
    return found


def _similarity(u: Tensor, v: Tensor) -> Tensor:
    return ((2 * u * v + STABILISER) / (u**2 + v**2 + STABILISER)).abs()
