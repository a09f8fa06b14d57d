"""Critical differences: average ranks over independent sets, and which of them Nemenyi's test does not tell apart."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from oodbench.errors import BadData, counted
from oodbench.leaderboard.aggregate import figures_by_set
from oodbench.leaderboard.plots.column import ROOM, Block, Panel, Row, by_group, rows_by_protocol, stacked
from oodbench.leaderboard.plots.picture import COLOURS, LINE, MARGIN, SMALL, Picture, fitted, folded, width_of
from oodbench.results.ranks import average_ranks, critical_difference, friedman, groups

FEWEST = 6  # independent sets below which nothing is said of differences
LEVEL = 0.05
STEP = 0.125  # inches from one row to the next
AXIS = 0.34
SCALE = 0.2  # inches above the rows, for the critical difference
LANE = 0.05  # inches between bars
MOST = 1.45  # inches that a name takes
OVERALL = ("mean", "all", "")
BAR: dict[str, Any] = {"color": "#000000", "linewidth": 1.6, "solid_capstyle": "butt"}
REMARK = (
    "Average rank of AUROC over independent sets, 1 is best: the corruptions of one base count as one set, and so do the"
    " attacks on it."
)
BARS = " Bars at the right join rows whose ranks differ by less than the critical difference of Nemenyi's test at 5 %."
NO_RANKS = "no protocol has two rows with figures on all sets, so there are no ranks; oodbench leaderboard says what is missing"


class Ranking(NamedTuple):
    """Average ranks of the rows of a protocol that have figures on all sets, the best first."""

    protocol: str
    rows: list[tuple[Row, float]]
    sets: int  # independent ones
    said: str  # what can be said of differences, and what is left out
    joined: list[tuple[int, int]]  # first and last place of rows that do not differ
    difference: float  # the critical difference, 0 where there is none


def ranked(frame: pd.DataFrame) -> bool:
    """Whether some protocol of a table has two rows with figures on all sets, the controls apart."""
    return any(rows for _, cells in by_group(frame) for _, rows, _ in _ranked(cells, None))


def rankings(cells: pd.DataFrame, top: int | None = None) -> list[Ranking]:
    """The ranking of each protocol of one model and in-distribution set with two rows or more that have all figures."""
    by_set, found = figures_by_set(cells), []
    for name, rows, left_out in _ranked(cells, top):
        figures = by_set.loc[[row.key for row in rows]].dropna(axis=1, how="all").to_numpy().T  # (sets, rows)
        ranks = average_ranks(figures)
        order = np.argsort(ranks, kind="stable")
        said, joined, difference = _verdict(figures, ranks[order])
        lacking = [row.name for row in left_out if not row.control]
        controls = [row.name for row in left_out if row.control]
        parts = [said, *([f"Left out: {', '.join(controls)}."] if controls else [])]
        parts += [f"Left out, because some sets have no figure: {', '.join(lacking)}."] if lacking else []
        in_order = [(rows[place], float(ranks[place])) for place in order]
        found.append(Ranking(name, in_order, len(figures), " ".join(parts), joined, difference))
    return found


def figure(frame: pd.DataFrame, scores: object, top: int | None) -> Picture:
    """The picture. Raises BadData where no protocol has two rows with figures on all sets."""
    blocks = []
    for title, cells in by_group(frame):
        found = rankings(cells, top)
        bars = any(ranking.joined for ranking in found)
        blocks += [Block(title, [*map(_panel, found)], REMARK + BARS * bars)] if found else []
    if not blocks:
        raise BadData(NO_RANKS)
    return stacked("Critical differences", blocks)


def _ranked(cells: pd.DataFrame, top: int | None) -> list[tuple[str, list[Row], list[Row]]]:
    """The protocols with two rows or more that have figures on all sets: their names, these rows, and the others."""
    found, protocols = rows_by_protocol(cells, len(cells) if top is None else top)
    whole = found.cells[OVERALL] == found.filled[OVERALL]
    each = []
    for name, rows in protocols:
        complete = [row for row in rows if not row.control and whole[row.key]]
        if len(complete) > 1:
            each.append((name, complete, [row for row in rows if row not in complete]))
    return each


def _panel(ranking: Ranking) -> Panel:
    lines = folded(ranking.said, ROOM, SMALL, lines=12)
    height = LINE * SMALL * len(lines) + (SCALE if ranking.difference else 0.06) + STEP * len(ranking.rows) + AXIS
    draw = partial(_draw, rows=ranking.rows, joined=ranking.joined, difference=ranking.difference, lines=lines)
    return Panel(f"{ranking.protocol}, {counted(ranking.sets, 'independent set')}", height, draw)


def _verdict(figures: np.ndarray, ranks: np.ndarray) -> tuple[str, list[tuple[int, int]], float]:
    """What can be said of differences, the groups that do not differ, and the critical difference (0: not shown)."""
    sets, rows = figures.shape
    if sets < FEWEST:
        return f"Fewer than {FEWEST} independent sets: too few to say which ranks differ.", [], 0.0
    difference = critical_difference(rows, sets)
    joined = groups(ranks, difference)
    if rows < 3:
        return f"Critical difference {difference:.2f}.", joined, difference
    p = friedman(figures)
    shown = f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
    if p >= LEVEL:
        return f"Friedman's test finds no difference ({shown}).", [], 0.0
    return f"Friedman's test: {shown}. Critical difference {difference:.1f} between {rows} rows.", joined, difference


def _draw(
    picture: Picture,
    top: float,
    rows: list[tuple[Row, float]],
    joined: list[tuple[int, int]],
    difference: float,
    lines: list[str],
) -> None:
    for line in lines:
        picture.write(MARGIN, top, line, fontsize=SMALL, color="#444444")
        top += LINE * SMALL
    at_lanes = lanes(joined)
    names = [f"{fitted(row.name, MOST - width_of(f' {rank:.1f}', SMALL), SMALL)} {rank:.1f}" for row, rank in rows]
    left = MARGIN + max(width_of(name, SMALL) for name in names) + 0.06
    right = LANE * (max(at_lanes, default=-1) + 1) + 0.1
    width, height = ROOM + MARGIN - left - right, STEP * len(rows)
    top += SCALE if difference else 0.06
    axes = picture.panel(left, top, width, height)
    most = len(rows)
    axes.set(xlim=(0.5, most + 0.03 * most), ylim=(len(rows) - 0.5, -0.5))
    axes.hlines(range(len(rows)), axes.get_xlim()[0], [rank for _, rank in rows], color="#DDDDDD", linewidth=0.5, zorder=1)
    axes.scatter([rank for _, rank in rows], range(len(rows)), s=9, color=COLOURS[1], zorder=3, linewidth=0)
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("average rank")
    axes.locator_params(axis="x", nbins=5, integer=True, steps=[1, 2, 5, 10])
    if difference:
        _scale(axes, difference, most)
    for (first, last), lane in zip(joined, at_lanes, strict=True):
        at = 1 + (0.06 + LANE * (lane + 0.5)) / width  # in widths of the plot
        axes.plot([at, at], [first - 0.3, last + 0.3], transform=axes.get_yaxis_transform(), clip_on=False, **BAR)


def _scale(axes: Any, difference: float, most: int) -> None:
    """The critical difference above the plot, to the scale of its axis as far as that reaches."""
    end, low = min(1 + difference, most), -0.5
    y = low - 0.45
    axes.plot([1, end], [y, y], color="#000000", linewidth=0.8, clip_on=False)
    for x in (1, *([end] if end == 1 + difference else [])):
        axes.plot([x, x], [y - 0.25, y + 0.25], color="#000000", linewidth=0.8, clip_on=False)
    axes.text(
        1, y - 0.35, f"critical difference {difference:.1f}", fontsize=SMALL - 1, va="bottom", ha="left", parse_math=False
    )


def lanes(joined: list[tuple[int, int]]) -> list[int]:
    """A lane for each bar, so that bars in one do not touch."""
    ends: list[int] = []
    found = []
    for first, last in joined:
        lane = next((lane for lane, end in enumerate(ends) if end < first), len(ends))
        ends[lane:] = [last, *ends[lane + 1 :]]
        found.append(lane)
    return found
