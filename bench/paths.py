"""Locations of data, weights and caches."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
