"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the official python batches."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from oodbench.datasets import TABLE
from oodbench.datasets.fetching.catalogue import CATALOGUE
from oodbench.datasets.formats.cifar_pickle import read_pickle
from oodbench.datasets.formats.layout import missing, require_split
from oodbench.errors import BadData
from oodbench.image_set import ImageSet, Source


class Layout(NamedTuple):
    """Names of the files of one set, and of the entries in them."""

    name: str
    title: str
    batches: dict[str, tuple[str, ...]]
    labels: str
    meta: str
    class_names: str

    @property
    def archive(self) -> str:
        return CATALOGUE[self.name].address()

    @property
    def folder(self) -> str:
        return CATALOGUE[self.name].downloads[0].paths[0]


CIFAR10 = Layout(
    name="cifar10",
    title="CIFAR-10",
    batches={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    labels="labels",
    meta="batches.meta",
    class_names="label_names",
)
CIFAR100 = Layout(
    name="cifar100",
    title="CIFAR-100",
    batches={"train": ("train",), "test": ("test",)},
    labels="fine_labels",
    meta="meta",
    class_names="fine_label_names",
)


def cifar10(root: Path, split: str) -> ImageSet:
    """Load ``cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}``; train is those of the five batches that exist."""
    return _load(CIFAR10, root, split)


def cifar100(root: Path, split: str) -> ImageSet:
    """Load ``cifar-100-python/{train,test,meta}``, with the fine labels."""
    return _load(CIFAR100, root, split)


def _load(layout: Layout, root: Path, split: str) -> ImageSet:
    require_split(layout.name, split, layout.batches)
    folder = root / layout.folder
    paths = [folder / batch for batch in layout.batches[split]]
    present = [path for path in paths if path.is_file()]
    meta = folder / layout.meta
    for needed in (present[0] if present else paths[0], meta):
        if not needed.is_file():
            raise missing(layout.name, split, needed, layout.archive)
    classes = read_pickle(meta).get(layout.class_names)
    if not isinstance(classes, list) or not classes or not all(isinstance(c, str) for c in classes):
        raise BadData(f"{meta} holds no list of names under {layout.class_names}; unpack {layout.archive} again")
    official_size = CATALOGUE[layout.name].images
    parts = [_batch(path, layout, len(classes)) for path in present]
    images = np.concatenate([images for images, _ in parts])
    return ImageSet(
        # Rows are channel-major: (N, 3072) -> (N, 3, 32, 32)
        torch.from_numpy(images.reshape(-1, 3, 32, 32)),
        torch.from_numpy(np.concatenate([labels for _, labels in parts])),
        name=layout.name,
        split=split,
        kind="near-ood",
        classes=tuple(classes),
        # Rows of a whole split have a name, because other sets, such as CIFAR-10-C, are made from them.
        base=f"{layout.name}/{split}" if len(images) == official_size[split] else "",
        source=Source(
            layout.title,
            TABLE[layout.name].source,
            "none stated; research use",
            "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
            official_size,
        ),
    )


def _batch(path: Path, layout: Layout, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 (N, 3072), and labels, int64 (N,), of one batch file."""
    remedy = f"unpack {layout.archive} again"
    batch = read_pickle(path)
    images, labels = batch.get("data"), batch.get(layout.labels)
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != 3072:
        got = f"uint8 {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise BadData(f"{path}: data is {got}, not uint8 (N, 3072); {remedy}")
    if not isinstance(labels, list) or not all(type(v) is int and 0 <= v < classes for v in labels):
        raise BadData(f"{path}: {layout.labels} is not a list of classes 0 to {classes - 1}; {remedy}")
    if len(labels) != len(images):
        raise BadData(f"{path} has {len(images)} images and {len(labels)} labels; {remedy}")
    return images, np.array(labels, dtype=np.int64)
