"""Bars: AUROC of the best detectors and the controls with its interval, one panel per protocol."""

from functools import partial
from typing import Any

import pandas as pd

from oodbench.errors import BadData
from oodbench.leaderboard.aggregate import APART, tally
from oodbench.leaderboard.labels import label
from oodbench.leaderboard.plots.column import Block, Panel, Row, by_group, rows_by_protocol, stacked
from oodbench.leaderboard.plots.picture import CHANCE, COLOURS, COLUMN, MARGIN, SMALL, Picture, fitted, width_of

BAR = 0.16  # inches from one to the next
AXIS = 0.3
FIGURE = 0.34  # inches, right of the bars
MOST = 1.5  # inches that a name takes
CHANCE_LEVEL = 50.0
OVERALL = ("mean", "all", "")
NO_FIGURES = "no cell has a figure, so there are no bars; oodbench leaderboard says why"


def figure(frame: pd.DataFrame, scores: object, top: int | None) -> Picture:
    """The picture. Raises BadData where no cell has a figure."""
    blocks = []
    for title, cells in by_group(frame):
        found, protocols = rows_by_protocol(cells, top)
        # The mean of intervals covers a mean of figures at least as often as each of them covers its own, however the sets
        # depend on each other: a standard deviation of a mean is at most the mean of the standard deviations.
        bounds = (cells.assign(auroc=cells[name]) for name in ("auroc_low", "auroc_high"))
        ends = [tally(of_bound).values.reindex(found.values.index) for of_bound in bounds]
        columns = [100 * part[OVERALL] for part in (found.values, *ends)]
        of = pd.concat(columns, axis=1, keys=["auroc", "low", "high"])
        of["whole"] = found.cells[OVERALL] == found.filled[OVERALL]
        sets = _sets(cells)
        remark = f"Bars begin at chance, {CHANCE_LEVEL:.0f}. Whiskers: 95 % interval"
        remark += ", mean over the sets." if len(sets) > 1 else "."
        remark += " *: mean of fewer cells, because some have no figure." if not of["whole"].all() else ""
        over = f"on {sets[0]}" if len(sets) == 1 else "mean over all sets"
        panels = [Panel(name, BAR * len(rows) + AXIS, partial(_bars, rows=rows, of=of, over=over)) for name, rows in protocols]
        blocks += [Block(title, panels, remark)] if panels else []
    if not blocks:
        raise BadData(NO_FIGURES)
    return stacked("AUROC", blocks)


def _sets(cells: pd.DataFrame) -> list[str]:
    """Names of the sets that a mean over all sets is over."""
    counted = cells[~cells["kind"].isin(APART) & (cells["status"] == "ok")]
    names = counted[["dataset", "content"]].drop_duplicates().itertuples(index=False, name=None)
    return [label("dataset", *name) for name in names]


def _bars(picture: Picture, top: float, rows: list[Row], of: pd.DataFrame, over: str) -> None:
    names = [fitted(row.name, MOST, SMALL) for row in rows]
    left = MARGIN + max(width_of(name, SMALL) for name in names) + 0.06
    width = COLUMN - MARGIN - FIGURE - left
    axes = picture.panel(left, top, width, BAR * len(rows))
    figures = of.loc[[row.key for row in rows]]
    lowest = float(figures[["auroc", "low"]].min().min())
    axes.set(xlim=(CHANCE_LEVEL if lowest >= CHANCE_LEVEL else max(0, 10 * (lowest // 10)), 100), ylim=(len(rows) - 0.5, -0.5))
    axes.axvline(CHANCE_LEVEL, **CHANCE)
    for place, (row, (auroc, low, high, whole)) in enumerate(zip(rows, figures.itertuples(index=False), strict=True)):
        paint: dict[str, Any] = {"color": COLOURS[3]}
        if row.control:
            paint = {"facecolor": "white", "edgecolor": "#555555", "hatch": "/////", "linewidth": 0.6}
        axes.barh(place, auroc - CHANCE_LEVEL, 0.66, left=CHANCE_LEVEL, zorder=2, **paint)
        if pd.notna(low) and pd.notna(high):
            axes.errorbar(
                auroc, place, xerr=[[max(0, auroc - low)], [max(0, high - auroc)]],
                color="#000000", capsize=1.6, elinewidth=0.8, capthick=0.8, zorder=3,
            )  # fmt: skip
        text = f"{auroc:.1f}{'' if whole else '*'}"
        axes.annotate(
            text, (1, place), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center_baseline",
            fontsize=SMALL, parse_math=False, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(fitted(f"AUROC ×100, {over}", width + FIGURE), parse_math=False)
