"""``folder:PATH``, and image files that are broken, hostile or of other kinds."""

import os
import struct
import zlib

import numpy as np
import pytest
from image_files import random_images, save_image
from PIL import Image

from oodbench import load_dataset
from oodbench.datasets.fetching.catalogue import find
from oodbench.errors import BadData, MissingData, UsageError


def test_folder_flat_by_class_and_with_splits(tmp_path):
    images = random_images(4, 12, 16)
    for i, name in enumerate(("b.png", "a.PNG", "c.bmp", "d.webp")):
        save_image(tmp_path / "flat" / name, images[i])
    (tmp_path / "flat" / "notes.txt").write_text("not an image")
    (tmp_path / "flat" / ".hidden.png").write_text("not an image")
    flat = load_dataset("folder:flat", data=tmp_path)
    assert flat.labels is None
    assert flat.classes == ()
    assert flat.name == "folder:flat"
    assert flat.kind == "far-ood"
    assert tuple(flat.images.shape) == (4, 3, 12, 16)
    assert np.array_equal(flat.images[:3].numpy(), images[[1, 0, 2]])

    for i, name in enumerate(("dog/1.png", "cat/2.png", "dog/0.png")):
        save_image(tmp_path / "pets" / "train" / name, images[i])
    save_image(tmp_path / "pets" / "test" / "dog" / "0.png", images[3])
    (tmp_path / "pets" / "test" / "cat").mkdir()
    train = load_dataset("folder:pets", data=tmp_path, split="train")
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 1, 1]
    assert np.array_equal(train.images.numpy(), images[[1, 2, 0]])
    test = load_dataset("folder:pets", data=tmp_path)
    assert test.labels.tolist() == [1]
    assert test.classes == ("cat", "dog")
    assert load_dataset("folder:pets/train:dog", data=tmp_path).base_index.tolist() == [1, 2]
    with pytest.raises(UsageError, match="no split 'train'; it has test"):
        load_dataset("folder:flat", data=tmp_path, split="train")


def test_a_folder_with_a_plus_sign_in_its_name(tmp_path):
    save_image(tmp_path / "black+white" / "c++" / "0.png", random_images(1)[0])
    save_image(tmp_path / "black+white" / "java" / "0.png", random_images(1)[0])
    assert load_dataset("folder:black++white", data=tmp_path).classes == ("c++", "java")
    assert len(load_dataset("folder:black++white:c++++", data=tmp_path)) == 1
    noisy = load_dataset("folder:black++white+noise@1", data=tmp_path)
    assert (noisy.name, noisy.kind) == ("folder:black++white+noise@1", "corruption")
    (tmp_path / "black+white" / "c++" / "0.png").rename(tmp_path / "black+white" / "0.png")
    save_image(tmp_path / "black+white" / "c++" / "deep" / "0.png", random_images(1)[0])
    with pytest.raises(BadData, match=r"or name folder:black\+\+white/c\+\+\+\+ instead"):
        load_dataset("folder:black++white", data=tmp_path)


@pytest.mark.parametrize("test", ["val", "valid", "validation"])
def test_validation_images_are_the_test_images_where_there_are_no_others(tmp_path, test):
    """The two folders were once read as two classes, ``train`` and ``val``."""
    images = random_images(3)
    for i, place in enumerate(("train/cat", "train/dog", f"{test}/dog")):
        save_image(tmp_path / "pets" / place / "0.png", images[i])
    train, tested = (load_dataset("folder:pets", data=tmp_path, split=split) for split in ("train", "test"))
    assert (train.classes, train.labels.tolist()) == (("cat", "dog"), [0, 1])
    assert (tested.classes, tested.labels.tolist()) == (("cat", "dog"), [1])
    assert np.array_equal(tested.images.numpy(), images[2:])
    save_image(tmp_path / "pets" / "test" / "cat" / "0.png", images[0])
    assert load_dataset("folder:pets", data=tmp_path).labels.tolist() == [0]


def test_a_name_that_is_too_long_is_missing(tmp_path):
    with pytest.raises(MissingData, match="is not a folder; create it"):
        load_dataset(f"folder:{'x' * 300}", data=tmp_path)


def test_the_training_split_numbers_the_classes_of_both(tmp_path):
    """Each split once numbered its own folders: a class missing from one shifted all labels after it."""
    images = random_images(1)[0]
    for place in ("train/ant", "train/bee", "train/cat", "test/cat", "test/Asp", "test/ant"):
        save_image(tmp_path / "pets" / place / "0.png", images)
    for place in ("train/__MACOSX/bee", "test/__MACOSX", "train/.thumbnails", "train/Empty"):
        (tmp_path / "pets" / place).mkdir(parents=True)
    (tmp_path / "pets" / "test" / "__MACOSX" / "._0.png").write_bytes(b"Mac OS X")
    train, test = (load_dataset("folder:pets", data=tmp_path, split=split) for split in ("train", "test"))
    assert (train.classes, train.labels.tolist()) == (("ant", "bee", "cat"), [0, 1, 2])
    assert (test.classes, test.labels.tolist()) == (("ant", "bee", "cat", "Asp"), [3, 0, 2])
    assert load_dataset("folder:pets/test", data=tmp_path).classes == ("Asp", "ant", "cat")


