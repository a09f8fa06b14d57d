"""PSNR-HA (Ponomarenko, Ieremeiev, Lukin, Egiazarian and Carli, CADSM 2011)."""

import math

import torch
from torch import Tensor

from oodbench.quality.metric import QualityMetric
from oodbench.quality_metrics._decibels import decibels
from oodbench.quality_metrics._images import grey

BLOCK = 8
# Contrast sensitivity of each coefficient of an 8x8 DCT, from the JPEG luminance table.
SENSITIVITY = (
    (1.608443, 2.339554, 2.573509, 1.608443, 1.072295, 0.643377, 0.504610, 0.421887),
    (2.144591, 2.144591, 1.838221, 1.354478, 0.989811, 0.443708, 0.428918, 0.467911),
    (1.838221, 1.979622, 1.608443, 1.072295, 0.643377, 0.451493, 0.372972, 0.459555),
    (1.838221, 1.513829, 1.169777, 0.887417, 0.504610, 0.295806, 0.321689, 0.415082),
    (1.429727, 1.169777, 0.695543, 0.459555, 0.378457, 0.236102, 0.249855, 0.334222),
    (1.072295, 0.735288, 0.467911, 0.402111, 0.317717, 0.247453, 0.227744, 0.279729),
    (0.525206, 0.402111, 0.329937, 0.295806, 0.249855, 0.212687, 0.214459, 0.254803),
    (0.357432, 0.279729, 0.270896, 0.262603, 0.229778, 0.257351, 0.249855, 0.259950),
)


class PSNRHA(QualityMetric):
    """PSNR weighted by contrast sensitivity, which counts changes of mean and contrast for less.

    With x the luma of the reference and y that of the distorted image, from 0 to 255: δ = mean x − mean y, c = y + δ,
    λ = cov(x, c)/var c and d = mean c + λ(c − mean c). S(u, v) is the mean of (w·DCT(u − v))² over the coefficients of
    all whole 8x8 blocks, with the sensitivity w of each coefficient. Then

        S = S(x, c), or S(x, d) + k(S(x, c) − S(x, d)) if that is less, k = .002 for λ < 1 and .25 otherwise,
        PSNR-HA = 10 log₁₀(255² / (S + .04 δ²)).

    Luma is rounded to whole numbers. Identical images have 100,000 dB, as in the authors' code. Pixels to the right of and
    below the last whole block are not compared.
    """

    smallest_side = BLOCK

    def compare(self, references: Tensor, distorted: Tensor) -> Tensor:
        x, y = grey(references), grey(distorted)
        mean_x, mean_y = (image.mean((1, 2, 3), keepdim=True) for image in (x, y))
        shift = mean_x - mean_y
        level = y + shift
        spread = y - mean_y
        contrast = ((x - mean_x) * spread).mean((1, 2, 3), keepdim=True) / (spread**2).mean((1, 2, 3), keepdim=True)
        error, matched = _error(x - level), _error(x - (mean_x + contrast * spread))
        share = torch.full_like(error, 0.25).masked_fill(contrast.flatten() < 1, 0.002)
        # A constant image has no contrast to match; its comparison with NaN is false.
        error = torch.where(error > matched, matched + share * (error - matched), error)
        return decibels(error + 0.04 * shift.flatten() ** 2)


def _error(difference: Tensor) -> Tensor:
    """(N, 1, H, W) -> the mean squared, weighted DCT coefficient of its blocks: (N,)."""
    count, _, height, width = difference.shape
    rows, columns = height // BLOCK, width // BLOCK
    blocks = difference[:, 0, : rows * BLOCK, : columns * BLOCK].reshape(count, rows, BLOCK, columns, BLOCK)
    place = torch.arange(BLOCK, dtype=difference.dtype, device=difference.device)
    transform = math.sqrt(2 / BLOCK) * (math.pi / BLOCK * place[:, None] * (place + 0.5)).cos()
    transform[0] /= math.sqrt(2)
    found = torch.einsum("ui,nricj,vj->nrcuv", transform, blocks, transform)  # each block's DCT
    return ((found * found.new_tensor(SENSITIVITY)) ** 2).mean((1, 2, 3, 4))
