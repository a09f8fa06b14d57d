"""Leaderboards: from a frame with a row a cell to means, pivots and text. Pure functions, which read and write no files."""

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "COLUMNS": "oodbench.leaderboard.aggregate",
    "means": "oodbench.leaderboard.aggregate",
    "pivot": "oodbench.leaderboard.aggregate",
    "render": "oodbench.leaderboard.formats",
}

__all__ = ["COLUMNS", "means", "pivot", "render"]

if TYPE_CHECKING:
    from oodbench.leaderboard.aggregate import COLUMNS, means, pivot
    from oodbench.leaderboard.formats import render


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'oodbench.leaderboard' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
