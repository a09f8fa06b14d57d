"""What of a set must lie below the data root: files and folders of images, and how they differ from the official ones.

``differences`` is quick, for it reads names and sizes only; ``faults`` reads the files too. Both give lines that name the
path and say what is wrong with it, none where all is well. Neither imports torch, and ``differences`` nothing heavy.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from oodbench.datasets.layout import SUFFIXES
from oodbench.errors import BadData

READ = 1 << 20  # bytes at once


@dataclass(frozen=True)
class File:
    """One file.

    Attributes:
        path: below the data root.
        split: the split it belongs to; empty where it belongs to all.
        least: bytes that it has at least, as those of its pixels; a part of the official file has fewer.
        digest: ``md5:…`` or ``sha256:…`` of the official file, where known.
        instead: paths where it may lie too; a file there is taken as it is.
    """

    path: str
    split: str = ""
    least: int = 1
    digest: str = ""
    instead: tuple[str, ...] = ()

    def found(self, root: Path) -> Path | None:
        return next((root / path for path in (self.path, *self.instead) if (root / path).is_file()), None)

    def exists(self, root: Path) -> bool:
        return self.found(root) is not None

    def differences(self, root: Path) -> list[str]:
        file = self.found(root)
        if file is None:
            return [f"no {self.path}"]
        size = file.stat().st_size
        return [f"{self.path} has {size:,} bytes, and the official file {self.least:,} or more"] if size < self.least else []

    def faults(self, root: Path) -> Iterator[str]:
        yield from (differences := self.differences(root))
        if not differences and self.digest and (root / self.path).is_file():
            try:
                found = digest_of(root / self.path, self.digest)
            except OSError as error:
                yield f"{self.path} cannot be read ({error.strerror or error})"
                return
            if found != self.digest:
                yield f"{self.path} is not the official file: {found} instead of {self.digest}"


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
        counts = [len(image_names(folder)) for folder in folders]
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
        count: images in a folder of the official set, in the first layout; 0 where it is not known.
    """

    layouts: tuple[tuple[str, ...], ...]
    count: int = 0
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
        lines = [f"no {folder}" for folder in layout if not (root / folder).is_dir()]
        if self.count and layout == self.layouts[0] and (root / layout[0]).is_dir():
            count = len(image_names(root / layout[0]))
            if count != self.count:
                lines.append(f"{layout[0]}: {count:,} images, and the official set has {self.count:,}")
        return lines

    def faults(self, root: Path) -> Iterator[str]:
        yield from self.differences(root)
        free, *others = self.found(root) or ("",)
        if not (free and (root / free).is_dir()):
            return
        wanted = len(image_names(root / free))
        for folder in others:
            if (root / folder).is_dir() and (count := len(image_names(root / folder))) != wanted:
                yield f"{folder}: {count:,} images, and {free} has {wanted:,}"
        for folder in (free, *others):
            if (root / folder).is_dir():
                yield from broken_images(root / folder, root)


Piece = File | Images | Challenges


def image_names(folder: Path) -> list[str]:
    """Names in ``folder`` with the suffix of an image, hidden ones left out; a name costs a microsecond or so."""
    try:
        with os.scandir(folder) as entries:
            return [e.name for e in entries if os.path.splitext(e.name)[1].lower() in SUFFIXES and e.name[0] != "."]
    except OSError as error:
        raise BadData(f"{folder} cannot be listed ({error.strerror or error}); make it a folder you may read") from error


def broken_images(folder: Path, root: Path) -> Iterator[str]:
    """A line for each image file that cannot be opened as one. Headers are read, and pixels are not."""
    from oodbench.datasets.files import opened

    for name in sorted(image_names(folder)):
        try:
            with opened(folder / name):
                pass
        except BadData as error:
            yield str(error).removeprefix(f"{root}{os.sep}")


def digest_of(path: Path, like: str) -> str:
    """``md5:…`` or ``sha256:…`` of a file, whichever ``like`` is."""
    kind = like.partition(":")[0]
    with path.open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"
