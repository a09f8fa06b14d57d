"""The catalogue agrees with the readers and with itself, and its expected files are compared with the present ones."""

import re
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, DTD, SVHN

from oodbench import datasets
from oodbench.datasets import TABLE, gtsrb
from oodbench.datasets.fetching import catalogue, expected_files
from oodbench.datasets.fetching.catalogue import CATALOGUE
from oodbench.datasets.fetching.expected_files import Challenges, File, Images
from oodbench.datasets.formats.layout import image_files
from oodbench.errors import UsageError
from oodbench.models.published import PUBLISHED

DOWNLOADS = [download for item in CATALOGUE.values() for download in item.downloads]


def test_every_set_and_published_file_has_an_entry_and_no_other():
    assert set(CATALOGUE) == set(TABLE) | set(PUBLISHED)
    assert all(name == item.name for name, item in CATALOGUE.items())


def test_every_set_can_be_got_somehow():
    for item in CATALOGUE.values():
        assert bool(item.embedded) + bool(item.downloads) + bool(item.request_form) == 1, item.name


def test_files_of_downloads_have_unique_names_and_paths():
    files = [download.file for download in DOWNLOADS]
    assert len(set(files)) == len(files)  # mirrors and partial downloads use these names
    paths = [path for download in DOWNLOADS for path in download.paths]
    assert len(set(paths)) == len(paths)
    for one in DOWNLOADS:
        assert re.fullmatch(r"https?://[^/]+/.+", one.url)
        assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", one.digest)
        assert one.expected
        for path in one.paths:  # what is installed is checked afterwards
            assert any(entry.path == path or entry.path.startswith(f"{path}/") for entry in one.expected), path
        for entry in one.expected:
            assert any(entry.path == path or entry.path.startswith(f"{path}/") for path in one.paths), entry


def test_checksums_are_those_that_torchvision_knows():
    def md5(name):
        return [(d.file, d.digest.removeprefix("md5:")) for d in CATALOGUE[name].downloads]

    assert md5("cifar10") == [(CIFAR10.filename, CIFAR10.tgz_md5)]
    assert md5("cifar100") == [(CIFAR100.filename, CIFAR100.tgz_md5)]
    assert md5("svhn") == [tuple(SVHN.split_list[split][1:]) for split in ("train", "test", "extra")]
    assert md5("textures") == [("dtd-r1.0.1.tar.gz", DTD._MD5)]
    for name, theirs in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        batches = {p.path.rpartition("/")[2]: p.digest.removeprefix("md5:") for p in CATALOGUE[name].expected}
        meta = (theirs.meta["filename"], theirs.meta["md5"])
        assert batches == dict([*map(tuple, theirs.train_list), *map(tuple, theirs.test_list), meta])


def test_no_loader_states_an_address_again():
    """Addresses of archives are in the catalogue, home pages in the tables of sets, and nowhere else but names of XML."""
    package = Path(datasets.__file__).parent
    places = [
        str(path.relative_to(package))
        for path in sorted(package.rglob("*.py"))
        if re.search("https?://[a-z0-9]", path.read_text(encoding="utf-8"))
    ]
    assert places == ["__init__.py", "fetching/catalogue.py", "formats/xlsx_file.py", "quality/__init__.py"]


def test_addresses_of_splits():
    assert CATALOGUE["svhn"].address() == "http://ufldl.stanford.edu/housenumbers/train_32x32.mat"
    assert CATALOGUE["svhn"].address("extra") == "http://ufldl.stanford.edu/housenumbers/extra_32x32.mat"
    assert CATALOGUE["gtsrb"].address("test").endswith("/GTSRB_Final_Test_Images.zip")
    assert CATALOGUE["cifar10"].address("test") == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"


