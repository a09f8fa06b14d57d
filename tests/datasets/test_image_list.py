"""``imglist:FILE``: OpenOOD's lists and the user's own, and lists that are broken or hostile."""

import json

import numpy as np
import pytest
from image_files import random_images, save_image

from oodbench import load_dataset, run
from oodbench.conformance.run import check
from oodbench.datasets import image_list
from oodbench.errors import BadData, MissingData, UsageError

NAMES = ("cat/0.png", "cat/1 of 2.png", "dog/0.png")


@pytest.fixture
def root(tmp_path):
    """A data root with three images."""
    for name, image in zip(NAMES, random_images(3), strict=True):
        save_image(tmp_path / name, image)
    return tmp_path


def listed(root, content, path="lists/mine.txt"):
    """The name of a list with this content."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    return f"imglist:{path}"


def test_labels_are_the_last_field(root):
    name = listed(root, "\ufeffdog/0.png 7\r\n\r\n ./cat/1 of 2.png\t 2\n")
    found = load_dataset(name, data=root)
    assert np.array_equal(found.images.numpy(), random_images(3)[[2, 1]])
    assert (found.labels.tolist(), found.classes, found.kind, found.split) == ([7, 2], (), "far-ood", "test")
    assert (found.name, found.source.title) == (name, "the user's list lists/mine.txt")
    assert load_dataset(f"{name}:2", data=root).base_index.tolist() == [1]
    noisy = load_dataset(f"{name}:7+noise@3", data=root)
    assert (noisy.name, noisy.kind, noisy.level) == (f"{name}:7+noise@3", "corruption", 3)
    with pytest.raises(UsageError, match="has no class 'cat'; its classes are numbers"):
        load_dataset(f"{name}:cat", data=root)


@pytest.mark.parametrize("ends", [(" -1", " -1", " -1"), ("", "", ""), ("", " -1", "")])
def test_images_without_labels(root, ends):
    found = load_dataset(listed(root, "\n".join(map("".join, zip(NAMES, ends, strict=True)))), data=root)
    assert (len(found), found.labels) == (3, None)
    with pytest.raises(UsageError, match="has no labels, so no class '0'"):
        load_dataset(f"{found.name}:0", data=root)


@pytest.mark.parametrize("folder", ["images_classic", "images_largescale", "benchmark_imglist/cifar10"])
def test_where_the_images_are(tmp_path, folder):
    """OpenOOD's folders, and the folder of the list; the data root comes first."""
    here, there = random_images(2)
    save_image(tmp_path / folder / "a.png", here)
    name = listed(tmp_path, "a.png -1", "benchmark_imglist/cifar10/test_own.txt")
    assert np.array_equal(load_dataset(name, data=tmp_path).images[0].numpy(), here)
    save_image(tmp_path / "a.png", there)
    assert np.array_equal(load_dataset(name, data=tmp_path).images[0].numpy(), there)


def test_an_absolute_list_is_read_and_named_by_its_file(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("a+b")
    listed(elsewhere, "cat/0.png 0\ndog/0.png 1\n", "mine.txt")
    name = f"imglist:{elsewhere}/mine.txt".replace("a+b", "a++b")
    for roots in (root, [elsewhere / "none", root]):
        found = load_dataset(f"{name}:1", data=roots)
        assert (found.name, len(found)) == ("imglist:mine.txt:1", 1)
    with pytest.raises(
        MissingData, match=r"the images of .* are missing: 'cat/0.png' is not below .*/none, nor in images_classic"
    ):
        load_dataset(name, data=elsewhere / "none")
    with pytest.raises(MissingData, match=f"{elsewhere.parent}/gone.txt is not a file; create it, or name another list$"):
        load_dataset(f"imglist:{elsewhere.parent}/gone.txt", data=[root, elsewhere])


@pytest.mark.parametrize(
    ("test", "train"), [("test_own.txt", "train_own.txt"), ("latest-test.txt", "latest-train.txt"), ("test.txt", "train.txt")]
)
def test_the_training_list_is_beside_the_test_list(root, test, train):
    name = listed(root, "cat/0.png 0\ndog/0.png 1", test)
    with pytest.raises(UsageError, match=f"no split 'train'; it has test; to learn from it, add the list {train} beside it"):
        load_dataset(name, data=root, split="train")
    listed(root, "cat/1 of 2.png 0", train)
    with pytest.raises(UsageError, match="no split 'val'; it has train, test"):
        load_dataset(name, data=root, split="val")
    assert [load_dataset(name, data=root, split=split).labels.tolist() for split in ("train", "test")] == [[0], [0, 1]]
    assert load_dataset(f"imglist:{train}", data=root).labels.tolist() == [0]  # a list alone is a test split
    for other in (train, "latest.txt"):
        own = listed(root, "cat/0.png 0", other)
        with pytest.raises(UsageError, match=r"name it test\.txt and add a list train.txt beside it"):
            load_dataset(own, data=root, split="train")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "names no images; write one per line, as PATH LABEL"),
        ("\n \n", "names no images"),
        ("cat/0.png 0\n\ndog/0.png -1", "line 3: has no label, and line 1 has one; give each image a label, or -1 to each"),
        ("cat/0.png\ndog/0.png 1", "line 2: has a label, and line 1 has none"),
        ("cat/0.png 0\ngone.png 1", "line 2: 'gone.png' is not a file in .*; add it, or remove the line"),
        ("cat/0.png 0\ncat 1", "line 2: 'cat' is not a file"),
        ("cat/0.png 0\ncat/\0.png 1", "line 2: 'cat/.*' is not a file"),
        ("cat/0.png 0\ndog/0.png 1\n./cat//0.png 0", "line 3: './cat//0.png' is also on line 1; remove one of the two"),
        ("cat/0.png -2", "line 1: the label '-2' must be a class number from 0 to 99,999, or -1"),
        ("cat/0.png 100000", "line 1: the label '100000' must be"),
        (f"cat/0.png {'0' * 5000}", "line 1: the label '0+…' must be"),
        (b"cat/0.png 0\ncat/\xff.png 1", "line 2: not valid UTF-8; save the list as UTF-8"),
        (f"cat/0.png 0\n{'x' * 10**5} 1", "line 2: 'x+…' is not a file"),
        *(
            (
                f"cat/0.png 0\n{path} 1",
                r"line 2: .* must be a path without '\.\.' that is not absolute; write it from the data root",
            )
            for path in (
                "../a.png",
                "cat/../dog/0.png",
                "/etc/passwd",
                r"..\a.png",
                r"C:\a.png",
                "C:a.png",
                r"\\server\a.png",
                ".",
            )
        ),
        ("7", "line 1: '' must be a path"),
    ],
)
def test_broken_lists(root, content, says):
    with pytest.raises(BadData, match=says) as caught:
        load_dataset(listed(root, content), data=root)
    assert len(str(caught.value)) < 600


