"""Cost: AUROC against milliseconds per image on a logarithmic axis, one panel per protocol."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from oodbench.errors import BadData
from oodbench.leaderboard.aggregate import COST, costs
from oodbench.leaderboard.plots.column import Block, Panel, Row, by_group, rows_by_protocol, stacked
from oodbench.leaderboard.plots.picture import CHANCE, COLOURS, COLUMN, MARGIN, SMALL, Picture, fitted, width_of

Box = tuple[float, float, float, float]  # inches: left, bottom, right, top

LEFT, RIGHT = 0.36, 0.1  # inches beside the plot
HEIGHT, AXIS = 2.3, 0.34
SIZE = SMALL - 1  # points of a name
TALL = SIZE * 1.15 / 72  # inches of a name
WIDEST = 1.3
OVERALL = ("mean", "all", "")
FRONT = "The line is the Pareto front: detectors that no other detector beats in both cost and AUROC, without the controls."
NO_COSTS = "no row has both a figure and a cost, because no costs were measured; run again without --no-costs"
# Where a name may stand beside its point, best first: inches right and up, and the share of its width that is left of that.
BESIDE = [(side * 0.06, up * d, (1 - side) / 2) for d in (0.0, 0.09, 0.18, 0.28, 0.4) for up in (1, -1) for side in (1, -1)]
PLACES = [*BESIDE, *((0.0, up * d, 0.5) for d in (0.09, 0.2, 0.3, 0.5) for up in (1, -1))]


def figure(frame: pd.DataFrame, scores: object, top: int | None) -> Picture:
    """The picture. Raises BadData where no row has both a figure and a cost."""
    blocks = []
    for title, cells in by_group(frame):
        found, protocols = rows_by_protocol(cells, top)
        of = pd.DataFrame({"ms": costs(cells)[COST[0]], "auroc": 100 * found.values[OVERALL]}).reindex(found.values.index)
        panels = []
        for name, rows in protocols:
            if rows := [row for row in rows if of.loc[row.key].notna().all() and of.loc[row.key, "ms"] > 0]:
                panels.append(Panel(name, HEIGHT + AXIS, partial(_panel, rows=rows, of=of)))
        blocks += [Block(title, panels, f"Hollow: controls. AUROC is the mean over all sets. {FRONT}")] if panels else []
    if not blocks:
        raise BadData(NO_COSTS)
    return stacked("Cost", blocks)


def _panel(picture: Picture, top: float, rows: list[Row], of: pd.DataFrame) -> None:
    width = COLUMN - 2 * MARGIN - LEFT - RIGHT
    axes = picture.panel(MARGIN + LEFT, top, width, HEIGHT)
    points = of.loc[[row.key for row in rows]].to_numpy()
    low, high = points.min(0), points.max(0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    spread = max(0.15, 0.12 * float(np.log10(high[0] / low[0])))
    axes.set_xlim(low[0] / 10**spread, high[0] * 10**spread)
    room = max(1.0, 0.08 * (high[1] - low[1]))
    axes.set_ylim(max(-1, low[1] - room), min(101, high[1] + room))
    front = points[pareto_front(points, [row.control for row in rows])]
    axes.plot(*front.T, drawstyle="steps-post", color="#AAAAAA", linewidth=0.7, zorder=1)
    if low[1] < 55:
        axes.axhline(50, **CHANCE)
    for row, point in zip(rows, points, strict=True):
        inside, edge = ("white", "#555555") if row.control else (COLOURS[1], COLOURS[1])
        axes.scatter(point[0], point[1], s=11, linewidth=0.7, zorder=3, facecolor=inside, edgecolor=edge)
    axes.set_xlabel("time per image (ms, log scale)")
    axes.set_ylabel("AUROC ×100")
    _name_points(axes, rows, points, (width, HEIGHT))


def pareto_front(points: np.ndarray, apart: Sequence[bool]) -> list[int]:
    """The rows of ``points`` (N, 2), cost and figure, that no other row dominates, in order of cost.

    Rows that are ``apart`` are left out. Of equal rows, the first is on the front.
    """
    front: list[int] = []
    for place in np.lexsort((-points[:, 1], points[:, 0])):
        if not apart[place] and (not front or points[place, 1] > points[front[-1], 1]):
            front.append(int(place))
    return front


def _name_points(axes: Axes, rows: list[Row], points: np.ndarray, size: tuple[float, float]) -> None:
    """A name beside each point, in a place that is free; a thin line leads to it where it is far."""
    to_inches = axes.transData + axes.transAxes.inverted()
    inches = to_inches.transform(points) * size
    marks = [_around(point, 0.035) for point in inches]
    taken: list[Box] = []
    for row, mark, (x, y) in zip(rows, marks, inches, strict=True):
        name = fitted(row.name, WIDEST, SIZE)
        wide = width_of(name, SIZE) + 0.03
        starts = [(x + dx - share * wide, y + dy - TALL / 2) for dx, dy, share in PLACES]
        boxes = [(left, bottom, left + wide, bottom + TALL) for left, bottom in starts]
        inside = [box for box in boxes if min(box) >= 0 and box[2] <= size[0] + RIGHT and box[3] <= size[1] + 0.1]
        others = [*taken, *(other for other in marks if other is not mark)]
        crowded = [_crowded(box, _leader((x, y), box), others) for box in inside or boxes]
        place = (inside or boxes)[crowded.index(min(crowded))]
        leader = _leader((x, y), place)
        taken += [place, *(_around(point, 0.01) for point in leader)]
        left, bottom, right, top = place
        axes.text(
            (left + right) / 2 / size[0], (bottom + top) / 2 / size[1], name, transform=axes.transAxes,
            fontsize=SIZE, ha="center", va="center", parse_math=False, zorder=4,
        )  # fmt: skip
        if len(leader):
            axes.plot(*(leader / size).T, transform=axes.transAxes, color="#AAAAAA", linewidth=0.4, zorder=2)


def _leader(point: tuple[float, float], box: Box) -> np.ndarray:
    """Points (8, 2) of the line from a point to a name, or none (0, 2) where the name is beside it."""
    nearest = np.clip(point, (box[0], box[1] + TALL / 4), (box[2], box[3] - TALL / 4))
    return np.linspace(point, nearest, 8) if np.hypot(*(nearest - point)) > 0.08 else np.empty((0, 2))


def _around(point: np.ndarray, distance: float) -> Box:
    x, y = point
    return x - distance, y - distance, x + distance, y + distance


def _crowded(box: Box, leader: np.ndarray, others: list[Box]) -> float:
    """How bad a place is: square inches that a name and its leader share with others, and a little for the leader's length."""
    length = float(np.hypot(*(leader[-1] - leader[0]))) if len(leader) else 0.0
    line = [_around(point, 0.02) for point in leader if np.hypot(*(point - leader[0])) > 0.06]  # points may be as close as that
    return 0.005 * length + sum(_shared(part, other) for part in (box, *line) for other in others)


def _shared(one: Box, other: Box) -> float:
    wide, high = (min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1))
    return max(0.0, wide) * max(0.0, high)
