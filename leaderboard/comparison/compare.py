"""What moved from one run to another, and whether it is noise: one row per cell that either of them has.

Cells are compared on the test samples that both have, by DeLong's paired test, where that is fair; else by the intervals of
either. Of many comparisons, Holm's method keeps the probability of a false alarm below 5 %.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from oodbench.errors import BadData, UsageError, counted
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import BENIGN
from oodbench.leaderboard.comparison import compare_tasks
from oodbench.leaderboard.frame import machine_of
from oodbench.leaderboard.paired import rows_of
from oodbench.leaderboard.plots.stored import ROLES, StoredScores
from oodbench.leaderboard.tasks import DETECTION, task_of
from oodbench.metrics import NORMAL_975
from oodbench.progress import Progress
from oodbench.results.bundle import open_folders
from oodbench.results.folder import RunFolder
from oodbench.results.records import DetectionRecord, Record, cost_key
from oodbench.results.statistics import area, deviation, difference, holm, p_value

COLUMNS = (
    "run", "in_distribution", "detector", "protocol", "dataset", "level", "verdict", "first", "second", "difference",
    "low", "high", "p", "n_in", "n_out", "basis", "reason",
)  # fmt: skip
COSTS = ("run", "detector", "setting", "unit", "first", "second", "ratio", "moved")
REGRESSED, IMPROVED, TOLERATED, NOISE = "regressed", "improved", "within tolerance", "within noise"
EQUAL, OTHER_SEED, NEITHER = "equal", "other seed", "without figures"
LOST, FOUND, GONE, NEW = "lost", "found", "gone", "new"
SIGNIFICANT = 0.05
# What a cell's figure depends on, in words, where it is not what the comparison is about.
DEPENDS = {
    "model": "network", "weights_hash": "weights", "seed": "seed", "in_fingerprint": "in-distribution test images",
    "fingerprint": "images of the set", "train_fingerprint": "training images",
    "transfer_from": "set that transfer learns from", "parameters": "hyper-parameters", "code": "code of the detector",
    "kind": "kind of the set",
}  # fmt: skip
COST_MOVED = 0.2  # relative change of a cost that counts, if the spread of its repeats is not larger


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found.

    Attributes:
        first, second: what the two runs are called.
        rows: a row per cell, in ``COLUMNS``; figures are AUROC, fractions in [0, 1], and differences second minus first.
        costs: a row per detector and setting that both have a standalone cost of, in ``COSTS``.
        differs: what the runs differ in, in words.
        tolerance: how much a figure may fall.
        left_out: how many cells of benign sets were not compared: their figures are false alarms.
        figure: what is compared, and ``test``: how it is known whether it moved.
        labels: what tables call detector, protocol and set; a column without a name is left out.
        seeds: what a seed changes, in words.
        recognition: whether both have records of recognition, which are not compared.
    """

    first: str
    second: str
    rows: pd.DataFrame
    costs: pd.DataFrame
    differs: list[str]
    tolerance: float
    left_out: int
    figure: str = "AUROC"
    test: str = "DeLong"
    labels: tuple[str, str, str] = ("detector", "protocol", "set")
    seeds: str = "splits, subsets, corruptions and the training of detectors"
    recognition: bool = False

    @property
    def regressions(self) -> pd.DataFrame:
        """Cells that fell by more than the tolerance, beyond noise, and cells that lost their figure."""
        return self.rows[self.rows["verdict"].isin([REGRESSED, LOST])]

    @property
    def ok(self) -> bool:
        """Whether nothing regressed."""
        return self.regressions.empty


class _Moved(NamedTuple):
    """How a figure moved, from which samples that is known, and how."""

    difference: float
    low: float
    high: float
    p: float
    n_in: int
    n_out: int
    basis: str


