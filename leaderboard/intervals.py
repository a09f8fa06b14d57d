"""Intervals of the figures of cells, computed from the scores that run folders keep: only AUROC's stand in their records."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from oodbench.errors import UsageError
from oodbench.leaderboard.aggregate import BENIGN, ENDS, ROW, SET, require_metric
from oodbench.results.intervals import FIGURES, Bootstrap, intervals_of
from oodbench.results.recompute import arrays_of

if TYPE_CHECKING:
    from oodbench.results.folder import RunFolder
    from oodbench.results.records import DetectionRecord

ALL = "all"  # in place of a metric
WITH_INTERVALS = ("auroc", *FIGURES)


def require_interval(metric: str) -> None:
    """Raise UsageError for a metric that has no interval."""
    require_metric(metric)
    if metric not in WITH_INTERVALS:
        raise UsageError(f"{metric} has no interval; choose one of {', '.join(WITH_INTERVALS)} with --metric")


def with_intervals(
    frame: pd.DataFrame, records: Sequence[tuple["RunFolder", "DetectionRecord"]], metric: str = ALL
) -> pd.DataFrame:
    """The frame with the ends of intervals, ``fpr95_low`` and the like: of all figures and cells, or as far as tables of
    ``metric`` show them. NaN where a cell has none.

    ``records``: the folder and record of each row, by the frame's index. Raises UsageError for a metric without intervals,
    and BadData where the scores of a record are missing or damaged.
    """
    wanted = frame["status"] == "ok"
    figures: dict[str, pd.Series[bool]] = dict.fromkeys(FIGURES, wanted)
    if metric != ALL:
        require_interval(metric)
        shown = wanted & ~frame.duplicated([*ROW, *SET], keep=False)  # others are averaged
        benign = frame["kind"] == BENIGN
        figures = {figure: shown & (benign & (figure == "fpr95") | ~benign & (figure == metric)) for figure in FIGURES}
    bootstraps: dict[int, Bootstrap] = {}
    ends: dict[str, dict[int, float]] = {name: {} for name in ENDS}
    for index in frame.index[pd.concat(figures, axis=1).any(axis=1)]:
        folder, record = records[index]
        asked = [figure for figure, of in figures.items() if of[index]]
        bootstrap = bootstraps.setdefault(record.seed, Bootstrap(record.seed))
        for figure, (low, high) in intervals_of(arrays_of(folder, record), asked, bootstrap=bootstrap).items():
            ends[f"{figure}_low"][index], ends[f"{figure}_high"][index] = low, high
    return frame.assign(**{name: pd.Series(values, dtype=float) for name, values in ends.items()})