def test_folders_of_classes_are_counted_as_they_are_read():
    assert {len(gtsrb.CLASSES)} == {entry.folders for entry in CATALOGUE["gtsrb"].downloads[0].expected}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *(("cifar10", "cifar10"), ("cifar10:airplane", "cifar10"), ("cifar10+haze@3", "cifar10"), ("cifar10+pgd", "cifar10")),
        *(("cifar10c/fog@3", "cifar10c"), ("curetsr/Haze@3", "curetsr"), ("resnet20-cifar10", "resnet20-cifar10")),
    ],
)
def test_names_of_what_is_made_from_a_set_mean_the_set(name, found):
    assert catalogue.find(name) is CATALOGUE[found]


def test_unknown_names_suggest_and_folders_are_the_users_own():
    with pytest.raises(UsageError, match=r"unknown set or weights 'cifr10'; did you mean 'cifar10'\? \(oodbench data list\)"):
        catalogue.find("cifr10")
    with pytest.raises(UsageError, match="folder:cats is your own folder"):
        catalogue.find("folder:cats")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10+haez@3", "unknown change or attack 'haez'"),
        ("cifar10+haze@9", "'haze' needs a level"),
        ("cifar10c/fog@9", "names no part of cifar10c"),
        ("resnet20-cifar10+haze@3", r"unknown set or weights 'resnet20-cifar10\+haze@3'"),
        ("resnet20-cifar10:cat", "unknown set or weights 'resnet20-cifar10:cat'"),
    ],
)
def test_no_part_of_a_name_is_dropped(name, message):
    with pytest.raises(UsageError, match=message):
        catalogue.find(name)


def test_a_file_is_told_from_a_part_and_from_another(tmp_path):
    official = File("x/a", min_size=4, digest="md5:8d777f385d3dfec8815d20f7496026dc")  # of b"data"
    assert (official.exists(tmp_path), official.differences(tmp_path)) == (False, ["x/a is missing"])
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_bytes(b"dat")
    assert official.differences(tmp_path) == ["x/a has 3 bytes; the official file has at least 4"]
    (tmp_path / "x" / "a").write_bytes(b"date")
    assert official.differences(tmp_path) == []
    (fault,) = official.faults(tmp_path)
    assert fault.startswith("x/a is not the official file: md5:")
    (tmp_path / "x" / "a").write_bytes(b"data")
    assert list(official.faults(tmp_path)) == []


def draw(path, size=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size)).save(path)


def test_folders_of_images_are_counted_and_opened(tmp_path):
    expected = Images("set/*", 4, folders=2, per_folder=2)
    assert expected.differences(tmp_path) == ["set/* is missing"]
    for name in ("cats/1.png", "cats/2.png", "cats/notes.txt", "cats/.3.png", "dogs/1.png"):
        draw(tmp_path / "set" / name) if name.endswith("png") else (tmp_path / "set" / name).write_text("not an image")
    assert expected.differences(tmp_path) == ["set/dogs: 1 images; the official set has 2"]
    (tmp_path / "set" / "dogs" / "2.png").write_text("sign in first")
    assert expected.differences(tmp_path) == []
    (fault,) = expected.faults(tmp_path)
    assert fault.startswith("set/dogs/2.png is not an image")
    draw(tmp_path / "set" / "birds" / "1.png")
    assert "set/*: 3 folders; the official set has 2" in expected.differences(tmp_path)


def test_a_set_may_lie_in_another_folder_instead(tmp_path):
    expected = Images("official/images", 2, alternative="classes/*")
    draw(tmp_path / "classes" / "0" / "a.png")
    assert expected.differences(tmp_path) == ["classes/*: 1 images; the official set has 2"]
    draw(tmp_path / "classes" / "1" / "b.png")
    assert expected.differences(tmp_path) == []


