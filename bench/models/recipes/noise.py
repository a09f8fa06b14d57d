"""Training on noisy images beside clean ones (Rusak et al., ECCV 2020, arXiv 2001.06057)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from oodbench.detectors._parameters import require_finite, require_grid
from oodbench.models.recipes.method import Method


class Noise(Method):
    """The cross-entropy on each batch, a part of which has Gaussian noise, clipped to [0, 1].

    sigma: standard deviation where white is 1, or several, of which each noisy image draws one.
    clean: share of each batch without noise.
    """

    def __init__(self, *training: Any, sigma: float | Sequence[float], clean: float) -> None:
        super().__init__(*training)
        sigmas = sigma if isinstance(sigma, list | tuple) else [sigma]
        require_grid(self.recipe.name, "above 0", sigma=sigmas)
        require_finite(self.recipe.name, "from 0 to 1", clean=clean)
        self.sigmas, self.clean = torch.tensor(sigmas), clean

    def loss(self, images: Tensor, labels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.cross_entropy(self.noisy(images.float() / 255, random), labels)

    def noisy(self, images: Tensor, random: torch.Generator) -> Tensor:
        """Images (n, C, H, W), floats in [0, 1], the first of them clean: the order of a batch is random."""
        first = round(self.clean * len(images))
        normal = torch.randn(images[first:].shape, generator=random)
        sigma = self.sigmas[torch.randint(len(self.sigmas), (len(normal), 1, 1, 1), generator=random)]
        return torch.cat([images[:first], (images[first:] + (sigma * normal).to(images)).clamp(0, 1)])
