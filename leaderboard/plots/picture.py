"""The style of all pictures, and a figure that is measured in inches from its upper left corner.

Names come from anybody's plug-ins: they are drawn as they are, never as formulas. Colours are Paul Tol's muted scheme,
which the colour-blind tell apart too, and no meaning is carried by colour alone.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D

from oodbench.leaderboard import escape

COLUMN = 3.5  # inches: the width of a column of a paper
MARGIN = 0.08
DPI = 200
SMALL, NORMAL, TITLE = 6.5, 7.0, 8.5  # points
FINE = 20  # times the size at which text is measured, where whole pixels hardly count
LINE = 1.3 / 72  # inches of a line of text, per point
KEY_LINE, KEY_MARK = 0.15, 0.36  # inches: a line of a legend, and the piece of line before a name

CHANCE: dict[str, Any] = {"color": "#888888", "linewidth": 0.6, "linestyle": (0, (2, 2)), "zorder": 1}
CONTROL_COLOURS = ("#000000", "#777777")
COLOURS = ("#CC6677", "#332288", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
STYLE = {  # publishers refuse the Type 3 fonts that matplotlib writes into PDF by default
    "font.size": NORMAL, "axes.titlesize": 7.5, "axes.titlepad": 3, "axes.linewidth": 0.5, "axes.edgecolor": "#888888",
    "axes.labelsize": NORMAL, "axes.labelpad": 2, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
    "xtick.major.size": 2, "ytick.major.size": 2, "xtick.major.width": 0.5, "ytick.major.width": 0.5,
    "xtick.minor.size": 1, "xtick.minor.width": 0.4, "xtick.major.pad": 2, "ytick.major.pad": 2,
    "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.5,
    "pdf.fonttype": 42, "svg.hashsalt": "oodbench", "savefig.dpi": DPI, "figure.dpi": DPI,
}  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    """Within this context the style holds, whatever somebody's matplotlibrc says."""
    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # what the font lacks it draws as a box
        yield


def look(place: int) -> dict[str, Any]:
    """How the line of this place in a legend looks: from the ninth on, with dashes."""
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place // len(COLOURS) % len(DASHES)]}


def width_of(text: str, size: float = NORMAL, bold: bool = False) -> float:
    """Inches that a line of text takes."""
    font = get_font(findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")))
    font.set_size(size, 72 * FINE)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64 / 72 / FINE


def fitted(text: Any, room: float, size: float = NORMAL, bold: bool = False) -> str:
    """One line of text, shortened where it takes more than ``room`` inches."""
    line = escape.plain(text)
    if width_of(line, size, bold) <= room:
        return line
    while line and width_of(f"{line}…", size, bold) > room:
        line = line[:-1]
    return f"{line}…"


def folded(text: Any, room: float, size: float = NORMAL, lines: int = 2, bold: bool = False) -> list[str]:
    """Text in lines that take at most ``room`` inches, broken at blanks, or where a word is too long after - : / _ or a comma.

    The last line is shortened if need be.
    """
    rest = escape.plain(text)
    found: list[str] = []
    while len(found) < lines - 1 and width_of(rest, size, bold) > room:
        places = ([at for at in range(1, len(rest)) if rest[at - 1] in marks] for marks in (" ", "-:/_,"))
        ends = next(filter(None, ([at for at in of if width_of(rest[:at], size, bold) <= room] for of in places)), [])
        if not ends:
            break
        found.append(rest[: ends[-1]].rstrip())
        rest = rest[ends[-1] :]
    return [*found, fitted(rest, room, size, bold)]


class Picture(Figure):
    """A figure in this style, which shows itself in a notebook; its files hold no date."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), dpi=DPI)
        self.width, self.height = width, height

    def draw(self, renderer: Any) -> None:
        """Draw in this style."""
        with styled():
            super().draw(renderer)

    def savefig(self, fname: Any, **how: Any) -> None:
        """As matplotlib's, without a date."""
        format = how.get("format") or str(fname).rpartition(".")[2]
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format)
        with styled():
            super().savefig(fname, **{"metadata": undated, **how})

    def rendered(self, format: str) -> bytes:
        """The bytes of a file in this format."""
        written = io.BytesIO()
        self.savefig(written, format=format)
        return written.getvalue()

    def _repr_png_(self) -> bytes:
        return self.rendered("png")

    # Drawing, in inches from the upper left corner

    def write(self, left: float, top: float, text: str, **how: Any) -> None:
        """A line of text whose upper left corner is here."""
        self.text(left / self.width, 1 - top / self.height, text, **{"va": "top", "parse_math": False, **how})

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose plot takes this rectangle; labels come outside it."""
        bottom = 1 - (top + height) / self.height
        return self.add_axes((left / self.width, bottom, width / self.width, height / self.height))

    def key(self, left: float, top: float, name: str, look: dict[str, Any], size: float = SMALL) -> None:
        """A line of a legend: a piece of line, and what it stands for."""
        xs, y = [(left + place) / self.width for place in (0, 0.14, 0.28)], 1 - (top + KEY_LINE / 2) / self.height
        self.add_artist(Line2D(xs, [y] * 3, markevery=[1], transform=self.transFigure, **look))
        self.write(left + KEY_MARK, top + KEY_LINE / 2, name, fontsize=size, va="center_baseline")
