"""Leaderboards: from a frame with one row per cell to means, pivots and text, without writing files.

``frame`` reads a run folder, ``gather`` several of them; everything else is pure functions: ``selection`` chooses cells,
``aggregate`` makes numbers, ``notes`` what must be said about them, ``text_table`` tables of them, and ``text``, ``markdown``
and ``latex`` write these.
"""

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "COLUMNS": "oodbench.leaderboard.aggregate",
    "means": "oodbench.leaderboard.aggregate",
    "pivot": "oodbench.leaderboard.aggregate",
    "render": "oodbench.leaderboard.formats",
    "select": "oodbench.leaderboard.selection",
}

__all__ = ["COLUMNS", "means", "pivot", "render", "select"]

if TYPE_CHECKING:
    from oodbench.leaderboard.aggregate import COLUMNS, means, pivot
    from oodbench.leaderboard.formats import render
    from oodbench.leaderboard.selection import select


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'oodbench.leaderboard' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
