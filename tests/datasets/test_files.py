"""What all sets of files share: ODIN's sets and Places365, irregular files, links, and what each set states."""

import codecs
import io
import os
import pickle
import re
import tracemalloc

import numpy as np
import pytest
import torch
from hostile import jpeg_of
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from scipy.io import savemat

from oodbench import ImageSet, load_dataset, registry
from oodbench.datasets import TABLE
from oodbench.datasets.cifar import CIFAR10
from oodbench.datasets.fetching.catalogue import CATALOGUE
from oodbench.datasets.fetching.expected_files import broken_images
from oodbench.datasets.formats import cifar_pickle
from oodbench.datasets.formats.cifar_pickle import read_pickle
from oodbench.datasets.formats.files import TURNS, ImageFiles, decode
from oodbench.datasets.load import takes_parts
from oodbench.errors import BadData, MissingData, UsageError
from oodbench.image_set import KINDS

FOLDERS = {
    "lsun-crop": "LSUN/test",
    "lsun-resize": "LSUN_resize/LSUN_resize",
    "tinyimagenet-crop": "Imagenet/test",
    "tinyimagenet-resize": "Imagenet_resize/Imagenet_resize",
    "places365": "test_256",
}


def write_image(path, seed=0, size=(12, 12)):
    """Random pixels in the format of the suffix; returns them as (C, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels.transpose(2, 0, 1)


@pytest.mark.parametrize(("name", "folder"), FOLDERS.items())
def test_folders_of_test_images(tmp_path, name, folder):
    with pytest.raises(MissingData, match=rf"{name} \(test\).*{folder}"):
        load_dataset(name, data=tmp_path)
    with pytest.raises(UsageError, match="no split 'train'; it has test; name another set to learn from"):
        load_dataset(name, data=tmp_path, split="train")
    (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(BadData, match=f"{folder} holds no images") as caught:
        load_dataset(name, data=tmp_path)
    assert CATALOGUE[name].downloads[0].url in str(caught.value)
    (tmp_path / folder / "readme.txt").write_text("left out")
    images = [write_image(tmp_path / folder / f"{i}.png", i, (32, 32)) for i in (2, 0, 1)]
    found = load_dataset(name, data=tmp_path)
    assert np.array_equal(found.images.numpy(), [images[1], images[2], images[0]])
    assert (found.labels, found.classes) == (None, ())
    assert found.official_size == (328_500 if name == "places365" else 10_000)
    assert found.kind == ("near-ood" if name.startswith("tiny") else "far-ood")
    assert tuple(load_dataset(name, data=tmp_path, size=28).images.shape) == (3, 3, 28, 28)


def test_the_headers_of_places_are_not_read(tmp_path, monkeypatch):
    write_image(tmp_path / "test_256" / "Places365_test_00000001.jpg", size=(256, 256))
    monkeypatch.setattr("oodbench.datasets.formats.files.opened", None)
    assert registry.load("datasets", "places365")(tmp_path, "test").images.shape == (1, 3, 0, 0)


def tiny_layouts(root):
    """Write one image of each set that is on disk, and give a loader's arguments for each."""
    write_image(root / "tiny-imagenet-200" / "train" / "n01" / "images" / "a.png")
    (root / "tiny-imagenet-200" / "wnids.txt").write_text("n01\n")
    for folder in FOLDERS.values():
        write_image(root / folder / "a.png")
    write_image(root / "dtd" / "images" / "banded" / "a.png")
    write_image(root / "GTSRB" / "Training" / "00000" / "a.ppm")
    write_image(root / "CURE-TSR" / "Real_Train" / "ChallengeFree" / "01_01_00_00_0001.bmp")
    write_image(root / "CURE-TSR" / "Unreal_Test" / "Haze-3" / "02_01_12_03_0001.bmp")
    (root / "CIFAR-10-C").mkdir()
    np.save(root / "CIFAR-10-C" / "fog.npy", np.zeros((5, 32, 32, 3), np.uint8))
    np.save(root / "CIFAR-10-C" / "labels.npy", np.zeros(5, np.uint8))
    for folder, file, meta, labels, names in (
        ("cifar-10-batches-py", "test_batch", "batches.meta", b"labels", b"label_names"),
        ("cifar-100-python", "test", "meta", b"fine_labels", b"fine_label_names"),
    ):
        (root / folder).mkdir()
        content = {b"data": np.zeros((1, 3072), np.uint8), labels: [0]}
        (root / folder / file).write_bytes(pickle.dumps(content, protocol=2))
        (root / folder / meta).write_bytes(pickle.dumps({names: [b"cat"]}, protocol=2))
    write_image(root / "images_largescale" / "a.jpg")
    (root / "benchmark_imglist" / "imagenet").mkdir(parents=True)
    (root / "benchmark_imglist" / "imagenet" / "test_imagenet.txt").write_text("a.jpg 7\n")
    (root / "svhn").mkdir()
    savemat(root / "svhn" / "test_32x32.mat", {"X": np.zeros((32, 32, 3, 1), np.uint8), "y": np.ones((1, 1), np.uint8)})
    arguments = dict.fromkeys(TABLE, ("test",)) | {"tinyimagenet": ("train",), "gtsrb": ("train",)}
    return arguments | {
        "cifar10c": ("test", "fog", 3),
        "curetsr": ("train", "", None),
        "curetsr-unreal": ("test", "haze", 3),
        "imagenet": ("test", "", None),
    }


