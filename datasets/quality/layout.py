"""What the loaders of databases share: where a database is, its files by name, and the database made of them."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oodbench.datasets.formats.files import opened, upright
from oodbench.datasets.formats.layout import entries
from oodbench.datasets.quality import TABLE
from oodbench.datasets.quality.database import Pictures, QualityDatabase, fingerprint
from oodbench.errors import BadData, MissingData, UsageError
from oodbench.paths import DataRoots, data_roots


@dataclass(frozen=True)
class Opinion:
    """One distorted image of a database: its file, that of its reference, and its score."""

    image: Path
    reference: Path
    score: float
    deviation: float | None = None
    distortion: str = ""
    level: float | None = None


def official_folder(name: str, path: str, data: DataRoots, folders: Sequence[str]) -> Path:
    """The first of some folders of the data roots that exists. Raises UsageError for a path after the name, and MissingData."""
    if path:
        raise UsageError(f"{name}:{path}: {name} is found below the data root; write {name}")
    roots = data_roots(data)
    for folder in (root / folder for root in roots for folder in folders):
        if folder.is_dir():
            return folder
    searched = ", ".join(map(str, roots))
    raise MissingData(
        f"{name} is missing: no folder {folders[0]} in {searched}; download it from {TABLE[name].source} and unpack it there,"
        " or name the data root that holds it with --data DIR or OODBENCH_DATA"
    )


def user_path(name: str, path: str, data: DataRoots, folder: bool) -> Path:
    """The user's folder or file, absolute or below a data root. Raises UsageError for an empty path, and MissingData."""
    what = "folder" if folder else "file"
    if not path:
        raise UsageError(f"{name} needs a {what}; write {name}:PATH")
    roots = data_roots(data)
    for root in roots:
        place = root / path  # which is ``path`` alone if it is absolute
        if os.path.isdir(place) if folder else os.path.isfile(place):  # also where the name is too long to exist
            return place
    places = path if Path(path).is_absolute() else f"{path} below {', '.join(map(str, roots))}"
    raise MissingData(f"{name}:{path} is missing: {places} is not a {what}; create it, or name another with {name}:PATH")


def by_name(folder: Path) -> dict[str, Path]:
    """The files of a folder by name in lower case, because official releases mix cases; empty if there is no such folder.

    Raises BadData for two names that differ only in case, and for a link that leads out of the folder.
    """
    found: dict[str, Path] = {}
    for entry in entries(folder) if folder.is_dir() else ():
        path = Path(entry.path)
        if (other := found.setdefault(entry.name.lower(), path)) != path:
            raise BadData(f"{path} and {other.name} differ only in case; remove one of the two")
        if entry.is_symlink():
            require_inside(folder, path)
    return found


def require_inside(folder: Path, path: Path) -> None:
    """Raise BadData for a path that leads out of a folder through a link."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadData(f"{path} leads out of {folder} through a link; copy the file there")


def finite(text: str, place: str) -> float:
    """The number that a text holds. Raises BadData, naming the place, for any other text."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        shown = text if len(text) <= 50 else f"{text[:50]}…"
        raise BadData(f"{place}: {shown!r} is not a finite number; correct it")
    return number


def from_files(
    name: str,
    opinions: Sequence[Opinion],
    *,
    higher_is_better: bool,
    score_name: str,
    official_size: int | None,
    partial: bool = True,
) -> QualityDatabase:
    """Make a database from image files. With ``partial``, distorted images that are absent are left out.

    Raises MissingData if no distorted image is there, and BadData for a reference (without ``partial``, an image) that is
    missing, a distorted image that has another size than its reference, and deviations or levels that only some images have.
    """
    there = [one for one in opinions if one.image.is_file()] if partial else list(opinions)
    if not there:
        raise MissingData(f"{name} has scores but no distorted image, such as {opinions[0].image}; unpack its images too")
    references = list(dict.fromkeys(one.reference for one in there))
    images = [one.image for one in there]
    for path in (*references, *images):
        if not path.is_file():
            raise BadData(f"{path} is missing, and {name} has images or scores that need it; add it, or remove these")
    row = {path: number for number, path in enumerate(references)}
    sizes = [_size(path) for path in references]
    for one in there:
        if (size := _size(one.image)) != (wanted := sizes[row[one.reference]]):
            raise BadData(
                f"{one.image} has {size[0]}x{size[1]} pixels and its reference {one.reference.name} {wanted[0]}x{wanted[1]};"
                " replace or remove one of the two"
            )
    reference_of = np.array([row[one.reference] for one in there], np.int64)
    scores = np.array([one.score for one in there], np.float64)
    deviations, levels = (_all_or_none(name, there, what) for what in ("deviation", "level"))
    return QualityDatabase(
        name,
        Pictures(references),
        Pictures(images),
        reference_of,
        scores,
        higher_is_better,
        score_name,
        fingerprint([*references, *images], reference_of, scores, deviations),
        deviations,
        [one.distortion for one in there] if any(one.distortion for one in there) else [],
        levels,
        official_size,
    )


def _all_or_none(name: str, opinions: Sequence[Opinion], what: str) -> np.ndarray | None:
    numbers = [getattr(one, what) for one in opinions]
    if (absent := sum(number is None for number in numbers)) == len(numbers):
        return None
    if absent:
        raise BadData(f"{name}: {absent} of {len(numbers)} images have no {what}; give it for all images or for none")
    return np.array(numbers, np.float64)


def _size(path: Path) -> tuple[int, int]:
    """Width and height of an image file, from its header."""
    with opened(path, header_only=True) as image:
        return (image if image.width == image.height else upright(image)).size


def lookup(files: Mapping[str, Path], folder: Path, name: str) -> Path:
    """The file of this name, in upper or lower case; if there is none, the path that it would have."""
    return files.get(name.lower(), folder / Path(name).name)
