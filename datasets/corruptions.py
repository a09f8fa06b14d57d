"""Corruptions at five levels, generated from any set of images.

Each is written from what happens in front of a lens, in it or on the sensor, not from another project's code: results
call these sets "C-style, generated", apart from the files of CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019).

Lengths are shares of the shorter side, so that an image of 8x8 pixels looks as it does at 224x224. An image's randomness
is a hash of (seed, image, place), so a result depends neither on the batch an image comes in, nor on the order, nor on
the device. For the same reason all that goes through a sum whose order is the machine's, a matrix product, is whole
multiples of a power of two: such sums are exact in float64 in any order. A level repeats the draws of the one below and
adds to them. Nothing here has a colour of its own, so grey images stay grey.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from oodbench.datasets.name import LEVELS as LEVELS
from oodbench.datasets.name import require_corruption
from oodbench.errors import BadData
from oodbench.image_set import Images

CHUNK = 2**18  # pixel values at a time, for hashing works on several float64 copies of them

# By level. Standard deviation of additive noise, of white = 1: CIFAR-10-C's.
NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)
DISK = (0.018, 0.025, 0.033, 0.043, 0.055)  # radius of the circle of confusion
SPREAD = (0.010, 0.014, 0.018, 0.023, 0.029)  # standard deviation of the Gaussian blur
BLOTS = (8, 14, 22, 32, 44)  # specks and drops on the lens
STOPS = (0.75, 1.25, 1.75, 2.25, 3.0)  # of exposure: one doubles the light
FLAKES = (12, 24, 38, 54, 72)  # that fall through the picture
VEIL = (0.04, 0.08, 0.13, 0.18, 0.24)  # share of the light that comes from snow too far to be seen as flakes
DEPTH = (0.35, 0.6, 0.85, 1.1, 1.4)  # of the haze, optical, in the mean over pictures
GREYED = (50, 65, 80, 90, 100)  # per cent of the colour taken away


def noise(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Additive Gaussian noise of the sensor. A grey image, one whose channels are equal, stays grey: it had one channel."""
    grey = (images == images[:, :1]).flatten(1).all(1).view(-1, 1, 1, 1)
    normal = standard_normal(keys, images.shape[1:])
    return images + 255 * NOISE[level - 1] * torch.where(grey, normal[:, :1], normal)


