"""Tables for a terminal."""

import math
import re
import textwrap
from dataclasses import replace
from typing import Any

from tabulate import SEPARATING_LINE, tabulate

from oodbench.leaderboard import escape
from oodbench.leaderboard.notes import Missing, Note
from oodbench.leaderboard.sentences import sentence
from oodbench.leaderboard.text_table import Column, TextTable, alignment, side_by_side

GAP = 2  # blanks between columns


def write_text(table: TextTable, width: int | None) -> str:
    """Blocks of columns that fit, each with the detectors' names again; ``width`` None: as wide as need be."""
    labels, sets, summary = ([_clean(c) for c in columns] for columns in (table.labels, table.sets, table.summary))
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


def noted(note: Note | str) -> str:
    """A note as one line; a reason stands behind the dash that it explains."""
    return escape.plain(f"– {sentence(note)}" if isinstance(note, Missing) else sentence(note))


def wrapped(text: str, width: int | None) -> str:
    """A paragraph, its second line and later ones indented."""
    return textwrap.fill(text, width or 10**6, subsequent_indent="  ", break_on_hyphens=False)


def _clean(column: Column) -> Column:
    lines = [part for line in column.lines for part in _broken(escape.shortened(line))]
    return Column(escape.shortened(column.group), tuple(lines), [escape.shortened(text) for text in column.texts], column.best)


def _broken(name: str) -> list[str]:
    """A heading in lines of ten characters or so, broken after - + / : and _ only."""
    lines = [""]
    for part in re.findall(r"[^-+/:_]*[-+/:_]|[^-+/:_]+", name):
        if lines[-1] and len(lines[-1]) + len(part) > 10:
            lines.append("")
        lines[-1] += part
    return lines


def _needed(columns: list[Column]) -> int:
    """Characters that columns take; a kind stands above its first column only."""
    firsts = [place == 0 or column.group != columns[place - 1].group for place, column in enumerate(columns)]
    return sum(
        GAP + max(map(len, (column.group if first else "", *column.lines, *column.texts)))
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
        rows += [SEPARATING_LINE, list(row)] if place in breaks else [list(row)]
    return tabulate(rows, tablefmt="simple", disable_numparse=True, colalign=alignment(columns))