def test_each_set_states_what_a_table_and_an_author_need(tmp_path):
    for name, arguments in tiny_layouts(tmp_path).items():
        loader = registry.load("datasets", name)
        assert takes_parts(loader) == (len(arguments) == 3), name
        found = loader(tmp_path, *arguments)
        assert isinstance(found, ImageSet), name
        assert found.name.split("/")[0] == name
        assert found.kind in KINDS
        source = found.source
        for value in (source.title, source.licence, source.citation):
            assert value.strip(), name
        assert name == "uniform" or re.match(r"https?://", source.homepage), name
        assert re.fullmatch("[0-9a-f]{16}", found.fingerprint), name
        assert name == "imagenet" or (found.labels is None) == (not found.classes), name
        official = CATALOGUE[name].images
        if CATALOGUE[name].downloads:  # others' official size is not published, or they are whole by themselves
            assert source.official_size == official, name
        assert TABLE[name].source == source.homepage, name


@pytest.mark.parametrize("count", [10_000, 9_999])
def test_the_rows_of_a_whole_split_of_cifar_have_a_name(tmp_path, count):
    folder = tmp_path / CIFAR10.folder
    folder.mkdir()
    content = {b"data": np.zeros((count, 3072), np.uint8), b"labels": [0] * count}
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat"]}, protocol=2))
    found = load_dataset("cifar10", data=tmp_path)
    assert found.base == ("cifar10/test" if count == 10_000 else "")
    assert torch.equal(found.base_index, torch.arange(count))


PATHS = [
    "tiny-imagenet-200/train/n01/images/a.png",
    "tiny-imagenet-200/wnids.txt",
    *(f"{folder}/a.png" for folder in FOLDERS.values()),
    "dtd/images/banded/a.png",
    "GTSRB/Training/00000/a.ppm",
    "CURE-TSR/Real_Train/ChallengeFree/01_01_00_00_0001.bmp",
    "CIFAR-10-C/fog.npy",
    "CIFAR-10-C/labels.npy",
    "cifar-10-batches-py/test_batch",
    "cifar-100-python/meta",
    "svhn/test_32x32.mat",
]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_in_place_of_a_file_does_not_hang(tmp_path, kind):
    arguments = tiny_layouts(tmp_path)
    names = {"tiny-imagenet-200": "tinyimagenet", "dtd": "textures", "GTSRB": "gtsrb", "CURE-TSR": "curetsr", "svhn": "svhn"}
    names |= {"CIFAR-10-C": "cifar10c", "cifar-10-batches-py": "cifar10", "cifar-100-python": "cifar100"}
    names |= {folder.split("/")[0]: name for name, folder in FOLDERS.items()}
    for path in PATHS:
        whole = (tmp_path / path).read_bytes()
        (tmp_path / path).unlink()
        if kind == "pipe":
            os.mkfifo(tmp_path / path)
        else:
            (tmp_path / path).symlink_to("/dev/zero")
        name = names[path.split("/")[0]]
        with pytest.raises((BadData, MissingData), match=path) as caught:
            registry.load("datasets", name)(tmp_path, *arguments[name]).read([0])
        assert "\n" not in str(caught.value)
        (tmp_path / path).unlink()
        (tmp_path / path).write_bytes(whole)


def test_links_are_followed_for_the_data_root_is_the_users_own(tmp_path):
    pixels = write_image(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "root" / "set").mkdir(parents=True)
    (tmp_path / "root" / "set" / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "root-link").symlink_to(tmp_path / "root", target_is_directory=True)
    for name in ("folder:set", "folder:linked"):
        assert np.array_equal(load_dataset(name, data=tmp_path / "root-link").images[0].numpy(), pixels)
    (tmp_path / "root" / "set" / "round").symlink_to(tmp_path / "root" / "set", target_is_directory=True)
    with pytest.raises(BadData, match="beside folders"):  # a link to itself is no endless way down
        load_dataset("folder:set", data=tmp_path / "root")


