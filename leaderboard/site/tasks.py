"""The sections of a site on other tasks than detection: their tables, and charts as coordinates like those of ``charts``."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from oodbench.errors import BadData, counted
from oodbench.leaderboard import escape
from oodbench.leaderboard.gather import not_run
from oodbench.leaderboard.plots.picture import COLOURS, DASHES
from oodbench.leaderboard.plots.tasks import Mapped, mapped_scores
from oodbench.leaderboard.sentences import sentence
from oodbench.leaderboard.site.downloads import of_task
from oodbench.leaderboard.tasks import TABLES, active_learning, quality
from oodbench.leaderboard.text_table import TextTable
from oodbench.results.folder import RunFolder
from oodbench.results.records import QualityRecord

WIDE, HIGH = 420.0, 260.0  # of a chart of curves; macros.html has these sizes and the next too
MIDDLE = (240.0, 150.0)  # of the chart of a mapping
MOST_MAPPINGS, MOST_POINTS = 16, 1000  # charts of a database, and images of a chart
MOST_TICKS = 8  # numbers of labelled images that are all ticks
STEP = 14.0  # between the names at the ends of curves
LONGEST = 24  # characters of such a name
ABOUT = {
    "quality": "How well metrics of image quality agree with people's scores. SRCC and KRCC are the rank correlations of"
    " Spearman and Kendall. PLCC is Pearson's correlation, and RMSE the root of the mean squared error, in units of the scores."
    " The outlier ratio is the share of images whose mapped value is more than two standard deviations from the score.",
    "active-learning": "A strategy chooses which images of a pool to label next. In each round a new network learns from the"
    " labelled images, and its accuracy on test images is measured. With introspective features, strategies and accuracy are"
    " those of the network that the detector introspective fits. The strategy random is the control.",
}
Ticks = list[tuple[float, str]]


class Curve(NamedTuple):
    """Accuracy of a strategy by the number of labelled images."""

    name: str
    look: str  # classes of its colour and dashes
    points: list[tuple[float, float, str]]  # x, y and what stands there
    path: str
    band: str
    name_at: float  # the height of its name
    label: str  # its name, shortened


class CurveChart(NamedTuple):
    """The strategies of one table with one kind of features."""

    features: str
    curves: list[Curve]
    remark: str
    ends: str  # the accuracies after the last round, the best first
    x_ticks: Ticks
    y_ticks: Ticks


class MappingChart(NamedTuple):
    """People's scores by the values of a metric, and the fitted logistic function."""

    name: str
    score: str
    mapped: Mapped
    points: str  # paths
    line: str
    straight: bool  # whether the fit ended as a line
    x_ticks: Ticks
    y_ticks: Ticks


class Part(NamedTuple):
    """A table, and the charts below it."""

    table: TextTable
    curves: Sequence[CurveChart] = ()
    mappings: Sequence[MappingChart] = ()
    caption: str = ""


class Section(NamedTuple):
    """One task."""

    name: str
    title: str
    about: str
    parts: list[Part]
    notes: list[str]
    downloads: list[tuple[str, str, bytes]]


def section(task: str, folders: Sequence[RunFolder]) -> Section:
    """The section of the runs of one task. Raises BadData if they have no records."""
    about = TABLES[task]
    frame = about.frame(folders)
    if frame.empty:
        raise BadData(f"{folders[0].name} has no records yet, so there is nothing to publish; run it first")
    parts = list((_quality_parts if task == "quality" else _active_learning_parts)(frame, folders))
    absent = not_run(folders)
    notes = [*map(sentence, absent), *(_limits(folders) if task != "quality" else ())]
    return Section(task, about.title, ABOUT[task], parts, notes, list(of_task(task, frame, absent)))


def _limits(folders: Sequence[RunFolder]) -> Iterator[str]:
    """Which runs used a part of their test sets. Tables of image quality say it themselves."""
    limited: dict[int, list[str]] = {}
    for folder in folders:
        if isinstance(limit := folder.manifest().settings.get("limit"), int):
            limited.setdefault(limit, []).append(folder.name)
    for limit, names in limited.items():
        yield f"Limited to {counted(limit, 'image')} of each test set: {', '.join(names)}."


def _active_learning_parts(frame: pd.DataFrame, folders: Sequence[RunFolder]) -> Iterator[Part]:
    strategies = {name: place for place, name in enumerate(frame["strategy"].unique())}
    for _, cells in frame.groupby(active_learning.GROUP, sort=False):
        (table,) = active_learning.tables(cells, intervals=True)
        yield Part(table, curves=list(_curve_charts(cells, strategies)))


