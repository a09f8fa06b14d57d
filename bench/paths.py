"""Where data, weights and caches lie."""

import os
import sys
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
    """The data root: what is given, else ``$OODBENCH_DATA``, else the cache folder."""
    return Path(given or os.environ.get("OODBENCH_DATA") or cache_root())
