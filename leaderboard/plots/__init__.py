"""Pictures of leaderboards: one module per kind, ``picture`` for the style that they share.

matplotlib is imported when a picture is drawn, not before.
"""

import importlib
from typing import TYPE_CHECKING

import pandas as pd

from oodbench.errors import UsageError
from oodbench.registry import unknown

if TYPE_CHECKING:
    from oodbench.leaderboard.plots.picture import Picture
    from oodbench.leaderboard.plots.stored import StoredScores

KINDS = ("bars", "cd", "cost", "hist", "roc", "severity")  # each a module here
RECOGNITION = ("reliability", "generalization")  # in ``plots.recognition``, from another frame
TASKS = ("curve", "mapping")  # in ``plots.tasks``, from run folders of other tasks
FORMATS = ("png", "svg", "pdf")


def figure(kind: str, frame: pd.DataFrame, scores: "StoredScores | None" = None, top: int | None = None) -> "Picture":
    """A picture of a frame with one row per cell, as a matplotlib Figure.

    Args:
        kind: ``bars`` (AUROC and its interval), ``cd`` (average ranks over sets, and which differ), ``cost`` (AUROC against
            milliseconds per image), ``hist`` (scores of the best detector on each set), ``roc`` (curves on the first set of
            the table) or ``severity`` (AUROC by level).
        frame: what ``gather`` gives, or ``Results.frame()``; all of its cells are drawn, so select before.
        scores: where ``hist`` and ``roc`` read the scores of a cell.
        top: the best rows of each protocol that are drawn, beside the controls; by default 10, for ``cd`` and ``severity`` all.

    Raises UsageError for an unknown kind, BadData where the frame lacks what the picture shows.
    """
    if kind not in KINDS:
        known = (*KINDS, *RECOGNITION, *TASKS)
        raise UsageError(unknown("picture", kind, known, f"one of {', '.join(known)}"))
    module = importlib.import_module(f"oodbench.leaderboard.plots.{kind}")
    from oodbench.leaderboard.plots.picture import styled

    with styled():
        found: Picture = module.figure(frame, scores, top)
    return found


def draw(
    kind: str, frame: pd.DataFrame, format: str = "png", scores: "StoredScores | None" = None, top: int | None = None
) -> bytes:
    """The file of ``figure`` as png, svg or pdf: the same bytes for the same cells.

    Raises as ``figure``, and UsageError for another format.
    """
    require_format(format)
    return figure(kind, frame, scores, top).rendered(format)


def require_format(format: str) -> None:
    """Raise UsageError for a picture format that there is not."""
    if format not in FORMATS:
        raise UsageError(unknown("picture format", format, FORMATS, f"one of {', '.join(FORMATS)}"))
