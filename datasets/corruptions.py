"""Corruptions at five levels, generated from any set of images.

Each models a physical effect before the lens, in it, or on the sensor. None is copied from another project's code: results
call these sets "C-style, generated", in contrast to the files of CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019).

Lengths are fractions of the shorter side, so that an image of 8x8 pixels looks as it does at 224x224. The randomness of an
image is a hash of (seed, image, position), so a result does not depend on the batch, the order or the device. For the same
reason, all terms of sums whose order depends on the machine (matrix products) are integer multiples of a power of two: such
sums are exact in float64 in any order. A level repeats the random draws of the level below and adds more. No corruption adds
colour, so grey images stay grey.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from oodbench.datasets.name import LEVELS as LEVELS
from oodbench.datasets.name import require_corruption
from oodbench.errors import BadData
from oodbench.models.exact import float64_for
from oodbench.random_numbers import hashed, image_keys, mix, shifted, standard_normal

CHUNK = 2**18  # pixel values at a time, because hashing makes several float64 copies of them

# By level. Standard deviation of additive noise, where white is 1: CIFAR-10-C's values.
NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)
DISK = (0.018, 0.025, 0.033, 0.043, 0.055)  # radius of the circle of confusion
SPREAD = (0.010, 0.014, 0.018, 0.023, 0.029)  # standard deviation of the Gaussian blur
BLOTS = (8, 14, 22, 32, 44)  # specks and drops on the lens
STOPS = (0.75, 1.25, 1.75, 2.25, 3.0)  # of exposure; each doubles the light
FLAKES = (12, 24, 38, 54, 72)  # in the image
VEIL = (0.04, 0.08, 0.13, 0.18, 0.24)  # fraction of the light from snow too distant to show as flakes
DEPTH = (0.35, 0.6, 0.85, 1.1, 1.4)  # optical depth of the haze, mean over images
GREYED = (50, 65, 80, 90, 100)  # per cent of the colour removed


def noise(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Add Gaussian sensor noise. A grey image, whose channels are equal, gets the same noise in each channel."""
    grey = (images == images[:, :1]).flatten(1).all(1).view(-1, 1, 1, 1)
    normal = standard_normal(keys, images.shape[1:])
    return images + 255 * NOISE[level - 1] * torch.where(grey, normal[:, :1], normal)