def lens_blur(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Defocus: a point becomes the image of the round aperture, a disk. Each pixel is the mean over a disk around it."""
    kernel = disk_kernel(DISK[level - 1] * min(images.shape[2:]))  # (2R + 1, 2R + 1)
    height, width = images.shape[2:]
    reach = len(kernel) // 2
    below = torch.cat([_blur_matrix(kernel[reach + dy], width) for dy in range(reach + 1)])  # ((R + 1)·W, W)
    across = (images @ below.T.to(images.device)).unflatten(3, (reach + 1, width))  # (N, C, H, R + 1, W)
    rows = torch.arange(height, device=images.device)
    shifts = range(-reach, reach + 1)
    return sum((across[:, :, reflected(rows + dy, height), abs(dy)] for dy in shifts), torch.zeros_like(images))


def gaussian_blur(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Convolution with a Gaussian, as from motion in the air or from smoothing; edges are mirrored."""
    return _gaussian(images, SPREAD[level - 1])


def dirty_lens(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Specks of dirt and drops on the lens, far out of focus: soft spots that absorb light and scatter the rest.

    Their optical density adds up, and the light T = exp(-density) passes (Beer & Lambert). Of the light that does not pass,
    a speck gives back little and a drop most, from all over the scene: the image behind it is smeared.
    """
    draws = uniform(keys, "dirty", (BLOTS[-1], 5))[:, : BLOTS[level - 1]]
    place, size, kind, strength = draws.split((2, 1, 1, 1), 2)  # (N, K, 2 or 1)
    place = _placed(place, images.shape[2:])
    radius = 0.03 + 0.07 * size**2  # many small ones, few large ones
    density = 0.5 + 2.5 * strength
    given_back = 0.25 + 0.65 * (kind < 0.5)
    total = _spots(place, radius, density, images.shape[2:])
    scattered = _spots(place, radius, density * given_back, images.shape[2:]) / total.clamp(min=1e-9)
    through = (-total).exp()
    return images * through + _gaussian(images, 0.15) * scattered * (1 - through)


def exposure(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Overexposure: more light, on a sensor that saturates at white. sRGB is decoded to light and encoded again."""
    values = torch.arange(256, dtype=torch.float64) / 255
    light = torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    light = (light * 2 ** STOPS[level - 1]).clamp(max=1)
    encoded = torch.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * encoded).to(images.device)[images.long()]


def snow(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """White flakes that a wind drives through the picture while the shutter is open, before a veil of distant snow."""
    wind = uniform(keys, "wind", (1, 1)) - 0.5
    draws = uniform(keys, "snow", (FLAKES[-1], 6))[:, : FLAKES[level - 1]]
    place, size, drift, length, thickness = draws.split((2, 1, 1, 1, 1), 2)  # (N, K, 2 or 1)
    radius = 0.006 + 0.012 * size**2  # near flakes are large, and fall faster through the picture
    slant = wind + 0.4 * (drift - 0.5)
    streak = torch.cat([torch.ones_like(slant), slant], 2) * radius * (4 + 4 * length)  # (N, K, 2), down and right
    instants = (torch.arange(INSTANTS, device=keys.device) + 0.5) / INSTANTS - 0.5
    places = _placed(place, images.shape[2:])[:, :, None] + streak[:, :, None] * instants[:, None]  # (N, K, INSTANTS, 2)
    radius, density = (values.repeat_interleave(INSTANTS, 1) for values in (radius, 0.6 + 0.8 * thickness))
    flakes = _spots(places.flatten(1, 2), radius, density, images.shape[2:])
    return 255 + (images - 255) * (1 - VEIL[level - 1]) * (-flakes).exp()


INSTANTS = 4  # at which a flake is drawn along its streak


def haze(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Koschmieder's law: of the scene's light t = exp(-depth) arrives, and 1 - t is airlight. The depth varies smoothly."""
    airlight = 255 * (0.75 + 0.2 * uniform(keys, "air", (1, 1, 1)))
    place, strength = uniform(keys, "haze", (PUFFS, 3)).split((2, 1), 2)
    place, radius = _placed(place, images.shape[2:]), torch.full_like(strength, 0.2)
    field = 0.4 + _spots(place, radius, 0.5 * strength, images.shape[2:])  # (N, 1, H, W), mean about 1
    through = (-DEPTH[level - 1] * field).exp()
    return airlight + (images - airlight) * through


PUFFS = 12  # of haze, before a ground of 0.4


def decolor(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Colour taken away, at level 5 all of it: each pixel is drawn to its luma (ITU-R BT.601). On grey images the identity."""
    if images.shape[1] != 3:
        return images
    luma = 299 * images[:, :1] + 587 * images[:, 1:2] + 114 * images[:, 2:]
    share = GREYED[level - 1]
    return ((100 - share) * 1000 * images + share * luma) / 100_000  # whole numbers up to the division


# name: function of images (N, C, H, W), whole numbers 0 … 255 in float64, a level, and a key an image, int64 (N,), to images
# not yet clipped and rounded
CORRUPTIONS: dict[str, Callable[[Tensor, int, Tensor], Tensor]] = {
    "noise": noise,
    "lens-blur": lens_blur,
    "gaussian-blur": gaussian_blur,
    "dirty-lens": dirty_lens,
    "exposure": exposure,
    "snow": snow,
    "haze": haze,
    "decolor": decolor,
}


def corrupt(images: Tensor, name: str, level: int, seed: int = 0, index: Tensor | None = None) -> Tensor:
    """Corrupted copies of images, rounded to 8 bits.

    Args:
        images: uint8 (N, C, H, W), on any device, of any size; from 8x8 on each level differs from the next.
        name: one of ``CORRUPTIONS``.
        level: 1 (mild) to 5.
        index: int64 (N,), what each image is known by: with the seed it decides its randomness. By default 0, 1, …, N − 1.

    Returns: uint8 (N, C, H, W), on the same device. ``decolor`` leaves grey images as they are.

    Raises UsageError for an unknown name or level, BadData for images that are not uint8 (N, C, H, W).
    """
    require_corruption(name, level)
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
        result = CORRUPTIONS[name](images[part].double(), level, keys[part])
        corrupted[part] = result.clamp(0, 255).round().to(torch.uint8)
    return corrupted


class Corrupted:
    """``Images`` that are corrupted on demand, ``index`` (N,) as in ``corrupt``."""

    def __init__(self, images: Images, name: str, level: int, seed: int, index: Tensor) -> None:
        self._images, self._index, self._how = images, index, (name, level, seed)
        self.shape = tuple(images.shape)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        return corrupt(self._images[rows], *self._how, index=self._index[list(rows)])


# Optics. A pixel gathers light from a square, so what lies between two pixels is interpolated linearly: a blur narrower than
# a pixel still blurs.


@lru_cache(maxsize=16)
def disk_kernel(radius: float) -> Tensor:
    """float64 (2R + 1, 2R + 1), R < radius + 2: the mean, over a disk, of images interpolated linearly; radius in pixels."""
    rings, turns = 64, 64  # of equal area, so that all points weigh the same
    distance = radius * ((torch.arange(rings, dtype=torch.float64) + 0.5) / rings).sqrt()
    angle = 2 * math.pi * (torch.arange(turns, dtype=torch.float64) + 0.5) / turns
    reach = math.floor(radius) + 1
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)[:, None]
    down, right = ((distance[:, None] * turn).flatten() for turn in (angle.sin(), angle.cos()))
    weights = [(1 - (offsets - place).abs()).clamp(min=0) for place in (down, right)]  # (2R + 1, points) each
    return _exact(weights[0] @ weights[1].T / len(down))


@lru_cache(maxsize=16)
def gaussian_kernel(spread: float) -> Tensor:
    """float64 (2R + 1,): the mean, over a normal distribution, of images interpolated linearly; spread in pixels."""
    reach = math.ceil(5 * spread) + 1
    x = torch.arange(-reach - 1, reach + 2, dtype=torch.float64)
    # Twice integrated, the density is E max(x - X, 0); the weight, E max(1 - |x - X|, 0), is its second difference.
    integral = x * torch.special.ndtr(x / spread) + spread * (-((x / spread) ** 2) / 2).exp() / math.sqrt(2 * math.pi)
    return _exact(integral[2:] - 2 * integral[1:-1] + integral[:-2])


def _gaussian(images: Tensor, share: float) -> Tensor:
    """Images (N, C, H, W) blurred by a Gaussian, its standard deviation a share of the shorter side."""
    kernel = gaussian_kernel(share * min(images.shape[2:]))
    rows, columns = (_blur_matrix(kernel, size).to(images.device) for size in images.shape[2:])
    return rows @ images @ columns.T


def _blur_matrix(kernel: Tensor, size: int) -> Tensor:
    """(size, size), to be multiplied from the left: convolution with a kernel (2R + 1,), edges mirrored."""
    place, offset = torch.arange(size)[:, None], torch.arange(len(kernel)) - len(kernel) // 2
    values = kernel.expand(size, -1)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add(1, reflected(place + offset, size), values)


def reflected(places: Tensor, size: int) -> Tensor:
    """Places mirrored at the edges, the edge pixel twice, into 0 … size − 1: … 1 0 | 0 1 … ."""
    places = places % (2 * size)
    return torch.minimum(places, 2 * size - 1 - places)


def _placed(places: Tensor, shape: Sequence[int]) -> Tensor:
    """Places (N, K, 2) in the unit square, down and right, over a picture of a shape, in units of its shorter side."""
    return places * torch.tensor(shape, dtype=torch.float64, device=places.device) / min(shape)


def _spots(places: Tensor, radius: Tensor, density: Tensor, shape: Sequence[int]) -> Tensor:
    """(N, 1, H, W), optical density of round soft spots: a sum of Gaussians.

    places: (N, K, 2), down and right. radius: (N, K, 1), a standard deviation. Both in units of the shorter side.
    density: (N, K, 1), that of their middle.
    """
    profiles = []
    for axis, size in enumerate(shape):
        edges = torch.arange(size + 1, device=places.device)  # of pixels, which see the mean over their square
        scale = 2**0.5 * min(shape) * radius
        integral = torch.erf((edges - min(shape) * places[..., axis : axis + 1]) / scale)  # (N, K, size + 1)
        profiles.append(integral.diff(dim=2) * scale * math.pi**0.5 / 2)
    return (_exact(density * profiles[0]).mT @ _exact(profiles[1]))[:, None]


def _exact(values: Tensor) -> Tensor:
    """Rounded to multiples of 2^-18: a product of two such by an 8-bit value or a uniform one, summed, fits 53 bits."""
    return (values * 2**18).round() / 2**18


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


def hashed(keys: Tensor, count: int) -> Tensor:
    """int64 (N, count), random bits: the stream of each key (N,)."""
    return mix(keys[:, None] + torch.arange(1, count + 1, device=keys.device) * GOLDEN)


def standard_normal(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """float64 (N, *shape), independent standard normal values: the stream of each key (N,), by Box & Muller 1958."""
    bits = hashed(keys, math.prod(shape))
    radius, angle = ((half.double() + 0.5) / 2**32 for half in (_shift(bits, 32), bits & 0xFFFFFFFF))
    return ((-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()).view(-1, *shape)


def uniform(keys: Tensor, stream: str, shape: Sequence[int]) -> Tensor:
    """float64 (N, *shape), independent and uniform in (0, 1), odd multiples of 2^-17; each stream of a key has its own."""
    keys = mix(keys ^ int.from_bytes(stream.encode()))
    return ((_shift(hashed(keys, math.prod(shape)), 48).double() + 0.5) / 2**16).view(-1, *shape)