def test_a_table_of_labels_beyond_all_measure_is_not_read(tmp_path):
    tiny_layouts(tmp_path)
    table = tmp_path / "tiny-imagenet-200" / "wnids.txt"
    with table.open("wb") as file:
        file.truncate(2**40)  # sparse: no space on the disk
    with pytest.raises(BadData, match="too many for a table of labels"):
        load_dataset("tinyimagenet", data=tmp_path, split="train")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("../../../etc\n", "not an ID such as n01443537"),
        ("n01\n/etc\n", "not an ID such as"),
        ("n01\nn02\nn01\n", "a class twice"),
    ],
)
def test_wnids_that_lead_elsewhere(tmp_path, content, says):
    tiny_layouts(tmp_path)
    (tmp_path / "tiny-imagenet-200" / "wnids.txt").write_text(content)
    with pytest.raises(BadData, match=rf"wnids\.txt.*{says}"):
        load_dataset("tinyimagenet", data=tmp_path, split="train")


def test_tables_that_give_a_file_two_classes(tmp_path):
    tiny_layouts(tmp_path)
    folder = tmp_path / "tiny-imagenet-200"
    (folder / "wnids.txt").write_text("n01\nn02\n")
    write_image(folder / "val" / "images" / "a.png")
    (folder / "val" / "val_annotations.txt").write_text("a.png\tn01\na.png\tn01\na.png\tn02\n")
    with pytest.raises(BadData, match=r"val_annotations\.txt, line 3: a\.png has two classes"):
        load_dataset("tinyimagenet", data=tmp_path)
    write_image(tmp_path / "GTSRB" / "Final_Test" / "Images" / "a.ppm")
    (tmp_path / "GT-final_test.csv").write_text("Filename;ClassId\na.ppm;7\na.ppm;8\n")
    with pytest.raises(BadData, match=r"GT-final_test\.csv, line 3: the file has two classes"):
        load_dataset("gtsrb", data=tmp_path)
    for label in ("9" * 5000, "٧", "7.0", "-1", ""):
        (tmp_path / "GT-final_test.csv").write_text(f"Filename;ClassId\na.ppm;{label}\n", encoding="utf-8")
        with pytest.raises(BadData, match=r"line 2: ClassId is") as caught:
            load_dataset("gtsrb", data=tmp_path)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("opcode", [b"r\xff\xff\xff\xff", b"p4294967295\n", b"q\xff"])
def test_a_pickle_that_asks_for_a_huge_memo_is_refused(tmp_path, opcode):
    """Python's unpickler allocates the memo up to the given index: 64 GB for five bytes."""
    folder = tmp_path / CIFAR10.folder
    folder.mkdir()
    (folder / "test_batch").write_bytes(b"\x80\x02}" + opcode + b".")
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat"]}, protocol=2))
    with pytest.raises(BadData, match=r"index \d+ in a memo"):
        load_dataset("cifar10", data=tmp_path)


@pytest.mark.parametrize(
    "content", [b"]" * 2**20, b"N0" * 2**20, b"".join(b"r" + i.to_bytes(4, "little") for i in range(2**20))]
)
def test_a_pickle_of_too_many_instructions_is_refused_before_they_are_followed(tmp_path, content, monkeypatch):
    """A list takes 56 bytes in memory and one in the file."""
    path = tmp_path / "test_batch"
    path.write_bytes(b"\x80\x02}" + content + b".")
    monkeypatch.setattr(cifar_pickle, "_Unpickler", lambda *_: pytest.fail("followed"))
    with pytest.raises(BadData, match=r"it has more than 1,048,576 pickle instructions, and no CIFAR file does\); unpack the"):
        read_pickle(path)


def test_a_pickle_beyond_all_measure_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps({b"data": bytes(100)}, protocol=2))
    assert read_pickle(path)
    monkeypatch.setattr(cifar_pickle, "MOST_BYTES", 100)
    with pytest.raises(BadData, match=r"it has 1\d\d bytes, and a CIFAR file has at most 100\); unpack the official"):
        read_pickle(path)


class Encoded:
    """What Python 3 writes in protocol 2 for bytes: a call that makes them from a text."""

    def __init__(self, text):
        self.text = text

    def __reduce__(self):
        return codecs.encode, (self.text, "latin1")


SMALL = 100_000  # bytes, or numbers, of what is named many times
GROWING = {
    "bytes": lambda: {b"data": [bytes(SMALL)] * 1000},
    "text": lambda: {b"data": ["a" * SMALL] * 1000},
    "keys of one text": lambda: dict.fromkeys(range(1000), "a" * SMALL),
    "lists": lambda: dict.fromkeys(range(1000), [1] * SMALL),
    "encoded text": lambda: {b"data": [Encoded(text) for text in ["a" * SMALL] * 1000]},
}