def lens_blur(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Defocus: a point becomes the image of the round aperture, a disk, so each pixel is the mean over a disk around it."""
    kernel = disk_kernel(DISK[level - 1] * min(images.shape[2:]))  # (2R + 1, 2R + 1)
    height, width = images.shape[2:]
    reach = len(kernel) // 2
    below = torch.cat([_blur_matrix(kernel[reach + dy], width) for dy in range(reach + 1)])  # ((R + 1)·W, W)
    across = (images @ below.T.to(images.device)).unflatten(3, (reach + 1, width))  # (N, C, H, R + 1, W)
    rows = torch.arange(height, device=images.device)
    shifts = range(-reach, reach + 1)
    return sum((across[:, :, reflected(rows + dy, height), abs(dy)] for dy in shifts), torch.zeros_like(images))


def gaussian_blur(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Convolve with a Gaussian, as air turbulence or smoothing does; edges are mirrored."""
    return _gaussian(images, SPREAD[level - 1])


def dirty_lens(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Add specks of dirt and drops on the lens, far out of focus: soft spots that absorb light and scatter the rest.

    Their optical densities add up, and the fraction T = exp(-density) of the light passes (Beer & Lambert). Of the rest, a
    speck scatters little and a drop most. Scattered light comes from the whole scene: the image behind is smeared.
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
    """Overexpose: more light on a sensor that saturates at white. sRGB is decoded to light and encoded again."""
    values = torch.arange(256, dtype=torch.float64) / 255
    light = torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    light = (light * 2 ** STOPS[level - 1]).clamp(max=1)
    encoded = torch.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * encoded).to(images.device)[images.long()]


def snow(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Add white flakes, driven by wind while the shutter is open, in front of a veil of distant snow."""
    wind = uniform(keys, "wind", (1, 1)) - 0.5
    draws = uniform(keys, "snow", (FLAKES[-1], 6))[:, : FLAKES[level - 1]]
    place, size, drift, length, thickness = draws.split((2, 1, 1, 1, 1), 2)  # (N, K, 2 or 1)
    radius = 0.006 + 0.012 * size**2  # near flakes are large, and cross the image faster
    slant = wind + 0.4 * (drift - 0.5)
    streak = torch.cat([torch.ones_like(slant), slant], 2) * radius * (4 + 4 * length)  # (N, K, 2), down and right
    instants = (torch.arange(INSTANTS, device=keys.device) + 0.5) / INSTANTS - 0.5
    places = _placed(place, images.shape[2:])[:, :, None] + streak[:, :, None] * instants[:, None]  # (N, K, INSTANTS, 2)
    radius, density = (values.repeat_interleave(INSTANTS, 1) for values in (radius, 0.6 + 0.8 * thickness))
    flakes = _spots(places.flatten(1, 2), radius, density, images.shape[2:])
    return 255 + (images - 255) * (1 - VEIL[level - 1]) * (-flakes).exp()


INSTANTS = 4  # number of positions at which a flake is drawn along its streak


def haze(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Apply Koschmieder's law: a fraction t = exp(-depth) of the scene's light arrives, and 1 - t is airlight.

    The depth varies smoothly over the image.
    """
    airlight = 255 * (0.75 + 0.2 * uniform(keys, "air", (1, 1, 1)))
    place, strength = uniform(keys, "haze", (PUFFS, 3)).split((2, 1), 2)
    place, radius = _placed(place, images.shape[2:]), torch.full_like(strength, 0.2)
    field = 0.4 + _spots(place, radius, 0.5 * strength, images.shape[2:])  # (N, 1, H, W), mean about 1
    through = (-DEPTH[level - 1] * field).exp()
    return airlight + (images - airlight) * through


PUFFS = 12  # of haze, added to a uniform 0.4


def decolor(images: Tensor, level: int, keys: Tensor) -> Tensor:
    """Remove colour, at level 5 all of it: move each pixel towards its luma (ITU-R BT.601). Grey images do not change."""
    if images.shape[1] != 3:
        return images
    luma = 299 * images[:, :1] + 587 * images[:, 1:2] + 114 * images[:, 2:]
    share = GREYED[level - 1]
    # Integers until the division; by a tensor, because CUDA multiplies by the reciprocal of a number.
    return ((100 - share) * 1000 * images + share * luma) / luma.new_tensor(100_000)


# Each function takes images (N, C, H, W), integers 0 … 255 in float64, a level, and one key per image, int64 (N,), and returns
# images before clipping and rounding.
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
    """Corrupt copies of images, rounded to 8 bits.

    Args:
        images: uint8 (N, C, H, W), on any device, of any size. From 8x8 pixels on, each level differs from the next.
        name: one of ``CORRUPTIONS``.
        level: 1 (mild) to 5.
        index: int64 (N,), an identifier per image. With the seed it determines the randomness. Default: 0, 1, …, N − 1.

    Returns: uint8 (N, C, H, W), on the same device. ``decolor`` does not change grey images.

    Raises UsageError for an unknown name or level, BadData for images that are not uint8 (N, C, H, W).
    """
    require_corruption(name, level)
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise BadData(f"{name} takes uint8 images (N, C, H, W), not {images.dtype} {tuple(images.shape)}; convert them first")
    index = torch.arange(len(images)) if index is None else index.to(torch.int64)
    if index.shape != (len(images),):
        raise BadData(f"{name}: {len(images)} images and an index of shape {tuple(index.shape)}; give one number per image")
    keys = image_keys(index.to(images.device), seed)
    corrupted = torch.empty_like(images)
    step = max(1, CHUNK // max(1, images[:1].numel()))
    with float64_for(images.device):
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            result = CORRUPTIONS[name](images[part].double(), level, keys[part])
            corrupted[part] = result.clamp(0, 255).round().to(torch.uint8)
    return corrupted


# Optics. A pixel gathers light from a square, so values between two pixels are interpolated linearly: a blur narrower than a
# pixel still blurs.


@lru_cache(maxsize=16)
def disk_kernel(radius: float) -> Tensor:
    """Return the kernel of a mean over a disk, float64 (2R + 1, 2R + 1), R < radius + 2; the radius is in pixels."""
    rings, turns = 64, 64  # rings of equal area, so that all points have equal weight
    distance = radius * ((torch.arange(rings, dtype=torch.float64) + 0.5) / rings).sqrt()
    angle = 2 * math.pi * (torch.arange(turns, dtype=torch.float64) + 0.5) / turns
    reach = math.floor(radius) + 1
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)[:, None]
    down, right = ((distance[:, None] * turn).flatten() for turn in (angle.sin(), angle.cos()))
    weights = [(1 - (offsets - place).abs()).clamp(min=0) for place in (down, right)]  # (2R + 1, points) each
    return _exact(weights[0] @ weights[1].T / len(down))


@lru_cache(maxsize=16)
def gaussian_kernel(spread: float) -> Tensor:
    """Return the kernel of a mean over a normal distribution, float64 (2R + 1,); the spread is in pixels."""
    reach = math.ceil(5 * spread) + 1
    x = torch.arange(-reach - 1, reach + 2, dtype=torch.float64)
    # The density integrated twice is E max(x - X, 0); the weight, E max(1 - |x - X|, 0), is its second difference.
    integral = x * torch.special.ndtr(x / spread) + spread * (-((x / spread) ** 2) / 2).exp() / math.sqrt(2 * math.pi)
    return _exact(integral[2:] - 2 * integral[1:-1] + integral[:-2])


def _gaussian(images: Tensor, share: float) -> Tensor:
    """Blur images (N, C, H, W) by a Gaussian whose standard deviation is a fraction of the shorter side."""
    kernel = gaussian_kernel(share * min(images.shape[2:]))
    rows, columns = (_blur_matrix(kernel, size).to(images.device) for size in images.shape[2:])
    return rows @ images @ columns.T


def _blur_matrix(kernel: Tensor, size: int) -> Tensor:
    """Return the matrix (size, size) that, multiplied from the left, convolves with a kernel (2R + 1,), edges mirrored."""
    place, offset = torch.arange(size)[:, None], torch.arange(len(kernel)) - len(kernel) // 2
    values = kernel.expand(size, -1)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add(1, reflected(place + offset, size), values)


def reflected(places: Tensor, size: int) -> Tensor:
    """Mirror positions at the edges into 0 … size − 1, repeating the edge pixel: … 1 0 | 0 1 … ."""
    places = places % (2 * size)
    return torch.minimum(places, 2 * size - 1 - places)


def _placed(places: Tensor, shape: Sequence[int]) -> Tensor:
    """Scale positions (N, K, 2), down and right, from the unit square to an image, in units of its shorter side."""
    return places * torch.tensor(shape, dtype=torch.float64, device=places.device) / min(shape)


def _spots(places: Tensor, radius: Tensor, density: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the optical density of round soft spots, (N, 1, H, W): a sum of Gaussians.

    places: (N, K, 2), down and right. radius: (N, K, 1), a standard deviation. Both are in units of the shorter side.
    density: (N, K, 1), at the centre of each spot.
    """
    profiles = []
    for axis, size in enumerate(shape):
        edges = torch.arange(size + 1, device=places.device)  # of the pixels: each holds the mean over its square
        scale = 2**0.5 * min(shape) * radius
        integral = torch.erf((edges - min(shape) * places[..., axis : axis + 1]) / scale)  # (N, K, size + 1)
        profiles.append(integral.diff(dim=2) * scale * math.pi**0.5 / 2)
    return (_exact(density * profiles[0]).mT @ _exact(profiles[1]))[:, None]


def _exact(values: Tensor) -> Tensor:
    """Round to multiples of 2^-18, so that sums of products with an 8-bit or uniform value, also twice, fit in 53 bits."""
    return (values * 2**18).round() / 2**18


def uniform(keys: Tensor, stream: str, shape: Sequence[int]) -> Tensor:
    """Return independent uniform values in (0, 1), float64 (N, *shape), odd multiples of 2^-17, per key (N,) and stream."""
    keys = mix(keys ^ int.from_bytes(stream.encode()))
    return ((shifted(hashed(keys, math.prod(shape)), 48).double() + 0.5) / 2**16).view(-1, *shape)
