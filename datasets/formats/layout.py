"""Helpers of the loaders of official layouts: splits, errors for missing sets, files in folders."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from oodbench.errors import BadData, MissingData, UsageError
from oodbench.paths import require_regular as require_regular

MAX_TEXT = 2**24  # bytes of a table of labels; the largest official one has half a million
SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
    | {".apng", ".jfif", ".jpe", ".pbm", ".pgm", ".pnm", ".ppm"}  # the same formats under other names
)
# Folders of metadata, thumbnails and deleted files, added by macOS, Synology, Windows and Linux.
ADDED_BY_SYSTEMS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})


def require_split(name: str, split: str, splits: Iterable[str]) -> None:
    """Raise UsageError, listing the known splits, for an unknown split."""
    splits = tuple(splits)
    if split not in splits:
        remedy = "; name another set to learn from, such as digits" if split == "train" else ""
        raise UsageError(f"{name} has no split '{split}'; it has {', '.join(splits)}{remedy}")


def missing(name: str, split: str, path: Path, address: str) -> MissingData:
    """Return the error for a missing set: which, where, and what to do."""
    put = "save it under that path" if path.name == address.rpartition("/")[2] else "unpack it so that this path exists"
    return MissingData(
        f"{name} ({split}) is missing: {path.absolute()} does not exist; run `oodbench data fetch {name}`, or download"
        f" {address} and {put}, or name the data root that holds it with --data DIR or OODBENCH_DATA"
    )


def why(error: BaseException) -> str:
    """Return an error message as one short line, of any library error."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"


def image_names(folder: Path) -> Iterator[str]:
    """Return the names of the image files in ``folder``, by suffix; hidden files are left out."""
    return (e.name for e in entries(folder) if os.path.splitext(e.name)[1].lower() in SUFFIXES and not is_folder(e))


def image_files(folder: Path) -> list[Path]:
    """Return the paths of ``image_names``, sorted by name."""
    return [folder / name for name in sorted(image_names(folder))]


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in ``folder``, sorted by name, without hidden ones."""
    return [folder / name for name in sorted(e.name for e in entries(folder) if is_folder(e))]


def class_folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder`` that hold images, sorted by name; others are not classes."""
    return [path for path in subfolders(folder) if next(image_names(path), None)]


def labelled_files(folders: Iterable[tuple[Path, int]]) -> tuple[list[Path], list[int]]:
    """Return the image files of class folders, given as (folder, label), and the label of each file."""
    pairs = [(path, label) for folder, label in folders for path in image_files(folder)]
    return [path for path, _ in pairs], [label for _, label in pairs]


def text_lines(path: Path) -> list[str]:
    """Return the non-blank lines of a small text file. Raises BadData if it is too large, unreadable, or not UTF-8."""
    try:
        require_regular(path)
        if path.stat().st_size > MAX_TEXT:
            raise BadData(f"{path} has more than {MAX_TEXT:,} bytes, too many for a table of labels; unpack it again")
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{path} cannot be read as text ({why(error)}); unpack it again") from error


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what is in ``folder``, without hidden files and folders and what systems add. Raises BadData if unreadable."""
    try:
        with os.scandir(folder) as found:
            yield from (e for e in found if not is_hidden(e.name))
    except OSError as error:
        raise BadData(f"{folder} cannot be listed ({error.strerror or error}); check its permissions") from error


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or added by a system."""
    return name.startswith(".") or name in ADDED_BY_SYSTEMS


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one. ``DirEntry.is_dir`` raises OSError for a link to itself."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))
