"""Severity curves as a picture: one panel per row of the table, AUROC against the level of corruption.

Thin lines are corruptions, the thick one is their mean; a hollow mark says that some corruption has no figure there.
Names come from anybody's plug-ins: they are drawn as they are, never as formulas.
"""

import io
import math
import warnings
from typing import TYPE_CHECKING, Any

import pandas as pd

from oodbench.errors import BadData, UsageError
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import GROUP, qualified
from oodbench.leaderboard.labels import label
from oodbench.leaderboard.severity import CHANCE, PLOT, averaged, curves_by_row, severity_of
from oodbench.leaderboard.text_table import best_rows, row_labels, title_of
from oodbench.registry import unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
ACROSS = 8  # panels side by side, at most
# Inches.
PANEL, GAP = (1.5, 1.1), (0.12, 0.36)
LEFT, MARGIN = 0.5, 0.15
TITLE, PROTOCOL, TICKS = 0.35, 0.5, 0.1
KEY, KEY_LINE = 1.25, 0.18  # a name in the legend

MEAN_LOOK: dict[str, Any] = {"color": "#222222", "linestyle": "-", "linewidth": 1.8, "markersize": 3.2, "markeredgewidth": 0.8}
# Paul Tol's muted scheme, told apart by the colour-blind too; from the ninth corruption on, with dashes.
COLOURS = ("#CC6677", "#332288", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
STYLE = {
    "font.size": 7, "axes.titlesize": 7.5, "axes.titlepad": 3, "axes.linewidth": 0.5, "axes.edgecolor": "#888888",
    "xtick.major.size": 2, "ytick.major.size": 2, "xtick.major.width": 0.5, "ytick.major.width": 0.5,
    "svg.hashsalt": "oodbench", "savefig.dpi": 150,
}  # fmt: skip


def draw(frame: pd.DataFrame, format: str = "png", top: int | None = None) -> bytes:
    """The picture of a frame with one row per cell: png, svg or pdf, the same bytes for the same frame.

    One block per model, in-distribution set and base; in it one panel per detector and protocol, in the order of the table.
    With ``top``, only that many rows per protocol, and the controls. Raises UsageError for another format, BadData where no
    corruption has figures at two levels.
    """
    if format not in FORMATS:
        raise UsageError(unknown("picture format", format, FORMATS, f"one of {', '.join(FORMATS)}"))
    sets = qualified(frame)[[*GROUP, "kind", "dataset"]].drop_duplicates()
    by_corruption = curves_by_row(frame).dropna(axis=1, how="all")
    if len(by_corruption.columns) < 2:
        raise BadData("no corruption has figures at two levels, so there is no severity curve; run one at several levels")
    from matplotlib import style
    from matplotlib.figure import Figure

    tables = severity_of(by_corruption).groupby(PLOT, sort=False)
    blocks = [_Block(sets, by_corruption, key, rows.reset_index(drop=True), top) for key, rows in tables]
    across = min(ACROSS, max(4, *(len(rows) for block in blocks for _, rows in block.protocols)))
    metadata = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[format]
    written = io.BytesIO()
    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # what the font lacks it draws as a box
        width = LEFT + across * (PANEL[0] + GAP[0]) + MARGIN
        height = sum(block.height(across) for block in blocks)
        canvas = _Canvas(Figure(figsize=(width, height)), width, height)
        start = 0.0
        for block in blocks:
            block.draw(canvas, start, across)
            start += block.height(across)
        canvas.figure.savefig(written, format=format, metadata=metadata)
    return written.getvalue()


class _Canvas:
    """A figure measured in inches from its upper left corner."""

    def __init__(self, figure: "Figure", width: float, height: float) -> None:
        self.figure, self.width, self.height = figure, width, height

    def text(self, left: float, top: float, text: str, **how: Any) -> None:
        x, y = left / self.width, 1 - top / self.height
        self.figure.text(x, y, escape.plain(text), va="top", parse_math=False, **how)

    def axes(self, left: float, top: float) -> Any:
        y = 1 - (top + PANEL[1]) / self.height
        return self.figure.add_axes((left / self.width, y, PANEL[0] / self.width, PANEL[1] / self.height))

    def key(self, left: float, middle: float, name: str, look: dict[str, Any]) -> None:
        """A piece of line, and what it stands for."""
        from matplotlib.lines import Line2D

        xs, y = [(left + place) / self.width for place in (0, 0.14, 0.28)], 1 - middle / self.height
        self.figure.add_artist(Line2D(xs, [y] * 3, markevery=[1], transform=self.figure.transFigure, **look))
        self.text(left + 0.35, middle - 0.055, escape.shortened(name, 20))


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
        self.looks = {
            name: {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % len(DASHES)], "linewidth": 0.8}
            for i, name in enumerate(names)
        }
        self.lacking = any((rows[f"{level} corruptions"] < rows["corruptions"]).any() for level in self.levels)
        lowest = min(CHANCE, float(by_corruption.min().min()))
        self.bottom = max(0, math.floor(10 * lowest) / 10) - 0.02

    def height(self, across: int) -> float:
        lines = sum(math.ceil(len(rows) / across) for _, rows in self.protocols)
        legend = KEY_LINE * math.ceil(len(self.legend()) / _keys(across))
        return TITLE + legend + PROTOCOL * len(self.protocols) + lines * (PANEL[1] + GAP[1]) + TICKS

    def draw(self, canvas: _Canvas, top: float, across: int) -> None:
        canvas.text(MARGIN, top + 0.12, self.title, fontsize=10, fontweight="bold")
        top += TITLE
        for place, (name, look) in enumerate(self.legend().items()):
            line, column = divmod(place, _keys(across))
            canvas.key(LEFT + column * KEY, top + line * KEY_LINE + 0.07, name, look)
        top += KEY_LINE * math.ceil(len(self.legend()) / _keys(across))
        for protocol, rows in self.protocols:
            canvas.text(MARGIN, top + 0.1, f"{protocol}: AUROC by level", fontsize=8.5)
            top += PROTOCOL
            for place, row in enumerate(rows.to_dict("records")):
                column = place % across
                axes = canvas.axes(LEFT + column * (PANEL[0] + GAP[0]), top + place // across * (PANEL[1] + GAP[1]))
                last_of_column = place + across >= len(rows)
                self._panel(axes, row, ticks=(last_of_column, column == 0))
            top += math.ceil(len(rows) / across) * (PANEL[1] + GAP[1])

    def _panel(self, axes: Any, row: dict[Any, Any], ticks: tuple[bool, bool]) -> None:
        axes.axhline(CHANCE, color="#AAAAAA", linewidth=0.6, linestyle=(0, (2, 2)), zorder=1)
        wanted = ["protocol", "source", "detector", "settings"]
        mine = self.curves.xs(tuple(row[name] for name in wanted), level=wanted)
        for name, values in mine.dropna(how="all").iterrows():
            axes.plot(self.levels, values, zorder=2, marker=".", markersize=1.5, **self.looks[name])
        means = [row[str(level)] for level in self.levels]
        axes.plot(self.levels, means, zorder=3, marker="o", **MEAN_LOOK)
        some = [level for level in self.levels if row[f"{level} corruptions"] < row["corruptions"]]
        hollow = MEAN_LOOK | {"linestyle": "", "markerfacecolor": "white"}
        axes.plot(some, [row[str(level)] for level in some], zorder=4, marker="o", **hollow)
        axes.set(xlim=(self.levels[0] - 0.3, self.levels[-1] + 0.3), xticks=self.levels, ylim=(self.bottom, 1.02))
        axes.tick_params(labelbottom=ticks[0], labelleft=ticks[1], labelcolor="#444444")
        axes.spines[["top", "right"]].set_visible(False)
        detector = row_labels(pd.DataFrame([row]))[0].texts[0]
        axes.set_title(escape.shortened(detector, 26), loc="left", parse_math=False)

    def legend(self) -> dict[str, dict[str, Any]]:
        """What a line stands for: how it looks."""
        hollow = {"mean of some": MEAN_LOOK | {"marker": "o", "markerfacecolor": "white"}} if self.lacking else {}
        named = {label("dataset", *name): look for name, look in self.looks.items()}
        return {"mean": MEAN_LOOK | {"marker": "o"}, **hollow, **named}


def _keys(across: int) -> int:
    """Names in a line of the legend, beside ``across`` panels."""
    return int(across * (PANEL[0] + GAP[0]) / KEY)