def compare(first: str | Path, second: str | Path, *, tolerance: float = 0.0, progress: Progress | None = None) -> Comparison:
    """Compare the AUROC of each cell of two runs, two studies or bundles of them, and the costs of their detectors.

    Of runs of image quality it compares SRCC, and of active learning the accuracy of each round (``FIGURES`` in
    ``compare_tasks``).

    A cell *regressed* if it fell by more than ``tolerance`` and its difference is not noise at 5 %, and *improved* likewise.
    Where both have the same images, samples are compared pair by pair; else as if they were independent, which sees less.
    Cells that another seed moved are not judged: how far seeds move them is not known. Runs of two studies are matched by
    name.

    Raises UsageError where one is a study and the other is not, where they have no cell in common, and for a tolerance
    outside [0, 1]; BadData for a damaged folder or bundle, and for runs of an older oodbench, which a run migrates.
    """
    if not 0 <= tolerance <= 1:
        raise UsageError(f"tolerance is {tolerance}; give a difference of AUROC from 0 to 1, such as 0.01")
    progress = progress or Progress()
    sides = [_by_name(Path(path), progress) for path in (first, second)]
    if [*sides[0]] != [*sides[1]] and ("" in sides[0] or "" in sides[1]):
        run, study = (first, second) if "" in sides[0] else (second, first)
        raise UsageError(f"{run} is a run, but {study} is a study; compare two runs, or two studies")
    tasks = list(dict.fromkeys(task_of([folder]) for side in sides for folder in side.values()))
    if len(tasks) > 1:
        raise UsageError(f"{first} is a run of {tasks[0]}, but {second} of {tasks[1]}; compare runs of one task")
    if tasks[0] != DETECTION:
        return _of_task(tasks[0], sides, str(first), str(second), tolerance)
    rows: list[dict[str, Any]] = []
    differs: dict[str, dict[tuple[str, ...], None]] = {}
    costs: list[dict[str, Any]] = []
    left_out = 0
    progress.stage("comparing cells")
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        pair = [side.get(name) for side in sides]
        records = [{} if folder is None else _records(folder) for folder in pair]
        left_out += sum(record.kind == BENIGN for record in (records[0] | records[1]).values())
        for place, either in (records[0] | records[1]).items():
            one, other = (of.get(place) for of in records)
            if either.kind != BENIGN:
                rows.append(
                    {
                        field: escape.without_surrogates(value)
                        for field, value in ({"run": name} | _row(one, other, pair)).items()
                    }
                )
                _note_differences(differs, DEPENDS, one, other)
        if pair[0] is not None and pair[1] is not None:
            costs += [{"run": escape.without_surrogates(name)} | cost for cost in _costs(pair, records)]
    if all(row["verdict"] in (NEW, GONE) for row in rows):
        raise UsageError(f"{first} and {second} have no cell in common; compare runs of the same sets and detectors")
    machines = [sorted({machine_of(folder.manifest()) for folder in side.values()}) for side in sides]
    words = [_in_words(field, DEPENDS[field], list(values)) for field, values in differs.items()]
    words += [f"machine: {' and '.join(machines[0])}, then {' and '.join(machines[1])}"] if machines[0] != machines[1] else []
    _judge(rows, tolerance)
    recognition = all(any(next(folder.recognition(), None) for folder in side.values()) for side in sides)
    frames = pd.DataFrame(rows, columns=list(COLUMNS)), pd.DataFrame(costs, columns=list(COSTS))
    return Comparison(str(first), str(second), *frames, words, tolerance, left_out, recognition=recognition)


def _of_task(task: str, sides: Sequence[Mapping[str, RunFolder]], first: str, second: str, tolerance: float) -> Comparison:
    """The comparison of two runs of another task than detection."""
    words = {"new": NEW, "gone": GONE, "lost": LOST, "found": FOUND, "equal": EQUAL, "other seed": OTHER_SEED}
    words["neither"] = NEITHER
    rows: list[dict[str, Any]] = []
    differs: dict[str, dict[tuple[str, ...], None]] = {}
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        for row, one, other in compare_tasks.rows_of(task, (sides[0].get(name), sides[1].get(name)), words):
            rows.append({field: escape.without_surrogates(value) for field, value in ({"run": name} | row).items()})
            _note_differences(differs, compare_tasks.DEPENDS, one, other)
    if all(row["verdict"] in (NEW, GONE) for row in rows):
        raise UsageError(f"{first} and {second} have no record in common; compare runs of the same suite")
    _judge(rows, tolerance)
    frames = pd.DataFrame(rows, columns=list(COLUMNS)), pd.DataFrame([], columns=list(COSTS))
    figure, test, labels, seeds = compare_tasks.FIGURES[task]
    told = [_in_words(field, compare_tasks.DEPENDS[field], list(values)) for field, values in differs.items()]
    return Comparison(first, second, *frames, told, tolerance, 0, figure, test, labels, seeds)


