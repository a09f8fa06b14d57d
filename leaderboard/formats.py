"""Leaderboards as text: tables for a terminal, Markdown and LaTeX for people; CSV and JSON, a row a cell, for programs.

People get one table for each model and in-distribution set, figures times 100 with one decimal; programs get fractions
at full precision. Names and reasons come from anybody's plug-ins, so each format escapes what it would interpret.
"""

import json
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import pandas as pd
from tabulate import SEPARATING_LINE, tabulate

from oodbench.errors import UsageError
from oodbench.leaderboard import escape, severity
from oodbench.leaderboard.aggregate import COLUMNS, GROUP, means, pivot, require_columns
from oodbench.leaderboard.text_table import Column, Section, section
from oodbench.registry import unknown

__all__ = ["COLUMNS", "means", "pivot", "render"]

TEXTS = ("model", "in_distribution", "detector", "protocol", "dataset", "kind", "status", "reason")
WHOLE_NUMBERS = ("level", "seed", "n_in", "n_out")
NO_CELLS = "No cells yet; oodbench run makes some."
GAP = 2  # blanks between the columns of a terminal table
PAGE = 14  # columns of figures side by side in Markdown and LaTeX


def render(
    frame: pd.DataFrame, format: str = "table", *, metric: str = "auroc", width: int | None = 160, notes: Sequence[str] = ()
) -> str:
    """A frame with a row a cell (``COLUMNS``) as text.

    Args:
        frame: what ``RunFolder.frame()`` gives, or several of them concatenated.
        format: ``table`` (a terminal of ``width`` columns; None: as wide as need be), ``md`` (GitHub), ``tex`` (needs the
            packages booktabs and graphicx), ``csv`` or ``json`` (a list of objects; what is not known is null, never NaN).
        notes: what else must stand below the tables for people.
        metric: which figure the tables for people show; csv and json hold all.

    Raises UsageError for an unknown format or metric, BadData where the frame lacks columns.
    """
    writers: dict[str, Callable[[Section], str]] = {"table": partial(_terminal, width=width), "md": _markdown, "tex": _latex}
    require_columns(frame)
    if format == "csv":
        return _csv(frame)
    if format == "json":
        return _json(frame)
    if format not in writers:
        raise UsageError(unknown("format", format, [*writers, "csv", "json"], "one of table, md, csv, json, tex"))
    if frame.empty:
        return f"% {NO_CELLS}\n" if format == "tex" else f"{NO_CELLS}\n"
    tables = [section(cells, metric) for _, cells in frame.groupby(GROUP, sort=False)]
    tables[-1].notes.extend(notes)
    if format != "tex":  # LaTeX's usual fonts have no sparklines
        tables += severity.sections(frame)
    return "\n".join(map(writers[format], tables))


def _csv(frame: pd.DataFrame) -> str:
    table = _typed(frame)
    for name in TEXTS:
        table[name] = table[name].map(escape.plain, na_action="ignore")
    return table.to_csv(index=False, lineterminator="\n")


def _json(frame: pd.DataFrame) -> str:
    def value(found: Any) -> Any:
        found = found.item() if hasattr(found, "item") else found
        return None if pd.isna(found) or (isinstance(found, float) and math.isinf(found)) else found

    rows = [
        json.dumps(dict(zip(COLUMNS, map(value, row), strict=True)), allow_nan=False, ensure_ascii=False)
        for row in _typed(frame).itertuples(index=False, name=None)
    ]
    return "[\n" + ",\n".join(rows) + "\n]\n" if rows else "[]\n"


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The contract's columns, whole numbers as whole numbers though some cells lack them."""
    return frame[list(COLUMNS)].assign(**{name: pd.to_numeric(frame[name]).astype("Int64") for name in WHOLE_NUMBERS})


def _terminal(table: Section, width: int | None) -> str:
    """Blocks of columns that fit, each with the detectors' names again."""

    def wrapped(text: str) -> str:
        return textwrap.fill(text, width or 10**6, subsequent_indent="  ", break_on_hyphens=False)

    labels, sets, summary = ([_clean(c) for c in columns] for columns in (table.labels, table.sets, table.summary))
    room = (width or math.inf) - _needed(labels)
    parts = [wrapped(escape.plain(table.title)), wrapped(table.caption)]
    blocks = _blocks(sets, summary, _needed, room)
    parts.append("\n\n".join(_block([*labels, *block], table.breaks) for block in blocks))
    parts += [wrapped(escape.plain(note)) for note in table.notes]
    return "\n".join(parts) + "\n"


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
    """Characters that columns take; a kind stands above the first of its own only."""
    firsts = [i == 0 or column.group != columns[i - 1].group for i, column in enumerate(columns)]
    return sum(
        GAP + max(map(len, (column.group if first else "", *column.lines, *column.texts)))
        for first, column in zip(firsts, columns, strict=True)
    )


