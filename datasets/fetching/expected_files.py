"""The files and image folders that a set must have below the data root, and how they differ from the official ones.

``differences`` is fast because it reads only names, sizes and small files; ``faults`` reads all files. Both return lines that
name a path and its fault, and no line if there is none. Neither imports torch; ``differences`` imports nothing heavy.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from oodbench.datasets.formats.layout import image_names, is_hidden
from oodbench.errors import BadData

MAX_HEADER = 100_000_000  # bytes, of a safetensors file: the limit of the format


@dataclass(frozen=True)
class File:
    """One file.

    Attributes:
        path: below the data root.
        split: the split it belongs to; empty if it belongs to all.
        min_size: fewest bytes of a whole file, such as the bytes of its pixels; a part of the official file has fewer.
        digest: ``md5:…`` or ``sha256:…`` of the official file, if known.
        alternatives: other paths at which the file may be; a file there is accepted unchecked.
        override: another path, of a file that is used in preference to ``path``.
        small: whether ``differences`` checks the digest too, because the file is small.
    """

    path: str
    split: str = ""
    min_size: int = 1
    digest: str = ""
    alternatives: tuple[str, ...] = ()
    override: str = ""
    small: bool = False

    def found(self, root: Path) -> Path | None:
        paths = filter(None, (self.override, self.path, *self.alternatives))
        return next((root / path for path in paths if (root / path).is_file()), None)

    def exists(self, root: Path) -> bool:
        return self.found(root) is not None

    def differences(self, root: Path) -> list[str]:
        file = self.found(root)
        if file is None:
            return [f"{self.path} is missing"]
        name, size = file.relative_to(root), file.stat().st_size
        if size < self.min_size:
            return [f"{name} has {size:,} bytes; the official file has at least {self.min_size:,}"]
        if file.suffix == ".safetensors" and not _header_fits(file):
            return [f"{name} is not a safetensors file, or it is truncated"]
        return self._wrong_digest(root) if self.small else []

    def faults(self, root: Path) -> Iterator[str]:
        yield from (differences := self.differences(root))
        if not differences:
            yield from self._wrong_digest(root)

    def _wrong_digest(self, root: Path) -> list[str]:
        """Report another digest; nothing for a file at another path, or without a known digest."""
        file = self.found(root)
        if not self.digest or file != root / self.path or (found := digest_of(file, self.digest)) == self.digest:
            return []
        return [f"{self.path} is not the official file: {found} instead of {self.digest}"]


@dataclass(frozen=True)
class Images:
    """Folders of image files.

    Attributes:
        path: a folder below the data root, or a pattern that matches several (``dtd/images/*``).
        count: number of images in the official set, in all these folders.
        folders: number of folders.
        per_folder: number of images in each folder if it is the same for all, else 0.
        alternative: another pattern, for any number of folders, used if ``path`` matches nothing.
    """

    path: str
    count: int
    split: str = ""
    folders: int = 1
    per_folder: int = 0
    alternative: str = ""

    def found(self, root: Path) -> list[Path]:
        """Return the folders that exist, sorted by name."""
        for pattern in filter(None, (self.path, self.alternative)):
            if folders := sorted(p for p in root.glob(pattern) if p.is_dir() and not is_hidden(p.name)):
                return folders
        return []

    def exists(self, root: Path) -> bool:
        return bool(self.found(root))

    def differences(self, root: Path) -> list[str]:
        folders = self.found(root)
        if not folders:
            return [f"{self.path} is missing"]
        where = self.path if folders[0].match(self.path) else self.alternative
        lines = []
        if where == self.path and len(folders) != self.folders:
            lines.append(f"{where}: {len(folders):,} folders; the official set has {self.folders:,}")
        counts = [_count(folder) for folder in folders]
        if self.per_folder:
            for folder, count in zip(folders, counts, strict=True):
                if count != self.per_folder:
                    lines.append(f"{folder.relative_to(root)}: {count:,} images; the official set has {self.per_folder:,}")
        elif sum(counts) != self.count:
            lines.append(f"{where}: {sum(counts):,} images; the official set has {self.count:,}")
        return lines

    def faults(self, root: Path) -> Iterator[str]:
        yield from self.differences(root)
        for folder in self.found(root):
            yield from broken_images(folder, root)


@dataclass(frozen=True)
class Challenges:
    """CURE-TSR's folders of one split: all hold the same signs, one without a challenge and one per challenge and level.

    Attributes:
        layouts: for each layout of the release, its folders below the data root, the one without a challenge first. The
            first layout of which any folder exists is used.
        approximate_count: images per folder of the official set in the first layout, within a tenth; 0 if unknown.
    """

    layouts: tuple[tuple[str, ...], ...]
    approximate_count: int = 0
    split: str = ""

    @property
    def path(self) -> str:
        return self.layouts[0][0]

    def found(self, root: Path) -> tuple[str, ...]:
        """Return the folders of the layout in use, missing ones too; empty if none exists."""
        return next((layout for layout in self.layouts if any((root / folder).is_dir() for folder in layout)), ())

    def exists(self, root: Path) -> bool:
        return bool(self.found(root))

    def differences(self, root: Path) -> list[str]:
        layout = self.found(root) or self.layouts[0]
        lines = []
        for folder in layout:
            if not (root / folder).is_dir():
                lines.append(f"{folder} is missing")
            elif next(image_names(root / folder), None) is None:  # counting them all would make a listing slow
                lines.append(f"{folder}: no images")
        if not lines and self.approximate_count and layout == self.layouts[0]:
            count = _count(root / layout[0])
            if abs(count - self.approximate_count) > self.approximate_count // 10:
                lines.append(f"{layout[0]}: {count:,} images; the official set has about {self.approximate_count:,}")
        return lines

    def faults(self, root: Path) -> Iterator[str]:
        yield from self.differences(root)
        free, *others = self.found(root) or ("",)
        if not (free and (root / free).is_dir()):
            return
        wanted = _count(root / free)
        for folder in others:
            if (root / folder).is_dir() and (count := _count(root / folder)) not in (0, wanted):
                yield f"{folder}: {count:,} images; {free} has {wanted:,}"
        for folder in (free, *others):
            if (root / folder).is_dir():
                yield from broken_images(root / folder, root)


Expected = File | Images | Challenges


def differences(expected: Iterable[Expected], root: Path) -> list[str]:
    """Return the differences of all. An unreadable path becomes a line, so that one folder does not hide the rest."""
    return [line for entry in expected for line in _lines(entry, entry.differences, root)]


def faults(expected: Iterable[Expected], root: Path) -> Iterator[str]:
    """Yield the faults of all, as ``differences`` does."""
    for entry in expected:
        yield from _lines(entry, entry.faults, root)


def any_exists(expected: Iterable[Expected], root: Path) -> bool:
    """Whether any of them exists. An unreadable path counts as existing."""
    for entry in expected:
        try:
            if entry.exists(root):
                return True
        except OSError:
            return True  # ``differences`` reports it
    return False


def _lines(entry: Expected, check: Callable[[Path], Iterable[str]], root: Path) -> Iterator[str]:
    try:
        yield from check(root)
    except BadData as error:
        yield _below(root, str(error))
    except OSError as error:
        yield _below(root, f"{error.filename or entry.path} cannot be read ({error.strerror or error}); check its permissions")


def _below(root: Path, line: str) -> str:
    """Remove the data root from the path at the start of a line."""
    return line.removeprefix(f"{root}{os.sep}")


def _count(folder: Path) -> int:
    return sum(1 for _ in image_names(folder))


def _header_fits(file: Path) -> bool:
    """Whether a safetensors file has a valid header that accounts for every byte of the file."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(size - 8, MAX_HEADER):
            return False
        try:
            header = json.loads(opened.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            return bool(8 + length + max(ends, default=0) == size)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # not JSON, or JSON of another structure
            return False


def broken_images(folder: Path, root: Path) -> Iterator[str]:
    """Yield a line for each image file that cannot be decoded."""
    from oodbench.datasets.formats.files import opened

    for name in sorted(image_names(folder)):
        try:
            with opened(folder / name) as image:
                image.load()
        except BadData as error:
            yield _below(root, str(error))


def digest_of(path: Path, like: str) -> str:
    """Return the digest of a file, ``md5:…`` or ``sha256:…``, of the same kind as ``like``."""
    kind = like.partition(":")[0]
    with path.open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"
