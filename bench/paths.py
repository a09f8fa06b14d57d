"""Locations of data, weights and caches, and writing a file whole or not at all."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oodbench.errors import OodbenchError


def cache_root() -> Path:
    """``$OODBENCH_CACHE``, else ``oodbench`` in the user's cache folder of this system."""
    if given := os.environ.get("OODBENCH_CACHE"):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "oodbench"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "oodbench"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "oodbench"


def data_root(given: str | Path | None = None) -> Path:
    """The data root: the given one, else ``$OODBENCH_DATA``, else the cache folder."""
    return Path(given or os.environ.get("OODBENCH_DATA") or cache_root())


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


def write_atomically(path: Path, data: bytes) -> None:
    """Write the whole file or nothing, even after a kill or power cut. Raises OodbenchError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
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
