"""Sets that have parts: CIFAR-10-C and CURE-TSR, in their official layouts, written here in small."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oodbench import load_dataset
from oodbench.datasets import cifar10c as reader
from oodbench.datasets import curetsr
from oodbench.datasets.name import CHALLENGES, CORRUPTIONS_C, EXTRA_CORRUPTIONS_C, MAIN_CORRUPTIONS_C
from oodbench.errors import BadData, MissingData, UsageError

PER_LEVEL = 4


def random_rows(count, seed=0):
    """uint8 (N, 32, 32, 3), as in the files."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def cifar10c(tmp_path):
    """CIFAR-10-C's folder with fog and labels, four images per level."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "fog.npy", random_rows(5 * PER_LEVEL))
    np.save(folder / "labels.npy", np.tile(np.array([3, 0, 9, 1], np.uint8), 5))
    return folder


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_a_level_is_its_rows(cifar10c, level):
    found = load_dataset(f"cifar10c/fog@{level}", data=cifar10c.parent)
    rows = random_rows(5 * PER_LEVEL)[(level - 1) * PER_LEVEL : level * PER_LEVEL]
    assert np.array_equal(found.images.numpy(), rows.transpose(0, 3, 1, 2))
    assert found.labels.tolist() == [3, 0, 9, 1]
    assert (found.name, found.kind, found.level, found.split) == (f"cifar10c/fog@{level}", "corruption", level, "test")
    assert found.official_size == 10_000, "these four are a part of it"
    assert found.base != "cifar10/test", "rows of a part are not the official rows"
    assert found.base_index.tolist() == [0, 1, 2, 3]
    assert load_dataset(f"cifar10c:cat/fog@{level}", data=cifar10c.parent).labels.tolist() == [3]


def test_the_whole_file_is_made_from_the_test_images_and_one_level_of_it_is_read(tmp_path, monkeypatch):
    """Count the pages in memory of a file that has the official length."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("this system does not say which pages of a file are in memory")
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    path = folder / "fog.npy"
    whole = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(50_000, 32, 32, 3))
    whole[20_000:30_000] = 7  # the rest is a hole
    del whole
    np.save(folder / "labels.npy", np.tile(np.arange(10_000) % 10, 5))
    kept = []
    monkeypatch.setattr(reader, "_mapped", lambda p, mapped=reader._mapped: kept.append(mapped(p)) or kept[-1])
    found = load_dataset("cifar10c/fog@3", data=tmp_path)
    assert (found.images == 7).all()
    assert found.base == "cifar10/test"
    assert torch.equal(found.base_index, torch.arange(10_000))
    in_memory = sum(
        int(re.search(r"^Rss:\s+(\d+) kB", part, re.MULTILINE)[1]) * 1024
        for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", smaps.read_text())
        if str(path) in part
    )
    level = 10_000 * 3072
    assert level * 0.99 < in_memory < level * 1.01
    assert kept[0].shape == (50_000, 32, 32, 3)


def test_15_corruptions_are_main_and_4_extra():
    assert len(MAIN_CORRUPTIONS_C) == 15
    assert sorted(MAIN_CORRUPTIONS_C + EXTRA_CORRUPTIONS_C) == list(CORRUPTIONS_C)


def test_the_documentation_says_which_are_main_extra_and_challenges():
    text = (Path(__file__).parents[2] / "docs" / "dataset.md").read_text(encoding="utf-8")
    page = " ".join(text.split())
    main, extra = re.search(r"15 main corruptions: (.*?)\. The 4 extra ones.*?: (.*?)\. ", page, re.DOTALL).groups()
    challenges = re.search(r"The challenges are (.*?)\. ", page, re.DOTALL)[1]
    assert sorted(re.findall("`(\\w+)`", main)) == sorted(MAIN_CORRUPTIONS_C)
    assert sorted(re.findall("`(\\w+)`", extra)) == sorted(EXTRA_CORRUPTIONS_C)
    assert re.findall("`(\\w+)`", challenges) == list(CHALLENGES)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cifar10c", r"such as cifar10c/fog@3 \(.*brightness, .*zoom_blur\)"),
        ("cifar10c/fog", "needs a level from 1 to 5; write cifar10c/fog@1"),
        ("cifar10c/fgo@3", "unknown part 'fgo' of cifar10c; did you mean 'fog'"),
        ("cifar10c/labels@3", "unknown part"),
        ("cifar10c/../secret@3", "unknown part"),
        ("curetsr/Haze", "curetsr/Haze needs a level from 1 to 5"),
        ("curetsr/Hase@3", "unknown part 'Hase' of curetsr; did you mean 'Haze'"),
        ("curetsr-unreal/Fog@3", "unknown part 'Fog' of curetsr-unreal"),
    ],
)
def test_parts_that_there_are_not(tmp_path, name, says):
    with pytest.raises(UsageError, match=says) as caught:
        load_dataset(name, data=tmp_path)
    assert "\n" not in str(caught.value)


