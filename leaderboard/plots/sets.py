"""The sets whose scores a picture shows: those of one checkpoint and seed, and of a corruption its highest level."""

import pandas as pd

from oodbench.datasets.name import heading
from oodbench.errors import BadData, UsageError
from oodbench.leaderboard.aggregate import BENIGN, GROUP, KINDS, SET, unique_cells
from oodbench.leaderboard.labels import label
from oodbench.leaderboard.plots.stored import StoredScores

ALONE = "hist and roc need the scores of a run; call plot() of its Results, or oodbench leaderboard RUN --plot"


def scored_cells(frame: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The cells with scores, each set once, and what to call it: ``set``. Raises BadData where there are none."""
    cells = unique_cells(frame)
    cells = cells[cells["status"] == "ok"]
    if cells.empty:
        raise BadData(f"no cell has scores, so there is nothing to draw as {kind}; oodbench leaderboard says why")
    cells = cells[cells["seed"] == cells["seed"].min()]
    cells = cells[cells["checkpoint"] == cells.groupby(GROUP)["checkpoint"].transform("first")]
    highest = cells.groupby(SET, sort=False)["level"].transform("max")
    cells = cells[cells["level"].isna() | (cells["level"] == highest)]
    names = [
        heading(label("dataset", name if pd.isna(level) else f"{name}@{level:.0f}", content))
        for name, level, content in cells[["dataset", "level", "content"]].itertuples(index=False, name=None)
    ]
    return cells.assign(set=names)


def in_order(cells: pd.DataFrame) -> list[str]:
    """Names of the sets by kind, benign ones last, as in tables; within a kind as in the frame."""
    kinds = [*(kind for kind in KINDS if kind != BENIGN), *sorted(set(cells["kind"]) - set(KINDS)), BENIGN]
    each = cells[["set", "kind"]].drop_duplicates("set")
    return each.assign(rank=each["kind"].map(kinds.index)).sort_values("rank", kind="stable")["set"].tolist()


def readable(scores: StoredScores | None) -> StoredScores:
    """The reader of scores. Raises UsageError where there is none."""
    if scores is None:
        raise UsageError(ALONE)
    return scores
