"""Pictures as wide as a column of a paper: panels below each other, one for each protocol of a model and its sets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from oodbench.leaderboard.aggregate import CONTROLS, GROUP, Tally, qualified, tally
from oodbench.leaderboard.labels import label
from oodbench.leaderboard.plots.picture import (
    COLUMN,
    CONTROL_COLOURS,
    LINE,
    MARGIN,
    NORMAL,
    TITLE,
    Picture,
    fitted,
    folded,
    look,
)
from oodbench.leaderboard.text_table import best_rows, row_labels, title_of

BEST = 10  # rows of a protocol beside the controls
ROOM = COLUMN - 2 * MARGIN
GAP = 0.16  # inches between panels


@dataclass(frozen=True)
class Row:
    """A row of the table in a picture."""

    key: tuple[Any, ...]  # of ``ROW``
    name: str
    control: bool
    look: dict[str, Any]  # of its line


@dataclass(frozen=True)
class Panel:
    """What stands below a heading: ``draw(picture, top)`` fills ``height`` inches."""

    heading: str
    height: float
    draw: Callable[[Picture, float], None]


@dataclass(frozen=True)
class Block:
    """The panels of one model and in-distribution set, and a line or more on how to read them."""

    title: str
    panels: Sequence[Panel]
    remark: str = ""


def rows_by_protocol(cells: pd.DataFrame, top: int | None) -> tuple[Tally, list[tuple[str, list[Row]]]]:
    """The figures of one model and in-distribution set, and for each protocol the best rows that have one, and the controls."""
    found = tally(cells)
    found = Tally(*(part[found.values[("mean", "all", "")].notna()] if len(part) else part for part in found))
    keys = found.values.index.to_frame(index=False)
    keys = keys.iloc[best_rows(keys, BEST if top is None else top)].reset_index(drop=True)
    blocks = []
    by_protocol: Any = keys.groupby(["protocol", "source"], sort=False)
    for protocol, of in by_protocol:
        controls = of["detector"].isin(CONTROLS).tolist()
        rows, names = list(of.itertuples(index=False, name=None)), row_labels(of)[0].texts
        looks = [
            {"color": CONTROL_COLOURS[sum(controls[:place]) % 2], "linestyle": (0, (3, 1.5, 1, 1.5))}
            if controls[place]
            else look(place - sum(controls[:place]))
            for place in range(len(rows))
        ]
        blocks.append((label("protocol", *protocol), [Row(*one) for one in zip(rows, names, controls, looks, strict=True)]))
    return found, blocks


def by_group(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The title and the cells of each model and in-distribution set."""
    groups = qualified(frame).groupby(GROUP, sort=False)
    return [(title_of(cells), cells) for _, cells in groups]


def stacked(kind: str, blocks: Sequence[Block]) -> Picture:
    """The panels of all blocks below each other."""
    titles = [folded(f"{kind}: {block.title}", ROOM, TITLE, lines=3, bold=True) for block in blocks]
    remarks = [folded(block.remark, ROOM, NORMAL, lines=6) if block.remark else [] for block in blocks]
    height, heading = MARGIN, LINE * NORMAL + 0.04
    for title, block, remark in zip(titles, blocks, remarks, strict=True):
        height += LINE * (TITLE * len(title) + NORMAL * len(remark)) + GAP
        height += sum(heading + panel.height + GAP for panel in block.panels)
    picture, top = Picture(COLUMN, height), MARGIN
    for title, block, remark in zip(titles, blocks, remarks, strict=True):
        for line in title:
            picture.write(MARGIN, top, line, fontsize=TITLE, fontweight="bold")
            top += LINE * TITLE
        for line in remark:
            picture.write(MARGIN, top, line, color="#444444")
            top += LINE * NORMAL
        top += GAP
        for panel in block.panels:
            picture.write(MARGIN, top, fitted(panel.heading, ROOM, bold=True), fontweight="bold")
            top += heading
            panel.draw(picture, top)
            top += panel.height + GAP
    return picture