@pytest.mark.parametrize("what", GROWING)
def test_a_small_pickle_cannot_grow(tmp_path, what):
    """One string or list, named a thousand times in two bytes each: 100 kB that would become 100 MB."""
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps(GROWING[what](), protocol=2 if what == "encoded text" else 3))
    assert path.stat().st_size < 3 * SMALL
    tracemalloc.start()
    with pytest.raises(BadData, match="it would grow to many times its size"):
        read_pickle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_names_that_recur_are_no_growth(tmp_path):
    path = tmp_path / "meta"
    path.write_bytes(pickle.dumps({b"label_names": [b"cat"] * 5000}, protocol=2))
    assert read_pickle(path) == {"label_names": ["cat"] * 5000}


def test_a_pickle_cannot_change_the_functions_it_is_given(tmp_path):
    folder = tmp_path / CIFAR10.folder
    folder.mkdir()
    (folder / "test_batch").write_bytes(b"\x80\x02c_codecs\nencode\nN}X\x01\x00\x00\x00aK\x01s\x86b.")
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat"]}, protocol=2))
    with pytest.raises(BadData, match="changes a function"):
        load_dataset("cifar10", data=tmp_path)


def test_a_jpeg_of_too_many_scans_is_not_decoded(tmp_path, monkeypatch):
    """Of 4,000 scans in 399 kB, decoding took more than a minute."""
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_of(100))
    assert decode(path).shape == (3, 16, 24)
    sideways = Image.Exif()
    sideways[ExifTags.Base.Orientation] = 6
    monkeypatch.setattr(JpegImageFile, "load", lambda *_: pytest.fail("decoded"))
    for options in ({}, {"exif": sideways}):
        path.write_bytes(jpeg_of(101, **options))
        with pytest.raises(BadData, match=r"a\.jpg has more than 100 scans; remove it, or save it again if you trust it"):
            decode(path)
        assert "has more than 100 scans" in next(broken_images(tmp_path, tmp_path))
    with pytest.raises(BadData, match="has more than 100 scans"):  # it is turned, which decodes it
        _ = ImageFiles([path]).shape


def test_bytes_that_look_like_scans_do_not_count(tmp_path):
    """Thumbnails and profiles in the header, and a film after the end of the image."""
    path, stream = tmp_path / "a.jpg", io.BytesIO()
    Image.new("RGB", (24, 16)).save(stream, "JPEG", comment=b"\xff\xda" * 200)
    path.write_bytes(stream.getvalue() + b"\xff\xda" * 200)
    assert decode(path).shape == (3, 16, 24)


def test_sizes_that_vary_are_declared_without_looking(tmp_path):
    assert ImageFiles([tmp_path / "not there.png"], sizes_vary=True).shape == (1, 3, 0, 0)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [None, 0, *range(1, 9), 9])
def test_images_are_turned_as_exif_says(tmp_path, suffix, orientation):
    """Cameras store the sensor's rows and note how to hold them; other libraries show the image upright."""
    stored = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)  # (H, W, C)
    # From EXIF 2.3: where the first row and the first column of what is stored belong.
    shown = {
        **{2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.swapaxes(0, 1)},
        **{6: np.rot90(stored, -1), 7: np.rot90(stored, 2).swapaxes(0, 1), 8: np.rot90(stored)},
    }
    path, exif = tmp_path / "set" / f"a.{suffix}", Image.Exif()
    path.parent.mkdir()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(stored).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    wanted = shown.get(orientation, stored).transpose(2, 0, 1)
    assert np.array_equal(decode(path), wanted)
    assert ImageFiles([path]).shape[1:] == wanted.shape
    assert np.array_equal(load_dataset("folder:set", data=tmp_path).images[0], wanted)
    assert shown.keys() == TURNS.keys()


def test_photographs_held_upright_and_across_have_one_size(tmp_path):
    (tmp_path / "set").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "set" / "across.jpg", exif=exif)
    Image.new("RGB", (4, 6)).save(tmp_path / "set" / "upright.jpg")
    assert tuple(load_dataset("folder:set", data=tmp_path).images.shape) == (2, 3, 6, 4)


@pytest.mark.parametrize("block", [b"", b"Exif\x00\x00", b"Exif\x00\x00no TIFF here", b"Exif\x00\x00II*\x00\xff\xff\xff\xff"])
def test_a_damaged_exif_block_turns_nothing(tmp_path, block):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8))
    image.save(tmp_path / "plain.jpg")
    image.save(tmp_path / "damaged.jpg", exif=block)
    assert torch.equal(decode(tmp_path / "damaged.jpg"), decode(tmp_path / "plain.jpg"))
    assert ImageFiles([tmp_path / "damaged.jpg"]).shape == (1, 3, 2, 3)
