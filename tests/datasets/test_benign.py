"""Benign changes: how much they change, and that they are the same for an image wherever it stands."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from oodbench import load_dataset
from oodbench.datasets.benign import BENIGN, change
from oodbench.image_set import ImageSet


@pytest.fixture
def images():
    """Smooth colour images with corners, uint8 (40, 3, 24, 20)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((40, 3, 6, 5), generator=generator)
    return (torch.nn.functional.interpolate(coarse, scale_factor=4) * 255).to(torch.uint8)


@pytest.mark.parametrize("name", BENIGN)
def test_an_image_changes_alike_in_any_batch(images, name):
    index = torch.arange(100, 140)
    whole = change(images, name, 3, index)
    assert whole.shape == images.shape
    assert whole.dtype == torch.uint8
    assert not torch.equal(whole, images)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(change(images[order], name, 3, index[order]), whole[order])
    assert torch.equal(change(images[7:8], name, 3, index[7:8]), whole[7:8])
    assert torch.equal(change(images, name, 4, index), whole) == name.startswith("jpeg")
    grey = images[:, :1].expand(-1, 3, -1, -1)
    found = change(grey, name, 3, index)
    assert torch.equal(found, found[:, :1].expand_as(found))
    assert not torch.equal(found, grey)


@pytest.mark.parametrize("quality", [95, 85, 75])
def test_jpeg_is_what_pillow_saves(images, quality):
    found = change(images, f"jpeg-{quality}", 0, torch.arange(40))
    for before, after in zip(images, found, strict=True):
        file = io.BytesIO()
        Image.fromarray(before.permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=quality)
        np.testing.assert_array_equal(after.permute(1, 2, 0).numpy(), np.array(Image.open(file)))


def test_grey_level_moves_each_pixel_by_one(images):
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 255
    moved = change(images, "grey-level", 0, torch.arange(40)).int() - images.int()
    inside = ((images > 0) & (images < 255)).all(1, keepdim=True).expand_as(moved)
    assert set(moved[inside].tolist()) == {-1, 1}
    assert abs(moved[inside].float().mean()) < 0.05
    assert torch.equal(moved[inside.clone()].view(-1), moved[:, :1].expand_as(moved)[inside].view(-1))  # all channels alike
    assert moved.abs().max() == 1


def test_pixel_shift_moves_by_one_pixel_in_each_direction(images):
    moved = change(images, "pixel-shift", 0, torch.arange(40))
    padded = torch.nn.functional.pad(images.float(), (1, 1, 1, 1), mode="replicate").to(torch.uint8)
    height, width = images.shape[2:]
    windows = {(y, x): padded[:, :, y : y + height, x : x + width] for y, x in [(1, 0), (1, 2), (0, 1), (2, 1)]}
    which = [[at for at, window in windows.items() if torch.equal(window[i], moved[i])] for i in range(40)]
    assert {places[0] for places in which} == set(windows)


@pytest.mark.parametrize("name", BENIGN)
def test_a_set_after_a_benign_change(name):
    plain, changed = load_dataset("digits"), load_dataset(f"digits+{name}")
    assert (changed.name, changed.kind, changed.level) == (f"digits+{name}", "benign", None)
    assert torch.equal(changed.labels, plain.labels)
    assert torch.equal(changed.base_index, plain.base_index)
    assert changed.identity == plain.identity
    assert torch.equal(changed.clean, plain.images)
    assert torch.equal(changed.images, change(plain.images, name, 0, plain.base_index))


class OnDemand:
    def __init__(self, images):
        self.images, self.shape = images, images.shape

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        return self.images[list(rows)]


def test_a_set_that_decodes_on_demand_changes_on_demand(images):
    from oodbench.datasets.load import benignly_changed

    of = {"name": "a", "split": "test", "kind": "far-ood"}
    now, later = (benignly_changed(ImageSet(images=some, **of), "pixel-shift", 2) for some in (images, OnDemand(images)))
    assert not isinstance(later.images, torch.Tensor)
    assert now.fingerprint == later.fingerprint
    assert torch.equal(later.read([5, 3]), now.images[[5, 3]])
