"""Unpack archives as if they were hostile: tar, plain or gzipped, and zip.

tarfile and zipfile only read here; this module writes new regular files under checked names. So no link is ever made or
followed, and no mode or owner is copied. Nothing depends on Python's extraction filters, which exist only since 3.11.4 and
accept an absolute name as a relative one.
"""

import gzip
import io
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from oodbench.errors import BadData, OodbenchError, reason
from oodbench.progress import Progress

CHUNK = 1 << 20
BLOCK = 512  # bytes of a tar header
JUNK = ("._", ".DS_Store", "__MACOSX")  # macOS adds these to archives; no set needs them


@dataclass(frozen=True)
class Limits:
    """The most that an archive may hold.

    Attributes:
        files: number of files and folders.
        size: bytes of all files.
        ratio: bytes of all files per byte of the archive. Images hardly compress; a zip bomb compresses a thousandfold.
        any_ratio: bytes that an archive may hold at any ratio.
    """

    files: int = 1_000_000
    size: int = 64 * 2**30
    ratio: int = 100
    any_ratio: int = 64 * 2**20

    def bytes_of(self, archive: Path) -> int:
        return min(self.size, max(self.any_ratio, self.ratio * archive.stat().st_size))


LIMITS, SILENT = Limits(), Progress()


def unpack(archive: Path, folder: Path, paths: tuple[str, ...], limits: Limits = LIMITS, progress: Progress = SILENT) -> None:
    """Write the members at or below ``paths`` (inside the archive) to ``folder``, which must not hold them yet.

    All members are checked, also those left out. Raises BadData for an archive that is truncated or of another kind, that
    has a member with an absolute name, ``..``, a link, a device, an encrypted file, two names that differ only in case, or
    more than ``limits`` allow, and for an archive that lacks one of the paths; OodbenchError if ``folder`` cannot be written.
    After an error, files already written stay: pass a temporary folder. ``progress`` counts bytes.
    """
    members = _zip if zipfile.is_zipfile(archive) else _tar
    names = _Names(archive.name, limits.files)
    left = most = limits.bytes_of(archive)
    try:
        for name, size, content in members(archive, most):
            path = names.add(name, is_folder=content is None)
            left -= size
            if size < 0 or left < 0:
                raise _refused(archive.name, f"it unpacks to more than {most:,} bytes")
            if content is None or not _wanted(path, paths):
                continue
            _copy(content, folder / path)
            progress.advance(size)
    except OodbenchError:
        raise
    except Exception as error:  # tarfile and zipfile raise errors of many kinds
        raise BadData(
            f"{archive.name} is not a tar or zip archive, or it is truncated or encrypted ({reason(error)}); fetch it again"
            " or use another mirror"
        ) from error
    for expected in paths:
        if not (folder / expected).exists():
            raise BadData(
                f"{archive.name} holds no {expected}; it is not the set's archive: fetch it again or use another mirror"
            )


def cannot_write(path: Path, error: OSError) -> OodbenchError:
    return OodbenchError(
        f"cannot write {path}: {error.strerror or error}; free space or check permissions there, or name another data root"
        " with --data DIR"
    )


def _refused(archive: str, why: str) -> BadData:
    return BadData(f"{archive} is refused: {why}; none of it was used. Get it from its official address")


def _wanted(path: PurePosixPath, paths: tuple[str, ...]) -> bool:
    if any(part.startswith(JUNK) for part in path.parts):
        return False
    return any(path.is_relative_to(wanted) for wanted in paths)


def _copy(content: IO[bytes], target: Path) -> None:
    """Write a new file. Raises OodbenchError if it cannot be written; errors of reading the archive pass through."""
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("xb")
    try:
        while chunk := content.read(CHUNK):
            with _writing(target):
                file.write(chunk)
    finally:
        with _writing(target):
            file.close()


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(target, error) from error


