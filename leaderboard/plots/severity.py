"""Severity curves as a picture: one panel per row of the table, AUROC against the level of corruption.

Thin lines are corruptions, the thick one is their mean; a hollow mark says that some corruption has no figure there.
Names come from anybody's plug-ins: they are drawn as they are, never as formulas.
"""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from oodbench.errors import BadData
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import GROUP, qualified
from oodbench.leaderboard.labels import label
from oodbench.leaderboard.plots.picture import (
    CHANCE,
    KEY_LINE,
    KEY_MARK,
    LINE,
    MARGIN,
    SMALL,
    TITLE,
    Picture,
    fitted,
    folded,
    look,
    width_of,
)
from oodbench.leaderboard.severity import CHANCE as AT_CHANCE
from oodbench.leaderboard.severity import PLOT, averaged, curves_by_row, severity_of
from oodbench.leaderboard.text_table import best_rows, row_labels, title_of

# Panels side by side: as many as a page holds, or twice as many where there are more lines than a page holds.
ACROSS, MANY = 4, 16
# Inches.
PANEL, GAP = (1.5, 1.1), (0.14, 0.42)
LEFT = 0.5
HEADING, AXIS, BETWEEN = 0.5, 0.32, 0.1  # above the panels of a protocol with their names, below them, and between protocols
WIDEST = 1.9  # a name in the legend
NAME = 7.5
WHOSE = ["protocol", "source", "detector", "settings"]  # curves a panel shows

MEAN_LOOK: dict[str, Any] = {"color": "#222222", "linestyle": "-", "linewidth": 1.8, "markersize": 3.2, "markeredgewidth": 0.8}
NO_LEVELS = "no corruption has figures at two levels, so there is no severity curve; run one at several levels"


def figure(frame: pd.DataFrame, scores: object, top: int | None) -> Picture:
    """The picture: one block per model, in-distribution set and base; in it one panel per detector and protocol, in the
    order of the table. Raises BadData where no corruption has figures at two levels.
    """
    sets = qualified(frame)[[*GROUP, "kind", "dataset"]].drop_duplicates()
    by_corruption = curves_by_row(frame).dropna(axis=1, how="all")
    if len(by_corruption.columns) < 2:
        raise BadData(NO_LEVELS)
    tables = severity_of(by_corruption).groupby(PLOT, sort=False)
    blocks = [_Block(sets, by_corruption, key, rows.reset_index(drop=True), top) for key, rows in tables]
    across = ACROSS if max(len(rows) for block in blocks for _, rows in block.protocols) <= MANY else 2 * ACROSS
    width = LEFT + across * (PANEL[0] + GAP[0]) + MARGIN
    picture, start = Picture(width, sum(block.height(width) for block in blocks)), 0.0
    for block in blocks:
        block.draw(picture, start)
        start += block.height(width)
    return picture


