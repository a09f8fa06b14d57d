"""The images that a text file names, such as OpenOOD's lists, absolute or below the data root: ``imglist:FILE``."""

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch

from oodbench.datasets.formats.files import ImageFiles
from oodbench.datasets.formats.layout import require_split
from oodbench.datasets.name import IMAGE_LIST, heading, is_absolute, is_sound, path_name, recorded, require_sound
from oodbench.errors import BadData, MissingData, NoSuchSplit
from oodbench.image_set import ImageSet, Source
from oodbench.paths import read_small

MOST_BYTES = 2**27  # of a list; that of the 1.3 million training images of ImageNet has half as many
MOST_CLASSES = 10**5  # a network is built for as many
OPENOOD = ("images_classic", "images_largescale")  # folders of the data root that OpenOOD's lists are relative to
NUMBER = re.compile(r"-?[0-9]+")
TEST = re.compile(r"(?<![a-z])test(?![a-z])")  # the word, as in test_cifar10.txt


def image_list(root: Path, path: str, split: str) -> ImageSet:
    """Load the images of a list: one per line, its path and its label, a class number from 0, or −1 for none.

    The label is the last field, so paths may hold spaces; lines without labels count as −1. Paths are relative to the first of
    these folders that holds a listed image: the data root, ``images_classic`` and ``images_largescale`` below it, and the
    folder of the list.

    The only split is test, unless the name of the list holds the word ``test`` and beside it is a list with ``train`` instead.

    Raises UsageError for a path of the list with ``..``, MissingData if the list or all its images do not exist, and BadData
    for a list with some labels only, with a path that leaves the folder, and for images that are named twice or missing.
    """
    require_sound(IMAGE_LIST, path)
    name, file = path_name(IMAGE_LIST, path), root / path  # which is ``path`` alone if it is absolute
    if not os.path.isfile(file):  # also where the name is too long to exist
        elsewhere = "another list" if is_absolute(path) else "another data root with --data DIR or OODBENCH_DATA"
        raise MissingData(f"{name} is missing: {file.absolute()} is not a file; create it, or name {elsewhere}")
    train = file.with_name(TEST.sub("train", file.name, count=1))
    if train == file or not os.path.isfile(train):
        if split == "train":
            named = f"add the list {train.name}" if train != file else "name it test.txt and add a list train.txt"
            raise NoSuchSplit(f"{name} has no split 'train'; it has test; to learn from it, {named} beside it")
        require_split(name, split, ("test",))
    require_split(name, split, ("train", "test"))
    read = train if split == "train" else file
    lines = _lines(read)
    labelled = lines[0].label >= 0
    return ImageSet(
        ImageFiles(_files(name, read, lines, root)),
        torch.tensor([line.label for line in lines]) if labelled else None,
        name=name,
        split=split,
        kind="far-ood",
        source=Source(title=f"the user's list {heading(recorded(name))}"),
    )


class _Line(NamedTuple):
    number: int
    path: str
    label: int  # −1 for none


def _lines(file: Path) -> list[_Line]:
    """Read the lines of a list that are not empty; at least one."""
    lines: list[_Line] = []
    first: dict[str, int] = {}  # line by path
    for number, text in _texts(file):
        path, _, label = text.rpartition(" ")
        if not NUMBER.fullmatch(label):
            path, label = text, "-1"
        line = _Line(number, str(PurePosixPath(path.strip())), int(label) if len(label) <= 10 else MOST_CLASSES)
        place = f"{file}, line {number}"
        if not is_sound(line.path):
            raise BadData(
                f"{place}: {_shown(path)} must be a path without '..' that is not absolute; write it from the data root"
            )
        if not -1 <= line.label < MOST_CLASSES:
            raise BadData(
                f"{place}: the label {_shown(label)} must be a class number from 0 to {MOST_CLASSES - 1:,}, or -1 for an image"
                " without one; correct it"
            )
        if lines and (line.label < 0) != (lines[0].label < 0):
            one, other = ("no label", "one") if line.label < 0 else ("a label", "none")
            raise BadData(f"{place}: has {one}, and line {lines[0].number} has {other}; give each image a label, or -1 to each")
        if line.path in first:
            raise BadData(f"{place}: {_shown(path)} is also on line {first[line.path]}; remove one of the two")
        first[line.path] = number
        lines.append(line)
    if not lines:
        raise BadData(f"{file} names no images; write one per line, as PATH LABEL")
    return lines


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of a list that are not empty, with tabs as spaces."""
    try:
        content = read_small(file, MOST_BYTES)
    except OSError as error:
        raise BadData(f"{file} cannot be read ({error.strerror or error}); check its permissions") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise BadData(f"{file}, line {number}: not valid UTF-8; save the list as UTF-8") from error
    # Not ``splitlines``: it splits at characters that names of files may hold.
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if stripped := line.replace("\t", " ").strip():
            yield number, stripped


def _files(name: str, file: Path, lines: list[_Line], root: Path) -> list[Path]:
    """Return the paths of the images. Raises MissingData if none exists, BadData if some do not."""
    places = [root, *(root / folder for folder in OPENOOD), file.parent]
    # Each line in turn, so that where the first image exists nothing else is looked for.
    place = next((place for line in lines for place in places if os.path.isfile(place / line.path)), None)
    if place is None:
        raise MissingData(
            f"the images of {name} are missing: {_shown(lines[0].path)} is not below {root.absolute()}, nor in"
            f" {' or '.join(OPENOOD)} there, nor beside the list; put them there, or name another data root with --data DIR or"
            " OODBENCH_DATA"
        )
    for line in lines:
        if not os.path.isfile(place / line.path):
            raise BadData(
                f"{file}, line {line.number}: {_shown(line.path)} is not a file in {place}; add it, or remove the line"
            )
    return [place / line.path for line in lines]


def _shown(text: str) -> str:
    return f"'{text}'" if len(text) <= 200 else f"'{text[:200]}…'"