class _Names:
    """Checks the names of members in sequence."""

    def __init__(self, archive: str, most: int) -> None:
        self._archive, self._most, self._count = archive, most, 0
        self._folders: dict[str, str] = {}  # case-folded path -> as spelled
        self._files: dict[str, str] = {}

    def add(self, name: str, is_folder: bool) -> PurePosixPath:
        """Return the checked path of a member. Raises BadData for one that could leave its folder or collide with another."""
        self._count += 1
        if self._count > self._most:
            raise _refused(self._archive, f"it holds more than {self._most:,} files")
        path, windows = PurePosixPath(name), PureWindowsPath(name)  # inside in both readings: inside on every system
        if windows.anchor or ".." in windows.parts or "\\" in name or ":" in name:
            raise _refused(self._archive, f"it would write outside its folder ({name[:80]!r})")
        if not name.isprintable() or any(len(part.encode()) > 255 for part in path.parts) or len(path.parts) > 32:
            raise _refused(self._archive, f"it has a name that no data set has ({name[:80]!r})")
        if not path.parts and not is_folder:
            raise _refused(self._archive, "it has a file without a name")
        for depth in range(1, len(path.parts) + 1):
            self._claim("/".join(path.parts[:depth]), is_folder or depth < len(path.parts))
        return path

    def _claim(self, spelled: str, is_folder: bool) -> None:
        """Refuse two files, or a file and a folder, whose names differ only in case or in the composition of accents."""
        key = unicodedata.normalize("NFC", spelled).casefold()
        other = self._files.get(key)
        if is_folder and other is None:
            other = self._folders.setdefault(key, spelled)
            if other == spelled:
                return
        elif other is None and key not in self._folders:
            self._files[key] = spelled
            return
        raise _refused(self._archive, f"it has {other or self._folders[key]!r} and {spelled!r}, which may be the same file")


def _zip(archive: Path, most: int) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Yield (name, bytes, content or None for a folder) per member. zipfile reads no more bytes than a member states."""
    with zipfile.ZipFile(archive) as opened:
        if sum(info.file_size for info in opened.infolist()) > most:
            raise _refused(archive.name, f"it unpacks to more than {most:,} bytes")
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive.name, f"{info.filename[:80]!r} is a link or a device")
            if info.is_dir():
                yield info.filename, 0, None
                continue
            with opened.open(info) as content:
                yield info.filename, info.file_size, content


def _tar(archive: Path, most: int) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Yield (name, bytes, content or None for a folder) per member."""
    with archive.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
    with gzip.open(archive) if compressed else archive.open("rb") as stream:
        # Headers count too: up to 8 blocks for each of a million members.
        bounded = _Bounded(stream, archive.name, most + 8 * BLOCK * 1_000_000)
        with tarfile.open(fileobj=bounded, mode="r:") as opened:
            while member := opened.next():
                vars(opened)["members"].clear()  # else it would keep them all in memory
                if member.isdir():
                    yield member.name, 0, None
                elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse():
                    content = opened.extractfile(member)
                    assert content is not None  # it is None only for other kinds of members
                    yield member.name, member.size, content
                else:
                    raise _refused(archive.name, f"{member.name[:80]!r} is a link, a device or another kind of non-file")
        if bounded.last != bytes(BLOCK):  # tarfile accepts any end
            raise EOFError("the end marker is missing")


class _Bounded(io.RawIOBase):
    """A forward-only stream of at most ``most`` bytes, read in small chunks, because headers may state any size."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, name: str, most: int) -> None:
        self._stream, self._name, self._most = stream, name, most
        self.last = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 0 or offset < 0 or offset > self._most:
            raise _refused(self._name, "its members state impossible sizes")
        return self._stream.seek(offset)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= CHUNK:
            raise _refused(self._name, f"it has a header of more than {CHUNK:,} bytes")
        if self._stream.tell() + size > self._most:
            raise _refused(self._name, f"it unpacks to more than {self._most:,} bytes")
        self.last = self._stream.read(size)
        return self.last
