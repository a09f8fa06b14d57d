"""Pictures of other tasks: accuracy by the number of labelled images, and values of a metric against people's scores."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from oodbench.errors import BadData, UsageError, counted
from oodbench.leaderboard.plots import TASKS, require_format
from oodbench.leaderboard.plots.column import ROOM, Block, Panel, stacked
from oodbench.leaderboard.plots.picture import COLOURS, KEY_LINE, KEY_MARK, MARGIN, SMALL, Picture, fitted, look, styled
from oodbench.leaderboard.tasks.active_learning import GROUP, ROW, active_learning_frame, banded, curves
from oodbench.leaderboard.tasks.quality import quality_records
from oodbench.quality.mapping import logistic
from oodbench.registry import unknown
from oodbench.results.records import QualityRecord

if TYPE_CHECKING:
    from oodbench.results.folder import RunFolder

LEFT, HIGH, AXIS = 0.34, 1.9, 0.36  # inches: left of a panel, its height, and below its axis
MOST_POINTS = 3000


def draw(kind: str, format: str, folders: Sequence["RunFolder"]) -> bytes:
    """The file of ``figure`` as png, svg or pdf. Raises as ``figure``, and UsageError for another format."""
    require_format(format)
    return figure(kind, folders).rendered(format)


def figure(kind: str, folders: Sequence["RunFolder"]) -> Picture:
    """A picture, as a matplotlib Figure.

    Args:
        kind: ``curve`` (active learning: accuracy by the number of labelled images, as of ``banded``) or ``mapping`` (image
            quality: people's scores by the values of the best metric of each database, and the fitted logistic function).

    Raises UsageError for an unknown kind, BadData where the runs have no such figures.
    """
    if kind not in TASKS:
        raise UsageError(unknown("picture", kind, TASKS, f"one of {', '.join(TASKS)}"))
    with styled():
        return _curves(folders) if kind == "curve" else _mappings(folders)


def _curves(folders: Sequence["RunFolder"]) -> Picture:
    frame = active_learning_frame(folders)
    found = curves(frame)
    if found.empty:
        raise BadData("no run has rounds of active learning; run a suite of that task")
    strategies, features = (list(found[name].unique()) for name in ROW)
    whole = max(len(COLOURS), len(strategies))  # a strategy has one colour in all panels, and each kind of features its dashes
    places = {(one, kind): a + whole * b for a, one in enumerate(strategies) for b, kind in enumerate(features)}
    blocks = []
    for (model, inside, protocol, dataset), of in found.groupby(GROUP, sort=False):
        of, remark = banded(of)
        lines = list(of.groupby(ROW, sort=False))
        height = HIGH + AXIS + KEY_LINE * len(lines)
        title = f"{model} on {inside} ({protocol}), tested on {dataset}"
        blocks.append(Block(title, [Panel("", height, partial(_lines, lines=lines, places=places))], remark))
    return stacked("Active learning", blocks)


def _lines(
    picture: Picture, top: float, lines: Sequence[tuple[Any, pd.DataFrame]], places: Mapping[tuple[str, str], int]
) -> None:
    """``places``: of strategy and features among all, so that they look the same in each panel."""
    axes = picture.panel(MARGIN + LEFT, top, ROOM - LEFT, HIGH)
    mark: dict[str, Any] = {"linewidth": 1.0, "marker": "o", "markersize": 2}
    for place, ((strategy, features), of) in enumerate(lines):
        how, of = look(places[strategy, features]) | mark, of.sort_values("labelled")
        axes.plot(of["labelled"], 100 * of["mean"], **how)
        band = 100 * of["bottom"], 100 * of["top"]
        axes.fill_between(of["labelled"], *band, color=how["color"], alpha=0.15, linewidth=0)
        name = fitted(f"{strategy}, {features}", ROOM - KEY_MARK, SMALL)
        picture.key(
            MARGIN, top + HIGH + AXIS + place * KEY_LINE, name, {"linewidth": 1.0, "marker": "o", "markersize": 2} | how
        )
    axes.set_xlabel("labelled images")
    axes.set_ylabel("accuracy (%)")


def _mappings(folders: Sequence["RunFolder"]) -> Picture:
    best: dict[str, tuple[float, QualityRecord, RunFolder]] = {}
    for database, record, folder in quality_records(folders):
        if record.figures and (database not in best or record.figures.srcc > best[database][0]):
            best[database] = record.figures.srcc, record, folder
    if not best:
        raise BadData("no run has figures of image quality; run a suite of that task")
    blocks = []
    for database, (_, record, folder) in best.items():
        mapped = mapped_scores(record, folder, MOST_POINTS)
        panel = Panel("", HIGH + AXIS, partial(_points, record=record, mapped=mapped))
        blocks.append(Block(f"{record.metric} on {database}", [panel], f"{mapped.said}, {counted(mapped.images, 'image')}."))
    return stacked("Image quality", blocks)


class Mapped(NamedTuple):
    """Values of a metric, people's scores, and the logistic function that was fitted to them."""

    values: np.ndarray  # (n,), of the images that are drawn
    scores: np.ndarray  # (n,)
    line: np.ndarray  # (200,), from the lowest value to the highest
    fitted: np.ndarray  # (200,), the scores that these are mapped to
    images: int  # how many there are
    said: str  # the correlations


def mapped_scores(record: QualityRecord, folder: "RunFolder", most: int) -> Mapped:
    """What a picture of one record shows; of more than ``most`` images, it draws that many, chosen at random."""
    arrays, figures = folder.arrays(record), record.figures
    assert figures is not None
    values, scores = arrays["values"], arrays["scores"]
    shown = np.random.default_rng(0).permutation(len(values))[:most]
    line = np.linspace(values.min(), values.max(), 200)
    fitted = logistic(line, (figures.b1, figures.b2, figures.b3, figures.b4, figures.b5))
    said = f"SRCC {figures.srcc:.3f}, PLCC {figures.plcc:.3f}"
    return Mapped(values[shown], scores[shown], line, fitted, len(values), said)


def _points(picture: Picture, top: float, record: QualityRecord, mapped: Mapped) -> None:
    axes = picture.panel(MARGIN + LEFT, top, ROOM - LEFT, HIGH)
    axes.plot(mapped.values, mapped.scores, ".", color=look(3)["color"], markersize=2, rasterized=True)
    axes.plot(mapped.line, mapped.fitted, color=look(0)["color"])
    axes.set_xlabel(record.metric)
    axes.set_ylabel(record.score or "score")
