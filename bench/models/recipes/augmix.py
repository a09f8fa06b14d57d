"""AugMix (Hendrycks et al., ICLR 2020, arXiv 1912.02781)."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as library

from oodbench.detectors._parameters import require_finite, require_whole
from oodbench.errors import UsageError
from oodbench.models.recipes.method import Method

LEAST, MOST = 0.1, 10  # level of an operation
CLAMP = 1e-7  # of the mean prediction, whose logarithm is taken

# Each takes uint8 images (n, C, H, W), levels (n,) of 0 to 10, and signs (n,) of -1 or 1. Whole values are rounded down, as in
# the authors' code.


def autocontrast(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return library.autocontrast(images)


def equalize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return library.equalize(images)


def posterize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Keep the upper 4 − 0.4 l bits."""
    dropped = 4 + (0.4 * level).int()
    return images & _each(256 - 2**dropped, images)


def solarize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Invert pixels of at least 256 − 25.6 l."""
    threshold = 256 - (25.6 * level).int()
    return torch.where(images.int() < _each(threshold, images, torch.int32), images, 255 - images)


def rotate(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """By 3 l degrees around the centre, counterclockwise if the sign is positive."""
    turn = -sign * (3 * level).int() * math.pi / 180
    height, width = images.shape[2:]
    cos, sin, across, down = turn.cos(), turn.sin(), width / 2, height / 2
    rows = (cos, sin, across - cos * across - sin * down), (-sin, cos, down + sin * across - cos * down)
    return _mapped(images, *rows)


def shear_x(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _mapped(images, (1, 0.03 * level * sign, 0), (0, 1, 0))


def shear_y(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _mapped(images, (1, 0, 0), (0.03 * level * sign, 1, 0))


def translate_x(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """By l / 30 of the width, in whole pixels."""
    return _mapped(images, (1, 0, (level * images.shape[3] / 30).int() * sign), (0, 1, 0))


def translate_y(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _mapped(images, (1, 0, 0), (0, 1, (level * images.shape[2] / 30).int() * sign))


# Never colour, contrast, brightness or sharpness, which overlap with test corruptions.
OPERATIONS: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    *(autocontrast, equalize, posterize, rotate, solarize),
    *(shear_x, shear_y, translate_x, translate_y),
)


class AugMix(Method):
    """The cross-entropy on clean images, plus the Jensen-Shannon divergence between the answers to them and to two mixtures.

    A mixture is (1 − m) x + m Σ_i w_i chain_i(x), w ~ Dirichlet(1, …, 1), m ~ Beta(1, 1); a chain applies 1 to ``depth``
    operations at random.

    width: number of chains.
    depth: most operations in a chain.
    severity: largest level of an operation, 0.1 to 10; the level is uniform from 0.1.
    consistency: weight of the divergence.
    """

    def __init__(self, *training: Any, width: int, depth: int, severity: float, consistency: float) -> None:
        super().__init__(*training)
        name = self.recipe.name
        require_whole(name, 1, 10, width=width, depth=depth)
        require_finite(name, "of at least 0", severity=severity, consistency=consistency)
        if not LEAST <= severity <= MOST:
            raise UsageError(f"{name}: severity = {severity}; give a number from {LEAST} to {MOST}")
        self.width, self.depth, self.severity, self.consistency = width, depth, severity, consistency

    def loss(self, images: Tensor, labels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        views = [images.float() / 255, self.mixed(images, random), self.mixed(images, random)]
        logits = self.logits(torch.cat(views))
        clean = logits[: len(images)]
        loss = F.cross_entropy(clean, labels) + self.consistency * divergence(logits)
        return loss, clean.argmax(1) == labels

    def mixed(self, images: Tensor, random: torch.Generator) -> Tensor:
        """uint8 (n, C, H, W) -> floats in [0, 1]."""
        draws = self.draw(len(images), random)
        chains = images.repeat(self.width, 1, 1, 1)  # (width · n, C, H, W)
        for operation, level, sign in draws["operations"]:  # one place of all chains, (width · n,) each
            for number, apply in enumerate(OPERATIONS):
                rows = (operation == number).nonzero()[:, 0]
                if len(rows):
                    there = rows.to(images.device)
                    chains[there] = apply(chains[there], level[rows].to(images.device), sign[rows].to(images.device))
        weights = draws["weights"].to(images.device).view(self.width, -1, 1, 1, 1)
        share = draws["share"].to(images.device).view(-1, 1, 1, 1)
        mixture = (weights * chains.unflatten(0, (self.width, -1))).sum(0) / 255
        return ((1 - share) * images.float() / 255 + share * mixture).clamp(0, 1)

    def draw(self, count: int, random: torch.Generator) -> dict[str, Any]:
        """The random part of mixtures of ``count`` images: (operation, level, sign) by place in the chains, (width · n,) each,
        where the operation is -1 after the end of a chain, ``weights`` of chains (width, n), and ``share`` of the mixture (n,).
        """
        shape = self.depth, self.width * count
        length = torch.randint(1, self.depth + 1, shape[1:], generator=random)
        operation = torch.randint(len(OPERATIONS), shape, generator=random)
        operation[torch.arange(self.depth)[:, None] >= length] = -1
        level = LEAST + (self.severity - LEAST) * torch.rand(shape, generator=random)
        sign = 2 * torch.randint(2, shape, generator=random) - 1
        # Exponentials divided by their sum have the distribution Dirichlet(1, …, 1).
        parts = torch.empty(self.width, count).exponential_(generator=random)
        return {
            "operations": list(zip(operation, level, sign, strict=True)),
            "weights": parts / parts.sum(0),
            "share": torch.rand(count, generator=random),
        }


def divergence(logits: Tensor) -> Tensor:
    """Mean over images of Σ_k KL(p_k ‖ M) / 3, M the mean of the p_k, at least 1e-7: logits (3n, classes), view by view."""
    views = logits.float().softmax(1).chunk(3)
    mean = torch.stack(views).mean(0).clamp(CLAMP, 1).log()
    return torch.stack([F.kl_div(mean, each, reduction="batchmean") for each in views]).mean()


def _each(values: Tensor, images: Tensor, dtype: torch.dtype = torch.uint8) -> Tensor:
    """One value per image (n,), shaped for images (n, C, H, W)."""
    return values.to(images.device, dtype).view(-1, 1, 1, 1)


def _mapped(images: Tensor, across: tuple[Any, Any, Any], down: tuple[Any, Any, Any]) -> Tensor:
    """Each pixel centre (x, y) gets the value at (a x + b y + c, d x + e y + f), interpolated linearly, 0 outside the image.

    ``across`` is (a, b, c) and ``down`` (d, e, f), each a number or (n,). Edges are those of Pillow: the values of a pixel hold
    up to the border of the image.
    """
    height, width = images.shape[2:]
    x = (torch.arange(width, device=images.device) + 0.5).view(1, 1, -1)
    y = (torch.arange(height, device=images.device) + 0.5).view(1, -1, 1)

    def place(factors: tuple[Any, Any, Any]) -> Tensor:
        a, b, c = (torch.as_tensor(factor, device=images.device).float().view(-1, 1, 1) for factor in factors)
        return a * x + b * y + c

    shape = len(images), height, width
    right, below = place(across).expand(shape), place(down).expand(shape)
    grid = torch.stack([2 * right / width - 1, 2 * below / height - 1], 3)  # (n, H, W, 2), -1 and 1 at the borders
    found = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    inside = (right >= 0) & (right < width) & (below >= 0) & (below < height)
    return (found * inside[:, None]).round().to(torch.uint8)
