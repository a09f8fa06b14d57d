"""The colour difference CIEDE2000 (Sharma, Wu and Dalal, Color Research and Application 2005)."""

import torch
from torch import Tensor


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """CIELAB (N, 3, ...) each -> ΔE₀₀ (N, ...), with k_L = k_C = k_H = 1."""
    l1, a1, b1 = first.unbind(1)
    l2, a2, b2 = second.unbind(1)
    mean = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * (mean**7 / (mean**7 + 25.0**7)).sqrt()
    c1, c2 = torch.hypot(stretch * a1, b1), torch.hypot(stretch * a2, b2)
    h1, h2 = (torch.atan2(b, stretch * a).rad2deg() % 360 for a, b in ((a1, b1), (a2, b2)))
    grey = c1 * c2 == 0  # which have no hue

    turn = h2 - h1
    turn = torch.where(turn > 180, turn - 360, torch.where(turn < -180, turn + 360, turn)).masked_fill(grey, 0)
    difference = 2 * (c1 * c2).sqrt() * (turn / 2).deg2rad().sin()
    hue = (h1 + h2) / 2
    opposite = (h1 - h2).abs() > 180
    hue = torch.where(opposite, torch.where(h1 + h2 < 360, hue + 180, hue - 180), hue)
    hue = torch.where(grey, h1 + h2, hue)

    def cosine(times: int, shift: float) -> Tensor:
        return (times * hue + shift).deg2rad().cos()

    weight = 1 - 0.17 * cosine(1, -30) + 0.24 * cosine(2, 0) + 0.32 * cosine(3, 6) - 0.20 * cosine(4, -63)
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    scale_l = 1 + 0.015 * (lightness - 50) ** 2 / (20 + (lightness - 50) ** 2).sqrt()
    scale_c, scale_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * weight
    rotation = 2 * (chroma**7 / (chroma**7 + 25.0**7)).sqrt() * (60 * (-(((hue - 275) / 25) ** 2)).exp()).deg2rad().sin()
    dl, dc, dh = (l2 - l1) / scale_l, (c2 - c1) / scale_c, difference / scale_h
    return (dl**2 + dc**2 + dh**2 - rotation * dc * dh).clamp(min=0).sqrt()
