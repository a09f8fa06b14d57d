"""Each corruption against a slow reference, written image by image and pixel by pixel from its description."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import integrate, ndimage
from scipy.stats import norm
from whole_numbers import GOLDEN, mixed

from oodbench.datasets import corruptions
from oodbench.datasets.corruptions import CORRUPTIONS, corrupt, disk_kernel, gaussian_kernel
from oodbench.datasets.name import LEVELS

SHAPES = [(3, 8, 8), (3, 12, 17), (1, 20, 9)]
SEED, INDEX = 7, 10**12
KEY = mixed(mixed(SEED) + INDEX * GOLDEN)


def draws(stream, count):
    """The first values of a named stream of KEY, uniform in (0, 1)."""
    key = mixed(KEY ^ int.from_bytes(stream.encode()))
    return [((mixed(key + (place + 1) * GOLDEN) >> 48) + 0.5) / 2**16 for place in range(count)]


def reference_spot(shape, down, right, radius):
    """A Gaussian of height 1 seen by each pixel as the mean over its square; lengths in pixels."""

    def share(pixel, middle):
        low, high = ((edge - middle) / (radius * math.sqrt(2)) for edge in (pixel, pixel + 1))
        return (math.erf(high) - math.erf(low)) / 2

    seen = [[share(y, down) * share(x, right) for x in range(shape[1])] for y in range(shape[0])]
    return 2 * math.pi * radius**2 * np.array(seen)


def reference_gaussian(channel, spread):
    """One channel (H, W) as light that varies linearly between pixels, on a fine grid, smoothed by scipy."""
    fine, shape = max(15, 2 * int(5 / spread) + 1), channel.shape
    places = np.meshgrid(*((np.arange(size * fine) - fine // 2) / fine for size in shape), indexing="ij")
    light = ndimage.map_coordinates(channel, places, order=1, mode="reflect")
    return ndimage.gaussian_filter(light, spread * fine, mode="reflect", truncate=6)[fine // 2 :: fine, fine // 2 :: fine]


def reference_noise(image, level):
    result, grey = image.copy(), bool((image == image[:1]).all())
    for place in np.ndindex(*image.shape):
        flat = int(np.ravel_multi_index((0, *place[1:]) if grey else place, image.shape))
        bits = mixed(KEY + (flat + 1) * GOLDEN)
        radius, angle = ((bits >> 32) + 0.5) / 2**32, ((bits & 0xFFFFFFFF) + 0.5) / 2**32
        normal = math.sqrt(-2 * math.log(radius)) * math.cos(2 * math.pi * angle)
        result[place] = image[place] + 255 * corruptions.NOISE[level - 1] * normal
    return result


def reference_lens_blur(image, level):
    """The mean of the image shifted to each place of a disk."""
    radius = corruptions.DISK[level - 1] * min(image.shape[1:])
    across = (np.arange(41) + 0.5) / 41 * 2 - 1
    disk = [(radius * dy, radius * dx) for dy in across for dx in across if dy**2 + dx**2 < 1]
    grid = np.indices(image.shape[1:]).astype(float)
    return np.stack(
        [
            np.mean([ndimage.map_coordinates(c, grid + np.reshape(d, (2, 1, 1)), order=1, mode="reflect") for d in disk], 0)
            for c in image
        ]
    )


def reference_gaussian_blur(image, level):
    spread = corruptions.SPREAD[level - 1] * min(image.shape[1:])
    return np.stack([reference_gaussian(channel, spread) for channel in image])


def reference_dirty_lens(image, level):
    shape, short = image.shape[1:], min(image.shape[1:])
    values = np.reshape(draws("dirty", 5 * corruptions.BLOTS[level - 1]), (-1, 5))
    density, returned = np.zeros(shape), np.zeros(shape)
    for down, right, size, kind, strength in values:
        spot = reference_spot(shape, down * shape[0], right * shape[1], short * (0.03 + 0.07 * size**2))
        spot *= 0.5 + 2.5 * strength
        density += spot
        returned += spot * (0.9 if kind < 0.5 else 0.25)
    smeared = np.stack([reference_gaussian(channel, 0.15 * short) for channel in image])
    return image * np.exp(-density) + smeared * (returned / np.maximum(density, 1e-9)) * (1 - np.exp(-density))


def reference_exposure(image, level):
    result = np.empty_like(image)
    for place in np.ndindex(*image.shape):
        value = image[place] / 255
        light = value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        light = min(1, light * 2 ** corruptions.STOPS[level - 1])
        result[place] = 255 * (12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055)
    return result


def reference_snow(image, level):
    shape, short = image.shape[1:], min(image.shape[1:])
    clear = np.full(shape, 1 - corruptions.VEIL[level - 1])
    (wind,) = draws("wind", 1)
    values = np.reshape(draws("snow", 6 * corruptions.FLAKES[level - 1]), (-1, 6))
    for down, right, size, drift, length, thickness in values:
        radius = short * (0.006 + 0.012 * size**2)
        streak = radius * (4 + 4 * length)
        slant = wind - 0.5 + 0.4 * (drift - 0.5)
        for instant in (-0.375, -0.125, 0.125, 0.375):
            middle = down * shape[0] + instant * streak, right * shape[1] + instant * streak * slant
            clear *= np.exp(-(0.6 + 0.8 * thickness) * reference_spot(shape, *middle, radius))
    return 255 - (255 - image) * clear


def reference_haze(image, level):
    shape, short = image.shape[1:], min(image.shape[1:])
    depth = np.full(shape, 0.4)
    for down, right, strength in np.reshape(draws("haze", 3 * corruptions.PUFFS), (-1, 3)):
        depth += 0.5 * strength * reference_spot(shape, down * shape[0], right * shape[1], 0.2 * short)
    through = np.exp(-corruptions.DEPTH[level - 1] * depth)
    (air,) = draws("air", 1)
    return image * through + 255 * (0.75 + 0.2 * air) * (1 - through)


def reference_decolor(image, level):
    if len(image) == 1:
        return image
    result = np.empty_like(image)
    share = Fraction(corruptions.GREYED[level - 1], 100)
    for y, x in np.ndindex(*image.shape[1:]):
        pixel = [Fraction(int(value)) for value in image[:, y, x]]
        luma = Fraction("0.299") * pixel[0] + Fraction("0.587") * pixel[1] + Fraction("0.114") * pixel[2]
        result[:, y, x] = [float((1 - share) * value + share * luma) for value in pixel]
    return result


# name: its reference, and how far it may be away, of 255: what a finite grid of the reference leaves
REFERENCES = {
    "noise": (reference_noise, 1e-9),
    "lens-blur": (reference_lens_blur, 0.5),
    "gaussian-blur": (reference_gaussian_blur, 0.25),
    "dirty-lens": (reference_dirty_lens, 0.25),
    "exposure": (reference_exposure, 1e-9),
    "snow": (reference_snow, 0.01),
    "haze": (reference_haze, 0.01),
    "decolor": (reference_decolor, 1e-9),
}


def random_images(shape, count=1):
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("level", [1, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_a_slow_reference(name, level, shape):
    images = random_images(shape)
    reference, tolerance = REFERENCES[name]
    keys = torch.tensor([KEY - 2**64 if KEY >= 2**63 else KEY]).expand(len(images))
    fast = CORRUPTIONS[name](images.double(), level, keys).numpy()
    slow = np.stack([reference(image.astype(np.float64), level) for image in images.numpy()])
    assert fast.shape == slow.shape
    assert np.abs(fast - slow).max() < tolerance
    rounded = corrupt(images, name, level, SEED, torch.full((len(images),), INDEX)).numpy()
    assert np.array_equal(rounded, np.rint(np.clip(fast, 0, 255)).astype(np.uint8))


def test_noise_of_a_grey_image_against_a_loop_over_pixels():
    image = random_images((1, 9, 8)).expand(-1, 3, -1, -1)
    result = corrupt(image, "noise", 4, SEED, torch.tensor([INDEX]))[0].numpy()
    assert np.array_equal(result, np.rint(np.clip(reference_noise(image[0].numpy().astype(np.float64), 4), 0, 255)))


@pytest.mark.parametrize("radius", [0.05, 0.5, 1.0, 2.7])
def test_lens_blur_is_a_convolution_with_its_kernel(radius, monkeypatch):
    kernel = disk_kernel(radius)
    assert abs(float(kernel.sum()) - 1) < 1e-4
    assert torch.allclose(kernel, kernel.T, atol=1e-4)
    place = torch.arange(len(kernel)) - len(kernel) // 2
    assert float((kernel * place**2).sum()) == pytest.approx(radius**2 / 4, abs=0.26), "a disk's, and up to 1/4 of a pixel's"
    image = random_images((1, 15, 11))
    monkeypatch.setattr(corruptions, "disk_kernel", lambda _: kernel)
    fast = corruptions.lens_blur(image.double(), 1, torch.zeros(1, dtype=torch.int64))[0, 0]
    slow = ndimage.convolve(image[0, 0].numpy().astype(np.float64), kernel.numpy(), mode="reflect")
    assert np.abs(fast.numpy() - slow).max() < 1e-3


@pytest.mark.parametrize("spread", [0.05, 0.4, 1.0, 3.3])
def test_gaussian_kernel_against_an_integral(spread):
    kernel = gaussian_kernel(spread).numpy()
    for offset, weight in enumerate(kernel, -(len(kernel) // 2)):
        hat = [max(offset - 1, -9 * spread), offset, min(offset + 1, 9 * spread)]  # where 1 - |x - offset| is positive
        if hat[0] >= hat[2]:
            assert weight < 1e-5
            continue
        points = [place for place in (0, offset) if hat[0] < place < hat[2]]
        integrand = lambda x, offset=offset: (1 - abs(x - offset)) * norm.pdf(x, 0, spread)  # noqa: E731
        assert weight == pytest.approx(integrate.quad(integrand, hat[0], hat[2], points=points or None)[0], abs=2**-18)


def test_sums_in_any_order_are_the_same():
    """What enters a matrix product is whole multiples of 2^-18, so that no order of summation rounds."""
    for kernel in (disk_kernel(1.3), gaussian_kernel(0.8)):
        assert torch.equal(kernel * 2**18, (kernel * 2**18).round())
    images = random_images((3, 24, 24)).double()
    keys = torch.tensor([KEY - 2**64 if KEY >= 2**63 else KEY])
    for name in ("lens-blur", "gaussian-blur"):
        result = CORRUPTIONS[name](images, 5, keys)
        mirrored = CORRUPTIONS[name](images.flip(3), 5, keys).flip(3)
        assert torch.equal(result * 2**36, (result * 2**36).round())
        assert torch.allclose(result, mirrored, rtol=0, atol=1e-2)


@pytest.mark.parametrize("level", LEVELS)
def test_what_light_cannot_do(level):
    images = random_images((3, 16, 16), 8)
    results = {name: corrupt(images, name, level).double() for name in CORRUPTIONS}
    before = images.double()
    assert (results["exposure"] >= before).all(), "more light darkens nothing"
    assert (results["snow"] >= before).all(), "snow is white"
    assert results["haze"].flatten(1).std(1).lt(before.flatten(1).std(1)).all(), "haze takes contrast"
    assert results["dirty-lens"].mean() < before.mean(), "dirt absorbs"
    for blur in ("lens-blur", "gaussian-blur"):
        assert results[blur].flatten(2).mean(2).sub(before.flatten(2).mean(2)).abs().max() < 3, "a blur moves light"
    colour = [pixels.std(1).mean() for pixels in (before, results["decolor"])]
    assert colour[1] < colour[0]
    assert level < 5 or colour[1] == 0
    if level > 1:  # the flakes of the level below are still there
        assert (results["snow"] >= corrupt(images, "snow", level - 1).double()).all()