def _blocks(
    sets: list[Column], summary: list[Column], needed: Callable[[list[Column]], int], room: float
) -> list[list[Column]]:
    """Columns side by side as ``room`` allows: all in one block, or means and cost first, then kind by kind, split late."""
    if needed([*sets, *summary]) <= room:
        return [[*sets, *summary]]
    blocks: list[list[Column]] = [[]]
    for columns in [summary, *(list(of_kind) for _, of_kind in groupby(sets, lambda column: column.group))]:
        if blocks[-1] and needed([*blocks[-1], *columns]) > room:
            blocks.append([])
        for column in columns:
            if blocks[-1] and needed([*blocks[-1], column]) > room:
                blocks.append([])
            blocks[-1].append(column)
    return blocks


def _block(columns: list[Column], breaks: list[int]) -> str:
    """Heading lines are rows of their own, kinds in the first, names at the bottom."""
    height = max(len(c.lines) for c in columns)
    groups = [c.group if i == 0 or c.group != columns[i - 1].group else "" for i, c in enumerate(columns)]
    rows: list[Any] = [groups] if any(groups) else []
    rows += [list(line) for line in zip(*(("",) * (height - len(c.lines)) + c.lines for c in columns), strict=True)]
    rows.append(SEPARATING_LINE)
    for place, row in enumerate(zip(*(c.texts for c in columns), strict=True)):
        rows += [SEPARATING_LINE, list(row)] if place in breaks else [list(row)]
    return tabulate(rows, tablefmt="simple", disable_numparse=True, colalign=_alignment(columns))


def _alignment(columns: list[Column]) -> list[str]:
    return ["left" if place < 2 else "right" for place in range(len(columns))]


def _markdown(table: Section) -> str:
    bodies = []
    for block in _blocks(table.sets, table.summary, len, PAGE):
        columns = [*table.labels, *block]
        heads, texts = [], []
        for column in columns:
            heads.append(" ".join(escape.markdown(part) for part in (column.group, *column.lines) if part))
            escaped = [escape.markdown(text) for text in column.texts]
            texts.append([f"**{text}**" if place in column.best else text for place, text in enumerate(escaped)])
        rows = list(zip(*texts, strict=True))
        bodies.append(tabulate(rows, heads, tablefmt="pipe", disable_numparse=True, colalign=_alignment(columns)) + "\n")
    notes = "".join(f"- {escape.markdown(note.removeprefix('– '))}\n" for note in table.notes)
    caption = escape.markdown(table.caption)
    return "\n".join([f"### {escape.markdown(table.title)}\n", f"{caption}\n", *bodies, *([notes] if notes else [])])


def _latex(table: Section) -> str:
    blocks = _blocks(table.sets, table.summary, len, PAGE)
    notes = "".join(rf"\par\footnotesize {escape.latex(note)}" + "\n" for note in table.notes)
    floats = []
    for place, block in enumerate(blocks):
        caption = f"{table.title}. {table.caption}" if place == 0 else f"{table.title}, continued."
        floats += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape.latex(caption)}}}",
            r"\resizebox{\linewidth}{!}{%",
            _tabular([*table.labels, *block], table.breaks) + "}",
            (notes if place == len(blocks) - 1 else "") + r"\end{table}",
            "",
        ]
    return "\n".join(["% needs booktabs and graphicx", *floats])


def _tabular(columns: list[Column], breaks: list[int]) -> str:
    heads, texts = [], []
    for column in columns:
        lines = [escape.latex(part) for part in (column.group, *column.lines) if part]
        stacked = r"\\".join(lines)
        heads.append(lines[0] if len(lines) == 1 else rf"\shortstack[r]{{{stacked}}}")
        escaped = [escape.latex(text) for text in column.texts]
        texts.append([rf"\textbf{{{text}}}" if place in column.best else text for place, text in enumerate(escaped)])
    rows: list[Any] = list(zip(*texts, strict=True))
    for place in reversed(breaks):
        rows.insert(place, SEPARATING_LINE)
    lines = tabulate(rows, heads, tablefmt="latex_raw", disable_numparse=True, colalign=_alignment(columns)).splitlines()
    rules = [place for place, line in enumerate(lines) if line == r"\hline"]
    for place in rules:
        lines[place] = r"\toprule" if place == rules[0] else r"\bottomrule" if place == rules[-1] else r"\midrule"
    return "\n".join(lines)