def _curve_charts(cells: pd.DataFrame, strategies: Mapping[str, int]) -> Iterator[CurveChart]:
    """A chart for each kind of features of one table, all with the same axes."""
    found, remark = active_learning.banded(active_learning.curves(cells))
    if found.empty:
        return
    x, x_ticks = _axis(found["labelled"], WIDE)
    if len(counts := np.unique(found["labelled"])) <= MOST_TICKS:
        x_ticks = [(float(x(count)), f"{count:,.0f}") for count in counts]
    y, y_ticks = _axis(100 * found[["mean", "bottom", "top"]], -HIGH)
    for features, of in found.groupby("features", sort=False):
        lines = [(str(name), line.sort_values("labelled")) for name, line in of.groupby("strategy", sort=False)]
        lines.sort(key=lambda named: -named[1]["mean"].iloc[-1])
        heights = _apart([float(y(100 * line["mean"].iloc[-1])) for _, line in lines])
        curves = [_curve(name, strategies[name], line, x, y, at) for (name, line), at in zip(lines, heights, strict=True)]
        ends = ", ".join(f"{name} {100 * line['mean'].iloc[-1]:.1f}" for name, line in lines)
        yield CurveChart(str(features), curves, remark, ends, x_ticks, y_ticks)


def _curve(name: str, place: int, line: pd.DataFrame, x: Any, y: Any, name_at: float) -> Curve:
    xs, *ys = x(line["labelled"]), *(y(100 * line[end]) for end in ("mean", "bottom", "top"))
    texts = [f"{name}, {count:,.0f} labelled images: {100 * of:.1f}" for count, of in line[["labelled", "mean"]].values]
    points = list(zip(xs, ys[0], texts, strict=True))
    band = f"{_path(xs, ys[1])} L{_path(xs[::-1], ys[2][::-1])[1:]} Z"
    looks = f"colour-{place % len(COLOURS)} dash-{place // len(COLOURS) % len(DASHES)}"
    return Curve(name, looks, points, _path(xs, ys[0]), band, name_at, escape.shortened(name, LONGEST))


def _apart(heights: Sequence[float]) -> np.ndarray:
    """Heights of names, from the top down: as near to these as a line of text for each allows, and not below the chart."""
    steps = min(STEP, HIGH / len(heights)) * np.arange(len(heights))
    found = np.maximum.accumulate(np.asarray(heights) - steps) + steps
    return np.asarray(np.minimum(found, HIGH - steps[::-1]))


def _quality_parts(frame: pd.DataFrame, folders: Sequence[RunFolder]) -> Iterator[Part]:
    by_database: dict[str, list[tuple[QualityRecord, RunFolder]]] = {}
    for database, record, folder in quality.quality_records(folders):
        by_database.setdefault(escape.without_surrogates(database), []).append((record, folder))
    for name, cells in frame.groupby("database", sort=False):
        (table,) = quality.tables(cells, intervals=True)
        measured = [(record, folder) for record, folder in by_database[str(name)] if record.figures]
        measured.sort(key=lambda held: -held[0].figures.srcc if held[0].figures else 0.0)
        charts = [_mapping_chart(record, folder) for record, folder in measured[:MOST_MAPPINGS]]
        yield Part(table, mappings=charts, caption=_caption(charts, measured[0][0], len(measured)) if charts else "")


def _mapping_chart(record: QualityRecord, folder: RunFolder) -> MappingChart:
    mapped, (wide, high) = mapped_scores(record, folder, MOST_POINTS), MIDDLE
    x, x_ticks = _axis(mapped.values, wide)
    y, y_ticks = _axis(np.concatenate([mapped.scores, mapped.fitted]), -high)
    # Whole places, each once, keep a page of many images small.
    places = dict.fromkeys(zip(x(mapped.values).round().astype(int), y(mapped.scores).round().astype(int), strict=True))
    points = "".join(f"M{left} {top}h0" for left, top in places)
    line, straight = _path(x(mapped.line), y(mapped.fitted)), bool(record.figures and record.figures.collapsed)
    return MappingChart(record.metric, record.score or "score", mapped, points, line, straight, x_ticks, y_ticks)


def _caption(charts: Sequence[MappingChart], record: QualityRecord, metrics: int) -> str:
    """How to read the charts of one database."""
    better = "higher" if record.score_higher_is_better else "lower"
    shown, images = len(charts[0].mapped.values), charts[0].mapped.images
    return (
        f"Each point is an image: its score ({charts[0].score}, {better} is better) by the value of the metric. The line is the"
        f" fitted logistic function, from whose values PLCC and RMSE come."
        + (f" {shown:,} of {images:,} images are drawn." if shown < images else "")
        + (f" The first {len(charts)} of {metrics} metrics." if len(charts) < metrics else "")
    )


def _axis(values: Any, length: float) -> tuple[Any, Ticks]:
    """What places values on an axis of this length, upwards if it is negative, and the ticks of the axis."""
    low, high = float(np.min(values)), float(np.max(values))
    margin = 0.04 * (high - low) or 0.5
    low, high = low - margin, high + margin

    def place(of: Any) -> np.ndarray:
        share = (np.asarray(of, float) - low) / (high - low)
        return np.asarray(length * share if length > 0 else length * (share - 1))

    ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
    return place, [(float(place(tick)), f"{tick:g}") for tick in ticks if low <= tick <= high]


def _path(xs: np.ndarray, ys: np.ndarray) -> str:
    return "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))
