"""Tables for a terminal."""

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from tabulate import SEPARATING_LINE, tabulate

from oodbench.leaderboard import escape
from oodbench.leaderboard.notes import Gap, Missing, Note
from oodbench.leaderboard.sentences import sentence
from oodbench.leaderboard.text_table import Column, TextTable, alignment, side_by_side

GAP = 2  # blanks between columns
NARROWEST = (16, 12)  # characters a line of a detector's name, and of a protocol's
HEADING, LONGEST_PART = 10, 20  # characters a line of a heading, and of its parts that stay whole


def write_text(table: TextTable, width: int | None) -> str:
    """Blocks of columns that fit, each with the detectors' names again; ``width`` None: as wide as need be.

    Nothing is cut: where names are too long, they go on in the next line.
    """
    rooms = _rooms(len(table.labels), width)
    labels = [_clean(column, room) for column, room in zip(table.labels, rooms, strict=True)]
    sets, summary = ([_clean(column) for column in columns] for columns in (table.sets, table.summary))
    clean = replace(table, labels=labels, sets=sets, summary=summary)
    blocks = side_by_side(clean, _needed, (width or math.inf) - _needed(clean.labels))
    return "\n".join(
        [
            wrapped(escape.plain(table.title), width),
            wrapped(table.caption, width),
            "\n\n".join(_block([*clean.labels, *block], table.breaks) for block in blocks),
            *(wrapped(noted(note), width) for note in table.notes),
            "",
        ]
    )


def _rooms(labels: int, width: int | None) -> Sequence[int | None]:
    """Characters a line of each label: most for a detector's name, which comes first where there are two."""
    if width is None:
        return [None] * labels
    if labels <= 2:
        return [max(NARROWEST[0], width * 2 // 5), max(NARROWEST[1], width // 5)][:labels]
    return [max(NARROWEST[1], width // (labels + 2))] * labels


def noted(note: Note | str) -> str:
    """A note as one line; a reason stands behind the dash that it explains."""
    return escape.plain(f"– {sentence(note)}" if isinstance(note, Missing | Gap) else sentence(note))


def wrapped(text: str, width: int | None) -> str:
    """A paragraph, its second line and later ones indented."""
    return textwrap.fill(text, width or 10**6, subsequent_indent="  ", break_on_hyphens=False)


def _clean(column: Column, room: int | None = None) -> Column:
    """The column with a heading of short lines, and its texts in lines of ``room`` characters."""
    lines = [part for line in column.lines for part in broken(escape.plain(line), HEADING, LONGEST_PART, "-+/:_")]
    texts = [escape.plain(text) for text in column.texts]
    if room is not None:
        texts = ["\n".join(broken(text, room, room)) for text in texts]
    return replace(column, group=escape.plain(column.group), lines=tuple(lines), texts=texts)


def broken(name: str, room: int, longest: int, after: str = "-+/:_ ") -> list[str]:
    """A name in lines of ``room`` characters, broken only ``after`` these characters, unless a part has more than
    ``longest``."""
    lines = [""]
    for part in re.findall(f"[^{re.escape(after)}]*[{re.escape(after)}]|[^{re.escape(after)}]+", name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > room:
            lines.append("")
        while len(part.rstrip()) > longest:
            lines[-1], part = part[:longest], part[longest:]
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines if line]


def _needed(columns: list[Column]) -> int:
    """Characters that columns take; a kind stands above its first column only."""
    firsts = [place == 0 or column.group != columns[place - 1].group for place, column in enumerate(columns)]
    return sum(
        GAP + max(map(len, (column.group if first else "", *column.lines, *"\n".join(column.texts).split("\n"))))
        for first, column in zip(firsts, columns, strict=True)
    )


def _block(columns: list[Column], breaks: list[int]) -> str:
    """Heading lines are rows too, kinds in the first, names at the bottom."""
    height = max(len(column.lines) for column in columns)
    groups = [c.group if place == 0 or c.group != columns[place - 1].group else "" for place, c in enumerate(columns)]
    rows: list[Any] = [groups] if any(groups) else []
    rows += [list(line) for line in zip(*(("",) * (height - len(c.lines)) + c.lines for c in columns), strict=True)]
    rows.append(SEPARATING_LINE)
    for place, row in enumerate(zip(*(column.texts for column in columns), strict=True)):
        rows += [SEPARATING_LINE] if place in breaks else []
        rows += [list(line) for line in zip_longest(*(text.split("\n") for text in row), fillvalue="")]
    return tabulate(rows, tablefmt="simple", disable_numparse=True, colalign=alignment(columns))