def test_cifar10c_that_is_not_there(cifar10c):
    with pytest.raises(MissingData, match=r"snow\.npy"):
        load_dataset("cifar10c/snow@1", data=cifar10c.parent)
    with pytest.raises(UsageError, match="no split 'train'; it has test"):
        load_dataset("cifar10c/fog@1", data=cifar10c.parent, split="train")
    (cifar10c / "labels.npy").unlink()
    with pytest.raises(MissingData, match=r"labels\.npy"):
        load_dataset("cifar10c/fog@1", data=cifar10c.parent)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("fog", np.array([{"a": 1}] * 20, dtype=object), "not an array of numbers.*Python objects"),
        ("labels", np.array([3, "x"] * 10, dtype=object), "not an array of numbers.*Python objects"),
        ("fog", random_rows(20).astype(np.int16), r"int16 \(20, 32, 32, 3\), not uint8"),
        ("fog", random_rows(20)[:, :31], "not uint8"),
        ("fog", random_rows(20).transpose(0, 3, 1, 2), "not uint8"),
        ("fog", random_rows(18), "not uint8"),
        ("fog", random_rows(0), "not an array of numbers|not uint8"),
        ("fog", np.uint8(3), "not uint8"),
        ("labels", np.zeros(15, np.uint8), r"uint8 \(15,\), not one class per row of 20"),
        ("labels", np.zeros(20), "float64"),
        ("labels", np.full(20, 10, np.uint8), "classes 0 to 9"),
        ("labels", np.full(20, -1, np.int8), "classes 0 to 9"),
        ("labels", np.arange(20, dtype=np.uint8) % 10, "the same for each level"),
    ],
)
def test_arrays_that_disagree_with_their_layout(cifar10c, file, content, says):
    np.save(cifar10c / f"{file}.npy", content, allow_pickle=True)
    with pytest.raises(BadData, match=says) as caught:
        load_dataset("cifar10c/fog@2", data=cifar10c.parent)
    assert str(cifar10c / f"{file}.npy") in str(caught.value)
    assert "unpack https://zenodo.org" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["fog", "labels"])
def test_truncated_and_other_files_name_themselves(cifar10c, file):
    path = cifar10c / f"{file}.npy"
    whole = path.read_bytes()
    for content in (b"", whole[:7], whole[:60], whole[:-1], b"PK\x03\x04" + whole[4:], b"\x80\x04]."):
        path.write_bytes(content)
        with pytest.raises(BadData, match=f"{path}.*unpack"):
            load_dataset("cifar10c/fog@2", data=cifar10c.parent)


@pytest.mark.parametrize(
    ("descr", "shape", "says"),
    [
        ("|V0", (20,), r"holds \|V0"),  # numpy divides by the size of an item
        ("<U0", (20,), "holds <U0"),
        ([], (20,), r"holds \[\]|header is broken"),
        ("|u1", (2**62, 4), "claims the shape"),
        ("|u1", (2**63, 2), "claims the shape"),
        ("|u1", (-1, -20), "claims the shape"),
        ("|O", (20,), "Python objects"),
    ],
)
@pytest.mark.parametrize("file", ["fog", "labels"])
def test_headers_that_claim_what_no_file_holds(cifar10c, file, descr, shape, says):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    path = cifar10c / f"{file}.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 20)
    with pytest.raises(BadData, match=f"{path} is not an array of numbers.*({says})"):
        load_dataset("cifar10c/fog@2", data=cifar10c.parent)


SIGNS = ((6, 1), (1, 3), (14, 2), (6, 2))  # sign type and index


def write_sign(folder, name, seed, size=(14, 11)):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return pixels


def place_of(root, kind, split, code, level, older):
    """Folder of a challenge, by the layouts' description."""
    top = root / "CURE-TSR"
    if older:
        middle = f"{kind}Challenge/{code:02d}_{level:02d}" if code else f"{kind}ChallengeFree"
        return top / middle / split
    return top / f"{kind}_{split.capitalize()}" / (f"{CHALLENGES[code - 1]}-{level}" if code else "ChallengeFree")


def name_of(kind, sign, code, level, index, older):
    sequence = {"Real": 1, "Unreal": 2}[kind]
    if older:
        return f"{sequence:02d}_{sign:02d}_{min(code, 1):02d}_{code:02d}_{level:02d}_05_{index:04d}.bmp"
    return f"{sequence:02d}_{sign:02d}_{code:02d}_{level:02d}_{index:04d}.bmp"


