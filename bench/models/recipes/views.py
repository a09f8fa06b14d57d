"""The random views of SimCLR (Chen et al. 2020, arXiv 2002.05709): a crop of any size, mirrored, in other colours.

Images are floats (n, C, H, W) in [0, 1]. Random numbers are drawn on the CPU, for every device.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.datasets.adversarial import hsv

LUMA = 0.299, 0.587, 0.114  # ITU-R BT.601
RATIO = math.log(4 / 3)  # largest logarithm of width / height of a crop, and minus the smallest


def cropped(images: Tensor, area: Sequence[float], flips: bool, random: torch.Generator) -> Tensor:
    """A random part of each image, of a share of its area between both values of ``area``, resized to the whole (bicubic).

    width / height is 3/4 to 4/3, log-uniform; a side that would be longer than that of the image is as long. Half of the parts
    are mirrored if ``flips``.
    """
    count, _, height, width = images.shape
    draws = torch.rand(5, count, generator=random)
    pixels = (area[0] + (area[1] - area[0]) * draws[0]) * height * width
    ratio = ((2 * draws[1] - 1) * RATIO).exp()
    across, down = ((pixels * ratio).sqrt() / width).clamp(max=1), ((pixels / ratio).sqrt() / height).clamp(max=1)
    # In coordinates from -1 to 1: half the sides are ``across`` and ``down``, the centre is uniform over where they fit.
    x, y = (2 * draws[2] - 1) * (1 - across), (2 * draws[3] - 1) * (1 - down)
    mirror = torch.where((draws[4] < 0.5) & flips, -1.0, 1.0)
    zero = torch.zeros(count)
    maps = torch.stack([torch.stack([across * mirror, zero, x], 1), torch.stack([zero, down, y], 1)], 1)  # (n, 2, 3)
    grid = F.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    found = F.grid_sample(images, grid, "bicubic", padding_mode="border", align_corners=False)
    return found.clamp(0, 1)


def recoloured(images: Tensor, jitter: Sequence[float], jittered: float, grey: float, random: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue changed by up to ``jitter`` each, in random order, in a share ``jittered`` of
    the images, and a share ``grey`` without colour. Images without three channels are returned as they are."""
    if images.shape[1] != 3:
        return images
    count = len(images)
    spread = torch.tensor(jitter)
    change = (2 * torch.rand(count, 4, generator=random) - 1) * spread
    order = torch.rand(count, 4, generator=random).argsort(1)
    order[torch.rand(count, generator=random) >= jittered] = -1
    images = adjusted(images, change, order)
    rows = (torch.rand(count, generator=random) < grey).to(images.device)
    return torch.where(rows.view(-1, 1, 1, 1), _luma(images).expand_as(images), images)


def adjusted(images: Tensor, change: Tensor, order: Tensor) -> Tensor:
    """RGB images (n, 3, H, W) with each of four changes: brightness, contrast, saturation (times 1 + change) and hue (plus it).

    change: (n, 4). order: (n, 4), which of the four comes first, second, third and last; -1 for none.
    """
    images = images.clone()
    for place in order.T:
        for number, adjust in enumerate((_brightness, _contrast, _saturation, _hue)):
            rows = (place == number).nonzero()[:, 0]
            if len(rows):
                there = rows.to(images.device)
                images[there] = adjust(images[there], change[rows, number].to(images).view(-1, 1, 1, 1)).clamp(0, 1)
    return images


def _brightness(images: Tensor, change: Tensor) -> Tensor:
    return images * (1 + change)


def _contrast(images: Tensor, change: Tensor) -> Tensor:
    return torch.lerp(_luma(images).mean((2, 3), keepdim=True).expand_as(images), images, 1 + change)


def _saturation(images: Tensor, change: Tensor) -> Tensor:
    return torch.lerp(_luma(images).expand_as(images), images, 1 + change)


def _hue(images: Tensor, change: Tensor) -> Tensor:
    hue, saturation, value = hsv.from_rgb(images).unbind(1)
    return hsv.to_rgb(torch.stack([(hue + change[:, 0]) % 1, saturation, value], 1))


def _luma(images: Tensor) -> Tensor:
    """(n, 3, H, W) -> (n, 1, H, W)"""
    return (images * torch.tensor(LUMA, device=images.device).view(3, 1, 1)).sum(1, keepdim=True)
