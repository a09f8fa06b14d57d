"""ImageNet in OpenOOD's layout: the lists that are there, their kinds, and what is said where one is missing."""

import numpy as np
import pytest
from image_files import save_image

from oodbench import load_dataset
from oodbench.datasets.imagenet import parts
from oodbench.errors import MissingData, NoSuchSplit, UsageError

LISTS = {
    "test_imagenet": "a.png 3\nb.png 999\n",
    "val_imagenet": "b.png 1\n",
    "test_imagenet_r": "a.png 5\n",
    "test_ninco": "a.png -1\n",
    "test_zoo_near": "a.png -1\n",
    "test_textures": "b.png -1\n",
}


@pytest.fixture
def root(tmp_path):
    for name in "ab":
        save_image(tmp_path / "images_largescale" / f"{name}.png", np.full((3, 9, 12), ord(name), np.uint8))
    folder = tmp_path / "benchmark_imglist" / "imagenet"
    folder.mkdir(parents=True)
    for name, text in LISTS.items():
        (folder / f"{name}.txt").write_text(text)
    (folder / "test_odd name.txt").write_text("a.png -1\n")
    return tmp_path


def test_lists_are_parts_with_their_kinds(root):
    assert parts(root) == ["imagenet_r", "ninco", "textures", "zoo_near"]
    whole = load_dataset("imagenet", data=root, size=8)
    assert (whole.name, whole.labels.tolist(), whole.kind, whole.official_size) == ("imagenet", [3, 999], "near-ood", 45_000)
    assert load_dataset("imagenet", data=root, split="val", size=8).labels.tolist() == [1]
    kinds = {part: load_dataset(f"imagenet/{part}", data=root, size=8).kind for part in parts(root)}
    assert kinds == {"imagenet_r": "csid", "ninco": "near-ood", "textures": "far-ood", "zoo_near": "near-ood"}
    ninco = load_dataset("imagenet/ninco", data=root, size=8)
    assert (ninco.name, ninco.labels, ninco.official_size) == ("imagenet/ninco", None, 5_879)


def test_a_list_of_a_few_classes_has_the_classes_of_imagenet(root):
    classes = tuple(map(str, range(1000)))
    for name, split in (("imagenet", "test"), ("imagenet", "val"), ("imagenet/imagenet_r", "test")):
        assert load_dataset(name, data=root, split=split, size=8).classes == classes
    assert load_dataset("imagenet/ninco", data=root, size=8).classes == ()
    (root / "benchmark_imglist" / "imagenet" / "val_ninco.txt").write_text("b.png -1\n")
    assert load_dataset("imagenet/ninco", data=root, split="val", size=8).split == "val"


def test_missing_lists(root, tmp_path):
    with pytest.raises(NoSuchSplit, match="imagenet has no training images here: no benchmark_imglist/imagenet/train_imagenet"):
        load_dataset("imagenet", data=root, split="train", size=8)
    with pytest.raises(MissingData, match="is missing: no benchmark_imglist/imagenet/test_ssb_hard"):
        load_dataset("imagenet/ssb_hard", data=root, size=8)
    with pytest.raises(UsageError, match="unknown part 'nincoo' of imagenet; did you mean 'ninco'"):
        load_dataset("imagenet/nincoo", data=root, size=8)
    with pytest.raises(UsageError, match="imagenet/ninco has no levels; write imagenet/ninco"):
        load_dataset("imagenet/ninco@2", data=root, size=8)
    with pytest.raises(UsageError, match="imagenet/ninco has no split 'train'"):
        load_dataset("imagenet/ninco", data=root, split="train", size=8)
    empty = tmp_path / "empty"
    for split in ("train", "test"):
        with pytest.raises(MissingData, match="OpenOOD's download script"):
            load_dataset("imagenet", data=empty, split=split, size=8)


def test_a_later_data_root_has_the_training_images(root, tmp_path):
    other = tmp_path / "other"
    (other / "benchmark_imglist" / "imagenet").mkdir(parents=True)
    (other / "benchmark_imglist" / "imagenet" / "train_imagenet.txt").write_text("c.png 0\n")
    save_image(other / "images_largescale" / "c.png", np.zeros((3, 9, 9), np.uint8))
    assert len(load_dataset("imagenet", data=[tmp_path / "empty", other], split="train", size=8)) == 1