@pytest.mark.parametrize("older", [False, True], ids=["today", "older"])
@pytest.mark.parametrize(("name", "kind"), [("curetsr", "Real"), ("curetsr-unreal", "Unreal")])
def test_curetsr_in_both_layouts(tmp_path, name, kind, older):
    """All twelve challenges at five levels, both splits: 122 folders of four images each, of varying sizes."""
    pixels = {}
    for split in ("train", "test"):
        for code, level in [(0, 0)] + [(c, s) for c in range(1, 13) for s in range(1, 6)]:
            folder = place_of(tmp_path, kind, split, code, level, older)
            for number, (sign, index) in enumerate(SIGNS):
                file = name_of(kind, sign, code, level, index, older)
                size = (28, 28) if split == "test" else (12 + number, 15)
                pixels[split, code, level, sign, index] = write_sign(folder, file, len(pixels), size)
    in_order = sorted(SIGNS)
    for split in ("train", "test"):
        for code, level in ((0, None), (1, 1), (12, 3), (9, 5)):
            part = f"/{CHALLENGES[code - 1].lower()}@{level}" if code else ""
            found = load_dataset(name + part, data=tmp_path, split=split, size=28)
            assert tuple(found.images.shape) == (4, 3, 28, 28)
            assert found.labels.tolist() == [sign - 1 for sign, _ in in_order]
            assert [found.classes[label] for label in found.labels] == ["speed limit", "stop", "stop", "parking"]
            assert found.base_index.tolist() == [0, 1, 2, 3]
            assert found.base == f"{name}/{split}"
            assert (found.level, found.kind) == (level, "corruption" if code else "far-ood")
            assert not found.flips
            if split == "test":
                written = [pixels[split, code, level or 0, *key].transpose(2, 0, 1) for key in in_order]
                assert np.array_equal(found.images.numpy(), written)
            assert found.official_size == ({"train": 7292, "test": 3334}[split] if kind == "Real" and not older else None)
    assert len({load_dataset(f"{name}/{c}@{s}", data=tmp_path).fingerprint for c in CHALLENGES for s in range(1, 6)}) == 60
    if older:
        write_sign(place_of(tmp_path, kind, "Val", 0, 0, older), name_of(kind, 2, 0, 0, 9, older), 0)
        assert load_dataset(name, data=tmp_path, split="val").labels.tolist() == [1]
    else:
        with pytest.raises(UsageError, match="no split 'val'; it has train, test"):
            load_dataset(name, data=tmp_path, split="val")


def test_a_challenge_without_its_clean_image_keeps_one_number_for_all_challenges(tmp_path):
    for code, level, signs in ((0, 0, SIGNS[:2]), (12, 3, SIGNS), (11, 1, SIGNS[1:])):
        for sign, index in signs:
            write_sign(
                place_of(tmp_path, "Real", "test", code, level, False), name_of("Real", sign, code, level, index, False), 0
            )
    free, haze, snow = (load_dataset(name, data=tmp_path) for name in ("curetsr", "curetsr/Haze@3", "curetsr/Snow@1"))
    assert free.base_index.tolist() == [0, 1]
    assert haze.base_index[:2].tolist() == [0, 1], "sign 1, and the first of sign 6"
    assert haze.base_index[2:].min() >= len(free)
    assert len(haze.base_index.unique()) == 4
    assert snow.base_index.tolist() == haze.base_index[[0, 2, 3]].tolist()
    assert free.base == haze.base == snow.base


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("stop.bmp", "is not named like"),
        ("01_06_12_03_0001.png", "is not named like"),
        ("01_06_12_03.bmp", "is not named like"),
        ("01_06_12_03_0001_7.bmp", "is not named like"),
        ("1_6_12_3_0001.bmp", "is not named like"),
        ("٠١_06_12_03_0001.bmp", "is not named like"),
        ("01_06_11_03_0001.bmp", "says sequence type, challenge and level 01, 11, 03; its folder holds 01, 12 and 03"),
        ("01_06_12_04_0001.bmp", "01, 12, 04; its folder"),
        ("02_06_12_03_0001.bmp", "02, 12, 03; its folder"),
        ("01_06_01_12_04_05_0003.bmp", "01, 12, 04; its folder"),
        ("01_15_12_03_0001.bmp", "sign type 15, which is not 01 to 14"),
        ("01_00_12_03_0001.bmp", "sign type 00"),
        ("01_06_12_03_1.bmp", "two images with the same sign and index"),
    ],
)
def test_curetsr_files_out_of_pattern(tmp_path, file, says):
    folder = place_of(tmp_path, "Real", "test", 12, 3, False)
    write_sign(folder, "01_06_12_03_0001.bmp", 0)
    (folder / "Thumbs.db").write_bytes(b"no image, and left out")
    assert len(load_dataset("curetsr/Haze@3", data=tmp_path)) == 1
    write_sign(folder, file, 1)
    with pytest.raises(BadData, match=says) as caught:
        load_dataset("curetsr/Haze@3", data=tmp_path)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_curetsr_that_is_not_there_says_where_to_ask(tmp_path):
    for split in ("train", "test", "val"):
        with pytest.raises(MissingData, match=r"request form at IEEE DataPort.*Real_Train.*Real_Test.*ChallengeFree") as caught:
            load_dataset("curetsr", data=tmp_path, split=split)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no split 'extra'"):
        load_dataset("curetsr", data=tmp_path, split="extra")
    place_of(tmp_path, "Real", "test", 0, 0, False).mkdir(parents=True)
    with pytest.raises(BadData, match="holds no images"):
        load_dataset("curetsr", data=tmp_path)
    with pytest.raises(MissingData, match="Haze-3"):
        load_dataset("curetsr/haze@3", data=tmp_path)
    assert curetsr.CLASSES[5] == "stop"