def _by_name(path: Path, progress: Progress) -> dict[str, RunFolder]:
    """The runs of a study by name; a run alone has none."""
    folders = open_folders(path, progress=progress)
    StoredScores(folders).require_quick()
    return {"" if folder.study is None else folder.path.name: folder for folder in folders}


def _records(folder: RunFolder) -> dict[tuple[str, ...], DetectionRecord]:
    return {(record.set_name, record.in_distribution, *record.place): record for record in folder.records()}


def _row(one: DetectionRecord | None, other: DetectionRecord | None, pair: Sequence[RunFolder | None]) -> dict[str, Any]:
    """One cell; whether a difference is noise is judged later, with all others."""
    either = one or other
    assert either is not None
    row: dict[str, Any] = dict.fromkeys(COLUMNS[1:], math.nan) | {"basis": "", "reason": ""}
    row |= {name: getattr(either, name) for name in ("in_distribution", "protocol", "dataset", "level")}
    row["detector"] = either.row
    figures = [None if of is None or of.metrics is None else of.metrics.auroc for of in (one, other)]
    row |= {name: figure for name, figure in zip(("first", "second"), figures, strict=True) if figure is not None}
    if one is None or other is None:
        return row | {"verdict": NEW if one is None else GONE}
    if one.metrics is None or other.metrics is None:
        verdict = LOST if one.metrics is not None else FOUND if other.metrics is not None else NEITHER
        return row | {"verdict": verdict, "reason": (one if one.metrics is None else other).reason}
    if one.arrays == other.arrays and one.metrics == other.metrics:  # arrays are named by their content
        return row | {"verdict": EQUAL, "difference": 0.0, "p": 1.0, "n_in": one.n_in, "n_out": one.n_out}
    if one.seed != other.seed:
        return row | {"verdict": OTHER_SEED, "difference": other.metrics.auroc - one.metrics.auroc}
    arrays = [folder.arrays(of) for folder, of in zip(pair, (one, other), strict=True) if folder is not None]
    return row | {"verdict": ""} | _moved(one, other, arrays)._asdict()


def _moved(one: DetectionRecord, other: DetectionRecord, arrays: Sequence[Mapping[str, np.ndarray]]) -> _Moved:
    why = _why_apart(one, other)
    if not why:
        try:
            return _paired(*arrays)
        except BadData:
            why = "few common samples"
    figures, variance = [], 0.0
    for of in arrays:
        found = area(of["in_scores"], of["out_scores"])
        numbers = np.concatenate(_images(of))
        pulls = np.concatenate([found.inside, found.outside])
        variance += deviation([np.bincount(np.unique(numbers, return_inverse=True)[1], pulls)]) ** 2
        figures.append(found.auroc)
    moved, reach = figures[1] - figures[0], math.sqrt(variance)
    n_in, n_out = (min(len(of[role]) for of in arrays) for role in ROLES[:2])
    return _Moved(*_interval(moved, reach), p_value(moved, reach), n_in, n_out, f"intervals ({why})")


def _why_apart(one: DetectionRecord, other: DetectionRecord) -> str:
    """Why samples cannot be compared pair by pair; empty where they can."""
    for field in ("in_fingerprint", "fingerprint", "transfer_from"):
        if getattr(one, field) != getattr(other, field):
            return f"other {DEPENDS[field]}"
    return ""


