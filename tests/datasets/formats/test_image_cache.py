"""Images kept in the cache folder: the same as decoded ones, decoded once, and made again if they are not whole."""

import copy
import os
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from heard import Heard
from PIL import Image
from run_folders import figures

import oodbench
from oodbench import load_dataset
from oodbench.datasets import load
from oodbench.datasets.formats import image_cache
from oodbench.datasets.resize import Resized
from oodbench.errors import BadData, CannotWrite
from oodbench.results.folder import RunFolder

OPTIONS = {"size": 8, "shorter_side": 9}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with a set of twelve images of several sizes, and an empty cache."""
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for number in range(12):
        pixels = random.integers(0, 256, (10 + number, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / f"{number:02}.png")
    return tmp_path


@pytest.fixture
def decodings(monkeypatch):
    """How many images were resized."""
    counted, whole = [], Resized.__getitem__

    def counting(self, rows):
        counted.extend(rows)
        return whole(self, rows)

    monkeypatch.setattr(Resized, "__getitem__", counting)
    return counted


def kept_files(data):
    return sorted((data / "cache" / "images").iterdir())


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_images_are_the_same_and_decoded_once(data, decodings, monkeypatch, in_memory, workers):
    if not in_memory:
        monkeypatch.setattr(load, "IN_MEMORY", 0)
    options = OPTIONS | {"data": data, "workers": workers}
    plain, told = load_dataset("folder:set", **options), Heard()
    decodings.clear()
    first = load_dataset("folder:set", **options, cache_images=True, progress=told)
    if not workers:
        assert decodings == list(range(12))
    decodings.clear()
    again = load_dataset("folder:set", **options, cache_images=True)
    assert isinstance(again.images, torch.Tensor) == in_memory
    rows = [3, 0, 11]
    for images in (first, again):
        assert torch.equal(images.read(rows), plain.read(rows) if in_memory else plain.images[rows])
        assert images.fingerprint == plain.fingerprint
    decodings.clear()
    again.read(range(12))
    assert not decodings
    (line,) = (line for line in told.lines if "keeping" in line)
    assert line == f"folder:set (test): keeping 12 images in {data / 'cache' / 'images'}, 2 kB"
    sent = copy.copy(image_cache.Mapped(kept_files(data)[0], (12, 3, 8, 8)))  # by what pickle would send to a worker
    assert torch.equal(sent[[2]], again.read([2]))


def test_other_files_or_another_size_are_other_images(data):
    load_dataset("folder:set", data=data, cache_images=True, **OPTIONS)
    load_dataset("folder:set", data=data, cache_images=True, size=9)
    assert len(kept_files(data)) == 2
    shutil.copytree(data / "set", data / "copy")
    load_dataset("folder:copy", data=data, cache_images=True, **OPTIONS)
    assert len(kept_files(data)) == 2
    shutil.copy(data / "set" / "00.png", data / "set" / "01.png")
    changed = load_dataset("folder:set", data=data, cache_images=True, **OPTIONS)
    assert len(kept_files(data)) == 3
    assert torch.equal(changed.images[0], changed.images[1])


@pytest.mark.parametrize("content", [b"", b"no array", None], ids=["empty", "text", "cut"])
def test_a_damaged_file_is_made_again(data, content):
    expected = load_dataset("folder:set", data=data, cache_images=True, **OPTIONS).images
    (file,) = kept_files(data)
    file.write_bytes(file.read_bytes()[:-1] if content is None else content)
    assert torch.equal(load_dataset("folder:set", data=data, cache_images=True, **OPTIONS).images, expected)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_changed_byte_is_not_read_as_an_image(data, monkeypatch, in_memory):
    if not in_memory:
        monkeypatch.setattr(load, "IN_MEMORY", 0)
    read = partial(load_dataset, "folder:set", data=data, cache_images=True, **OPTIONS)
    expected = read().read(range(12))
    (file,) = kept_files(data)
    whole = file.read_bytes()
    for place in (len(whole) - 100, len(whole) - 1):  # a pixel of the last image, and its checksum
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BadData, match=rf"{file.name} is damaged; delete it, and run again"):
            read().read(range(12))
        if not in_memory:
            assert torch.equal(read().read(range(11)), expected[:11]), "other images are not concerned"
    file.unlink()
    assert torch.equal(read().read(range(12)), expected)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_something_else_in_place_of_the_file_is_named_and_not_read(data, make):
    load_dataset("folder:set", data=data, cache_images=True, **OPTIONS)
    (file,) = kept_files(data)
    file.unlink()
    make(file)
    with pytest.raises(BadData, match=rf"{file.name} is not a regular file; replace it with one, or remove it"):
        load_dataset("folder:set", data=data, cache_images=True, **OPTIONS)


def test_a_file_that_is_no_image_leaves_nothing(data):
    (data / "set" / "05.png").write_bytes(b"text")
    with pytest.raises(BadData, match=r"05\.png is not an image"):
        load_dataset("folder:set", data=data, cache_images=True, **OPTIONS)
    assert not kept_files(data)


def test_without_the_space_nothing_is_decoded(data, decodings, monkeypatch):
    usage = shutil.disk_usage(data)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CannotWrite, match=r"its images take 2 kB in .*, where 1 kB are free; .* leave --cache-images out"):
        load_dataset("folder:set", data=data, cache_images=True, **OPTIONS)
    assert not decodings


def test_a_run_has_the_same_records(data, monkeypatch):
    monkeypatch.setattr(load, "IN_MEMORY", 0)
    options = {"detectors": ["msp"], "datasets": ["folder:set", "folder:set+noise@2"], "data": data, "measure_costs": False}
    found = []
    for cache_images in (False, True, True):
        out = data / f"run{len(found)}"
        results = oodbench.run("digits", protocols=["unsupervised"], out=out, cache_images=cache_images, **options)
        assert set(results.frame()["status"]) == {"ok"}
        found.append(figures(RunFolder(out)))
    assert found[0] == found[1] == found[2]
    assert os.listdir(data / "cache" / "images")
