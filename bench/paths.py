"""Locations of data, weights and caches; checks before a file is opened, locks, and writing a file whole or not at all."""

import errno
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

from oodbench.errors import BadData, CannotWrite, OodbenchError, UsageError

HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)  # errors, by system, if another process holds the lock
PART = ".oodbench-part"  # ends the names that write_atomically gives to files before it renames them; no one else's do
HALF_WRITTEN = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(PART)}")
DEVICES = Path("/dev")
STUDY = "study.json"  # in the folder of several runs
MOST_TEXT = 2**24  # bytes of a file of text; parsed, it takes up to thirty times as many
DataRoots = str | Path | Sequence[str | Path] | None  # where data sets and weights are: one folder or several, or the default
DAY = 24 * 60 * 60  # seconds
_locks: "weakref.WeakSet[IO[str]]" = weakref.WeakSet()  # files of this process


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


def data_roots(given: DataRoots = None) -> list[Path]:
    """The data roots, in the order in which they are searched: those given, else those in ``$OODBENCH_DATA``, separated as in
    ``$PATH``, else the cache folder; absolute paths. What is written goes to the first."""
    if isinstance(given, str | os.PathLike):
        given = [given] if given else []
    named = [*(given or ())] or [root for root in os.environ.get("OODBENCH_DATA", "").split(os.pathsep) if root]
    return [Path(root).absolute() for root in dict.fromkeys(named or [cache_root()])]


def without_private(text: str) -> str:
    """The text with the working folder as ``.`` and the user's home folder as ``~``, as others need not know them."""
    with suppress(OSError, RuntimeError):  # the working folder was deleted, or there is no home
        for pattern, sign in _private(Path.cwd(), Path.home()):
            text = pattern.sub(sign, text)
    return text


@cache
def _private(working: Path, home: Path) -> list[tuple[re.Pattern[str], str]]:
    signs = {path: sign for folder, sign in ((home, "~"), (working, ".")) for path in (folder, folder.resolve())}
    longest = sorted((path for path in signs if len(path.parts) > 1), key=lambda path: -len(path.parts))
    return [(re.compile(rf"(?:(?<![\w./\\-])|(?<=://)){re.escape(str(path))}(?![\w-]|\.\w)"), signs[path]) for path in longest]