def _paired(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> _Moved:
    """On the samples that both were tested on. Raises BadData for fewer than two images of a side."""
    scores: list[list[np.ndarray]] = [[], []]
    images = []
    for side, first, second, numbers in zip(("in", "out"), rows_of(one), rows_of(other), _images(one), strict=True):
        _, at, there = np.intersect1d(first, second, return_indices=True)
        for of, arrays, places in zip(scores, (one, other), (at, there), strict=True):
            of.append(arrays[f"{side}_scores"][places])
        images.append(numbers[at])
    (first_in, first_out), (second_in, second_out) = scores
    found = difference((second_in, second_out), (first_in, first_out), (images[0], images[1]) if "in_base" in one else None)
    low, high = (0.0, 0.0) if not found.auroc and found.p == 1 else (found.low, found.high)
    return _Moved(found.auroc, low, high, found.p, found.n_in, found.n_out, "pairs")


def _images(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The number of the image that each tested sample of either side was made from."""
    inside, outside = rows_of(arrays)
    if "in_base" not in arrays:
        return inside, outside + (int(inside.max(initial=-1)) + 1)
    return arrays["in_base"][inside], arrays["out_base"][outside]


def _interval(moved: float, spread: float) -> tuple[float, float, float]:
    reach = NORMAL_975 * spread if spread > 0 else 2.0
    return moved, max(-1.0, moved - reach), min(1.0, moved + reach)


def _judge(rows: list[dict[str, Any]], tolerance: float) -> None:
    """Give rows without a verdict one, and adjust p for as many comparisons as there were."""
    moved = [row for row in rows if not row["verdict"]]
    for row, p in zip(moved, holm([row["p"] for row in moved]).tolist(), strict=True):
        row["p"] = p
        if p >= SIGNIFICANT:
            row["verdict"] = NOISE
        elif abs(row["difference"]) <= tolerance:
            row["verdict"] = TOLERATED
        else:
            row["verdict"] = REGRESSED if row["difference"] < 0 else IMPROVED


def _costs(pair: Sequence[RunFolder | None], records: Sequence[Mapping[Any, DetectionRecord]]) -> Iterator[dict[str, Any]]:
    """The costs that both have, the overhead where it is known."""
    keys = {
        cost_key(record.detector, record.parameters, record.setting): record
        for of in records
        for record in of.values()
        if record.status == "ok"
    }
    first, second = (folder.costs() for folder in pair if folder is not None)
    for key in sorted(first.keys() & second.keys() & keys.keys()):
        record, both = keys[key], (first[key], second[key])
        unit = "overhead" if all(cost["overhead"] is not None for cost in both) else "ms_per_image"
        before, after = (float(cost[unit] or 0) for cost in both)
        spread = max(float(cost.get(f"{unit}_spread") or 0) for cost in both)
        ratio = after / before if before > 0 else math.nan
        yield {
            "detector": record.detector, "setting": json.dumps(record.setting) if record.setting else "", "unit": unit,
            "first": before, "second": after, "ratio": ratio, "moved": abs(ratio - 1) > max(COST_MOVED, spread),
        }  # fmt: skip


def _note_differences(
    differs: dict[str, dict[tuple[str, ...], None]], fields: Iterable[str], one: Record | None, other: Record | None
) -> None:
    """Note what two records of one cell differ in, by field."""
    if one is None or other is None:
        return
    for field in fields:
        values = tuple(str(getattr(of, field, "")) for of in (one, other))
        if field == "fingerprint":
            values = compare_tasks.images_of(one, other)
        if values[0] != values[1]:
            differs.setdefault(field, {})[values] = None


def _in_words(field: str, what: str, values: list[tuple[str, ...]]) -> str:
    """``weights: 1234 then 5678``; of many values how many."""
    if field in ("parameters", "code", "files") or len(values) > 1:
        return f"{what}: {counted(len(values), 'detector' if what == DEPENDS['code'] else 'change')}"
    return f"{what}: {values[0][0] or 'none'}, then {values[0][1] or 'none'}"
