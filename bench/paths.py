"""Locations of data, weights and caches, locks, and writing a file whole or not at all."""

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from oodbench.errors import OodbenchError

HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)  # errors, by system, if another process holds the lock


def cache_root() -> Path:
    """``$OODBENCH_CACHE``, else ``oodbench`` in the user's cache folder of this system; an absolute path.

    An empty variable counts as unset, and so does a relative ``$XDG_CACHE_HOME``, as its specification asks. Raises
    OodbenchError if the user has no home folder.
    """
    if given := os.environ.get("OODBENCH_CACHE"):
        return Path(given).absolute()
    windows, xdg = os.environ.get("LOCALAPPDATA", ""), os.environ.get("XDG_CACHE_HOME", "")
    if sys.platform == "win32" and windows:
        return Path(windows) / "oodbench"
    if sys.platform not in ("darwin", "win32") and Path(xdg).is_absolute():
        return Path(xdg) / "oodbench"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise OodbenchError(f"cannot find a cache folder ({error}); set OODBENCH_CACHE to a folder") from error
    inside = {"darwin": Path("Library", "Caches"), "win32": Path("AppData", "Local")}
    return home / inside.get(sys.platform, Path(".cache")) / "oodbench"


def data_root(given: str | Path | None = None) -> Path:
    """The data root: the given one, else ``$OODBENCH_DATA``, else the cache folder; an absolute path."""
    return Path(given or os.environ.get("OODBENCH_DATA") or cache_root()).absolute()


def visible(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern, sorted, without hidden ones: macOS adds a file ``._NAME`` to each on some disks."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


@contextmanager
def separate_cache(data: Path | None = None) -> Iterator[None]:
    """Use an empty temporary cache folder, so that no earlier training is reused and nothing is kept; the data root stays."""
    before = {name: os.environ.get(name) for name in ("OODBENCH_CACHE", "OODBENCH_DATA")}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(OODBENCH_CACHE=folder, OODBENCH_DATA=str(data_root(data)))
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def try_lock(file: IO[str]) -> bool:
    """Lock an open file until it is closed, however the process ends; False if another process holds the lock.

    Raises OSError where there are no locks, as on some network drives and file systems of clusters.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ModuleNotFoundError as error:
        raise OSError(errno.ENOSYS, "no locks on this system") from error
    except OSError as error:
        if error.errno in HELD:
            return False
        raise
    return True


def write_atomically(path: Path, data: bytes) -> None:
    """Write the whole file or nothing, even after a kill or power cut. Raises OodbenchError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:50]}.", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)  # gone if an interrupt came right after it was renamed
                raise
    except OSError as error:
        raise OodbenchError(
            f"cannot write {path}: {error.strerror or error}; free space there or choose another folder"
        ) from error
