"""Figures of image quality and of active learning beside what papers published.

Of image quality, the figures after a straight line and after the logistic function stand side by side, because some published
ones follow from a logistic fit that ended as a line.
"""

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import pandas as pd

from oodbench.errors import UsageError, counted
from oodbench.leaderboard.formats import cells_as, writer
from oodbench.leaderboard.published import OWN, read_papers
from oodbench.leaderboard.tasks import TABLES
from oodbench.leaderboard.tasks.active_learning import areas
from oodbench.leaderboard.tasks.quality import LINE, LOGISTIC, METRICS, images_of
from oodbench.leaderboard.text_table import Column, TextTable
from oodbench.results.folder import RunFolder

QUALITY = (
    "database", "metric", "figure", "published", "line", "logistic", "reproduced_by", "paper", "status", "reason", "stands_in",
)  # fmt: skip
ACTIVE_LEARNING = (
    "model", "strategy", "features", "test_set", "measured", "spread", "seeds", "published", "difference", "paper", "status",
    "reason", "stands_in",
)  # fmt: skip
FILES = {"quality": "introspective_iqa.csv", "active-learning": "introspective_active_learning.csv"}
DATABASES = {"tid13": "tid2013", "multi": "multi"}  # our names of the paper's
ESTIMATORS = {"per-sim": "persim"}
STRATEGIES = {"least": "least-confidence"}
HAVING = {  # what has published figures
    "quality": f"runs on {' and '.join(sorted(DATABASES.values()))} have some",
    "active-learning": "the suite cifar10-active has some",
}
AS_PUBLISHED = 0.001  # difference that rounding of the published figure and of its fit may make
NOT_RUN = "not run"
CLEAN, NOISE = r"^cifar10(?: \(.*\))?$", r"^cifar10\+noise|gaussian_noise"  # test sets, maybe with the number of their images


def beside_published(task: str, folders: Sequence[RunFolder]) -> pd.DataFrame:
    """The figures of these runs beside published ones: one row per published figure, ``QUALITY`` or ``ACTIVE_LEARNING``.

    Raises UsageError where no figure of the paper belongs to the runs.
    """
    frame, published = TABLES[task].frame(folders), pd.read_csv(OWN / FILES[task])
    paper = read_papers()[FILES[task]].source
    make = _quality if task == "quality" else _active_learning
    rows = pd.DataFrame([{**row, "paper": paper} for row in make(frame, published)])
    if (rows["status"] == NOT_RUN).all():
        raise UsageError(f"no published figure belongs to these runs; {HAVING[task]} (docs/tasks.md)")
    return rows.reindex(columns=list(QUALITY if task == "quality" else ACTIVE_LEARNING))


def render_beside(task: str, folders: Sequence[RunFolder], format: str = "table", *, width: int | None = 160) -> str:
    """``beside_published`` as text, in the formats of leaderboards."""
    rows = beside_published(task, folders)
    if format in ("csv", "json"):
        return cells_as(format, rows, list(rows.columns))
    labels = ("database", "metric", "figure") if task == "quality" else ("model", "strategy", "features", "test_set")
    numbers = ("published", "line", "logistic") if task == "quality" else ("published", "measured", "difference")
    factor, digits = (1, 3) if task == "quality" else (100, 1)
    shown = rows[rows["status"] == "ok"]
    columns = [
        Column("", (name,), ["–" if pd.isna(value) else f"{factor * value:{sign}.{digits}f}" for value in shown[name]])
        for name, sign in ((name, "+z" if name == "difference" else "") for name in numbers)
    ]
    if task == "quality":
        columns.append(Column("", ("reproduced by",), shown["reproduced_by"].tolist()))
    else:
        columns.insert(
            2, Column("", ("deviation",), [f"{100 * value:.1f}" if value == value else "–" for value in shown["spread"]])
        )
    absent = rows[rows["status"] == NOT_RUN].groupby("reason", sort=False)
    notes = [f"not run ({counted(len(of), 'published figure')}): {reason}" for reason, of in absent]
    notes += [str(text) for text in shown["stands_in"].unique() if text]
    caption = {
        "quality": "Figures with a straight line and with the logistic function in place of the paper's fit, correlations"
        f" without their sign. Reproduced by: the one that gives the published figure within {AS_PUBLISHED:g}.",
        "active-learning": "Accuracy ×100, the mean over rounds: published, measured, its standard deviation over seeds, and"
        " measured minus published. How the paper takes its mean is not known.",
    }[task]
    table = TextTable(
        title=f"{TABLES[task].title} beside {rows['paper'].iloc[0]}",
        caption=caption,
        labels=[Column("", (name.replace("_", " "),), shown[name].astype(str).tolist(), is_label=True) for name in labels],
        sets=columns,
        summary=[],
        breaks=[],
        notes=list(notes),
    )
    return writer(format, width)(table)


