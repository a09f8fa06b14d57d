"""Charts of a site, as coordinates that its templates draw as SVG: small, with text as text, in the colours of the page.

They show what the pictures of ``oodbench leaderboard --plot`` show, and the computations are theirs.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import CONTROL, COST, ROW, costs
from oodbench.leaderboard.plots.cd import Ranking, lanes, rankings
from oodbench.leaderboard.plots.cost import pareto_front
from oodbench.leaderboard.plots.hist import BINS, binned
from oodbench.leaderboard.plots.sets import in_order, scored_cells
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.leaderboard.severity import curves_by_row
from oodbench.leaderboard.site.board import Board
from oodbench.leaderboard.text_table import three_digits

WIDE, HIGH = 560.0, 300.0  # of the chart of costs; macros.html has these sizes too
Lines = dict[tuple[Any, ...], dict[tuple[str, str, str], "pd.Series[float]"]]
SMALL = (150.0, 84.0)  # of small charts
LETTER = 6.6  # width of a letter of a name, at most on average
# Where a name may stand, seen from its point, best first.
BESIDE = [(8, 4, "start"), (-8, 4, "end"), (0, -9, "middle"), (0, 17, "middle"), (6, -10, "start"), (6, 18, "start"),
          (-6, -10, "end"), (-6, 18, "end"), (0, -22, "middle"), (0, 30, "middle"), (4, -22, "start")]  # fmt: skip
STEP = 17.0  # from one row of ranks to the next
OVERALL = ("mean", "all", "")
MOST_HISTOGRAMS = 12  # of a detector under one protocol


class Point(NamedTuple):
    """A detector in the chart of costs."""

    x: float
    y: float
    name: str
    control: bool
    at: tuple[float, float, str] | None  # where its name stands, and from which end; None: no room
    cost: str
    figure: str


class CostChart(NamedTuple):
    """AUROC against milliseconds per image, on a logarithmic axis."""

    protocol: str
    points: list[Point]
    front: str  # path of the Pareto front, empty where only controls have costs
    names: list[str]  # of the detectors on it, the fastest first
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


class Ranks(NamedTuple):
    """A critical-difference diagram."""

    ranking: Ranking
    rows: list[tuple[float, float, str, str]]  # x, y, name, rank
    bars: list[tuple[float, float, float]]  # x, and both ends
    difference: float  # length of the critical difference, as far as the axis reaches
    height: float
    left: float  # room for the names
    ticks: list[tuple[float, str]]


class Curve(NamedTuple):
    """AUROC by level of one corruption, of a row and of the control."""

    corruption: str
    row: str  # paths
    control: str
    figures: list[tuple[int, str]]  # by level


class Histogram(NamedTuple):
    """Scores on one set."""

    name: str
    auroc: str
    inside: str  # paths
    outside: str
    threshold: float  # its place


def cost_charts(board: Board) -> list[CostChart]:
    """A chart for each protocol in which two rows have both a cost and a mean over all sets."""
    found = []
    of_rows = costs(board.frame)[COST[0]].reindex(board.tally.values.index).to_numpy()
    figures = 100 * board.tally.values[OVERALL].to_numpy()
    for protocol, places in board.protocols.items():
        places = [place for place in places if of_rows[place] > 0 and not np.isnan(figures[place])]
        if len(places) < 2:
            continue
        points = np.stack([of_rows[places], figures[places]], 1)
        rows = [board.rows[place] for place in places]
        front = pareto_front(points, [row.control for row in rows])
        (low, bottom), (high, top) = points.min(0), points.max(0)
        left, right = math.log10(low) - 0.1, math.log10(high) + 0.25
        step = 5 if top - bottom <= 30 else 10
        bottom, top = max(0.0, step * math.floor(bottom / step - 0.2)), min(100.0, step * math.ceil(top / step + 0.2))
        xs = WIDE * (np.log10(points[:, 0]) - left) / (right - left)
        ys = HIGH * (top - points[:, 1]) / (top - bottom)
        named = sorted({*front, *(at for at, row in enumerate(rows) if row.control)}, key=lambda at: not rows[at].control)
        places_of_names = _places({at: rows[at].detector for at in named}, np.stack([xs, ys], 1))
        each = [
            Point(xs[at], ys[at], row.detector, row.control, places_of_names.get(at), three_digits(ms), f"{figure:.1f}")
            for at, (row, (ms, figure)) in enumerate(zip(rows, points, strict=True))
        ]
        steps = [f"M{xs[at]:.1f} {ys[at]:.1f}" if at == front[0] else f"H{xs[at]:.1f} V{ys[at]:.1f}" for at in front]
        ticks = [n * 10.0**power for power in range(math.floor(left), math.ceil(right) + 1) for n in (1, 2, 5)]
        x_ticks = [
            (WIDE * (math.log10(tick) - left) / (right - left), f"{tick:g}")
            for tick in ticks
            if left <= math.log10(tick) <= right
        ]
        y_ticks = [(HIGH * (top - tick) / (top - bottom), f"{tick:g}") for tick in np.arange(bottom, top + 1, step)]
        found.append(CostChart(protocol, each, " ".join(steps), [rows[at].detector for at in front], x_ticks, y_ticks))
    return found


def _places(names: dict[int, str], points: np.ndarray) -> dict[int, tuple[float, float, str]]:
    """A place for each name beside its point that covers no other name or point, as far as there is room, in this order."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    found = {}
    for at, name in names.items():
        (x, y), wide = points[at], LETTER * len(name)
        for dx, dy, anchor in BESIDE:
            left = x + dx - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
            box = left, y + dy - 9, left + wide, y + dy + 2
            inside = box[0] >= 0 and box[2] <= WIDE + 20 and box[1] >= -10 and box[3] <= HIGH
            if inside and not any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in taken):
                taken.append(box)
                found[at] = (x + dx, y + dy, anchor)
                break
    return found


