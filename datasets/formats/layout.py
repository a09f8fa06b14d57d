"""What the readers of official layouts share: splits, absence, files in folders."""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from oodbench.errors import BadData, MissingData, UsageError

MAX_TEXT = 2**24  # bytes of a table of labels; the largest official one has half a million
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def require_split(name: str, split: str, splits: Iterable[str]) -> None:
    """Raise UsageError, naming the splits there are, for one that the set does not have."""
    splits = tuple(splits)
    if split not in splits:
        raise UsageError(f"{name} has no split '{split}'; it has {', '.join(splits)}")


def missing(name: str, split: str, path: Path, address: str) -> MissingData:
    """The error for a set that is not where it was looked for: which, where, and what to do."""
    return MissingData(
        f"{name} ({split}) is not there: no {path.absolute()}; get it with `oodbench data fetch {name}`, or get {address} and"
        " unpack it so that this path exists, or name the data root that holds it with --data DIR or OODBENCH_DATA"
    )


def require_regular(path: Path) -> None:
    """Raise BadData for a pipe, a device or a folder in place of a file: reading one may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadData(f"{path} is no regular file; replace it with one, or remove it")


def why(error: BaseException) -> str:
    """What went wrong in one short line, whatever a file made a library say."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"


def image_names(folder: Path) -> Iterator[str]:
    """Names of the files of ``folder`` with the suffix of an image; hidden ones and other suffixes are left out."""
    return (e.name for e in _entries(folder) if os.path.splitext(e.name)[1].lower() in SUFFIXES and not e.is_dir())


def image_files(folder: Path) -> list[Path]:
    """The files of ``image_names``, sorted by name."""
    return [folder / name for name in sorted(image_names(folder))]


def subfolders(folder: Path) -> list[Path]:
    """Folders in ``folder``, sorted by name, hidden ones left out."""
    return [folder / name for name in sorted(e.name for e in _entries(folder) if e.is_dir())]


def labelled_files(folders: Iterable[tuple[Path, int]]) -> tuple[list[Path], list[int]]:
    """Image files of folders that hold one class each, given as (folder, label), and the label of each file."""
    pairs = [(path, label) for folder, label in folders for path in image_files(folder)]
    return [path for path, _ in pairs], [label for _, label in pairs]


def text_lines(path: Path) -> list[str]:
    """The lines of a small text file that are not blank. Raises BadData where it is no such file, or not UTF-8."""
    try:
        require_regular(path)
        if path.stat().st_size > MAX_TEXT:
            raise BadData(f"{path} has more than {MAX_TEXT:,} bytes, too many for a table of labels; unpack it again")
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{path} cannot be read as text ({why(error)}); unpack it again") from error


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise BadData(f"{folder} cannot be listed ({error.strerror or error}); make it a folder you may read") from error
