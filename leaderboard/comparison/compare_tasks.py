"""What moved between two runs of image quality or of active learning: rows as those of ``compare``, to be judged there."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from oodbench.metrics import NORMAL_975
from oodbench.results.folder import RunFolder
from oodbench.results.records import ActiveLearningRecord, QualityRecord, Record
from oodbench.results.statistics import p_value

REPLICATES = 400  # of the references of a database, for the standard error of a difference of SRCC
# What is compared, how it is known whether it moved, what tables call detector, protocol and set, and what a seed changes.
FIGURES = {
    "quality": ("SRCC", "a bootstrap over reference images", ("metric", "", "database"), "which images are drawn"),
    "active-learning": (
        "Accuracy",
        "paired answers",
        ("strategy", "features", "set"),
        "the pool, the images that are labelled first, corruptions and the training of networks",
    ),
}
# What a figure depends on, in words, where it is not what the comparison is about.
DEPENDS = {
    "model": "network", "seed": "seed", "fingerprint": "images", "parameters": "hyper-parameters",
    "files": "files that metrics read", "code": "code of metrics or strategies",
}  # fmt: skip
KINDS: dict[str, type[Record]] = {"quality": QualityRecord, "active-learning": ActiveLearningRecord}
Pair = tuple[RunFolder | None, RunFolder | None]


def rows_of(task: str, pair: Pair, words: Mapping[str, str]) -> Iterator[tuple[dict[str, Any], Record | None, Record | None]]:
    """One row per record that either run has, and both records; rows without a verdict have a difference and its p value.

    ``words``: what ``compare`` calls the verdicts ``new``, ``gone``, ``lost``, ``found``, ``neither``, ``equal`` and ``other
    seed``.
    """
    sides = [{} if folder is None else {_place(one): one for one in folder.of_task(KINDS[task])} for folder in pair]
    for place in dict.fromkeys([*sides[0], *sides[1]]):
        one, other = (side.get(place) for side in sides)
        yield _labels(one or other) | _row(task, one, other, pair, words), one, other


def _place(record: Record) -> tuple[str, ...]:
    return record.set_name, *record.place


def _labels(record: Any) -> dict[str, Any]:
    if isinstance(record, QualityRecord):
        return {"detector": record.metric, "protocol": record.task, "dataset": record.database, "level": None}
    where = {"protocol": record.features, "dataset": f"{record.dataset} (round {record.round})", "level": None}
    return where | {"detector": record.strategy, "in_distribution": record.in_distribution}


def _figure(record: Any) -> float | None:
    if record is None or record.status != "ok":
        return None
    return float(record.figures.srcc if record.task == "quality" else record.accuracy)


def _row(
    task: str, one: Any, other: Any, pair: tuple[RunFolder | None, RunFolder | None], words: Mapping[str, str]
) -> dict[str, Any]:
    figures = [_figure(record) for record in (one, other)]
    row: dict[str, Any] = {"basis": "", "reason": "", "verdict": ""}
    row |= {name: value for name, value in zip(("first", "second"), figures, strict=True) if value is not None}
    if one is None or other is None:
        return row | {"verdict": words["new"] if one is None else words["gone"]}
    if figures[0] is None or figures[1] is None:
        absent = one if figures[0] is None else other
        verdict = "neither" if figures == [None, None] else "lost" if figures[1] is None else "found"
        return row | {"verdict": words[verdict], "reason": absent.reason}
    difference = figures[1] - figures[0]
    if one.arrays == other.arrays and difference == 0:
        return row | {"verdict": words["equal"], "difference": 0.0, "p": 1.0, "n_in": one.n}
    if one.seed != other.seed and (task == "active-learning" or _is_part(one) or _is_part(other)):
        return row | {"verdict": words["other seed"], "difference": difference}
    arrays = [folder.arrays(record) for folder, record in zip(pair, (one, other), strict=True) if folder is not None]
    same = one.fingerprint == other.fingerprint and one.n == other.n
    signs = [_sign(record) for record in (one, other)]
    spread = _spread(task, arrays, signs, same)
    reach = NORMAL_975 * spread
    row |= {"difference": difference, "low": difference - reach, "high": difference + reach, "p": p_value(difference, spread)}
    return row | {"n_in": one.n, "basis": "pairs" if same else "intervals (other images)"}


def _is_part(record: QualityRecord) -> bool:
    """Whether the seed drew the images of a record from its database."""
    return record.size is not None and record.n is not None and record.n < record.size[0]


def images_of(one: Record, other: Record) -> tuple[str, str]:
    """The images of two records in words: how many of one database they are, or the hashes of both; empty without figures."""
    pair = [of for of in (one, other) if isinstance(of, QualityRecord)]
    counts = [(of.n, of.size[0]) for of in pair if of.n is not None and of.size is not None]
    if pair and len(counts) < 2:
        return "", ""
    if not pair or len({of.fingerprint.partition(" ")[0] for of in pair}) > 1:
        return one.fingerprint, other.fingerprint
    first, second = (f"{n:,} of {size:,} images" if n < size else f"all {size:,} images" for n, size in counts)
    return first, second


def _sign(record: Any) -> int:
    """Of the correlation in the figures: −1 where a higher value means a lower score. The same in all draws."""
    return 1 if record.task != "quality" or record.higher_is_better == record.score_higher_is_better else -1


def _spread(task: str, arrays: Sequence[Mapping[str, np.ndarray]], signs: Sequence[int], same: bool) -> float:
    """Standard error of the difference, from pairs of one image where both runs have the same."""
    one, other = arrays
    if task == "active-learning":
        if same:
            return float((other["right"].astype(float) - one["right"]).std(ddof=1)) / math.sqrt(len(one["right"]))
        return math.hypot(*(float(of["right"].std(ddof=1)) / math.sqrt(len(of["right"])) for of in (one, other)))
    if same:
        return _bootstrapped(one["groups"], lambda rows: signs[1] * _srcc(other, rows) - signs[0] * _srcc(one, rows))
    return math.hypot(*(_bootstrapped(of["groups"], partial(_srcc, of)) for of in (one, other)))


def _srcc(arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(arrays["values"][rows], arrays["scores"][rows]).statistic)


def _bootstrapped(groups: np.ndarray, figure: Callable[[np.ndarray], float]) -> float:
    """Standard deviation of a figure of images (rows) over seeded draws of reference images with replacement."""
    random = np.random.default_rng(0)
    rows_of_group = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    drawn = random.integers(len(rows_of_group), size=(REPLICATES, len(rows_of_group)))
    found = [figure(np.concatenate([rows_of_group[place] for place in one])) for one in drawn]
    return float(np.std([value for value in found if math.isfinite(value)], ddof=1))