def visible(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern, sorted, without hidden ones: macOS adds a file ``._NAME`` to each on some disks."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


@contextmanager
def separate_cache(data: DataRoots = None) -> Iterator[None]:
    """Use an empty temporary cache folder, so that no earlier training is reused and nothing is kept; data roots stay."""
    before = {name: os.environ.get(name) for name in ("OODBENCH_CACHE", "OODBENCH_DATA")}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(OODBENCH_CACHE=folder, OODBENCH_DATA=os.pathsep.join(map(str, data_roots(data))))
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def require_regular(path: Path) -> None:
    """Raise BadData for a pipe, a device or a folder in place of a file, because reading it may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadData(f"{path} is not a regular file; replace it with one, or remove it")


def read_small(path: Path, most: int = MOST_TEXT) -> bytes:
    """The content of a file of text. Raises BadData for one of more than ``most`` bytes, or as ``require_regular``."""
    require_regular(path)
    if (size := path.stat().st_size) > most:
        raise BadData(f"{path} has {size:,} bytes, more than {most:,} for a file of text; shorten it, or name another")
    return path.read_bytes()


def require_no_link(path: Path) -> None:
    """Raise BadData for a link where oodbench writes or deletes, because its target may belong to something else."""
    if path.is_symlink():
        raise BadData(f"{path} is a link to {os.readlink(path)}, and oodbench writes nothing through it; remove the link")


def require_run_folder(path: Path) -> None:
    """Raise UsageError for anything but a run folder."""
    if not any((path / name).exists() for name in ("run.json", "passes", "cells")):
        if is_study(path):
            raise UsageError(f"{path} holds several runs; name one of the folders in it")
        if not os.path.exists(path):  # also where the name is too long to exist
            raise UsageError(f"{path} does not exist; name a folder that `oodbench run` wrote")
        raise UsageError(f"{path} is not a run folder (it has no run.json); name one that `oodbench run` wrote")


def is_study(path: Path) -> bool:
    """Whether a folder is that of several runs."""
    return os.path.isfile(path / STUDY)  # also where the name is too long to exist


def require_own_folder(path: Path) -> None:
    """Raise BadData for anything but a folder where oodbench keeps a folder of its own; it may be missing."""
    require_no_link(path)
    if path.exists() and not path.is_dir():
        raise BadData(f"{path} is not a folder; move it elsewhere")


def require_own_file(path: Path) -> None:
    """Raise BadData for anything but a regular file where oodbench keeps a file of its own; it may be missing."""
    require_no_link(path)
    if path.exists():
        require_regular(path)


def open_lock(path: Path) -> IO[str]:
    """Open a file to lock, and create it if it is missing. Its content stays, and a process forked later does not hold it.

    Raises BadData for a link, and for anything but a regular file.
    """
    require_own_file(path)
    no_link = getattr(os, "O_NOFOLLOW", 0)  # in case one appears meanwhile
    file = open(path, "a", opener=lambda name, flags: os.open(name, flags | no_link, 0o666))  # noqa: SIM115
    _locks.add(file)
    return file


def _close_locks() -> None:
    for file in list(_locks):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)  # a child that outlives a killed process would hold its locks


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


@contextmanager
def gone_without(folder: Path, own: Sequence[str], result: Callable[[], object]) -> Iterator[None]:
    """Delete what was made here, if an error ends this context before there is a result.

    That is ``own``, names of files and of empty folders, and the folder itself and those above it. What was there before stays.
    """
    made = [path for path in [*(folder / name for name in own), folder, *folder.parents] if not os.path.lexists(path)]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for path in made if not result() else ():
                path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        raise


def _is_device(path: Path) -> bool:
    """Whether a file there is a device, such as ``/dev/null``, or stands for one, such as the link ``/dev/stdout``."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or path.parent.resolve() == DEVICES


def write_atomically(path: Path, data: bytes | Callable[[IO[bytes]], None]) -> None:
    """Write the whole file or nothing, even after a kill or power cut: these bytes, or what a function writes into it.

    A killed process may leave a file beside it with a name as in ``HALF_WRITTEN``. Raises CannotWrite if the file cannot be
    written, and what the function raises.
    """
    try:
        if _is_device(path):
            raise OSError(errno.EINVAL, "it is a device")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:50]}.", suffix=PART, delete=False) as file:
            try:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    data(file)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
                _keep_renames(path.parent)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)  # gone if an interrupt came right after it was renamed
                raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) and path.parent.exists()
        needed = f"{len(data):,} bytes, " if isinstance(data, bytes) else ""
        room = f" ({needed}{shutil.disk_usage(path.parent).free:,} free)" if full else ""
        raise CannotWrite(
            f"cannot write {path}{room}: {error.strerror or error}; free space there or {_elsewhere(path)}"
        ) from error


def _keep_renames(folder: Path) -> None:
    """Make the renames in a folder outlive a power cut, where the system offers that for folders."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _elsewhere(path: Path) -> str:
    with suppress(OodbenchError):
        if path.is_relative_to(cache_root()):
            return "set OODBENCH_CACHE to another folder"
    return "choose another folder"


def size(count: int) -> str:
    """``1.2 GB``."""
    for unit, of in (("GB", 10**9), ("MB", 10**6)):
        if count >= of:
            return f"{count / of:.1f} {unit}"
    return f"{max(1, count // 1000)} kB"


def sweep_cache() -> None:
    """Delete what killed processes left half written in the cache more than a day ago; a running one may write the rest."""
    with suppress(OodbenchError, OSError):
        root = cache_root()
        for folder in (root / "models", root / "prepared", root / "images", *root.glob("adversarial/*")):
            for path in folder.glob(".*"):
                old = time.time() - path.lstat().st_mtime > DAY
                if old and HALF_WRITTEN.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                    path.unlink()
