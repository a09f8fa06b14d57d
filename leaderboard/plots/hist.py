"""Histograms of stored scores: the best detector, in-distribution images against those of each set."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from oodbench.leaderboard.aggregate import GROUP, ROW
from oodbench.leaderboard.plots.column import ROOM, Block, Panel, by_group, rows_by_protocol, stacked
from oodbench.leaderboard.plots.picture import KEY_LINE, LINE, MARGIN, SMALL, Picture, fitted, width_of
from oodbench.leaderboard.plots.sets import in_order, readable, scored_cells
from oodbench.leaderboard.plots.stored import StoredScores

BINS = 30
ACROSS = 2
LEFT = 0.32  # inches left of a plot, for its ticks and the title of its axis
SIZE = ((ROOM - ACROSS * LEFT) / ACROSS - 0.1, 0.75)
STEP = SIZE[1] + 0.42  # from one plot to the one below
INSIDE: dict[str, Any] = {"color": "#BBBBBB", "linewidth": 4}
OUTSIDE: dict[str, Any] = {"color": "#882255", "linewidth": 1.0}
THRESHOLD: dict[str, Any] = {"color": "#000000", "linewidth": 0.6, "linestyle": (0, (2, 2))}
LEGEND = {
    "in-distribution images": INSIDE,
    "images of the set": OUTSIDE,
    "threshold that accepts 95 % of in-distribution images": THRESHOLD,
}
REMARK = "Above each plot: the set, and AUROC ×100. A higher score is more anomalous; the outer bins hold all scores beyond."


def figure(frame: pd.DataFrame, scores: StoredScores | None, top: int | None) -> Picture:
    """The picture. Raises BadData where no cell has scores, UsageError without scores."""
    scores = readable(scores)
    blocks = []
    scored = scored_cells(frame, "hist")
    for title, of_group in by_group(frame):
        cells = scored[(scored[GROUP] == of_group[GROUP].iloc[0]).all(axis=1)]
        if cells.empty:
            continue
        _, protocols = rows_by_protocol(of_group, None)
        if not protocols:  # benign sets alone
            _, protocols = rows_by_protocol(of_group.assign(kind="far-ood"), None)
        protocol, rows = protocols[0]
        best = next((row for row in rows if not row.control), rows[0])
        mine = cells[(cells[ROW] == list(best.key)).all(axis=1)]
        by_name = {cell["set"]: cell for cell in mine.to_dict("records")}
        plots = [(name, by_name[name]["auroc"], *scores.of(by_name[name])) for name in in_order(mine)]
        height = KEY_LINE * len(LEGEND) + 0.12 + STEP * -(-len(plots) // ACROSS) + LINE * SMALL
        heading = f"{best.name}, {protocol}"
        blocks.append(Block(title, [Panel(heading, height, partial(_plots, plots=plots))], REMARK))
    return stacked("Scores", blocks)


def binned(in_scores: np.ndarray, out_scores: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], float]:
    """Edges of the bins, percentages of either side in each, and the threshold that accepts 95 % of in-distribution images.

    The bins span the central 96 % of either side; the outer ones hold all scores beyond.
    """
    ends = [np.quantile(part, (0.02, 0.98)) for part in (in_scores, out_scores)]
    low, high = min(of[0] for of in ends), max(of[1] for of in ends)
    if not low < high:  # all scores are equal
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, BINS + 1)
    shares = [100 * np.histogram(part.clip(low, high), edges)[0] / len(part) for part in (in_scores, out_scores)]
    return edges, shares, float(np.quantile(in_scores, 0.95, method="inverted_cdf").clip(low, high))


def _plots(picture: Picture, top: float, plots: list[tuple[str, float, np.ndarray, np.ndarray]]) -> None:
    for name, look in LEGEND.items():
        picture.key(MARGIN, top, name, look)
        top += KEY_LINE
    top += 0.12 + LINE * SMALL
    for place, (name, auroc, in_scores, out_scores) in enumerate(plots):
        line, column = divmod(place, ACROSS)
        left = MARGIN + LEFT + column * ROOM / ACROSS
        axes = picture.panel(left, top + line * STEP, *SIZE)
        edges, shares, threshold = binned(in_scores, out_scores)
        axes.stairs(shares[0], edges, fill=True, color=INSIDE["color"], zorder=1)
        axes.stairs(shares[1], edges, zorder=2, **OUTSIDE)
        axes.axvline(threshold, zorder=3, **THRESHOLD)
        axes.set_xlim(edges[0], edges[-1])
        axes.locator_params(axis="x", nbins=4)
        axes.locator_params(axis="y", nbins=3)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 4), useOffset=False, useMathText=False)
        axes.xaxis.get_offset_text().set_fontsize(SMALL - 1)
        figure = f" {100 * auroc:.1f}"
        room = SIZE[0] + LEFT - 0.02 - width_of(figure, SMALL)
        axes.set_title(fitted(name, room, SMALL) + figure, loc="left", fontsize=SMALL, parse_math=False)
        if column == 0:
            axes.set_ylabel("images (%)", fontsize=SMALL)
        if place + ACROSS >= len(plots):
            axes.set_xlabel("score", fontsize=SMALL)
