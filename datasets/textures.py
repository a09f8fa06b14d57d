"""Textures: the Describable Textures Dataset, DTD (Cimpoi et al., CVPR 2014)."""

from pathlib import Path

import torch

from oodbench.datasets.formats.files import ImageFiles
from oodbench.datasets.formats.layout import labelled_files, missing, require_split, subfolders
from oodbench.errors import BadData
from oodbench.image_set import ImageSet, Source

ARCHIVE = "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz"
SOURCE = Source(
    "Describable Textures (DTD)",
    "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    "research use only",
    "Cimpoi et al., Describing Textures in the Wild, CVPR 2014",
    {"test": 5_640},
)


def textures(root: Path, split: str) -> ImageSet:
    """``dtd/images/<class>/*.jpg``, sizes vary: all images are test, as usual where textures stand for other data."""
    require_split("textures", split, SOURCE.official_size)
    folder = root / "dtd" / "images"
    if not folder.is_dir():
        raise missing("textures", split, folder, ARCHIVE)
    classes = subfolders(folder)
    paths, labels = labelled_files((path, label) for label, path in enumerate(classes))
    if not paths:
        raise BadData(f"{folder} holds no folders of images; unpack {ARCHIVE} again")
    return ImageSet(
        ImageFiles(paths),
        torch.tensor(labels),
        name="textures",
        split=split,
        kind="far-ood",
        classes=tuple(path.name for path in classes),
        source=SOURCE,
    )
