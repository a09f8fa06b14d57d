"""Hue, saturation and value of RGB images (Smith, SIGGRAPH 1978), in batches; ``colorsys`` does the same for one pixel."""

import torch
from torch import Tensor


def from_rgb(images: Tensor) -> Tensor:
    """Convert RGB to HSV, floats in [0, 1], (N, 3, H, W); the hue of grey is 0."""
    value, widest = images.max(1)  # (N, H, W), and the index of the channel
    spread = value - images.amin(1)
    scale = torch.where(spread > 0, spread, 1)
    red, green, blue = images.unbind(1)
    sixths = torch.stack([(green - blue) / scale, 2 + (blue - red) / scale, 4 + (red - green) / scale])
    hue = (sixths.gather(0, widest[None])[0] / 6) % 1
    saturation = spread / torch.where(value > 0, value, 1)
    return torch.stack([hue, saturation, value], 1)


def to_rgb(images: Tensor) -> Tensor:
    """Convert HSV to RGB, floats in [0, 1], (N, 3, H, W)."""
    hue, saturation, value = images.unbind(1)
    # Each channel falls by saturation · value over one sixth of the circle, stays low over two, rises over one.
    offset = torch.tensor([5, 3, 1], device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    sixth = (offset + hue[:, None] * 6) % 6
    falls = torch.minimum(sixth, 4 - sixth).clamp(0, 1)
    return value[:, None] - value[:, None] * saturation[:, None] * falls
