"""What a site offers to download: the cells for programs, the tables for papers, the papers, and the runs themselves."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from oodbench.leaderboard.aggregate import COLUMNS
from oodbench.leaderboard.formats import EXTRA, TEXTS, WHOLE_NUMBERS, render, writer
from oodbench.leaderboard.labels import labelled
from oodbench.leaderboard.notes import Note
from oodbench.leaderboard.site.about import bibtex
from oodbench.leaderboard.tasks import TABLES
from oodbench.leaderboard.text_table import TextTable


def downloads(
    frame: pd.DataFrame, tables: Sequence[TextTable], notes: Sequence[Note], used: list[str]
) -> Iterator[tuple[str, str, bytes]]:
    """Path, description and content of each file; ``used`` are the detectors and sets whose papers are cited."""
    for suffix, what in (("csv", "one row per cell, all columns"), ("json", "the same as a list of objects")):
        yield f"downloads/leaderboard.{suffix}", what, render(frame, suffix).encode()
    yield "downloads/leaderboard.parquet", "the same as typed columns", _parquet(frame)
    for suffix, what in (("md", "tables in Markdown, with their notes"), ("tex", "tables in LaTeX (booktabs and graphicx)")):
        last = replace(tables[-1], notes=[*tables[-1].notes, *notes])
        yield f"downloads/leaderboard.{suffix}", what, "\n".join(map(writer(suffix), [*tables[:-1], last])).encode()
    if papers := bibtex(used):
        yield "downloads/papers.bib", "BibTeX of the papers of these detectors and sets", papers.encode()


def of_task(task: str, frame: pd.DataFrame, notes: Sequence[Note]) -> Iterator[tuple[str, str, bytes]]:
    """As ``downloads``, of another task than detection."""
    render = TABLES[task].render
    for suffix, what in (("csv", "one row per record, all columns"), ("json", "the same as a list of objects")):
        yield f"downloads/{task}.{suffix}", what, render(frame, suffix).encode()
    for suffix, what in (("md", "tables in Markdown, with their notes"), ("tex", "tables in LaTeX (booktabs and graphicx)")):
        yield f"downloads/{task}.{suffix}", what, render(frame, suffix, notes=notes, intervals=True).encode()


def _parquet(frame: pd.DataFrame) -> bytes:
    columns = [*COLUMNS, *(name for name in EXTRA if name in frame.columns)]
    table = labelled(frame)[columns]
    whole = {name: pd.to_numeric(table[name]).astype("Int64") for name in WHOLE_NUMBERS.intersection(columns)}
    texts = {name: table[name].astype("string") for name in TEXTS.intersection(columns)}
    numbers = {name: pd.to_numeric(table[name]) for name in columns if name not in whole and name not in texts}
    written = io.BytesIO()
    table.assign(**whole, **texts, **numbers).to_parquet(written, engine="pyarrow", index=False)
    return written.getvalue()