def test_other_folders_of_classes_do_not_count_empty_ones_either(tmp_path):
    for place in ("banded/0.jpg", "dotted/0.jpg"):
        save_image(tmp_path / "dtd" / "images" / place, random_images(1)[0])
    (tmp_path / "dtd" / "images" / "__MACOSX").mkdir()
    textures = load_dataset("textures", data=tmp_path)
    assert (textures.classes, textures.labels.tolist()) == (("banded", "dotted"), [0, 1])


def test_what_systems_add_to_folders_is_no_part_of_a_set(tmp_path):
    files = ["set/ant/0.png", "set/bee/0.png", "dtd/images/banded/0.jpg", "LSUN_resize/LSUN_resize/0.png"]
    for place in files:
        save_image(tmp_path / place, random_images(1)[0])
    names = ["folder:set", "textures", "lsun-resize"]
    before = {name: load_dataset(name, data=tmp_path).fingerprint for name in names}
    missing = {name: find(name).survey(tmp_path) for name in names[1:]}
    for folder in {parent for place in files for parent in (tmp_path / place).parents if parent.is_relative_to(tmp_path)}:
        for name in ("._0.png", "._0.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(b"\0\5\x16\7")
        for name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".Trashes"):
            (folder / name).mkdir()
            (folder / name / "0.png").write_bytes(b"a thumbnail")
    assert {name: load_dataset(name, data=tmp_path).fingerprint for name in names} == before
    assert {name: find(name).survey(tmp_path) for name in names[1:]} == missing


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../secret",
        "a/../../secret",
        "/",
        "/etc/../secret",
        "..\\secret",
        "\\secret",
        "\\\\server\\x",
    ],
)
def test_a_relative_path_stays_below_the_data_root(tmp_path, path):
    save_image(tmp_path / "secret" / "a.png", random_images(1)[0])
    (tmp_path / "root" / "a").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"must name a folder without '\.\.'; write folder:PATH"):
        load_dataset(f"folder:{path}", data=tmp_path / "root")


def test_an_absolute_path_is_read_and_named_by_its_last_folder(tmp_path):
    for name in ("cat", "dog"):
        save_image(tmp_path / "a+b" / "pets" / name / "0.png", random_images(1)[0])
    name = f"folder:{tmp_path}/a++b/pets"
    pets = load_dataset(name, data=tmp_path / "elsewhere")
    assert (pets.name, pets.classes, pets.source.title) == ("folder:pets", ("cat", "dog"), "the user's folder pets")
    assert load_dataset(f"{name}:dog+noise@2", data=tmp_path / "elsewhere").name == "folder:pets:dog+noise@2"
    assert pets.fingerprint == load_dataset("folder:a++b/pets", data=tmp_path).fingerprint
    with pytest.raises(MissingData, match=f"{tmp_path}/gone is not a folder; create it, or name another folder$"):
        load_dataset(f"folder:{tmp_path}/gone", data=[tmp_path, tmp_path / "elsewhere"])


def test_data_roots_are_searched_in_order(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    for root, name, count in ((first, "both", 1), (second, "both", 2), (second, "one", 3)):
        for number, image in enumerate(random_images(count)):
            save_image(root / name / f"{number}.png", image)
    assert [len(load_dataset(f"folder:{name}", data=[first, second])) for name in ("both", "one")] == [1, 3]
    monkeypatch.setenv("OODBENCH_DATA", f"{second}{os.pathsep}{os.pathsep}{first}")
    assert [len(load_dataset(f"folder:{name}")) for name in ("both", "one")] == [2, 3]
    for name, expected in (("folder:gone", "gone"), ("textures", "dtd")):
        with pytest.raises(MissingData, match=f"{second}/{expected}.*; also searched: {first}$"):
            load_dataset(name)


def test_folders_that_hold_no_set(tmp_path):
    with pytest.raises(MissingData, match=f"{tmp_path / 'nothing'}.*--data DIR"):
        load_dataset("folder:nothing", data=tmp_path)
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    with pytest.raises(BadData, match="holds no images"):
        load_dataset("folder:empty", data=tmp_path)
    save_image(tmp_path / "both" / "a.png", random_images(1)[0])
    save_image(tmp_path / "both" / "sub" / "b.png", random_images(1)[0])
    with pytest.raises(BadData, match=r"holds images \(a.png\) beside folders"):
        load_dataset("folder:both", data=tmp_path)


def test_no_image_is_left_out_silently(tmp_path):
    for suffix, format in (("jfif", "JPEG"), ("JPE", "JPEG"), ("apng", "PNG"), ("pnm", "PPM"), ("pbm", "PPM")):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "set" / f"a.{suffix}", format=format)
    assert len(load_dataset("folder:set", data=tmp_path)) == 5
    for place in ("pets/cat/0.png", "pets/dog/2026/0.png", "splits/train/cat/0.png", "splits/tuning/cat/0.png"):
        save_image(tmp_path / place, random_images(1)[0])
    splits = r"\(a split is called train, test, val, valid or validation\)"
    with pytest.raises(BadData, match=rf"dog holds folders of images, one level too deep; .* folder:pets/dog instead {splits}"):
        load_dataset("folder:pets", data=tmp_path)
    with pytest.raises(BadData, match=r"train holds folders of images, .* name folder:splits/train instead"):
        load_dataset("folder:splits", data=tmp_path)
    (tmp_path / "set" / "itself.png").symlink_to("itself.png")
    with pytest.raises(BadData, match=r"itself\.png"):
        load_dataset("folder:set", data=tmp_path)


