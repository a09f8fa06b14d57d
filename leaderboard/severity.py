"""Severity curves: how AUROC moves with the level of a corruption, by detector and protocol.

A curve belongs to a row of the table, a base and a corruption: ``digits+haze`` is haze made of the base ``digits``,
``cifar10c/fog`` the fog that the base ``cifar10c`` holds. Pure functions; ``plots.severity`` draws what they give.
"""

import math
from typing import Any

import pandas as pd

from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import (
    GROUP,
    MEAN,
    METRICS,
    ROW,
    base,
    corruption,
    corruptions_of,
    qualified,
    tally,
    unique_cells,
    without_qualifiers,
)
from oodbench.leaderboard.text_table import Column, TextTable, best_rows, row_breaks, row_labels, rows_shown, title_of

BLOCKS = "▁▂▃▄▅▆▇█"
CHANCE = 0.5  # AUROC at the foot of a sparkline, of chance and of all that is worse
CURVE = [*ROW, "base"]
PLOT = [*GROUP, "base"]
INDEX = [*CURVE, "corruption", "content"]


def curves(frame: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """One row per detector, protocol, base and corruption, one column per level: a fraction, the mean over repeats.

    The index is ``model in_distribution protocol detector base corruption`` (and those of ``QUALIFIERS`` that the frame
    has): rows of the table in its order, then corruptions in that of the frame. NaN where a cell has no figure or does not
    exist; empty where no corruption has a level. Raises UsageError for an unknown metric, BadData where the frame lacks
    columns.
    """
    found = curves_by_row(frame, metric)
    kept = without_qualifiers(found.index, frame)
    return found.droplevel([name for name in found.index.names if name not in kept])


def curves_by_row(frame: pd.DataFrame, metric: str = "auroc", sort: str = MEAN) -> pd.DataFrame:
    """As ``curves``, with all of ``INDEX``, in the order that ``tally`` gives with ``sort``."""
    cells = unique_cells(frame)
    rows = tally(cells, metric, sort).values.index
    cells = cells[(cells["kind"] == "corruption") & cells["level"].notna()]
    names = cells["dataset"].unique()
    bases, corruptions = ({name: part(name) for name in names} for part in (lambda name: base("corruption", name), corruption))
    cells = cells.assign(
        level=cells["level"].astype(int),
        base=cells["dataset"].map(bases),
        corruption=cells["dataset"].map(corruptions),
        figure=cells[metric].where(cells["status"] == "ok"),
    )
    found = cells.groupby([*INDEX, "level"])["figure"].mean().unstack("level")
    order = cells[INDEX].drop_duplicates()
    order = order.assign(
        row=rows.get_indexer(pd.MultiIndex.from_frame(order[ROW])),
        base_rank=order["base"].map({name: place for place, name in enumerate(order["base"].unique())}),
        rank=order["corruption"].map({name: place for place, name in enumerate(order["corruption"].unique())}),
    ).sort_values(["row", "base_rank", "rank"], kind="stable")
    return found.reindex(pd.MultiIndex.from_frame(order[INDEX]))


def severity(frame: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """One row per detector, protocol and base: the mean over the base's corruptions at each level.

    Columns are ``model in_distribution protocol detector base`` (and those of ``QUALIFIERS`` that the frame has); for each
    level L there is ``L`` (the mean, a fraction) and ``L corruptions`` (how many stand behind it); ``corruptions`` is how
    many have a figure in any row at any level. Sorts and raises as ``curves``.
    """
    found = severity_of(curves_by_row(frame, metric))
    gone = set(CURVE) - set(without_qualifiers(pd.MultiIndex.from_frame(found[CURVE]), frame))
    return found.drop(columns=list(gone))


def severity_of(by_corruption: pd.DataFrame) -> pd.DataFrame:
    """``severity`` of what ``curves_by_row`` gives, with all of ``CURVE``."""
    grouped = by_corruption.groupby(CURVE, sort=False)
    values, counts = grouped.mean(), grouped.count()
    names = by_corruption.dropna(how="all").index.to_frame(index=False).groupby(PLOT)[["corruption", "content"]]
    kinds = names.apply(lambda of: len(of.drop_duplicates())) if len(by_corruption.dropna(how="all")) else pd.Series(dtype=int)
    table = values.index.to_frame(index=False)
    for level in values.columns:
        table[str(level)] = values[level].to_numpy()
        table[f"{level} corruptions"] = counts[level].to_numpy()
    table["corruptions"] = kinds.reindex(pd.MultiIndex.from_frame(table[PLOT]), fill_value=0).to_numpy()
    return table


def text_tables(frame: pd.DataFrame, top: int | None = None, sort: str = MEAN) -> list[TextTable]:
    """A table for people for each model, in-distribution set and base: AUROC by level, and a sparkline of it.

    With ``top``, only that many rows per protocol, and the controls. None where no corruption has two levels.
    """
    by_corruption = curves_by_row(frame, sort=sort)
    levels = [str(level) for level in by_corruption.columns]
    if len(levels) < 2:
        return []
    sets = qualified(frame)[[*GROUP, "kind", "dataset"]].drop_duplicates()
    tables = severity_of(by_corruption).groupby(PLOT, sort=False)
    return [_text_table(sets, by_corruption, table, levels, top) for _, table in tables]


def _text_table(
    sets: pd.DataFrame, by_corruption: pd.DataFrame, table: pd.DataFrame, levels: list[str], top: int | None
) -> TextTable:
    rows = table.reset_index(drop=True)
    shown = best_rows(rows, top)
    left_out = rows_shown(rows, shown)
    rows = rows.iloc[shown]
    texts = {level: [_figure(*row) for row in rows[[level, f"{level} corruptions", "corruptions"]].values] for level in levels}
    over = escape.plain(averaged(sets, by_corruption, rows.iloc[0]))
    caption = [f"{METRICS['auroc'][0]} ×100 by level of severity, mean over {over}."]
    caption.append(f"{BLOCKS[0]} is {100 * CHANCE:.0f} or less, {BLOCKS[-1]} 100.")
    counts = rows[[f"{level} corruptions" for level in levels]]
    if ((counts > 0) & counts.lt(rows["corruptions"], axis=0)).any(axis=None):
        caption.append("(k/n): only k of n corruptions have figures.")
    return TextTable(
        title=f"Severity: {title_of(rows)}",
        caption=" ".join(caption + left_out),
        labels=row_labels(rows),
        sets=[Column("level" if level == levels[0] else "", (level,), texts[level]) for level in levels],
        summary=[Column("", ("curve",), [sparkline(values) for values in rows[levels].to_numpy().tolist()])],
        breaks=row_breaks(rows),
    )


def averaged(sets: pd.DataFrame, by_corruption: pd.DataFrame, key: "pd.Series[Any]") -> str:
    """What the means of a model, in-distribution set and base (``PLOT``) are over, and what has no figure in any row."""
    mine = sets[(sets[GROUP] == key[GROUP]).all(axis=1) & (sets["kind"] == "corruption")]
    datasets = [name for name in mine["dataset"].unique() if base("corruption", name) == key["base"]]
    table = by_corruption.dropna(how="all").index.to_frame(index=False)
    measured = set(table.loc[(table[PLOT] == key[PLOT]).all(axis=1), "corruption"])
    without = [corruption(name) for name in datasets if corruption(name) not in measured]
    over = corruptions_of(key["base"], [name for name in datasets if corruption(name) not in without])
    return f"{over}; without figures: {', '.join(without)}" if without else over


def sparkline(values: list[float]) -> str:
    """One character per level, blank where there is no figure."""
    steps = len(BLOCKS)
    return "".join(
        " " if math.isnan(value) else BLOCKS[min(steps - 1, max(0, int((value - CHANCE) / (1 - CHANCE) * steps)))]
        for value in values
    )


def _figure(value: float, count: float, of: float) -> str:
    if not count:
        return "–"
    return f"{100 * value:.1f}" if count == of else f"{100 * value:.1f} ({count:.0f}/{of:.0f})"
