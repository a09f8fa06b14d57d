"""Images that look alike: against a loop over pairs, and planted ones are named in the leaderboard."""

import io
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import oodbench
from oodbench.engine.look_alikes import look_alikes
from oodbench.image_set import ImageSet
from oodbench.leaderboard.formats import render
from oodbench.leaderboard.gather import gather
from oodbench.results.folder import RunFolder


def photographs(count: int, seed: int) -> torch.Tensor:
    """Crops (count, 3, 32, 32) of two photographs, far from each other."""
    random = np.random.default_rng(seed)
    crops = []
    for number in range(count):
        photo = load_sample_images().images[number % 2]
        top, left = (32 * random.integers(side // 32) for side in photo.shape[:2])
        crops.append(photo[top : top + 32, left : left + 32])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def saved_again(image: torch.Tensor, size: int, quality: int) -> torch.Tensor:
    """As JPEG, at another size, and back at 32×32."""
    file = io.BytesIO()
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
    resized.save(file, "JPEG", quality=quality)
    again = Image.open(file).resize((32, 32), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(again)).permute(2, 0, 1)


def by_pairs(images: torch.Tensor, others: torch.Tensor) -> list[bool]:
    """The slow, obvious way; equal images are one image."""

    def thumbnail(image):
        fields = image.double().reshape(3, 16, 2, 16, 2).mean((2, 4))
        return fields.round().flatten().numpy()

    found = []
    for image in images:
        small = thumbnail(image)
        differences = [np.sqrt(np.mean((small - thumbnail(o)) ** 2)) for o in others if not torch.equal(o, image)]
        found.append(bool(min(differences) <= min(8, small.std() / 4)))
    return found


@pytest.fixture(params=[None, 7], ids=["at once", "in blocks"])
def blocks(request, monkeypatch):
    """All are compared at once, or few with few."""
    if request.param:
        monkeypatch.setattr("oodbench.engine.look_alikes.CHUNK", request.param)
        monkeypatch.setattr("oodbench.engine.look_alikes.BLOCK", 2 * request.param - 1)


@pytest.mark.usefixtures("blocks")
def test_it_is_the_smallest_difference_of_any_pair():
    known = photographs(40, 0)
    images = photographs(20, 1)
    images[3], images[9] = saved_again(known[30], 64, 90), saved_again(known[2], 128, 85)
    found = look_alikes(ImageSet(images), np.arange(20), ImageSet(known), np.arange(40))
    assert found.tolist() == by_pairs(images, known)
    assert found[[3, 9]].all()
    assert look_alikes(ImageSet(images), np.array([9, 3]), ImageSet(known), np.arange(29)).tolist() == [True, False]


def test_one_image_and_flat_images_are_no_look_alikes():
    images = photographs(6, 0)
    images[1], images[4] = 200, 203  # flat, but different
    one = ImageSet(images)
    assert not look_alikes(one, np.arange(6), one, np.arange(6)).any()
    assert not look_alikes(ImageSet(images.clone()), np.arange(6), one, np.arange(6)).any()  # equal: treated as one image
    grey = ImageSet(images[:, :1])
    assert not look_alikes(grey, np.arange(6), one, np.arange(6)).any()


def test_a_planted_image_that_was_saved_again_is_named(tmp_path, monkeypatch):
    inside = oodbench.load_dataset("digits").images
    planted = oodbench.load_dataset("digits-heldout").images[:30].clone()
    planted[5] = (inside[100].int() + 3).clamp(0, 255).to(torch.uint8)
    planted[20:25] = planted[5:6]
    planted[21] = (planted[20].int() - 2).clamp(0, 255).to(torch.uint8)  # look-alikes within the set
    monkeypatch.setattr("oodbench.datasets.uniform.uniform", lambda root, split: ImageSet(planted, name="uniform"))
    oodbench.run("digits", out=tmp_path / "run", detectors=["msp", "odin"], datasets=["uniform"], measure_costs=False)
    records = {record.protocol: record for record in RunFolder(tmp_path / "run").records() if record.detector == "odin"}
    assert records["unsupervised"].look_alikes == 6
    frame, notes = gather([RunFolder(tmp_path / "run")])
    text = " ".join(render(frame, notes=notes).split())
    assert "unsupervised: tested images that look like an in-distribution image" in text
    assert "uniform (6 of 30)" in text


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("resample", [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_planted_copies_of_another_size_are_named_even_if_images_are_small(tmp_path, split, resample):
    """Of 8×8 pixels: resampling moves each by more than photographs of 32×32 differ."""
    (tmp_path / "data" / "planted").mkdir(parents=True)
    copies, others = oodbench.load_dataset("digits", split=split), oodbench.load_dataset("digits-heldout")
    for number in range(40):
        image = copies.images[number] if number < 20 else others.images[number]
        larger = Image.fromarray(image[0].numpy()).resize((32, 32), resample)
        larger.save(tmp_path / "data" / "planted" / f"{number:02}.png")
    options = {"data": tmp_path / "data", "datasets": ["folder:planted"], "protocols": ["unsupervised"], "measure_costs": False}
    results = oodbench.run("digits", out=tmp_path / "run", detectors=["msp"], **options)
    (record,) = results.records()
    assert record.status == "ok"
    assert record.look_alikes == 20


def nearest_by_corners(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As OpenCV's and PyTorch's ``nearest`` do it."""
    pixels = np.asarray(image)
    rows, columns = (np.arange(side) * of // side for side, of in zip(size[::-1], pixels.shape[:2], strict=True))
    return Image.fromarray(pixels[rows][:, columns])


FILTERS = {name: partial(Image.Image.resize, resample=filter) for name, filter in Image.Resampling.__members__.items()}
CASES = [*product((9, 12, 17, 50), FILTERS), (12, "corners"), (17, "corners"), (50, "corners")]


def saved_at(images: torch.Tensor, size: int, resized) -> ImageSet:
    """The images saved at another size, and read at their own."""
    larger = (resized(Image.fromarray(image.permute(1, 2, 0).numpy()), size=(size, size)) for image in images)
    again = (np.array(image.resize((images.shape[3], images.shape[2]), Image.Resampling.BILINEAR)) for image in larger)
    return ImageSet(torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in again]))


@pytest.mark.parametrize(("size", "name"), CASES)
def test_small_copies_are_found_with_every_filter_and_other_images_are_not(size, name):
    known, others = oodbench.load_dataset("digits"), oodbench.load_dataset("digits-heldout")
    resized = FILTERS.get(name, nearest_by_corners)
    copies = saved_at(known.images[:60], size, resized)
    assert look_alikes(copies, np.arange(60), known, np.arange(len(known)), saved_again=True).all()
    copies = saved_at(others.images[:100], size, resized)
    assert look_alikes(copies, np.arange(100), known, np.arange(len(known)), saved_again=True).sum() <= 2


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("size", [24, 29, 33, 40])
@pytest.mark.parametrize("resized", [FILTERS["NEAREST"], FILTERS["BILINEAR"], nearest_by_corners])
def test_so_are_copies_of_photographs_of_32_pixels(size, resized):
    images = photographs(120, 0).unique(dim=0)
    images = images[images.float().diff().abs().mean((1, 2, 3)) > 8]  # smooth ones all look alike
    known, others = ImageSet(images[::2]), images[1::2]
    rows, all_known = np.arange(len(others)), np.arange(len(known))
    assert look_alikes(saved_at(known.images, size, resized), all_known, known, all_known, saved_again=True).all()
    copies = saved_at(others, size, resized)
    assert not look_alikes(copies, rows, known, all_known, saved_again=True).any()


@pytest.mark.usefixtures("blocks")
def test_copies_of_images_with_one_small_side_are_found():
    columns = torch.randint(0, 256, (5, 3, 8, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = columns.repeat_interleave(20, dim=3)
    larger = torch.nn.functional.interpolate(images.float(), scale_factor=2, mode="bilinear")
    copies = torch.nn.functional.interpolate(larger, size=(8, 40), mode="bilinear", antialias=True).round().to(torch.uint8)
    found = look_alikes(ImageSet(copies), np.arange(5), ImageSet(images), np.arange(4), saved_again=True)
    assert found.tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("kind", ["corruption", "adversarial"])
def test_what_is_made_from_in_distribution_images_is_not_asked(tmp_path, kind):
    name = {"corruption": "digits+noise@1", "adversarial": "digits+fgsm"}[kind]
    results = oodbench.run("digits", out=tmp_path / "run", detectors=["msp"], datasets=[name], limit=30, measure_costs=False)
    assert {record.look_alikes for record in results.records()} == {0}
