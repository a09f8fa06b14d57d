"""Corruptions: what they do to images, and that their randomness hangs on the image alone."""

import math

import numpy as np
import pytest
import torch

import oodbench
from oodbench.datasets.corruptions import CORRUPTIONS, NOISE, corrupt, mix, standard_normal
from oodbench.errors import BadData, UsageError


@pytest.fixture
def images():
    return torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def reference_mix(value):
    """SplitMix64's finaliser in Python's own integers."""
    mask = 2**64 - 1
    value &= mask
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & mask
    return value ^ (value >> 31)


def reference_noise(image, level, seed, index):
    """One image (C, H, W), pixel by pixel."""
    golden, result = 0x9E3779B97F4A7C15, image.copy()
    grey = bool((image == image[:1]).all())
    key = reference_mix(reference_mix(seed) + index * golden)
    for place in np.ndindex(*image.shape):
        flat = int(np.ravel_multi_index((0, *place[1:]) if grey else place, image.shape))
        bits = reference_mix(key + (flat + 1) * golden)
        radius, angle = ((bits >> 32) + 0.5) / 2**32, ((bits & 0xFFFFFFFF) + 0.5) / 2**32
        normal = math.sqrt(-2 * math.log(radius)) * math.cos(2 * math.pi * angle)
        result[place] = round(255 * min(1, max(0, image[place] / 255 + NOISE[level - 1] * normal)))
    return result


def test_mix_against_splitmix64():
    # Its first outputs from state 0, as its authors' code gives them.
    assert reference_mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
    assert reference_mix(2 * 0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4
    values = torch.randint(-(2**63), 2**63 - 1, (1000,), generator=torch.Generator().manual_seed(1))
    assert [v % 2**64 for v in mix(values).tolist()] == [reference_mix(v) for v in values.tolist()]


def test_noise_against_a_loop_over_pixels(images):
    images[1] = images[1, :1]  # a grey one
    index = torch.tensor([3, 0, 10**12])
    fast = corrupt(images[:3], "noise", 4, seed=7, index=index)
    slow = [reference_noise(image.numpy(), 4, 7, int(i)) for image, i in zip(images[:3], index, strict=True)]
    assert np.array_equal(fast.numpy(), np.stack(slow))


def test_standard_normal_is_standard_and_normal():
    values = standard_normal(mix(torch.arange(100)), (40, 50)).flatten()
    assert abs(float(values.mean())) < 0.01
    assert abs(float(values.std()) - 1) < 0.01
    assert abs(float((values < 1.6448536).double().mean()) - 0.95) < 0.002
    rows = values.view(100, -1)
    correlation = np.corrcoef(rows.numpy()) - np.eye(100)
    assert abs(correlation).max() < 5 / math.sqrt(rows.shape[1]), "images get independent noise"


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_independent_of_batch_and_order(images, name, monkeypatch):
    whole = corrupt(images, name, 3, seed=5)
    one_by_one = [corrupt(images[i : i + 1], name, 3, seed=5, index=torch.tensor([i])) for i in range(len(images))]
    assert torch.equal(torch.cat(one_by_one), whole)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))
    assert torch.equal(corrupt(images[order], name, 3, 5, order), whole[order])
    monkeypatch.setattr("oodbench.datasets.corruptions.CHUNK", 2000)
    assert torch.equal(corrupt(images, name, 3, seed=5), whole)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_level_is_farther_from_the_clean_images(images, name):
    before = images.clone()
    results = [corrupt(images, name, level).double() for level in range(1, 6)]
    distances = [float((result - images).square().mean()) for result in results]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert len(set(distances)) == 5
    assert torch.equal(images, before), "the images given are not touched"


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8, 8), (1, 3, 32, 20), (0, 3, 8, 8)])
def test_shape_dtype_and_seed(name, shape):
    images = torch.full(shape, 128, dtype=torch.uint8)
    first, again, other = (corrupt(images, name, 2, seed=seed) for seed in (0, 0, 1))
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert first.numel() == 0 or not torch.equal(first, other)


def test_noise_has_the_spread_it_says():
    middle = torch.full((8, 1, 64, 64), 128, dtype=torch.uint8)
    for level, spread in enumerate(NOISE, 1):
        with_rounding = math.hypot(255 * spread, 12**-0.5)  # to whole grey levels, a variance of 1/12
        assert float(corrupt(middle, "noise", level).double().std()) == pytest.approx(with_rounding, rel=0.02)


def test_a_grey_image_stays_grey():
    grey = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8).expand(-1, 3, -1, -1)
    result = corrupt(grey, "noise", 5)
    assert torch.equal(result, result[:, :1].expand_as(result))
    assert torch.equal(result[:, :1], corrupt(grey[:, :1], "noise", 5))


def test_same_on_cuda(images):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    result = corrupt(images.cuda(), "noise", 3)
    assert result.is_cuda
    assert torch.equal(result.cpu(), corrupt(images, "noise", 3))


def test_bad_input(images):
    with pytest.raises(UsageError, match="unknown corruption 'nois'; did you mean 'noise'"):
        corrupt(images, "nois", 3)
    for level in (0, 6, -1):
        with pytest.raises(UsageError, match="needs a level from 1"):
            corrupt(images, "noise", level)
    for wrong in (images.float(), images[0]):
        with pytest.raises(BadData, match=r"takes uint8 images \(N, C, H, W\)"):
            corrupt(wrong, "noise", 3)
    with pytest.raises(BadData, match="12 images and an index of shape"):
        corrupt(images, "noise", 3, index=torch.arange(3))


def test_reached_from_the_package(images):
    assert torch.equal(oodbench.datasets.corruptions.corrupt(images, "noise", level=3, seed=0), corrupt(images, "noise", 3))