class _Block:
    """The panels of one model, in-distribution set and base."""

    def __init__(
        self, sets: pd.DataFrame, by_corruption: pd.DataFrame, key: tuple[Any, ...], rows: pd.DataFrame, top: int | None
    ) -> None:
        self.title = f"Severity: {title_of(rows)}: {averaged(sets, by_corruption, rows.iloc[0])}"
        rows = rows.iloc[best_rows(rows, top)]
        self.curves: Any = by_corruption.xs(key, level=PLOT)
        self.levels = [int(level) for level in by_corruption.columns]
        by_protocol: Any = rows.groupby(["protocol", "source"], sort=False)
        self.protocols = [(label("protocol", *protocol), of) for protocol, of in by_protocol]
        known = self.curves.dropna(how="all").index.to_frame()[["corruption", "content"]].drop_duplicates()
        names = known.itertuples(index=False, name=None)
        self.looks = {name: look(place) | {"linewidth": 0.8} for place, name in enumerate(names)}
        self.lacking = any((rows[f"{level} corruptions"] < rows["corruptions"]).any() for level in self.levels)
        index: Any = self.curves.index
        shown = index.droplevel(["corruption", "content"]).isin(pd.MultiIndex.from_frame(rows[WHOSE]))
        lowest = 100 * min(AT_CHANCE, float(self.curves[shown].min().min()))
        self.bottom = max(0, 10 * math.floor(lowest / 10)) - 2

    def height(self, width: float) -> float:
        """Inches that the block takes in a picture of this width."""
        across = _across(width)
        lines = sum(math.ceil(len(rows) / across) for _, rows in self.protocols)
        legend = KEY_LINE * math.ceil(len(self.legend()) / self._keys(width))
        between = (HEADING - GAP[1] + AXIS + BETWEEN) * len(self.protocols)
        return MARGIN + LINE * TITLE * len(self._title(width)) + 0.05 + legend + lines * (PANEL[1] + GAP[1]) + between

    def draw(self, picture: Picture, top: float) -> None:
        """Draw the block, with its upper edge ``top`` inches below that of the picture."""
        across, keys = _across(picture.width), self._keys(picture.width)
        top += MARGIN
        for line in self._title(picture.width):
            picture.write(MARGIN, top, line, fontsize=TITLE, fontweight="bold")
            top += LINE * TITLE
        top += 0.05
        for place, (name, of) in enumerate(self.legend().items()):
            line_of, column = divmod(place, keys)
            left = MARGIN + column * (picture.width - 2 * MARGIN) / keys
            picture.key(left, top + line_of * KEY_LINE, fitted(name, WIDEST, SMALL), of)
        top += KEY_LINE * math.ceil(len(self.legend()) / keys)
        for protocol, rows in self.protocols:
            picture.write(MARGIN, top + 0.08, fitted(protocol, picture.width - 2 * MARGIN, TITLE), fontsize=TITLE)
            top += HEADING
            for place, row in enumerate(rows.to_dict("records")):
                line_of, column = divmod(place, across)
                left, above = LEFT + column * (PANEL[0] + GAP[0]), top + line_of * (PANEL[1] + GAP[1])
                self._panel(picture.panel(left, above, *PANEL), row, edges=(place + across >= len(rows), column == 0))
            top += math.ceil(len(rows) / across) * (PANEL[1] + GAP[1]) - GAP[1] + AXIS + BETWEEN

    def _panel(self, axes: Axes, row: dict[Any, Any], edges: tuple[bool, bool]) -> None:
        axes.axhline(100 * AT_CHANCE, **CHANCE)
        mine = self.curves.xs(tuple(row[name] for name in WHOSE), level=WHOSE)
        for name, values in mine.dropna(how="all").iterrows():
            axes.plot(self.levels, 100 * values, zorder=2, marker=".", markersize=1.5, **self.looks[name])
        means = [100 * row[str(level)] for level in self.levels]
        axes.plot(self.levels, means, zorder=3, marker="o", **MEAN_LOOK)
        some = [level for level in self.levels if row[f"{level} corruptions"] < row["corruptions"]]
        hollow = MEAN_LOOK | {"linestyle": "", "markerfacecolor": "white"}
        axes.plot(some, [100 * row[str(level)] for level in some], zorder=4, marker="o", **hollow)
        axes.set(xlim=(self.levels[0] - 0.3, self.levels[-1] + 0.3), xticks=self.levels, ylim=(self.bottom, 102))
        axes.set_yticks(
            [tick for tick in (range(0, 101, 25) if self.bottom < 30 else range(40, 101, 20)) if tick > self.bottom]
        )
        axes.tick_params(labelbottom=edges[0], labelleft=edges[1])
        axes.set(xlabel="level" if edges[0] else "", ylabel="AUROC ×100" if edges[1] else "")
        detector = row_labels(pd.DataFrame([row]))[0].texts[0]
        axes.set_title("\n".join(folded(detector, PANEL[0], NAME)), fontsize=NAME, loc="left", parse_math=False)

    def legend(self) -> dict[str, dict[str, Any]]:
        """What a line stands for: how it looks."""
        hollow = {"mean of some": MEAN_LOOK | {"marker": "o", "markerfacecolor": "white"}} if self.lacking else {}
        named = {label("dataset", *name): look for name, look in self.looks.items()}
        return {"mean": MEAN_LOOK | {"marker": "o"}, **hollow, **named}

    def _title(self, width: float) -> list[str]:
        return folded(self.title, width - 2 * MARGIN, TITLE, bold=True)

    def _keys(self, width: float) -> int:
        """Names in a line of the legend."""
        widest = max(min(WIDEST, width_of(escape.plain(name), SMALL)) for name in self.legend())
        return max(1, int((width - 2 * MARGIN) / (KEY_MARK + widest + 0.12)))


def _across(width: float) -> int:
    """Panels side by side in a picture of this width."""
    return round((width - LEFT - MARGIN) / (PANEL[0] + GAP[0]))
