"""Image quality as frames and tables: how well each metric agrees with people's scores of each database."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from oodbench.errors import BadData, UsageError, counted
from oodbench.leaderboard import escape
from oodbench.leaderboard.formats import cells_as, chosen, writer
from oodbench.leaderboard.notes import Gap, Note
from oodbench.leaderboard.selection import Names
from oodbench.leaderboard.tasks.contents import Tested, names_of
from oodbench.leaderboard.text_table import Column, TextTable
from oodbench.registry import unknown
from oodbench.results.folder import RunFolder
from oodbench.results.records import QualityRecord
from oodbench.suite import as_names

FIGURES = ("outlier_ratio", "rmse", "plcc", "srcc", "krcc")
COLUMNS = (
    "database", "metric", "mapping", "seed", "n", "database_size",
    *(f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")),
    "ms_per_image", "status", "reason",
)  # fmt: skip
CORRELATIONS = ("plcc", "srcc", "krcc")
LOGISTIC, LINE = MAPPINGS = ("logistic", "line")
BOLD = (
    " Bold: the best, and correlations that are not significantly lower than the best (Fisher's z at 5 %, treating the two as"
    " independent)."
)
INTERVALS = " In brackets: 95 % intervals, from a bootstrap over references, or over images without references."
NO_RECORDS = 'No records of image quality; run a suite with task = "quality".'


class Metric(NamedTuple):
    """The name of a figure in tables, whether higher is better, and its digits."""

    name: str
    higher_is_better: bool
    digits: int = 3


METRICS = {
    "outlier_ratio": Metric("outlier ratio", False),
    "rmse": Metric("RMSE", False),
    "plcc": Metric("PLCC", True),
    "srcc": Metric("SRCC", True),
    "krcc": Metric("KRCC", True),
}


def quality_records(folders: Sequence[RunFolder]) -> list[tuple[str, QualityRecord, RunFolder]]:
    """All records with the folders that hold them, and the names of their databases as of ``names_of``.

    Where two folders hold the same record, the last counts.
    """
    held = [(record, folder) for folder in folders for record in folder.of_task(QualityRecord)]
    # A record without figures is of the images of its run.
    known = {(folder.path, of.database): of for of, folder in held if of.n is not None}
    drawn = (known.get((folder.path, record.database), record) for record, folder in held)
    names = names_of([Tested(of.database, _content(of), of.n) for of in drawn])
    found: dict[tuple[str, str, int], tuple[str, QualityRecord, RunFolder]] = {}
    for name, (record, folder) in zip(names, held, strict=True):
        found[name, record.metric, record.seed] = name, record, folder
    return list(found.values())


def quality_frame(folders: Sequence[RunFolder]) -> pd.DataFrame:
    """One row per record and mapping: ``COLUMNS``; records as of ``quality_records``."""
    columns: dict[str, list[object]] = {name: [] for name in COLUMNS}
    for database, record, _ in quality_records(folders):
        here, official = record.size or (None, None)
        told = {"database": database, "database_size": here if official is None else official}
        for mapping, figures in zip(MAPPINGS, (record.figures, record.line), strict=True):
            row = {**vars(record), **(vars(figures) if figures else {}), **told, "mapping": mapping}
            for name, values in columns.items():
                values.append(escape.without_surrogates(row.get(name)))
    numbers = [name for name in COLUMNS if name.startswith(FIGURES) or name in ("n", "database_size", "ms_per_image")]
    return pd.DataFrame(columns).astype(dict.fromkeys(numbers, float))


def _content(record: QualityRecord) -> str:
    """Hash of the images of a record: of a part of a database, seed and number say which."""
    content, _, _ = record.fingerprint.partition(" ")  # of the whole database, before the limit
    part = record.size is not None and record.n is not None and record.n < record.size[0]
    return hashlib.sha256(f"{content} {record.seed} {record.n}".encode()).hexdigest() if part else content


def render_quality(
    frame: pd.DataFrame,
    format: str = "table",
    *,
    metric: str = "srcc",
    width: int | None = 160,
    notes: Sequence[Note | str] = (),
    columns: Names = (),
    intervals: bool = False,
) -> str:
    """A frame as text: one table per database, its metrics sorted by ``metric``, one of ``METRICS``; arguments as of
    ``formats.render``. In tables, ``columns`` are those of ``METRICS``.

    Raises UsageError for an unknown format, metric or column, and BadData if the frame lacks columns.
    """
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise BadData(f"the frame lacks the columns {', '.join(missing)}; take it from frame(table='quality')")
    if metric not in METRICS:
        raise UsageError(unknown("figure of image quality", metric, METRICS, f"it is one of {', '.join(METRICS)}"))
    if format in ("csv", "json"):
        return cells_as(format, frame, chosen(as_names(columns), [*COLUMNS]))
    write, shown = writer(format, width), chosen(as_names(columns), [*METRICS])
    if frame.empty:
        return f"% {NO_RECORDS}\n" if format == "tex" else f"{NO_RECORDS}\n"
    made = tables(frame, metric, shown, intervals, bold=format != "table")
    made[-1].notes.extend(notes)
    return "\n".join(map(write, made))


def tables(
    frame: pd.DataFrame,
    metric: str = "srcc",
    columns: Sequence[str] = tuple(METRICS),
    intervals: bool = False,
    bold: bool = True,
) -> list[TextTable]:
    """One table per database, before it takes a format. ``bold``: whether the format shows which figures are the best."""
    return [_text_table(str(name), of, metric, columns, intervals, bold) for name, of in frame.groupby("database", sort=False)]


def _text_table(
    database: str, cells: pd.DataFrame, metric: str, shown: Sequence[str], intervals: bool, bold: bool
) -> TextTable:
    fitted = cells[cells["mapping"] == LOGISTIC].sort_values(
        metric, ascending=not METRICS[metric].higher_is_better, na_position="last", kind="stable"
    )
    found = fitted[fitted["status"] == "ok"]
    columns = [_column(name, METRICS[name], found, intervals) for name in shown if found[name].notna().any()]
    paid = [f"{value:.3g}" if pd.notna(value) else "" for value in found["ms_per_image"]]
    images = images_of(found)
    return TextTable(
        title=f"{database}, image quality",
        caption=_caption(images, METRICS[metric].name, intervals, bold) if len(found) else "No metric has figures.",
        labels=[Column("", ("metric",), found["metric"].tolist(), is_label=True)],
        sets=[*columns, *([Column("cost", ("ms per image",), paid)] if any(paid) else [])],
        summary=[],
        breaks=[],
        notes=_notes(fitted),
    )


def images_of(cells: pd.DataFrame) -> str:
    """``30 of 3,000 images``, or ``3,000 images`` of a whole database."""
    count, official = (0 if pd.isna(number) else int(number) for number in (cells["n"].max(), cells["database_size"].max()))
    return f"{count:,} of {counted(official, 'image')}" if official > count else counted(count, "image")


def _caption(images: str, sorted_by: str, intervals: bool, bold: bool) -> str:
    return (
        f"Agreement with the scores of {images}: of ranks (SRCC, KRCC), and of values after a logistic function was fitted to"
        f" the scores (the others). The best {sorted_by} first.{INTERVALS if intervals else ''}{BOLD if bold else ''}"
    )


def _column(name: str, about: Metric, cells: pd.DataFrame, intervals: bool) -> Column:
    texts = [f"{value:.{about.digits}f}" if pd.notna(value) else "–" for value in cells[name]]
    best = cells[name].max() if about.higher_is_better else cells[name].min()
    champions = frozenset(row for row, value in enumerate(cells[name]) if value == best)
    if name in CORRELATIONS and len(cells):
        from oodbench.quality.statistics import flag  # which loads scipy

        count = int(cells["n"].max())
        champions = frozenset(row for row, value in enumerate(cells[name]) if pd.notna(value) and not flag(best, value, count))
    if intervals:
        ends = zip(cells[f"{name}_low"], cells[f"{name}_high"], strict=True)
        between = ["" if pd.isna(low) else f" [{low:.{about.digits}f}, {high:.{about.digits}f}]" for low, high in ends]
        texts = [text + added for text, added in zip(texts, between, strict=True)]
    return Column("", (about.name, "higher is better" if about.higher_is_better else "lower is better"), texts, champions)


def _notes(cells: pd.DataFrame) -> list[Note | str]:
    """Why metrics have no figures, each reason once."""
    notes: list[Note | str] = []
    by_reason: Any = cells[cells["status"] != "ok"].groupby(["status", "reason"], sort=False)
    for (status, reason), of in by_reason:
        names = tuple(of["metric"].unique())
        of_all = len(names) > 1 and len(names) == cells["metric"].nunique()
        notes.append(Gap(names, f"{f'all {len(names)} metrics' if of_all else ', '.join(names)} {status}: {reason}"))
    return notes
