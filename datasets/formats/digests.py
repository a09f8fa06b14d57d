"""SHA-256 of image files, computed once: a cache remembers it by path, size and time of change."""

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np

from oodbench.errors import BadData, OodbenchError
from oodbench.paths import cache_root, require_regular
from oodbench.progress import Progress

SIZE = 32  # bytes of a digest
NAME = "files.sqlite"  # in the cache folder
THREADS = 8  # reading waits for the disk, and hashing large blocks needs no Python
AT_ONCE = 4096  # files that are hashed before the cache is written
SECONDS = 60  # to wait for another process that writes the cache


def digests(paths: Sequence[Path], progress: Progress | None = None) -> np.ndarray:
    """SHA-256 of the bytes of each file: uint8 (N, 32).

    A file is read again if its size or its time of change is another. Raises BadData for a file that cannot be read.
    """
    found = np.empty((len(paths), SIZE), np.uint8)
    if progress:
        progress.stage(f"hashing {len(paths):,} files")
        progress.expect(len(paths))
    with _cache() as cache, ThreadPoolExecutor(THREADS) as threads:
        for start in range(0, len(paths), AT_ONCE):
            names = [os.fsencode(os.path.abspath(path)) for path in paths[start : start + AT_ONCE]]
            now = list(threads.map(_state, names))
            known = _known(cache, names)
            wanted = [place for place, name in enumerate(names) if known.get(name, ())[:2] != now[place]]
            new = dict(zip(wanted, threads.map(_digest, (names[place] for place in wanted)), strict=True))
            _remember(cache, [(names[place], *now[place], digest) for place, digest in new.items()])
            for place, name in enumerate(names):
                found[start + place] = np.frombuffer(new[place] if place in new else known[name][2], np.uint8)
            if progress:
                progress.advance(len(names))
    return found


@contextmanager
def _cache() -> Iterator[sqlite3.Connection]:
    """The table of known files; one in memory if the cache folder cannot be written or holds no table."""
    try:
        place = cache_root()
        place.mkdir(parents=True, exist_ok=True)
        connection = _opened(str(place / NAME))
    except (OodbenchError, OSError, sqlite3.Error):
        connection = _opened(":memory:")
    with closing(connection):
        yield connection


def _opened(place: str) -> sqlite3.Connection:
    connection = sqlite3.connect(place, timeout=SECONDS)
    connection.execute("CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, digest BLOB)")
    return connection


def _known(cache: sqlite3.Connection, names: Sequence[bytes]) -> dict[bytes, tuple[int, int, bytes]]:
    """Size, time of change and digest of the files that are known."""
    known = {}
    with suppress(sqlite3.Error):  # a damaged cache knows nothing; it only saves time
        for name in names:
            row = cache.execute("SELECT size, changed, digest FROM files WHERE path = ?", (name,)).fetchone()
            if row is not None and isinstance(row[2], bytes) and len(row[2]) == SIZE:
                known[name] = row
    return known


def _remember(cache: sqlite3.Connection, rows: Sequence[tuple[bytes, int, int, bytes]]) -> None:
    with suppress(sqlite3.Error), cache:
        cache.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)


def _state(name: bytes) -> tuple[int, int]:
    with _readable(name):
        require_regular(Path(os.fsdecode(name)))  # opening a pipe would block for ever
        status = os.stat(name)
    return status.st_size, status.st_mtime_ns


def _digest(name: bytes) -> bytes:
    with _readable(name), open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextmanager
def _readable(name: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise BadData(f"{os.fsdecode(name)} cannot be read ({why}); replace or remove it") from error
