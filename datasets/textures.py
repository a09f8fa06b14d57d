"""Textures: the Describable Textures Dataset, DTD (Cimpoi et al., CVPR 2014)."""

from pathlib import Path

import torch

from oodbench.datasets import TABLE
from oodbench.datasets.fetching.catalogue import CATALOGUE
from oodbench.datasets.formats.files import ImageFiles
from oodbench.datasets.formats.layout import class_folders, labelled_files, missing, require_split
from oodbench.errors import BadData
from oodbench.image_set import ImageSet, Source

ARCHIVE = CATALOGUE["textures"].address()
SOURCE = Source(
    "Describable Textures (DTD)",
    TABLE["textures"].source,
    "research use only",
    "Cimpoi et al., Describing Textures in the Wild, CVPR 2014",
    CATALOGUE["textures"].images,
)


def textures(root: Path, split: str) -> ImageSet:
    """Load ``dtd/images/<class>/*.jpg``, whose sizes vary. All images are test, as usual when DTD serves as OOD data."""
    require_split("textures", split, SOURCE.official_size)
    folder = root / "dtd" / "images"
    if not folder.is_dir():
        raise missing("textures", split, folder, ARCHIVE)
    classes = class_folders(folder)
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
