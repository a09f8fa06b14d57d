"""The generator of random numbers by key: what its numbers are, and that images get their own."""

import math

import numpy as np
import torch
from whole_numbers import GOLDEN, mixed

from oodbench.random_numbers import content_keys, hashed, mix, standard_normal, uniform


def test_numbers_are_those_of_whole_number_arithmetic():
    assert [mixed(GOLDEN), mixed(2 * GOLDEN)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]  # published with the algorithm
    keys = torch.tensor([0, 5, 10**12, -(2**63)])
    bits = [[mixed(key + place * GOLDEN) for place in range(1, 7)] for key in keys.tolist()]
    assert hashed(keys, 6).tolist() == [[value - 2**64 if value >= 2**63 else value for value in row] for row in bits]
    assert uniform(keys, (2, 3)).flatten(1).tolist() == [[(value >> 11) / 2**53 for value in row] for row in bits]


def test_uniform_numbers_are_uniform():
    found = uniform(mix(torch.arange(200)), (500,)).flatten().sort().values
    steps = torch.arange(len(found), dtype=torch.float64) / len(found)
    assert (found - steps).abs().max() < 1.95 / len(found) ** 0.5  # Kolmogorov-Smirnov at 0.001


def test_standard_normal_is_standard_and_normal():
    values = standard_normal(mix(torch.arange(100)), (40, 50)).flatten()
    assert abs(float(values.mean())) < 0.01
    assert abs(float(values.std()) - 1) < 0.01
    assert abs(float((values < 1.6448536).double().mean()) - 0.95) < 0.002
    rows = values.view(100, -1)
    correlation = np.corrcoef(rows.numpy()) - np.eye(100)
    assert abs(correlation).max() < 5 / math.sqrt(rows.shape[1]), "images get independent noise"


def test_a_content_key_is_that_of_an_image_alone_and_of_its_precision():
    images = torch.randint(0, 256, (40, 3, 5, 7), generator=torch.Generator().manual_seed(0)).float() / 255
    keys = content_keys(images, 3)
    assert len(set(keys.tolist())) == 40
    assert torch.equal(content_keys(images.double(), 3), keys)
    assert torch.equal(torch.cat([content_keys(image[None], 3) for image in images]), keys)
    assert not (content_keys(images, 4) == keys).any()
    pixels = [round(value * 65535) for value in images[0].double().flatten().tolist()]
    content = sum(mixed(pixel + place * GOLDEN) for place, pixel in enumerate(pixels, 1))
    assert int(keys[0]) % 2**64 == mixed(content + mixed(3))


def test_one_pixel_or_its_place_changes_the_key():
    images = torch.zeros(33, 16)
    for place in range(16):
        images[2 * place, place], images[2 * place + 1, place] = 1 / 255, 1.0  # the last image stays black
    assert len(set(content_keys(images.view(33, 1, 4, 4), 0).tolist())) == 33


def test_many_pixels_are_hashed_in_parts(monkeypatch):
    images = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = content_keys(images, 0)
    monkeypatch.setattr("oodbench.random_numbers.CHUNK", 130)
    assert torch.equal(content_keys(images, 0), whole)
