"""Any folder of images, absolute or below the data root: ``folder:PATH``."""

import os
from pathlib import Path

import torch

from oodbench.datasets.formats.files import ImageFiles
from oodbench.datasets.formats.layout import SUFFIXES, class_folders, image_files, labelled_files, require_split, subfolders
from oodbench.datasets.name import FOLDER, heading, is_absolute, path_name, recorded, require_sound
from oodbench.errors import BadData, MissingData, NoSuchSplit
from oodbench.image_set import ImageSet, Source

TEST = ("test", "val", "valid", "validation")  # folders of test images; the first that exists counts


def folder(root: Path, path: str, split: str) -> ImageSet:
    """Load a folder of images, without labels, or of class folders, labelled 0, 1, … in order of name. Files are sorted.

    The only split is test, unless the folder holds folders ``train`` and ``test``: these are then its splits. Without ``test``,
    a folder ``val``, ``valid`` or ``validation`` beside ``train`` is the split test. A folder with one of these and nothing
    else is read as what is in there. The class folders of ``train`` number the classes of both; those that only ``test`` has
    come after them. Hidden files, files without an image suffix and class folders without images are left out.

    Raises UsageError for a path with ``..``, MissingData if the folder does not exist, and BadData for a
    folder that holds no images, images beside class folders, or folders of class folders.
    """
    name = path_name(FOLDER, path)
    require_sound(FOLDER, path)
    place = root / path  # which is ``path`` alone if it is absolute
    if not os.path.isdir(place):  # also where the name is too long to exist
        elsewhere = "another folder" if is_absolute(path) else "another data root with --data DIR or OODBENCH_DATA"
        raise MissingData(f"{name} is missing: {place.absolute()} is not a folder; create it, or name {elsewhere}")
    train, test = place / "train", next(filter(Path.is_dir, map(place.joinpath, TEST)), None)
    if not train.is_dir() or test is None:
        if train.is_dir() and split == "train":
            raise NoSuchSplit(f"{name} has a folder train, but none with test images beside it; add a folder test or val")
        alone = test if test and [test] == subfolders(place) and not image_files(place) else None
        if split == "train":
            add = f"add a folder train beside {alone.name}" if alone else "move its images into folders train and test"
            raise NoSuchSplit(f"{name} has no split 'train'; it has test; to learn from it, {add}")
        require_split(name, split, ("test",))
        return _read(path, alone or place, split, [])
    require_split(name, split, ("train", "test"))
    return _read(path, train if split == "train" else test, split, class_folders(train))


def _read(path: str, place: Path, split: str, numbering: list[Path]) -> ImageSet:
    """Read one split. The names of the folders ``numbering`` have the first labels."""
    name = path_name(FOLDER, path)
    flat, folders = image_files(place), class_folders(place)
    classes = tuple(dict.fromkeys(path.name for path in (*numbering, *folders)))
    paths, labels = labelled_files((path, classes.index(path.name)) for path in folders)
    if deep := next((path for path in subfolders(place) if path not in folders and class_folders(path)), None):
        inside = path_name(FOLDER, f"{path}/{deep.name}")
        raise BadData(
            f"{deep} holds folders of images, one level too deep; move them up, or name {inside} instead (a split is called"
            " train, test, val, valid or validation)"
        )
    if flat and paths:
        raise BadData(f"{place} holds images ({flat[0].name}) beside folders of images; move one or the other elsewhere")
    if not flat and not paths:
        raise BadData(f"{place} holds no images ({' '.join(sorted(SUFFIXES))}); add some, or name another folder")
    return ImageSet(
        ImageFiles(flat or paths),
        torch.tensor(labels) if paths else None,
        name=name,
        split=split,
        kind="far-ood",
        classes=classes if paths else (),
        source=Source(title=f"the user's folder {heading(recorded(name))}"),
    )