def test_a_list_is_read_within_bounds(root, monkeypatch):
    name = listed(root, "cat/0.png 0")
    monkeypatch.setattr(image_list, "MOST_BYTES", 5)
    with pytest.raises(BadData, match="has 11 bytes, more than 5 for a file of text"):
        load_dataset(name, data=root)


@pytest.mark.parametrize("path", ["", "..", "../a.txt", "a/../b.txt", "/etc/../a.txt", r"..\a.txt"])
def test_a_relative_list_stays_below_the_data_root(root, path):
    with pytest.raises(UsageError, match=r"must name a list without '\.\.'; write imglist:PATH"):
        load_dataset(f"imglist:{path}", data=root)


def test_the_longest_name_of_a_list(root):
    """That of its training list would be one letter longer, which no file system takes."""
    name = listed(root, "cat/0.png 0", f"test_{'x' * 246}.txt")
    assert len(load_dataset(name, data=root)) == 1


def test_a_folder_is_not_a_list(root):
    with pytest.raises(MissingData, match="cat is not a file; create it, or name another data root with --data DIR"):
        load_dataset("imglist:cat", data=root)


def test_a_run_and_a_check_of_lists(tmp_path):
    images = random_images(70, 8, 8)
    for number, image in enumerate(images):
        save_image(tmp_path / f"images/{number}.png", image)
    numbers = {"train_own.txt": range(20), "test_own.txt": range(20, 40), "other.txt": range(40, 70)}
    for file, some in numbers.items():
        listed(tmp_path, "".join(f"images/{n}.png {-1 if file == 'other.txt' else n % 2}\n" for n in some), f"lists/{file}")
    inside, outside = "imglist:lists/test_own.txt", f"imglist:{tmp_path}/lists/other.txt"
    options = {"data": tmp_path, "detectors": ["pixels"], "protocols": ["unsupervised"], "out": tmp_path / "run"}
    frame = run(in_distribution=inside, datasets=[outside, f"{inside}+noise@5"], **options).frame()
    assert frame[["dataset", "kind", "status"]].values.tolist() == [
        ["imglist:other.txt", "far-ood", "ok"],
        ["imglist:lists/test_own.txt+noise", "corruption", "ok"],
    ]
    assert str(tmp_path) not in json.dumps(frame.to_dict("records"), default=str)
    for name in (inside, outside, f"{inside}:1", f"{inside}+noise@2"):
        assert {outcome.outcome for outcome in check(name, data=tmp_path)} == {"pass", "skip"}
    with pytest.raises(UsageError, match=r"lists/other.txt and other.txt would both be imglist:other.txt in results"):
        run(in_distribution=inside, datasets=[outside, "imglist:other.txt"], **options | {"out": tmp_path / "twice"})


def test_the_lists_of_openood_are_read(data_root):
    """Their images are below ``images_largescale``."""
    folder = "benchmark_imglist/imagenet"
    found = {
        name: load_dataset(f"imglist:{folder}/test_{name}.txt", data=data_root, size=8) for name in ("textures", "imagenet")
    }
    assert {name: (len(images), images.labels is None) for name, images in found.items()} == {
        "textures": (200, True),
        "imagenet": (700, False),
    }
