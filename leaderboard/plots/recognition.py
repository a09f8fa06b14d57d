"""Pictures of recognition: the reliability of one source on one set, and accuracy against calibration under corruptions."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from oodbench import calibration
from oodbench.errors import BadData, UsageError, counted
from oodbench.leaderboard.aggregate import REPEATS
from oodbench.leaderboard.labels import label
from oodbench.leaderboard.plots import RECOGNITION, require_format
from oodbench.leaderboard.plots.column import ROOM, Block, Panel, stacked
from oodbench.leaderboard.plots.picture import CHANCE, KEY_LINE, KEY_MARK, MARGIN, SMALL, Picture, fitted, look, styled
from oodbench.leaderboard.recognition import GROUP, each_once, means
from oodbench.registry import unknown
from oodbench.results.records import NETWORK

if TYPE_CHECKING:
    from oodbench.results.folder import RunFolder

INTROSPECTIVE = "introspective"
SIDE = 2.4  # inches of the square
AXIS, COUNTS = 0.34, 0.62  # inches below an axis, and of the panel with counts
BAR, GAP = "#88CCEE", "#CC6677"
UNDER_CORRUPTION = ("mean", "corruption")


def figure(kind: str, frame: pd.DataFrame, folders: Sequence["RunFolder"]) -> Picture:
    """A picture of recognition, as a matplotlib Figure.

    Args:
        kind: ``reliability`` (accuracy by confidence, of the first source on the first set, at its highest level) or
            ``generalization`` (mean accuracy against mean ECE over corruptions, from the network to ``introspective``).
        frame: what ``gather_recognition`` gives for the folders.
        folders: the run folders, where class probabilities are stored.

    Raises UsageError for an unknown kind, BadData where the frame lacks what the picture shows.
    """
    if kind not in RECOGNITION:
        raise UsageError(unknown("recognition picture", kind, RECOGNITION, f"one of {', '.join(RECOGNITION)}"))
    with styled():
        return _reliability(each_once(frame), folders) if kind == "reliability" else _generalization(each_once(frame))


def draw(kind: str, frame: pd.DataFrame, format: str, folders: Sequence["RunFolder"]) -> bytes:
    """The file of ``figure`` as png, svg or pdf: the same bytes for the same records. Raises as ``figure``."""
    require_format(format)
    return figure(kind, frame, folders).rendered(format)


def _reliability(cells: pd.DataFrame, folders: Sequence["RunFolder"]) -> Picture:
    judged = cells[cells["status"] == "ok"]
    if judged.empty:
        raise BadData(
            "no source of class probabilities has figures, so there is no reliability diagram; run a detector on"
            " sets with the classes of the network"
        )
    first = judged.sort_values("source", key=lambda names: names != NETWORK, kind="stable").iloc[0]
    mine = judged[(judged["source"] == first["source"]) & (judged["dataset"] == first["dataset"])]
    cell = mine.iloc[int(mine["level"].fillna(0).argmax())]
    images = _stored(cell, folders)
    name = cell["dataset"] if pd.isna(cell["level"]) else f"{cell['dataset']}@{int(cell['level'])}"
    model = label("model", cell["model"], cell["network"])
    one_of = [f"{of} {str(cell[of])[:6]}" for of in REPEATS if judged[of].nunique() > 1]  # a picture shows one of a study
    title = ", ".join([f"{cell['source']} of {model} on {name}", *one_of, f"ECE {100 * cell['ece']:.1f}"])
    remark = (
        f"Accuracy by confidence, the largest probability, in {calibration.BINS} bins; dotted: as accurate as confident; red:"
        f" mean confidence of a bin. Below: how many of {counted(len(images), 'image')}. ECE ×100."
    )
    height = SIDE + 0.1 + COUNTS + AXIS
    return stacked("Reliability", [Block(title, [Panel("", height, partial(_bins, images=images))], remark)])


def _bins(picture: Picture, top: float, images: np.ndarray) -> None:
    counts, accuracy, confidence = calibration.reliability(images[:, 0], images[:, 1])
    left, width = MARGIN + (ROOM - SIDE) / 2 + 0.15, 100 / calibration.BINS
    edges = width * np.arange(calibration.BINS)
    axes = picture.panel(left, top, SIDE, SIDE)
    axes.bar(edges, 100 * accuracy, width, align="edge", color=BAR, edgecolor="white", linewidth=0.5, zorder=2)
    axes.hlines(100 * confidence, edges, edges + width, color=GAP, linewidth=1.2, zorder=3)
    axes.plot([0, 100], [0, 100], **CHANCE | {"zorder": 4})
    axes.set(xlim=(0, 100), ylim=(0, 101), xticks=range(0, 101, 20), yticks=range(0, 101, 20), xticklabels=[])
    axes.set_ylabel("accuracy (%)")
    below = picture.panel(left, top + SIDE + 0.1, SIDE, COUNTS)
    below.bar(edges, counts, width, align="edge", color=BAR, edgecolor="white", linewidth=0.5)
    for edge, count in zip(edges, counts, strict=True):
        if count:
            below.text(edge + width / 2, count, f" {count:,}", fontsize=5, rotation=90, ha="center", va="bottom")
    below.set(xlim=(0, 100), ylim=(0, 1.8 * counts.max()), xticks=range(0, 101, 20), yticks=[])
    below.set_xlabel("confidence (%)")
    below.set_ylabel("images")


def _stored(cell: Any, folders: Sequence["RunFolder"]) -> np.ndarray:
    """``calibration.per_image`` of the record that a row of the frame was made from."""
    level = None if pd.isna(cell["level"]) else int(cell["level"])
    wanted = (cell["source"], cell["dataset"], level, cell["seed"], cell["checkpoint"])
    for folder in reversed(folders):
        for record in folder.recognition():
            found = (record.source, record.dataset, record.level, record.seed, record.weights_hash)
            if found == wanted and record.figures is not None and record.figures.ece == cell["ece"]:
                return folder.arrays(record)["probabilities"]
    raise BadData(f"{cell['source']} on {cell['dataset']}: its run folder stores no class probabilities; run it again")


def _generalization(cells: pd.DataFrame) -> Picture:
    arrows: list[tuple[str, Any, Any]] = []
    for _, of in cells.groupby(GROUP, sort=False):
        accuracy, ece = (means(of, metric) for metric in ("accuracy", "ece"))
        if not {NETWORK, INTROSPECTIVE} <= {*accuracy.index} or UNDER_CORRUPTION not in accuracy:
            continue
        ends = [(100 * accuracy[UNDER_CORRUPTION][one], 100 * ece[UNDER_CORRUPTION][one]) for one in (NETWORK, INTROSPECTIVE)]
        first = of.iloc[0]
        name = f"{label('model', first['model'], first['network'])} on {first['in_distribution']}"
        if not np.isnan(ends).any():
            arrows.append((name, ends[0], ends[1]))
    if not arrows:
        raise BadData(
            f"no run has figures of {NETWORK} and {INTROSPECTIVE} on corruptions; run the detector {INTROSPECTIVE} on some"
        )
    remark = (
        "Means over corruptions, each over its levels. Arrows lead from the network (circle) to introspective (square)."
        " The lower right is best."
    )
    height = SIDE + AXIS + KEY_LINE * len(arrows)
    panel = Panel("", height, partial(_arrows, arrows=arrows))
    return stacked("Generalization against calibration", [Block(counted(len(arrows), "network"), [panel], remark)])


def _arrows(picture: Picture, top: float, arrows: list[tuple[str, Any, Any]]) -> None:
    axes = picture.panel(MARGIN + (ROOM - SIDE) / 2 + 0.15, top, SIDE, SIDE)
    for place, (name, start, end) in enumerate(arrows):
        colour = look(place)["color"]
        line = {"arrowstyle": "->", "color": colour, "linewidth": 1.1, "shrinkA": 3, "shrinkB": 3}
        axes.annotate("", end, start, arrowprops=line)
        axes.plot(*start, "o", color=colour, markersize=4, markerfacecolor="white", zorder=3)
        axes.plot(*end, "s", color=colour, markersize=4, zorder=3)
        mark = {"color": colour, "linewidth": 1.1, "marker": "o", "markersize": 3.5, "markerfacecolor": "white"}
        picture.key(MARGIN, top + SIDE + AXIS + place * KEY_LINE, fitted(name, ROOM - KEY_MARK, SMALL), mark)
    axes.margins(0.12)
    axes.set_xlabel("accuracy (%)")
    axes.set_ylabel("ECE (%)")
