"""The tables of tasks other than detection, by task: how a frame is read from run folders, and how it is written."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from oodbench.errors import UsageError
from oodbench.leaderboard.gather import not_run
from oodbench.leaderboard.tasks import active_learning, quality
from oodbench.leaderboard.text_table import TextTable
from oodbench.results.folder import RunFolder

DETECTION = "detection"


class Table(NamedTuple):
    """How the tables of one task are made."""

    title: str
    columns: Sequence[str]
    frame: Callable[[Sequence[RunFolder]], pd.DataFrame]
    tables: Callable[[pd.DataFrame], list[TextTable]]
    render: Callable[..., str]
    takes: frozenset[str]  # options of ``render`` that ``oodbench leaderboard`` offers


TABLES = {
    "quality": Table(
        "Image quality",
        quality.COLUMNS,
        quality.quality_frame,
        quality.tables,
        quality.render_quality,
        frozenset({"metric", "intervals"}),
    ),
    "active-learning": Table(
        "Active learning",
        active_learning.COLUMNS,
        active_learning.active_learning_frame,
        active_learning.tables,
        active_learning.render_active_learning,
        frozenset({"intervals"}),
    ),
}


def task_of(folders: Sequence[RunFolder]) -> str:
    """The task of the runs: ``detection``, or one of ``TABLES``. Raises UsageError if they have several."""
    found = {str(folder.manifest().settings.get("task", DETECTION)): folder.path for folder in folders}
    if len(found) > 1:
        (one, path), (other, of) = list(found.items())[:2]
        raise UsageError(f"{path} is a run of {one}, and {of} one of {other}; name runs of one task")
    return next(iter(found))


def render_task(task: str, folders: Sequence[RunFolder], format: str = "table", **options: Any) -> str:
    """The tables of a task as text; options as of its ``render``."""
    return TABLES[task].render(TABLES[task].frame(folders), format, notes=not_run(folders), **options)
