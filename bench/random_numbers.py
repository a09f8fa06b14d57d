"""Random numbers that belong to an image: a function of a key, not of a generator's state.

What is drawn for an image depends neither on its batch nor on the order of images, and is the same on every device.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from oodbench.errors import UsageError

# SplitMix64 (Steele, Lea & Flood, OOPSLA 2014). Its constants are signed here, because torch's integers wrap around.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64

CHUNK = 2**22  # pixels hashed at once


def mix(values: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser: int64 -> int64, where each output bit depends on all input bits."""
    values = (values ^ shifted(values, 30)) * FIRST
    values = (values ^ shifted(values, 27)) * SECOND
    return values ^ shifted(values, 31)


def shifted(values: Tensor, bits: int) -> Tensor:
    """Shift right logically; torch's own shift repeats the sign bit."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def hashed(keys: Tensor, count: int) -> Tensor:
    """Return random bits, int64 (N, count): the stream of each key (N,)."""
    return mix(keys[:, None] + torch.arange(1, count + 1, device=keys.device) * GOLDEN)


def image_keys(index: Tensor, seed: int) -> Tensor:
    """Return a key per image, int64 (N,), from its number in ``index`` (N,) and the seed."""
    return mix(_of_seed(seed) + index * GOLDEN)


def content_keys(images: Tensor, seed: int) -> Tensor:
    """Return a key per image, int64 (N,), from its pixels: floats (N, C, H, W) in [0, 1], read to 16 bits.

    An image has the same key in float32 and in float64, alone and in a batch.
    """
    place = torch.arange(1, images[:1].numel() + 1, device=images.device)
    sums = [
        mix((part.flatten(1).double() * 65535).round().long() + place * GOLDEN).sum(1)
        for part in images.split(max(1, CHUNK // max(1, len(place))))
    ]
    return mix(torch.cat(sums) + _of_seed(seed))


def _of_seed(seed: int) -> Tensor:
    """A number on the CPU, which keys on any device can be added to without a copy."""
    if not -(2**63) <= seed < 2**63:
        raise UsageError(f"seed is {seed}; give a whole number of at most {2**63 - 1}")
    return mix(torch.tensor(seed))


def uniform(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Return independent uniform values in [0, 1), float64 (N, *shape): the stream of each key (N,)."""
    return (shifted(hashed(keys, math.prod(shape)), 11).double() / 2**53).view(-1, *shape)


def standard_normal(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Return independent standard normal values, float64 (N, *shape): the stream of each key (N,), by Box & Muller 1958."""
    bits = hashed(keys, math.prod(shape))
    radius, angle = ((half.double() + 0.5) / 2**32 for half in (shifted(bits, 32), bits & 0xFFFFFFFF))
    return ((-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()).view(-1, *shape)
