"""The boards of a site: the tables of a leaderboard, one for each model and in-distribution set, with all metrics.

The figures, the bold print and the captions are those of ``oodbench leaderboard``. Each column also has the order of the rows
by it, so that a page can sort without computing anything.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from oodbench.leaderboard.aggregate import (
    BENIGN,
    CONTROLS,
    COST,
    GROUP,
    METRICS,
    ROW,
    Tally,
    costs,
    higher_is_better,
    interval_ends,
    tally,
    unique_cells,
)
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.leaderboard.sentences import sentence
from oodbench.leaderboard.text_table import Column, TextTable, text_table

PAID = ("ms/image", "overhead")  # what tables call the columns of ``COST``
FIRST = "auroc"  # the metric that a page shows first, and the one that rows are ordered by


@dataclass(frozen=True)
class Row:
    """What names a row, and its cost."""

    detector: str  # as tables call it
    of: str  # the detector whose variant it is
    protocol: str  # as tables call it, with the set that transfer learnt from
    control: bool
    cost: tuple[str, ...]  # milliseconds per image, and multiples of a bare forward pass
    key: tuple[Any, ...]  # of ``ROW``


@dataclass(frozen=True)
class Order:
    """The rows in the order of one column: the best first, but rows that lack cells after the others, and those without a
    figure last."""

    ranks: list[int]  # the place of each row
    whole: int  # how many rows lack nothing
    measured: int  # how many rows have a figure
    higher: bool  # whether a higher figure is better


@dataclass(frozen=True)
class Shown:
    """A column of figures of one metric, row by row."""

    heading: Column
    name: str  # of the set, or of the kind that a mean is over
    content: str  # that tells it apart from others of its name
    intervals: list[str]  # empty where there is none
    order: Order

    @property
    def is_mean(self) -> bool:
        return self.heading.group == "mean"


@dataclass(frozen=True)
class Metric:
    """The columns of one metric, with the caption and the notes of its table."""

    name: str
    title: str
    caption: str
    notes: list[str]
    columns: list[Shown]

    @property
    def has_intervals(self) -> bool:
        return any(any(column.intervals) for column in self.columns)


@dataclass(frozen=True)
class Board:
    """One model and in-distribution set. Rows are in the order of the table of AUROC."""

    number: int
    title: str
    frame: pd.DataFrame = field(repr=False)  # one row per cell
    tally: Tally = field(repr=False)  # of AUROC
    table: TextTable = field(repr=False)  # of AUROC
    rows: list[Row]
    cost_orders: list[Order]  # of the two costs
    metrics: dict[str, Metric]

    @property
    def first(self) -> Metric:
        return self.metrics[FIRST]

    @cached_property
    def protocols(self) -> dict[str, list[int]]:
        """Places of the rows of each protocol, in the order of the table."""
        found: dict[str, list[int]] = {}
        for place, row in enumerate(self.rows):
            found.setdefault(row.protocol, []).append(place)
        return found

    @cached_property
    def places(self) -> Mapping[Hashable, Any]:
        """Places of the cells of each row in the frame, int (n,), by its key."""
        return self.frame.groupby(ROW, sort=False).indices


def boards(frame: pd.DataFrame, scores: StoredScores) -> list[Board]:
    """The boards of the frame that ``gather`` gives; ``scores`` decide which figures cannot be told from the best."""
    groups = frame.groupby(GROUP, sort=False)
    return [_board(number, cells, scores) for number, (_, cells) in enumerate(groups, 1)]


def _board(number: int, frame: pd.DataFrame, scores: StoredScores) -> Board:
    cells = unique_cells(frame)
    found = tally(cells, FIRST)
    order = found.values.index
    tables, metrics = {}, {}
    for metric in METRICS:
        ordered = found if metric == FIRST else Tally(*(part.reindex(order) for part in tally(cells, metric)))
        tables[metric] = table = text_table(frame, metric, bold=True, scores=scores, found=ordered)
        metrics[metric] = _metric(metric, cells, ordered, table)
    table = tables[FIRST]
    shown = {column.lines: column.texts for column in table.summary if column.group == "cost"}  # without empty ones
    paid = [shown.get((name,), [""] * len(order)) for name in PAID] if shown else []
    by_cost = costs(cells).reindex(order)
    labels = zip(*(column.texts for column in table.labels), strict=True)
    rows = [
        Row(
            name, str(key[ROW.index("detector")]).partition(":")[0], protocol, key[ROW.index("detector")] in CONTROLS, cost, key
        )
        for (name, protocol), cost, key in zip(
            labels, zip(*paid, strict=True) if paid else [()] * len(order), order, strict=True
        )
    ]
    complete = np.ones(len(order), bool)
    cost_orders = [_order(by_cost[name].to_numpy(), complete, higher=False) for name in COST] if paid else []
    return Board(number, table.title, frame, found, table, rows, cost_orders, metrics)


def _metric(metric: str, cells: pd.DataFrame, found: Tally, table: TextTable) -> Metric:
    low, high = _ends(metric, cells, found)
    means = [column for column in table.summary if column.group == "mean"]
    headings = iter([*table.sets, *means[1:], *means[:1]])  # as in a tally, where the mean over all sets comes last
    columns = []
    keys: Any = found.values.columns
    for place, (group, name, content) in enumerate(keys):
        if group == "mean" and not found.present.iloc[:, place].any():
            continue  # tables leave out empty means
        whole = (found.filled if group == "mean" else found.expected).iloc[:, place]
        ends = zip(low.iloc[:, place], high.iloc[:, place], strict=True)
        intervals = ["" if pd.isna(a) else f"[{100 * a:.1f}, {100 * b:.1f}]" for a, b in ends]
        complete = (found.cells.iloc[:, place] == whole).to_numpy()
        order = _order(found.values.iloc[:, place].to_numpy(), complete, higher_is_better(metric, group, name))
        columns.append(Shown(next(headings), name, content, intervals, order))
    notes = [sentence(note) for note in table.notes]
    ordered = [*(column for column in columns if column.is_mean), *(column for column in columns if not column.is_mean)]
    first = [column for column in ordered if column.is_mean and column.name == "all"]
    return Metric(metric, METRICS[metric][0], table.caption, notes, [*first, *(one for one in ordered if one not in first)])


def _ends(metric: str, cells: pd.DataFrame, found: Tally) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Ends of intervals, NaN where the frame does not have those of this metric."""
    own = cells[cells["kind"] != BENIGN].get(f"{metric}_low")
    if metric == FIRST or (own is not None and own.notna().any()):
        return interval_ends(cells, metric, found.values)
    return (found.values * float("nan"),) * 2


def _order(values: np.ndarray, complete: np.ndarray, higher: bool) -> Order:
    missing = np.isnan(values)
    order = np.lexsort((np.nan_to_num(-values if higher else values, nan=np.inf), ~complete, missing))
    ranks = np.empty(len(order), int)
    ranks[order] = np.arange(len(order))
    return Order(ranks.tolist(), int((complete & ~missing).sum()), int((~missing).sum()), higher)
