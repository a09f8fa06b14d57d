"""Tiny ImageNet (Stanford CS231n): 200 classes of ImageNet at 64x64, some images grey.

Some of its classes are also in CIFAR-10: ``tinyimagenet:disjoint`` leaves them out (``oodbench.datasets.overlaps``). OpenOOD
keeps 7,793 images; here the set is whole, as in the older papers.
"""

import re
from pathlib import Path

import torch

from oodbench.datasets import TABLE
from oodbench.datasets.fetching.catalogue import CATALOGUE
from oodbench.datasets.formats.files import ImageFiles
from oodbench.datasets.formats.layout import image_files, labelled_files, missing, require_split, text_lines
from oodbench.errors import BadData
from oodbench.image_set import ImageSet, Source

ARCHIVE = CATALOGUE["tinyimagenet"].address()
WNID = re.compile(r"n\d{2,8}", re.ASCII)
SOURCE = Source(
    "Tiny ImageNet",
    TABLE["tinyimagenet"].source,
    "ImageNet's terms: non-commercial research",
    "Le & Yang, Tiny ImageNet Visual Recognition Challenge, 2015",
    CATALOGUE["tinyimagenet"].images,
)


def tinyimagenet(root: Path, split: str) -> ImageSet:
    """Load ``tiny-imagenet-200``: train is ``train/<wnid>/images``, test is ``val`` (the official test has no labels).

    Labels follow the order of ``wnids.txt``.
    """
    require_split("tinyimagenet", split, SOURCE.official_size)
    folder = root / "tiny-imagenet-200"
    for needed in (folder / "wnids.txt", folder / ("train" if split == "train" else "val")):
        if not needed.exists():
            raise missing("tinyimagenet", split, needed, ARCHIVE)
    classes = tuple(line.strip() for line in text_lines(folder / "wnids.txt"))
    if strange := [wnid for wnid in classes if not WNID.fullmatch(wnid)]:  # they become folder names
        raise BadData(f"{folder / 'wnids.txt'}: '{strange[0][:20]}' is not an ID such as n01443537; unpack {ARCHIVE} again")
    if len(set(classes)) < len(classes):
        raise BadData(f"{folder / 'wnids.txt'} lists a class twice; unpack {ARCHIVE} again")
    if split == "train":
        folders = [(folder / "train" / wnid / "images", label) for label, wnid in enumerate(classes)]
        paths, labels = labelled_files((path, label) for path, label in folders if path.is_dir())
    else:
        paths, labels = _validation(folder / "val", classes)
    if not paths:
        raise BadData(f"{folder} holds no {split} images; unpack {ARCHIVE} again")
    return ImageSet(
        ImageFiles(paths),
        torch.tensor(labels),
        name="tinyimagenet",
        split=split,
        kind="near-ood",
        classes=classes,
        source=SOURCE,
    )


def _validation(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """Return the present images, sorted by name, and their labels from ``val_annotations.txt``.

    Its columns file, wnid and box are separated by tabs.
    """
    annotations = folder / "val_annotations.txt"
    if not annotations.is_file():
        raise missing("tinyimagenet", "test", annotations, ARCHIVE)
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    labels: dict[str, int] = {}
    for number, line in enumerate(text_lines(annotations), 1):
        file, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0].strip()
        if wnid not in label_of:
            raise BadData(f"{annotations}, line {number}: '{wnid[:20]}' is not in wnids.txt; unpack {ARCHIVE} again")
        if labels.setdefault(file, label_of[wnid]) != label_of[wnid]:
            raise BadData(f"{annotations}, line {number}: {file[:40]} has two classes; unpack {ARCHIVE} again")
    paths = image_files(folder / "images")
    if strangers := [path for path in paths if path.name not in labels]:
        raise BadData(f"{strangers[0]} has no line in {annotations.name}; remove it or unpack {ARCHIVE} again")
    return paths, [labels[path.name] for path in paths]
