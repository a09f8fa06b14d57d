"""How images become the input of a network: torchvision's transforms are the reference."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from oodbench import Classifier, load_dataset
from oodbench.datasets.resize import fit
from oodbench.datasets.transform import Transform
from oodbench.errors import UsageError
from oodbench.image_set import ImageSet


@pytest.mark.parametrize("shape", [(3, 75, 56), (1, 33, 90), (3, 41, 41), (3, 20, 31), (3, 256, 401)])
@pytest.mark.parametrize(("shorter", "size"), [(41, 32), (41, 41), (20, 13), (300, 224)])
@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
def test_the_shorter_side_and_the_middle_are_those_of_torchvision(shape, shorter, size, name):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    picture = Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).convert("RGB")
    steps = [transforms.Resize(shorter, transforms.InterpolationMode(name)), transforms.CenterCrop(size)]
    expected = np.asarray(transforms.Compose(steps)(picture))
    assert np.array_equal(fit(image, (size, size), name, shorter).permute(1, 2, 0).numpy(), expected)


def test_a_set_is_read_as_the_network_states_it(tmp_path):
    picture = np.random.default_rng(1).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    network = Classifier(torch.nn.Flatten(), transform=Transform(16, "bicubic", 20))
    name = f"folder:{tmp_path}"
    own = fit(torch.from_numpy(picture).permute(2, 0, 1), (16, 16), "bicubic", 20)
    assert torch.equal(load_dataset(name, classifier=network).images[0], own)
    assert load_dataset(name, classifier=network, size=8).images.shape == (1, 3, 8, 8)
    assert torch.equal(load_dataset(name, size=16, resize="bicubic", shorter_side=20).images[0], own)


def test_an_image_in_memory_of_the_final_size_is_still_cropped(monkeypatch):
    images = ImageSet(torch.arange(3 * 16 * 16, dtype=torch.uint8).reshape(1, 3, 16, 16), name="theirs")
    monkeypatch.setattr("oodbench.datasets.load.from_roots", lambda *arguments: images)
    cropped = load_dataset("digits", size=16, shorter_side=20).images
    assert torch.equal(cropped[0], fit(images.images[0], (16, 16), "bilinear", 20))
    assert not torch.equal(cropped, images.images)


def test_what_replaces_a_transform():
    stated = Transform(224, "bicubic", 256)
    assert stated.replaced() == stated
    assert stated.replaced(resize="lanczos") == Transform(224, "lanczos", 256)
    assert stated.replaced(size=64) == Transform(64, "bicubic", None), "a new size resizes both sides"
    assert stated.replaced(shorter_side=240) == Transform(224, "bicubic", 240)
    assert str(stated) == "shorter side 256 pixels, bicubic, then the middle 224x224"
    assert str(stated.replaced(size=64)) == "64x64 pixels, bicubic"
    assert str(Transform()) == "their own size"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size is 0; give a number of pixels up to 4,096"),
        ({"size": 8, "shorter_side": 9.5}, "shorter_side is 9.5; give a number of pixels"),
        ({"shorter_side": 9}, "shorter_side is 9, and there is no size; give a size of at most 9"),
        ({"size": 10, "shorter_side": 9}, "shorter_side is 9, and size is 10; give a size of at most 9"),
        ({"resize": "cubic"}, "unknown resize filter 'cubic'; did you mean 'bicubic'"),
    ],
)
def test_impossible_transforms_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Transform(**values)