def png_of(width, height, body=b""):
    """A PNG with any size in its header."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not an image, or it is truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (png_of(6000, 6000), "too many pixels"),
        (png_of(9000, 10_000), "too many pixels"),
        (png_of(30_000, 30_000), "too many pixels"),
    ],
)
def test_files_that_are_no_images(tmp_path, content, why, size):
    save_image(tmp_path / "set" / "a.png", random_images(1)[0])
    (tmp_path / "set" / "b.png").write_bytes(content)
    with pytest.raises(BadData, match=why) as caught:
        load_dataset("folder:set", data=tmp_path, size=size)
    assert str(tmp_path / "set" / "b.png") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "ppm", "webp", "tif"])
def test_truncated_images_name_themselves(tmp_path, suffix):
    path = tmp_path / "set" / f"a.{suffix}"
    save_image(path, random_images(1, 40, 40)[0])
    whole = path.read_bytes()
    for size in (10, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(BadData, match=str(path)):
            load_dataset("folder:set", data=tmp_path)


def test_images_of_other_modes(tmp_path):
    grey = random_images(1, 6, 6, channels=1)[0]
    save_image(tmp_path / "set" / "grey.png", grey)
    Image.fromarray(np.dstack([grey[0]] * 3 + [np.full((6, 6), 9, np.uint8)]), "RGBA").save(tmp_path / "set" / "with-alpha.png")
    loaded = load_dataset("folder:set", data=tmp_path)
    assert (loaded.images.numpy() == grey).all()
    Image.fromarray(grey[0].astype(np.uint16) * 257).save(tmp_path / "set" / "deep.png")
    with pytest.raises(BadData, match=r"deep.png has more than 8 bits"):
        load_dataset("folder:set", data=tmp_path)


def test_a_link_to_nowhere_is_no_silent_gap(tmp_path):
    save_image(tmp_path / "set" / "a.png", random_images(1)[0])
    (tmp_path / "set" / "b.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(BadData, match=r"b\.png"):
        load_dataset("folder:set", data=tmp_path)


def test_a_folder_with_training_images_alone_says_what_is_missing(tmp_path):
    (tmp_path / "own" / "train" / "cat").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "own" / "train" / "cat" / "0.png")
    with pytest.raises(
        UsageError, match="folder:own has a folder train, but none with test images beside it; add a folder test"
    ):
        load_dataset("folder:own", data=tmp_path, split="train")


@pytest.mark.parametrize("test", ["test", "val"])
@pytest.mark.parametrize("place", ["", "cat"])
def test_a_folder_with_test_images_alone_needs_no_training_images(tmp_path, test, place):
    """Class folders in it were once refused, and images in it read as a class of that name."""
    images = random_images(2)
    for i in range(2):
        save_image(tmp_path / "odd" / test / place / f"{i}.png", images[i])
    odd = load_dataset("folder:odd", data=tmp_path)
    assert np.array_equal(odd.images.numpy(), images)
    assert (odd.name, odd.split, odd.classes) == ("folder:odd", "test", ("cat",) if place else ())
    with pytest.raises(UsageError, match=f"no split 'train'; it has test; to learn from it, add a folder train beside {test}"):
        load_dataset("folder:odd", data=tmp_path, split="train")
    if place:
        save_image(tmp_path / "odd" / "dog" / "0.png", images[0])  # now it looks like folders of classes
        with pytest.raises(BadData, match=f"{test} holds folders of images, one level too deep"):
            load_dataset("folder:odd", data=tmp_path)