def rank_charts(board: Board) -> list[Ranks]:
    """A diagram for each protocol with two rows or more that have figures on all sets."""
    found = []
    for ranking in rankings(board.frame):
        most = len(ranking.rows)

        def place(rank: float, most: int = most) -> float:
            return WIDE * (rank - 1) / max(1, most - 1)

        rows = [(place(rank), STEP * (at + 0.5), row.name, f"{rank:.1f}") for at, (row, rank) in enumerate(ranking.rows)]
        bars = [
            (WIDE + 12 + 7 * lane, STEP * (first + 0.15), STEP * (last + 0.85))
            for (first, last), lane in zip(ranking.joined, lanes(ranking.joined), strict=True)
        ]
        step = max(1, round(most / 8))
        ticks = [(place(rank), str(rank)) for rank in range(1, most + 1, step)]
        length = place(min(1 + ranking.difference, most)) if ranking.difference else 0.0
        left = 20 + LETTER * max(len(f"{escape.shortened(name)} {rank}") for _, _, name, rank in rows)
        found.append(Ranks(ranking, rows, bars, length, STEP * most, left, ticks))
    return found


def lines_of(board: Board) -> Lines:
    """AUROC by level of each corruption, by row."""
    found: Lines = {}
    index: Any
    for index, line in curves_by_row(board.frame).dropna(axis=1, how="all").iterrows():
        found.setdefault(index[: len(ROW)], {})[index[len(ROW) :]] = line
    return found


def curves(lines: Lines, key: tuple[Any, ...]) -> list[Curve]:
    """The curves of a row, of corruptions with two levels, each beside the control's."""
    control = (*key[: ROW.index("detector")], CONTROL, "")
    others = {} if key == control else lines.get(control, {})
    own = {of: line for of, line in lines.get(key, {}).items() if line.notna().sum() > 1}
    several = len({base for base, *_ in own}) > 1
    found = []
    for of, line in own.items():
        base, corruption, _ = of
        levels: Any = line.dropna().items()
        figures = [(int(level), f"{100 * value:.1f}") for level, value in levels]
        path = _path(others[of]) if of in others else ""
        found.append(Curve(f"{base}, {corruption}" if several else corruption, _path(line), path, figures))
    return found


def _path(line: "pd.Series[float]") -> str:
    """Levels from left to right, 100 at the top and 40 or less at the bottom."""
    wide, high = SMALL
    steps = max(1, len(line) - 1)
    places = [(wide * at / steps, high * min(1.0, (1 - value) / 0.6)) for at, value in enumerate(line) if not pd.isna(value)]
    return "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in places) if places else ""


def histograms(board: Board, key: tuple[Any, ...], scores: StoredScores) -> tuple[list[Histogram], int]:
    """The scores of a row on the first sets of the table, a corruption at its highest level, and how many sets there are."""
    mine = board.frame.iloc[board.places[key]]
    if not (mine["status"] == "ok").any():
        return [], 0
    cells = scored_cells(mine, "hist")
    by_name = {cell["set"]: cell for cell in cells.to_dict("records")}
    names = in_order(cells)
    found = []
    for name in names[:MOST_HISTOGRAMS]:
        inside, outside = scores.of(by_name[name])
        edges, shares, threshold = binned(inside, outside)
        most = max(1e-9, *(float(of.max()) for of in shares))
        at = SMALL[0] * (threshold - edges[0]) / (edges[-1] - edges[0])
        inner, outer = (_stairs(of / most) for of in shares)
        found.append(Histogram(name, f"{100 * by_name[name]['auroc']:.1f}", inner, outer, at))
    return found, len(names)


def _stairs(shares: np.ndarray) -> str:
    """Bins from left to right as one outline."""
    wide, high = SMALL
    step = wide / BINS
    heights = (high * (1 - share) for share in shares)
    parts = (f"H{step * at:.1f} V{y:.1f} H{step * (at + 1):.1f}" for at, y in enumerate(heights))
    return f"M0 {high} {' '.join(parts)} V{high} Z"
