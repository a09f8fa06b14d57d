"""The control: how well simple image statistics work without any network.

If its score is high, the shift has a simple cue that any detector can use.
"""

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.errors import Unsuitable
from oodbench.probe import Probe

HALF_LEVEL = 1 / 510  # of an 8-bit image


class Pixels(Detector):
    """Logarithms of nine statistics of an RGB image, in pixel units of [0, 1]; grey images count as three equal channels.

    Channel means (3) and standard deviations (3); colourfulness √(σ²_rg + σ²_yb) + 0.3 √(μ²_rg + μ²_yb) with
    rg = R − G and yb = (R + G)/2 − B (Hasler and Süsstrunk, Measuring colourfulness in natural images, SPIE 2003);
    gradient energy, the mean squared difference of neighbouring pixels of the grey image; the fraction of values that
    an 8-bit image stores as 0 or 255. What is less than half a grey level (its square for the energy, half a value for the
    fraction) counts as that.

    The control gets what the best learner, ``purview``, has: logarithms and its shift head, two linear layers. Without a
    shift to learn from, the score is the Mahalanobis distance to held-out training images.

    images (N, 3, H, W) or (N, 1, H, W) -> (N, 9), float64
    """

    signals = ("images",)
    unsupervised_head = "mahalanobis"
    shift_head = "mlp"

    def statistics(self, probe: Probe) -> Tensor:
        if probe.images.shape[1] not in (1, 3):
            raise Unsuitable(f"reads grey or RGB images, not images with {probe.images.shape[1]} channels; leave it out")
        images = probe.images.double().expand(-1, 3, -1, -1)
        red, green, blue = images.unbind(1)  # (N, H, W) each
        means, stds = images.mean((2, 3)), images.std((2, 3), correction=0)  # (N, 3)
        opponents = torch.stack([red - green, (red + green) / 2 - blue], 1)  # (N, 2, H, W)
        colourfulness = opponents.std((2, 3), correction=0).norm(dim=1) + 0.3 * opponents.mean((2, 3)).norm(dim=1)
        grey = images.mean(1)
        gradient = grey.diff(dim=1).square().mean((1, 2)) + grey.diff(dim=2).square().mean((1, 2))
        saturated = ((images < HALF_LEVEL) | (images > 1 - HALF_LEVEL)).double().mean((1, 2, 3))
        levels = torch.cat([means, stds, colourfulness[:, None]], 1).clamp_min(HALF_LEVEL)
        rest = torch.stack([gradient.clamp_min(HALF_LEVEL**2), saturated.clamp_min(0.5 / images[0].numel())], 1)
        return torch.cat([levels, rest], 1).log()
