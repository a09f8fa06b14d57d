"""Leaderboards as text: tables for a terminal, Markdown, HTML and LaTeX for people; CSV and JSON for programs, a row per cell.

People get one table for each model and in-distribution set, figures times 100 with one decimal; programs get fractions
at full precision. Names and reasons come from anybody's plug-ins, so each format escapes what it would interpret.
"""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd

from oodbench.errors import BadData, UsageError
from oodbench.leaderboard import escape, severity
from oodbench.leaderboard.aggregate import (
    COLUMNS,
    ENDS,
    GROUP,
    MEAN,
    ROW,
    marks_of,
    means,
    pivot,
    qualified,
    require_metric,
    sorts,
    tally,
)
from oodbench.leaderboard.html import write_html
from oodbench.leaderboard.labels import labelled
from oodbench.leaderboard.latex import write_latex
from oodbench.leaderboard.markdown import write_markdown
from oodbench.leaderboard.notes import Note
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.leaderboard.text import write_text
from oodbench.leaderboard.text_table import NO_CELLS, PARTS, TextTable, text_table
from oodbench.registry import unknown
from oodbench.suite import as_names

__all__ = ["COLUMNS", "means", "pivot", "render"]

TEXTS = frozenset(
    (
        "model",
        "run",
        "in_distribution",
        "detector",
        "source",
        "protocol",
        "dataset",
        "kind",
        "status",
        "reason",
        "machine",
        "checkpoint",
        "metric",
        "stands_in",
        "strategy",
        "features",
        "database",
        "mapping",
        "test_set",
    )
)
WHOLE_NUMBERS = frozenset(
    ("level", "seed", "seeds", "n_in", "n_out", "n", "database_size", "round", "last_round", "labelled", "epochs", "restarts")
)
EXTRA = (*ENDS, "machine")  # columns of csv and json that a frame may lack, behind the others
SEVERITY = "severity"  # beside the parts of a table


def render(
    frame: pd.DataFrame,
    format: str = "table",
    *,
    metric: str = "auroc",
    width: int | None = 160,
    top: int | None = None,
    notes: Sequence[Note | str] = (),
    columns: str | Sequence[str] = (),
    sort: str | None = None,
    intervals: bool = False,
    scores: StoredScores | None = None,
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
        columns: show only these: for people ``sets``, ``means``, ``costs`` and ``severity`` (the tables by level), in csv and
            json the names of columns, in their order. By default all; severity for AUROC alone.
        sort: sort rows by ``mean`` (over all sets, the default of tables), ``detector`` (the name), ``ms_per_image``,
            ``overhead``, a kind or a set, the best first, and whole rows before those that lack cells. Without it, csv and
            json keep the order of the frame.
        intervals: show 95 % intervals in tables; csv and json hold those that the frame has.
        scores: where the scores of the cells are read. With them, md, html and tex print in bold not only the best AUROC of
            each column and protocol, but all that are not distinguishable from it at 5 % (``ties``).

    Raises UsageError for an unknown format, metric, column or order, BadData where the frame lacks columns.
    """
    frame = qualified(frame)
    require_metric(metric)
    if sort is not None and sort not in (known := sorts(frame)):
        raise UsageError(unknown("order", sort, known, f"sort by {', '.join(known)}"))
    columns = as_names(columns)
    if format in ("csv", "json"):
        shown = chosen(columns, [*COLUMNS, *(name for name in EXTRA if name in frame.columns)])
        return cells_as(format, labelled(frame if sort is None else _sorted(frame, metric, sort)), shown)
    write = writer(format, width)
    by_level = [SEVERITY] if format != "tex" and metric == "auroc" else []  # LaTeX's usual fonts have no sparklines
    shown = chosen(columns, [*PARTS, *by_level])
    if frame.empty:
        return f"% {NO_CELLS}\n" if format == "tex" else f"{NO_CELLS}\n"
    sort = sort or MEAN
    if "machine" in frame.columns:
        frame = frame.assign(mark=frame["machine"].map(marks_of(frame)))
    tables = []
    if {*shown} & {*PARTS}:
        bold = format != "table"
        each = (cells for _, cells in frame.groupby(GROUP, sort=False))
        tables = [text_table(cells, metric, top, sort, shown, intervals, bold, scores if bold else None) for cells in each]
    last = len(tables) - 1
    if SEVERITY in shown:
        tables += severity.text_tables(frame, top, sort)
    if not tables:
        raise BadData("no corruption has figures at two levels, so there is no severity; show another column")
    tables[last].notes.extend(notes)
    return "\n".join(map(write, tables))


def writer(format: str, width: int | None = None) -> Callable[[TextTable], str]:
    """What writes a table for people in this format. Raises UsageError for an unknown one."""
    writers: dict[str, Callable[[TextTable], str]]
    writers = {"table": partial(write_text, width=width), "md": write_markdown, "html": write_html, "tex": write_latex}
    if format not in writers:
        raise UsageError(unknown("format", format, [*writers, "csv", "json"], "one of table, md, html, csv, json, tex"))
    return writers[format]


def cells_as(format: str, frame: pd.DataFrame, columns: list[str]) -> str:
    """These columns of all rows, for programs: csv or json."""
    return {"csv": _csv, "json": _json}[format](frame, columns)


def chosen(columns: list[str], known: list[str]) -> list[str]:
    """The columns, by default all. Raises UsageError for one that is not there."""
    for name in columns:
        if name not in known:
            raise UsageError(unknown("column", name, known, f"this format has {', '.join(known)}"))
    return columns or known


def _sorted(frame: pd.DataFrame, metric: str, sort: str) -> pd.DataFrame:
    """Rows of cells in the order of the rows of the table."""
    place = tally(frame, metric, sort).values.index.get_indexer(pd.MultiIndex.from_frame(frame[ROW]))
    return frame.iloc[place.argsort(kind="stable")]


def _csv(frame: pd.DataFrame, columns: list[str]) -> str:
    """These columns as CSV; texts that a spreadsheet would read as formulas begin with an apostrophe."""
    table = _typed(frame, columns)
    for name in TEXTS.intersection(columns):
        plain = {text: escape.spreadsheet(escape.plain(text)) for text in table[name].dropna().unique()}
        table[name] = table[name].map(plain, na_action="ignore")
    return table.to_csv(index=False, lineterminator="\n")


def _json(frame: pd.DataFrame, columns: list[str]) -> str:
    """These columns as a JSON list of objects; an unknown value is null, never NaN."""
    table = _typed(frame, columns).replace([math.inf, -math.inf], None).astype(object)
    known = table.where(table.notna(), None)
    rows = [json.dumps(row, allow_nan=False, ensure_ascii=False) for row in known.to_dict("records")]
    return escape.encodable_json("[\n" + ",\n".join(rows) + "\n]\n" if rows else "[]\n", "utf-8")


def _typed(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Columns of csv and json, whole numbers as whole numbers though some cells lack them."""
    whole = WHOLE_NUMBERS.intersection(columns)
    return frame[columns].assign(**{name: pd.to_numeric(frame[name]).astype("Int64") for name in whole})
