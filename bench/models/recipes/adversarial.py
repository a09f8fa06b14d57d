"""Adversarial training (Madry et al., ICLR 2018, arXiv 1706.06083)."""

from typing import Any

import torch
from torch import Tensor

from oodbench.datasets.adversarial import attacks
from oodbench.detectors._parameters import require_finite, require_whole
from oodbench.errors import BadData, OodbenchError
from oodbench.models.device import full_precision
from oodbench.models.recipes.method import Method
from oodbench.progress import Progress


class Adversarial(Method):
    """The cross-entropy on images that PGD changed against the network as it is, in training mode with its batch statistics.

    eps: largest change of a pixel, in units of [0, 1].
    step: of the attack, in the same units.
    steps: number of them, from a random point within ``eps``.
    """

    def __init__(self, *training: Any, eps: float, step: float, steps: int) -> None:
        super().__init__(*training)
        require_finite(self.recipe.name, "from 0 to 1", eps=eps, step=step)
        require_whole(self.recipe.name, 1, steps=steps)
        self.eps, self.step, self.steps = eps, step, steps

    def loss(self, images: Tensor, labels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.cross_entropy(self.attacked(images.float() / 255, labels, random), labels)

    def attacked(self, images: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        """Images (n, C, H, W) in [0, 1] -> images within ``eps`` of them, and in [0, 1]."""
        keys = torch.randint(-(2**63), 2**63 - 1, (len(images),), generator=random).to(images.device)
        network = attacks.Network(self.classifier, Progress())
        try:
            with full_precision(images.device):  # gradients of confident answers are smaller than half precision can hold
                return attacks.pgd(network, images, labels, keys, eps=self.eps, step=self.step, steps=self.steps)
        except BadData as error:
            name, rate = self.classifier.name, self.recipe.lr
            raise OodbenchError(f"training {name} diverged (gradients are not finite); lower lr, now {rate:g}") from error
