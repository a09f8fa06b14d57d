"""Leaderboards as text: tables for a terminal, Markdown, HTML and LaTeX for people; CSV and JSON for programs, a row per cell.

People get one table for each model and in-distribution set, figures times 100 with one decimal; programs get fractions
at full precision. Names and reasons come from anybody's plug-ins, so each format escapes what it would interpret.
"""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd

from oodbench.errors import UsageError
from oodbench.leaderboard import escape, severity
from oodbench.leaderboard.aggregate import COLUMNS, GROUP, means, pivot, qualified
from oodbench.leaderboard.html import write_html
from oodbench.leaderboard.labels import labelled
from oodbench.leaderboard.latex import write_latex
from oodbench.leaderboard.markdown import write_markdown
from oodbench.leaderboard.notes import Note
from oodbench.leaderboard.text import write_text
from oodbench.leaderboard.text_table import NO_CELLS, TextTable, text_table
from oodbench.registry import unknown

__all__ = ["COLUMNS", "means", "pivot", "render"]

TEXTS = ("model", "in_distribution", "detector", "protocol", "dataset", "kind", "status", "reason")
WHOLE_NUMBERS = ("level", "seed", "n_in", "n_out")


def render(
    frame: pd.DataFrame,
    format: str = "table",
    *,
    metric: str = "auroc",
    width: int | None = 160,
    top: int | None = None,
    notes: Sequence[Note | str] = (),
) -> str:
    """A frame with one row per cell (``COLUMNS``) as text.

    Args:
        frame: what ``Results.frame()`` gives, several of them concatenated, or what ``gather`` gives.
        format: ``table`` (a terminal of ``width`` columns; None: as wide as need be), ``md`` (GitHub), ``html`` (a
            notebook), ``tex`` (needs the packages booktabs and graphicx), ``csv`` (texts that a spreadsheet would read as
            formulas begin with an apostrophe) or ``json`` (a list of objects; an unknown value is null, never NaN).
        metric: which figure the tables for people show; csv and json hold all.
        top: show only the best rows of each protocol, this many, and the controls; csv and json hold all.
        notes: what else stands below the tables for people.

    Raises UsageError for an unknown format or metric, BadData where the frame lacks columns.
    """
    writers: dict[str, Callable[[TextTable], str]]
    writers = {"table": partial(write_text, width=width), "md": write_markdown, "html": write_html, "tex": write_latex}
    frame = qualified(frame)
    if format == "csv":
        return _csv(frame)
    if format == "json":
        return _json(frame)
    if format not in writers:
        raise UsageError(unknown("format", format, [*writers, "csv", "json"], "one of table, md, html, csv, json, tex"))
    if frame.empty:
        return f"% {NO_CELLS}\n" if format == "tex" else f"{NO_CELLS}\n"
    tables = [text_table(cells, metric, top) for _, cells in frame.groupby(GROUP, sort=False)]
    tables[-1].notes.extend(notes)
    if format != "tex":  # LaTeX's usual fonts have no sparklines
        tables += severity.text_tables(frame, top)
    return "\n".join(map(writers[format], tables))


def _csv(frame: pd.DataFrame) -> str:
    table = _typed(frame)
    for name in TEXTS:
        plain = {text: escape.spreadsheet(escape.plain(text)) for text in table[name].dropna().unique()}
        table[name] = table[name].map(plain, na_action="ignore")
    return table.to_csv(index=False, lineterminator="\n")


def _json(frame: pd.DataFrame) -> str:
    table = _typed(frame).replace([math.inf, -math.inf], None).astype(object)
    known = table.where(table.notna(), None)
    rows = [json.dumps(row, allow_nan=False, ensure_ascii=False) for row in known.to_dict("records")]
    return escape.encodable_json("[\n" + ",\n".join(rows) + "\n]\n" if rows else "[]\n", "utf-8")


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of csv and json, whole numbers as whole numbers though some cells lack them."""
    table = labelled(frame)[list(COLUMNS)]
    return table.assign(**{name: pd.to_numeric(frame[name]).astype("Int64") for name in WHOLE_NUMBERS})
