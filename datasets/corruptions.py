"""Corruptions at five levels, generated from any set of images.

The randomness of a pixel is a hash of (seed, image, place), so a result depends neither on the batch an image comes in,
nor on the order, nor on the device.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from oodbench import registry
from oodbench.errors import BadData, UsageError
from oodbench.image_set import Images

LEVELS = (1, 2, 3, 4, 5)
CHUNK = 2**18  # pixel values at a time, for hashing works on several float64 copies of them

# Standard deviation of additive noise for 32x32 images, in pixel units of [0, 1] (Hendrycks & Dietterich, ICLR 2019).
NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)


def noise(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Additive Gaussian noise. A grey image, one whose channels are equal, stays grey: its sensor has one channel."""
    grey = (images == images[:, :1]).flatten(1).all(1).view(-1, 1, 1, 1)
    normal = standard_normal(keys, images.shape[1:])
    return images + NOISE[level - 1] * torch.where(grey, normal[:, :1], normal)


# name: function of images (N, C, H, W), float64 in [0, 1], a level, and a key an image, int64 (N,), to images not yet clipped
CORRUPTIONS: dict[str, Callable[[Tensor, int, Tensor], Tensor]] = {"noise": noise}


def corrupt(images: Tensor, name: str, level: int, seed: int = 0, index: Tensor | None = None) -> Tensor:
    """Corrupted copies of images, rounded to 8 bits.

    Args:
        images: uint8 (N, C, H, W), on any device.
        name: one of ``CORRUPTIONS``.
        level: 1 (mild) to 5.
        index: int64 (N,), what each image is known by: with the seed it decides its randomness. By default 0, 1, …, N − 1.

    Returns: uint8 (N, C, H, W), on the same device.

    Raises UsageError for an unknown name or level, BadData for images that are not uint8 (N, C, H, W).
    """
    require(name, level)
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise BadData(f"{name} takes uint8 images (N, C, H, W), not {images.dtype} {tuple(images.shape)}; convert them first")
    index = torch.arange(len(images)) if index is None else index.to(torch.int64)
    if index.shape != (len(images),):
        raise BadData(f"{name}: {len(images)} images and an index of shape {tuple(index.shape)}; give one number an image")
    keys = mix(mix(torch.tensor(seed, device=images.device)) + index.to(images.device) * GOLDEN)
    corrupted = torch.empty_like(images)
    step = max(1, CHUNK // max(1, images[:1].numel()))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        result = CORRUPTIONS[name](images[part].double() / 255, level, keys[part])
        corrupted[part] = (result.clamp(0, 1) * 255).round().to(torch.uint8)
    return corrupted


def require(name: str, level: int | str) -> None:
    """Raise UsageError for a name that is no corruption, or a level that is not 1 to 5."""
    if name not in CORRUPTIONS:
        raise UsageError(registry.unknown("corruption", name, CORRUPTIONS, f"known: {', '.join(CORRUPTIONS)}"))
    if level not in LEVELS:
        raise UsageError(f"'{name}' needs a level from 1 (mild) to 5, not {level}; write {name}@1 to {name}@5")


class Corrupted:
    """``Images`` that are corrupted on demand, ``index`` (N,) as in ``corrupt``."""

    def __init__(self, images: Images, name: str, level: int, seed: int, index: Tensor) -> None:
        self._images, self._index, self._how = images, index, (name, level, seed)
        self.shape = tuple(images.shape)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        return corrupt(self._images[rows], *self._how, index=self._index[list(rows)])


# SplitMix64 (Steele, Lea & Flood, OOPSLA 2014); its constants as signed numbers, for torch's integers wrap around.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def mix(values: Tensor) -> Tensor:
    """SplitMix64's finaliser: int64 -> int64, each bit a function of all bits."""
    values = (values ^ _shift(values, 30)) * FIRST
    values = (values ^ _shift(values, 27)) * SECOND
    return values ^ _shift(values, 31)


def _shift(values: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's own repeats the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def standard_normal(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """float64 (N, *shape), independent standard normal values: the stream of each key (N,), by Box & Muller 1958."""
    place = torch.arange(1, math.prod(shape) + 1, device=keys.device)
    bits = mix(keys[:, None] + place * GOLDEN)  # (N, P)
    radius, angle = ((half.double() + 0.5) / 2**32 for half in (_shift(bits, 32), bits & 0xFFFFFFFF))
    return ((-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()).view(-1, *shape)
