"""What the readers of official layouts share: splits, absence, files in folders."""

from collections.abc import Iterable
from pathlib import Path

from oodbench.errors import BadData, MissingData, UsageError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def require_split(name: str, split: str, splits: Iterable[str]) -> None:
    """Raise UsageError, naming the splits there are, for one that the set does not have."""
    splits = tuple(splits)
    if split not in splits:
        raise UsageError(f"{name} has no split '{split}'; it has {', '.join(splits)}")


def missing(name: str, split: str, path: Path, address: str) -> MissingData:
    """The error for a set that is not where it was looked for: which, where, and what to do."""
    return MissingData(
        f"{name} ({split}) is not there: no {path.absolute()}; download {address} and unpack it so that this path exists,"
        " or name the data root that holds it with --data DIR or OODBENCH_DATA"
    )


def image_files(folder: Path) -> list[Path]:
    """Files of ``folder`` with the suffix of an image, sorted by name; hidden ones and other suffixes are left out."""
    return sorted(p for p in _entries(folder) if p.suffix.lower() in SUFFIXES and not p.is_dir())


def subfolders(folder: Path) -> list[Path]:
    """Folders in ``folder``, sorted by name, hidden ones left out."""
    return sorted(p for p in _entries(folder) if p.is_dir())


def labelled_files(folders: Iterable[tuple[Path, int]]) -> tuple[list[Path], list[int]]:
    """Image files of folders that hold one class each, given as (folder, label), and the label of each file."""
    pairs = [(path, label) for folder, label in folders for path in image_files(folder)]
    return [path for path, _ in pairs], [label for _, label in pairs]


def text_lines(path: Path) -> list[str]:
    """The lines of a small text file that are not blank. Raises BadData where it cannot be read as UTF-8."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{path} cannot be read as text ({error}); unpack it again") from error


def _entries(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise BadData(f"{folder} cannot be listed ({error.strerror or error}); make it a folder you may read") from error
