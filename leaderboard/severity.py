"""Severity curves: how AUROC moves with the level of a corruption, by detector and protocol.

A curve belongs to a row of the table, a base and a corruption: ``digits+haze`` is haze made of the base ``digits``,
``cifar10c/fog`` the fog that the base ``cifar10c`` holds. Pure functions; ``severity_plot`` draws what they give.
"""

import math
from typing import Any

import pandas as pd

from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import GROUP, METRICS, ROW, base, corruption, corruptions_of, tally, unique_cells
from oodbench.leaderboard.text_table import Column, Section, row_breaks, row_labels

BLOCKS = "▁▂▃▄▅▆▇█"
CHANCE = 0.5  # AUROC at the foot of a sparkline, of chance and of all that is worse
CURVE = [*ROW, "base"]
PLOT = [*GROUP, "base"]


def curves(frame: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """One row a detector, protocol, base and corruption, one column a level: a fraction, the mean over seeds.

    The index is ``model in_distribution protocol detector base corruption``: rows of the table in its order, then
    corruptions in that of the frame. NaN where a cell has no figure or is not there; empty where no corruption has a
    level. Raises UsageError for an unknown metric, BadData where the frame lacks columns.
    """
    rows = {row: place for place, row in enumerate(tally(frame, metric).values.index)}
    cells = unique_cells(frame)
    cells = cells[(cells["kind"] == "corruption") & cells["level"].notna()]
    cells = cells.assign(
        level=cells["level"].astype(int),
        base=[base("corruption", name) for name in cells["dataset"]],
        corruption=[corruption(name) for name in cells["dataset"]],
        figure=cells[metric].where(cells["status"] == "ok"),
    )
    index = pd.MultiIndex.from_frame(cells[[*CURVE, "corruption"]].drop_duplicates())
    bases, names = ({name: i for i, name in enumerate(cells[of].unique())} for of in ("base", "corruption"))
    order = sorted(index, key=lambda key: (rows[key[:4]], bases[key[4]], names[key[5]]))
    found = cells.groupby([*index.names, "level"])["figure"].mean().unstack("level")
    return found.reindex(pd.MultiIndex.from_tuples(order, names=index.names)) if order else found


def severity(frame: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """One row a detector, protocol and base: the mean over the base's corruptions at each level.

    Columns are ``model in_distribution protocol detector base``; for each level L there is ``L`` (the mean, a fraction)
    and ``L corruptions`` (how many stand behind it); ``corruptions`` is how many have a figure in any row at any level.
    Sorts and raises as ``curves``.
    """
    by_corruption = curves(frame, metric)
    grouped = by_corruption.groupby(CURVE, sort=False)
    values, counts = grouped.mean(), grouped.count()
    names = by_corruption.dropna(how="all").index.to_frame(index=False).groupby(PLOT)["corruption"].nunique()
    table = values.index.to_frame(index=False)
    for level in values.columns:
        table[str(level)] = values[level].to_numpy()
        table[f"{level} corruptions"] = counts[level].to_numpy()
    table["corruptions"] = names.reindex(pd.MultiIndex.from_frame(table[PLOT]), fill_value=0).to_numpy()
    return table


def sections(frame: pd.DataFrame) -> list[Section]:
    """A table for people for each model, in-distribution set and base: AUROC by level, and a sparkline of it.

    None where no corruption has two levels.
    """
    found, by_corruption = severity(frame), curves(frame)
    levels = [name for name in found.columns if f"{name} corruptions" in found.columns]
    tables: list[Section] = []
    if len(levels) < 2:
        return tables
    for key, table in found.groupby(PLOT, sort=False):
        rows = list(table[["protocol", "detector"]].itertuples(index=False, name=None))
        texts = {
            level: [_figure(*row) for row in table[[level, f"{level} corruptions", "corruptions"]].values] for level in levels
        }
        over = escape.plain(averaged(frame, by_corruption, key))
        caption = [f"{METRICS['auroc'][0]} ×100 by level of severity, mean over {over}."]
        caption.append(f"{BLOCKS[0]} is {100 * CHANCE:.0f} or less, {BLOCKS[-1]} 100.")
        if any(" (" in text for column in texts.values() for text in column):
            caption.append("(k/n): only k of n corruptions have figures.")
        tables.append(
            Section(
                title=f"Severity: {key[0]}, in-distribution {key[1]}",
                caption=" ".join(caption),
                labels=row_labels(rows),
                sets=[Column("level" if level == levels[0] else "", (level,), texts[level]) for level in levels],
                summary=[Column("", ("curve",), [sparkline(values) for values in table[levels].to_numpy().tolist()])],
                breaks=row_breaks(rows),
                notes=[],
            )
        )
    return tables


def averaged(frame: pd.DataFrame, by_corruption: pd.DataFrame, key: tuple[Any, ...]) -> str:
    """What the means of a model, in-distribution set and base are over, and what has no figure in any row."""
    datasets = frame.loc[(frame[GROUP] == list(key[:2])).all(axis=1) & (frame["kind"] == "corruption"), "dataset"].unique()
    table = by_corruption.dropna(how="all").reset_index()
    measured = set(table.loc[(table[PLOT] == list(key)).all(axis=1), "corruption"])
    mine = [name for name in datasets if base("corruption", name) == key[2]]
    without = [corruption(name) for name in mine if corruption(name) not in measured]
    over = corruptions_of(key[2], [name for name in mine if corruption(name) not in without])
    return f"{over}; without figures: {', '.join(without)}" if without else over


def sparkline(values: list[float]) -> str:
    """One character a level, blank where there is no figure."""
    steps = len(BLOCKS)
    return "".join(
        " " if math.isnan(value) else BLOCKS[min(steps - 1, max(0, int((value - CHANCE) / (1 - CHANCE) * steps)))]
        for value in values
    )


def _figure(value: float, count: float, of: float) -> str:
    if not count:
        return "–"
    return f"{100 * value:.1f}" if count == of else f"{100 * value:.1f} ({count:.0f}/{of:.0f})"