def _quality(frame: pd.DataFrame, published: pd.DataFrame) -> list[dict[str, Any]]:
    found = {(_database(str(row.database)), row.metric, row.mapping): row for row in frame.itertuples() if row.status == "ok"}
    rows = []
    figure: Any
    for figure in published.itertuples():
        database = DATABASES[str(figure.database)]
        metric = ESTIMATORS.get(str(figure.estimator), str(figure.estimator))
        row: dict[str, Any] = {"database": database, "metric": metric, "figure": figure.metric, "published": figure.value}
        records: list[Any] = [found.get((database, metric, mapping)) for mapping in (LINE, LOGISTIC)]
        if records[0] is None or figure.metric not in METRICS:
            known = any(key[:1] == (database,) for key in found)
            why = f"no run of {database}" if not known else f"{database} was run without {metric}"
            rows.append(row | {"status": NOT_RUN, "reason": why, "reproduced_by": ""})
            continue
        values = [abs(float(getattr(record, str(figure.metric)))) for record in records]  # as papers publish correlations
        if math.isnan(values[0]):
            why = f"{database} has no standard deviations of scores here"
            rows.append(row | {"status": NOT_RUN, "reason": why, "reproduced_by": ""})
            continue
        same = [name for name, value in zip((LINE, LOGISTIC), values, strict=True) if _is(value, float(figure.value))]
        part = records[0].database_size > records[0].n
        row |= {"stands_in": f"{database}: {images_of(pd.DataFrame([records[0]]))}" if part else "", "status": "ok"}
        rows.append(row | {"line": values[0], "logistic": values[1], "reproduced_by": " and ".join(same)})
    return rows


def _database(name: str) -> str:
    """The name of a database, also where its values come from a file that is named after it."""
    base, colon, path = name.partition(":")
    return PurePath(path).stem if colon and base in ("scores", "folder") else base


def _is(value: float, published: float) -> bool:
    digits = 3
    return abs(round(value, digits) - published) <= AS_PUBLISHED + 1e-9


def _active_learning(frame: pd.DataFrame, published: pd.DataFrame) -> list[dict[str, Any]]:
    whole = areas(frame) if len(frame) else pd.DataFrame(columns=["in_distribution", "model"])
    whole = whole[whole["in_distribution"] == "cifar10"]
    rows = []
    figure: Any
    for figure in published.itertuples():
        noise = figure.test_set == "gaussian-noise"
        strategy = STRATEGIES.get(str(figure.strategy), str(figure.strategy))
        of = whole[whole["model"] == figure.model]
        stand_in = "" if len(of) or whole.empty else str(whole["model"].iloc[0])
        of = whole if stand_in else of
        row: dict[str, Any] = {"model": figure.model, "features": figure.features, "test_set": figure.test_set}
        row |= {"strategy": strategy, "published": figure.accuracy, "status": NOT_RUN, "stands_in": ""}
        if of.empty:
            rows.append(row | {"reason": "no run on cifar10"})
            continue
        tested = of["dataset"].str.contains(NOISE if noise else CLEAN)
        mine = of[(of["strategy"] == strategy) & (of["features"] == figure.features) & tested]
        if mine.empty:
            rows.append(row | {"reason": f"{strategy} ({figure.features}) was not run on {figure.test_set}"})
            continue
        if len(names := mine["dataset"].unique()) > 1:
            rows.append(row | {"reason": f"the runs were tested on {' and '.join(names)}; name runs of one"})
            continue
        measured = float(mine["mean"].mean())
        spread = float(mine["mean"].std()) if len(mine) > 1 else math.nan
        row |= {"measured": measured, "spread": spread, "seeds": len(mine), "difference": measured - float(figure.accuracy)}
        words = f"{stand_in} stands in for the paper's networks" if stand_in else ""
        rows.append(row | {"status": "ok", "reason": "", "stands_in": words})
    return rows
