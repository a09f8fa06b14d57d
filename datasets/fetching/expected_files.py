"""What of a set must lie below the data root: files and folders of images, and how they differ from the official ones.

``differences`` is quick, for it reads names, sizes and small files only; ``faults`` reads all files. Both give lines that name
the path and say what is wrong with it, none where all is well. Neither imports torch, and ``differences`` nothing heavy.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from oodbench.datasets.formats.layout import image_names
from oodbench.errors import BadData

MAX_HEADER = 100_000_000  # bytes, of a safetensors file; the format's own


@dataclass(frozen=True)
class File:
    """One file.

    Attributes:
        path: below the data root.
        split: the split it belongs to; empty where it belongs to all.
        least: bytes that it has at least, as those of its pixels; a part of the official file has fewer.
        digest: ``md5:…`` or ``sha256:…`` of the official file, where known.
        instead: paths where it may lie too; a file there is taken as it is.
        before: one more, which is read before ``path`` where there is a file.
        small: whether the digest is looked at each time, for that costs nothing.
    """

    path: str
    split: str = ""
    least: int = 1
    digest: str = ""
    instead: tuple[str, ...] = ()
    before: str = ""
    small: bool = False

    def found(self, root: Path) -> Path | None:
        paths = filter(None, (self.before, self.path, *self.instead))
        return next((root / path for path in paths if (root / path).is_file()), None)

    def exists(self, root: Path) -> bool:
        return self.found(root) is not None

    def differences(self, root: Path) -> list[str]:
        file = self.found(root)
        if file is None:
            return [f"no {self.path}"]
        name, size = file.relative_to(root), file.stat().st_size
        if size < self.least:
            return [f"{name} has {size:,} bytes, and the official file {self.least:,} or more"]
        if file.suffix == ".safetensors" and not _header_fits(file):
            return [f"{name} is no safetensors file, or it is truncated"]
        return self._another(root) if self.small else []

    def faults(self, root: Path) -> Iterator[str]:
        yield from (differences := self.differences(root))
        if not differences:
            yield from self._another(root)

    def _another(self, root: Path) -> list[str]:
        """That the file has another digest; nothing where it lies elsewhere or its digest is not known."""
        file = self.found(root)
        if not self.digest or file != root / self.path or (found := digest_of(file, self.digest)) == self.digest:
            return []
        return [f"{self.path} is not the official file: {found} instead of {self.digest}"]


@dataclass(frozen=True)
class Images:
    """Folders of image files.

    Attributes:
        path: of a folder below the data root, or a pattern (``dtd/images/*``) of several.
        count: images in all of them in the official set.
        folders: how many folders there are.
        each: images in each folder, where all have the same number; 0 where they differ.
        instead: another pattern, of any number of folders, used where ``path`` matches nothing.
    """

    path: str
    count: int
    split: str = ""
    folders: int = 1
    each: int = 0
    instead: str = ""

    def found(self, root: Path) -> list[Path]:
        """The folders there are, by name."""
        for pattern in filter(None, (self.path, self.instead)):
            if folders := sorted(p for p in root.glob(pattern) if p.is_dir() and not p.name.startswith(".")):
                return folders
        return []

    def exists(self, root: Path) -> bool:
        return bool(self.found(root))

    def differences(self, root: Path) -> list[str]:
        folders = self.found(root)
        if not folders:
            return [f"no {self.path}"]
        where = self.path if folders[0].match(self.path) else self.instead
        lines = []
        if where == self.path and len(folders) != self.folders:
            lines.append(f"{where}: {len(folders):,} folders, and the official set has {self.folders:,}")
        counts = [_count(folder) for folder in folders]
        if self.each:
            for folder, count in zip(folders, counts, strict=True):
                if count != self.each:
                    lines.append(f"{folder.relative_to(root)}: {count:,} images, and the official set has {self.each:,}")
        elif sum(counts) != self.count:
            lines.append(f"{where}: {sum(counts):,} images, and the official set has {self.count:,}")
        return lines

    def faults(self, root: Path) -> Iterator[str]:
        yield from self.differences(root)
        for folder in self.found(root):
            yield from broken_images(folder, root)


@dataclass(frozen=True)
class Challenges:
    """CURE-TSR's folders of one split: all hold the same signs, without a challenge and under each of them.

    Attributes:
        layouts: for each layout of the release, its folders below the data root, the one without a challenge first; the
            first layout of which a folder is there counts.
        about: images in a folder of the official set, in the first layout, give or take a tenth; 0 where it is not known.
    """

    layouts: tuple[tuple[str, ...], ...]
    about: int = 0
    split: str = ""

    @property
    def path(self) -> str:
        return self.layouts[0][0]

    def found(self, root: Path) -> tuple[str, ...]:
        """The folders of the layout that is there, those that lack included; none where no layout is."""
        return next((layout for layout in self.layouts if any((root / folder).is_dir() for folder in layout)), ())

    def exists(self, root: Path) -> bool:
        return bool(self.found(root))

    def differences(self, root: Path) -> list[str]:
        layout = self.found(root) or self.layouts[0]
        lines = []
        for folder in layout:
            if not (root / folder).is_dir():
                lines.append(f"no {folder}")
            elif next(image_names(root / folder), None) is None:  # to count them all takes long in a listing
                lines.append(f"{folder}: no images")
        if not lines and self.about and layout == self.layouts[0]:
            count = _count(root / layout[0])
            if abs(count - self.about) > self.about // 10:
                lines.append(f"{layout[0]}: {count:,} images, and the official set has about {self.about:,}")
        return lines

    def faults(self, root: Path) -> Iterator[str]:
        yield from self.differences(root)
        free, *others = self.found(root) or ("",)
        if not (free and (root / free).is_dir()):
            return
        wanted = _count(root / free)
        for folder in others:
            if (root / folder).is_dir() and (count := _count(root / folder)) not in (0, wanted):
                yield f"{folder}: {count:,} images, and {free} has {wanted:,}"
        for folder in (free, *others):
            if (root / folder).is_dir():
                yield from broken_images(root / folder, root)


Piece = File | Images | Challenges


def differences(pieces: Iterable[Piece], root: Path) -> list[str]:
    """The differences of all; what may not be read is a line too, so that one folder does not hide the rest."""
    return [line for piece in pieces for line in _told(piece, piece.differences, root)]


def faults(pieces: Iterable[Piece], root: Path) -> Iterator[str]:
    """The faults of all, as ``differences``."""
    for piece in pieces:
        yield from _told(piece, piece.faults, root)


def any_exists(pieces: Iterable[Piece], root: Path) -> bool:
    """Whether any of them is there; one that may not be looked at is."""
    for piece in pieces:
        try:
            if piece.exists(root):
                return True
        except OSError:
            return True  # and what is wrong with it is what ``differences`` says
    return False


def _told(piece: Piece, lines: Callable[[Path], Iterable[str]], root: Path) -> Iterator[str]:
    try:
        yield from lines(root)
    except BadData as error:
        yield _below(root, str(error))
    except OSError as error:
        yield _below(root, f"{error.filename or piece.path} cannot be read ({error.strerror or error}); let it be read")


def _below(root: Path, line: str) -> str:
    """A line that begins with a path, which is said without the data root."""
    return line.removeprefix(f"{root}{os.sep}")


def _count(folder: Path) -> int:
    return sum(1 for _ in image_names(folder))


def _header_fits(file: Path) -> bool:
    """Whether the header of a safetensors file is one, and speaks of as many bytes as the file has."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(size - 8, MAX_HEADER):
            return False
        try:
            header = json.loads(opened.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            return bool(8 + length + max(ends, default=0) == size)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # JSON, and another shape of it
            return False


def broken_images(folder: Path, root: Path) -> Iterator[str]:
    """A line for each image file that cannot be decoded."""
    from oodbench.datasets.formats.files import opened

    for name in sorted(image_names(folder)):
        try:
            with opened(folder / name) as image:
                image.load()
        except BadData as error:
            yield _below(root, str(error))


def digest_of(path: Path, like: str) -> str:
    """``md5:…`` or ``sha256:…`` of a file, whichever ``like`` is."""
    kind = like.partition(":")[0]
    with path.open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"