@pytest.mark.parametrize("layout", range(3))
def test_challenges_have_all_the_same_images(tmp_path, layout):
    (expected, _) = CATALOGUE["curetsr-unreal"].requested
    assert isinstance(expected, Challenges)
    assert not expected.exists(tmp_path)
    folders = expected.layouts[layout]
    assert len(folders) == 61
    for folder in folders:
        draw(tmp_path / folder / "1.bmp")
    assert list(expected.faults(tmp_path)) == []
    draw(tmp_path / folders[7] / "2.bmp")
    (tmp_path / folders[9] / "1.bmp").write_text("no image")
    (tmp_path / folders[3] / "1.bmp").unlink()
    (tmp_path / folders[3]).rmdir()
    assert expected.differences(tmp_path) == [f"{folders[3]} is missing"]
    faults = list(expected.faults(tmp_path))
    assert f"{folders[7]}: 2 images; {folders[0]} has 1" in faults
    assert any(fault.startswith(f"{folders[9]}/1.bmp is not an image") for fault in faults)
    assert len(faults) == 3


def test_challenges_without_images_are_not_there(tmp_path):
    (expected, _) = CATALOGUE["curetsr"].requested
    for folder in expected.layouts[0]:
        (tmp_path / folder).mkdir(parents=True)
    assert expected.differences(tmp_path) == [f"{folder}: no images" for folder in expected.layouts[0]]
    assert CATALOGUE["curetsr"].survey(tmp_path)[0] == "partial"


@pytest.mark.parametrize("images", [7_300, 10])
def test_of_photographs_there_are_about_so_many(tmp_path, images):
    """The count is approximate: a few more images are no fault, a small subset is."""
    (expected, _) = CATALOGUE["curetsr"].requested
    free = expected.layouts[0][0]
    for folder in expected.layouts[0]:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.bmp").touch()
    for number in range(2, images + 1):
        (tmp_path / free / f"{number}.bmp").touch()
    few = [f"{free}: {images:,} images; the official set has about 7,292"]
    assert expected.differences(tmp_path) == ([] if images > 10 else few)


def test_a_file_that_may_not_be_looked_at_is_one_line(tmp_path, monkeypatch):
    def refused(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(expected_files.Path, "is_file", refused)
    state, (line, *_) = CATALOGUE["svhn"].survey(tmp_path)
    assert (state, line) == ("partial", "svhn/train_32x32.mat cannot be read (Permission denied); check its permissions")
    assert next(expected_files.faults(CATALOGUE["svhn"].expected, tmp_path)) == line


def tensors(header=b"{}", data=b""):
    return len(header).to_bytes(8, "little") + header + data


ONE = b'{"__metadata__":{},"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


@pytest.mark.parametrize(
    ("content", "whole"),
    [
        *((tensors(), True), (tensors(ONE, bytes(4)), True), (tensors(ONE, bytes(3)), False), (tensors(ONE, bytes(5)), False)),
        *((b"\0", False), (tensors(ONE)[:40], False), ((2**63).to_bytes(8, "little") + b"{}", False)),
        *((tensors(b"[]"), False), (tensors(b'{"a":1}'), False), (tensors(b'{"a":{"data_offsets":["x"]}}'), False)),
        (tensors(b"[" * 10**5), False),
    ],
)
def test_weights_that_are_truncated_are_not_present(tmp_path, content, whole):
    item = CATALOGUE["resnet20-cifar10"]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet20-cifar10.safetensors").write_bytes(content)
    lacks = [] if whole else ["models/resnet20-cifar10.safetensors is not a safetensors file, or it is truncated"]
    assert item.survey(tmp_path) == ("present" if whole else "partial", lacks)


def test_published_weights_have_their_digest(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / PUBLISHED["resnet20-cifar10"].file).write_bytes(b"the first half")
    state, (line,) = CATALOGUE["resnet20-cifar10"].survey(tmp_path)
    assert state == "partial"
    assert "is not the official file: sha256:" in line


def test_images_are_counted_as_they_are_read(tmp_path):
    draw(tmp_path / "set" / "1.png")
    (tmp_path / "set" / "more.png").mkdir()
    assert Images("set", 1).differences(tmp_path) == []
    assert [path.name for path in image_files(tmp_path / "set")] == ["1.png"]
