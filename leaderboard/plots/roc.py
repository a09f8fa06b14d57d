"""ROC curves from stored scores: the best detectors and the controls on one set, one panel per protocol."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from oodbench.leaderboard.aggregate import ROW
from oodbench.leaderboard.plots.column import ROOM, Block, Panel, Row, by_group, rows_by_protocol, stacked
from oodbench.leaderboard.plots.picture import CHANCE, KEY_LINE, KEY_MARK, MARGIN, SMALL, Picture, fitted, width_of
from oodbench.leaderboard.plots.sets import in_order, readable, scored_cells
from oodbench.leaderboard.plots.stored import StoredScores

SIDE = 2.4  # inches of the square
AXIS = 0.34
REMARK = "Behind each name: AUROC ×100. Dotted: chance."


def figure(frame: pd.DataFrame, scores: StoredScores | None, top: int | None) -> Picture:
    """The picture. Raises BadData where no cell has scores, UsageError without scores."""
    scores = readable(scores)
    blocks = []
    for title, of_group in by_group(scored_cells(frame, "roc")):
        name = in_order(of_group)[0]
        cells = of_group[of_group["set"] == name]
        _, protocols = rows_by_protocol(cells.assign(kind="far-ood"), top)  # benign sets have curves too
        place = {tuple(cell[part] for part in ROW): cell for cell in cells.to_dict("records")}
        panels = []
        for heading, rows in protocols:
            curves = [(row, place[row.key]["auroc"], *_curve(*scores.of(place[row.key]))) for row in rows]
            across = 2 if max(map(_width, curves)) <= ROOM / 2 else 1
            height = SIDE + AXIS + KEY_LINE * -(-len(rows) // across)
            panels.append(Panel(heading, height, partial(_panel, curves=curves, across=across)))
        blocks.append(Block(f"{title}, against {name}", panels, REMARK))
    return stacked("ROC", blocks)


def _curve(in_scores: np.ndarray, out_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rejected in-distribution and anomalous images in percent, by threshold; ties are a slope."""
    from sklearn.metrics import roc_curve

    sides = np.concatenate([np.zeros(len(in_scores)), np.ones(len(out_scores))])
    rejected_in, rejected_out, _ = roc_curve(sides, np.concatenate([in_scores, out_scores]))
    return 100 * rejected_in, 100 * rejected_out


def _width(curve: tuple[Row, float, Any, Any]) -> float:
    return KEY_MARK + width_of(f"{curve[0].name} {100 * curve[1]:.1f}", SMALL) + 0.1


def _panel(picture: Picture, top: float, curves: list[tuple[Row, float, np.ndarray, np.ndarray]], across: int) -> None:
    axes = picture.panel(MARGIN + (ROOM - SIDE) / 2 + 0.15, top, SIDE, SIDE)
    axes.plot([0, 100], [0, 100], **CHANCE)
    for row, _, rejected_in, rejected_out in reversed(curves):  # the best on top
        axes.plot(rejected_in, rejected_out, linewidth=0.9, zorder=2, **row.look)
    ticks = range(0, 101, 20)
    axes.set(xlim=(-1, 101), ylim=(-1, 101), xticks=ticks, yticks=ticks)
    axes.set_xlabel("in-distribution images rejected (%)")
    axes.set_ylabel("anomalous images rejected (%)")
    lines = -(-len(curves) // across)
    for place, (row, auroc, _, _) in enumerate(curves):
        column, line = divmod(place, lines)
        name = fitted(row.name, ROOM / across - KEY_MARK - 0.1 - width_of(" 100.0", SMALL), SMALL)
        left = MARGIN + column * ROOM / across
        picture.key(left, top + SIDE + AXIS + line * KEY_LINE, f"{name} {100 * auroc:.1f}", row.look | {"linewidth": 1.1})
