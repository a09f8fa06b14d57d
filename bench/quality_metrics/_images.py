"""Colour spaces, resizing and filters as MATLAB has them, because the authors' code of most metrics is written in it.

Images are (N, C, H, W). A resized uint8 image is rounded after each axis, as MATLAB does.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

GREY = (0.298936021293775, 0.587043074451121, 0.114020904255103)  # of rgb2gray
YCBCR = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))  # of rgb2ycbcr
# The sRGB profile of ICC: primaries adapted to D50 in units of 2^-16, white, and a tone curve of 1,024 points.
PRIMARIES = ((28578, 25241, 9376), (14581, 46981, 3972), (912, 6362, 46799))
WHITE = (0.9642, 1.0, 0.8249)
POINTS = 1024

Edge = Literal["symmetric", "replicate"]
Kernel = Literal["cubic", "triangle", "box"]
WIDTH = {"cubic": 4, "triangle": 2, "box": 1}


def rounded(images: Tensor) -> Tensor:
    """To whole numbers from 0 to 255, halves up, in the same dtype."""
    return (images + 0.5).floor().clamp(0, 255)


def grey(images: Tensor) -> Tensor:
    """uint8 RGB (N, 3, H, W) -> luma (N, 1, H, W), float64 whole numbers from 0 to 255, as rgb2gray gives them."""
    return rounded(torch.einsum("c,nchw->nhw", images.new_tensor(GREY, dtype=torch.float64), images.double()))[:, None]


def ycbcr(images: Tensor) -> Tensor:
    """uint8 RGB (N, 3, H, W) -> YCbCr of the same shape in the studio range, float64 whole numbers, as rgb2ycbcr."""
    matrix = images.new_tensor(YCBCR, dtype=torch.float64) / 255
    offset = images.new_tensor([16, 128, 128], dtype=torch.float64)[:, None, None]
    return rounded(torch.einsum("ij,njhw->nihw", matrix, images.double()) + offset)


def lab(images: Tensor) -> Tensor:
    """RGB from 0 to 255, (N, 3, H, W) -> L from 0 to 100, a and b, float64, as makecform('srgb2lab') with the ICC profile."""
    place = images.double() / 255 * (POINTS - 1)
    points = torch.arange(POINTS, dtype=torch.float64, device=images.device) / (POINTS - 1)
    curve = torch.where(points <= 0.04045, points / 12.92, ((points + 0.055) / 1.055) ** 2.4)
    curve = (curve * 65535).round() / 65535
    below = place.floor().long().clamp(max=POINTS - 2)
    linear = torch.lerp(curve[below], curve[below + 1], place - below)
    primaries = linear.new_tensor(PRIMARIES) / 2**16
    ratio = torch.einsum("ij,njhw->nihw", primaries, linear) / linear.new_tensor(WHITE)[:, None, None]
    root = torch.where(ratio > (6 / 29) ** 3, ratio.clamp(min=0) ** (1 / 3), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def resized(images: Tensor, scale: float | Sequence[int], kernel: Kernel = "cubic") -> Tensor:
    """As imresize with antialiasing: uint8 stays uint8, everything else becomes float64.

    ``scale``: a factor, which rounds sides up, or (height, width).
    """
    sides = images.shape[-2:]
    if isinstance(scale, Sequence):
        sizes, factors = list(scale), [size / side for size, side in zip(scale, sides, strict=True)]
    else:
        sizes, factors = [math.ceil(side * scale) for side in sides], [scale, scale]
    after = rounded if images.dtype == torch.uint8 else torch.Tensor.double
    found = images.double()
    rows, columns = (
        _weights(side, size, factor, kernel).to(images.device) for side, size, factor in zip(sides, sizes, factors, strict=True)
    )
    if factors[0] <= factors[1]:  # the order matters where each axis is rounded
        found = after(after(rows @ found) @ columns.T)
    else:
        found = after(rows @ after(found @ columns.T))
    return found.to(torch.uint8) if images.dtype == torch.uint8 else found


def _weights(side: int, size: int, factor: float, kernel: Kernel) -> Tensor:
    """(size, side): what each pixel of the resized axis takes from each of the original axis."""
    stretch = min(factor, 1.0)
    width = WIDTH[kernel] / stretch
    centre = torch.arange(1, size + 1, dtype=torch.float64) / factor + (1 - 1 / factor) / 2
    taps = math.ceil(width) + 2
    places = (centre - width / 2).floor()[:, None] + torch.arange(taps)
    weights = _kernel(stretch * (centre[:, None] - places), kernel)
    weights = weights / weights.sum(1, keepdim=True)
    found = torch.zeros(size, side, dtype=torch.float64)
    return found.scatter_add_(1, _mirrored(places.long() - 1, side), weights)


def _kernel(x: Tensor, kernel: Kernel) -> Tensor:
    if kernel == "box":
        return ((x >= -0.5) & (x < 0.5)).double()
    x = x.abs()
    if kernel == "triangle":
        return (1 - x).clamp(min=0)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2  # Keys 1981, a = -1/2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, 0.0))


def _mirrored(places: Tensor, side: int) -> Tensor:
    """Places beyond the edge, mirrored with the edge repeated, as many times as it takes."""
    places = places % (2 * side)
    return torch.where(places < side, places, 2 * side - 1 - places)


def laplacian_of_gaussian(size: int, sigma: float) -> Tensor:
    """(size, size): the filter of fspecial('log'), with sum 0."""
    along = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) ** 2
    square = along[:, None] + along
    gaussian = (-square / (2 * sigma**2)).exp()
    found = gaussian / gaussian.sum() * (square - 2 * sigma**2) / sigma**4
    return found - found.mean()


def filtered(images: Tensor, kernel: Tensor, edge: Edge) -> Tensor:
    """(N, C, H, W) -> the same shape, as imfilter; the centre of an even kernel is the last pixel of its first half.

    The kernel is split into separable ones (its singular vectors), which cost far less than its size x size taps.
    """
    left, values, right = torch.linalg.svd(kernel.to(images.device))
    found = torch.zeros_like(images)
    for place in range(int((values > 1e-14 * values[0]).sum())):
        rows = _band(images.shape[-2], left[:, place] * values[place], edge)
        columns = _band(images.shape[-1], right[place], edge)
        found += rows @ images @ columns.T
    return found


def _band(side: int, taps: Tensor, edge: Edge) -> Tensor:
    """(side, side): correlation with the taps along an axis."""
    centre = (len(taps) - 1) // 2
    places = torch.arange(side, device=taps.device)[:, None] + torch.arange(len(taps), device=taps.device) - centre
    places = _mirrored(places, side) if edge == "symmetric" else places.clamp(0, side - 1)
    return torch.zeros(side, side, dtype=taps.dtype, device=taps.device).scatter_add_(1, places, taps.expand(side, -1))
