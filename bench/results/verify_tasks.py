"""Verifies records of other tasks than detection and recognition: what their arrays must be, and whether figures follow."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from oodbench.metrics import binomial_interval
from oodbench.results.recompute import quality_figures, unequal
from oodbench.results.records import ActiveLearningRecord, QualityRecord, Record

FIGURES: dict[type[Record], tuple[str, ...]] = {
    QualityRecord: ("n", "figures", "line"),
    ActiveLearningRecord: ("labelled", "n", "accuracy", "accuracy_low", "accuracy_high"),
}
# Of numbers, by role; those with a question mark may be missing.
ROLES: dict[type[Record], dict[str, str]] = {
    QualityRecord: {"values": "f", "scores": "f", "groups": "i", "deviations?": "f"},
    ActiveLearningRecord: {"labelled": "i", "right": "b"},
}


def contradictions(record: Record, settings: Mapping[str, Any]) -> Iterator[str]:
    """Where a record contradicts the settings of its run."""
    named = {"seed": "seed", "task": "task", "model": "model", "in_distribution": "in_distribution", "protocol": "protocol"}
    for field, name in {**named, "rules": "rules"}.items():
        if hasattr(record, field) and name in settings and getattr(record, field) != settings[name]:
            yield f"its {field} is {getattr(record, field)}, but that of the run is {settings[name]}"
    images = settings.get("images")
    if isinstance(record, ActiveLearningRecord) and images is not None and record.fingerprint != images:
        yield f"its images are {record.fingerprint}, but those of the run are {images}"


def wrong(record: Record, arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """What is wrong with the arrays by role, and with the figures, of a record that has some."""
    roles = {role.rstrip("?"): kind for role, kind in ROLES[type(record)].items()}
    needed = {role for role in ROLES[type(record)] if not role.endswith("?")}
    if not needed <= arrays.keys() <= roles.keys():
        yield f"stores {', '.join(sorted(arrays)) or 'nothing'} in place of {', '.join(roles)}"
        return
    for role, array in arrays.items():
        if array.ndim != 1 or array.dtype.kind != roles[role] or (roles[role] == "f" and not np.isfinite(array).all()):
            yield f"{role} is not what oodbench stores ({array.dtype} {array.shape})"
            return
    told = {name: getattr(record, name) for name in FIGURES[type(record)]}
    if isinstance(record, QualityRecord):
        if len({len(array) for array in arrays.values()}) > 1:
            yield f"its arrays differ in length ({', '.join(f'{role} {len(array)}' for role, array in arrays.items())})"
            return
        yield from unequal(told, {"n": len(arrays["values"])} | quality_figures(record, arrays), "values")
    elif isinstance(record, ActiveLearningRecord):
        yield from _round(record, arrays, told)


def _round(record: ActiveLearningRecord, arrays: Mapping[str, np.ndarray], told: Mapping[str, Any]) -> Iterator[str]:
    rows, right = arrays["labelled"], arrays["right"]
    expected = record.rules["start"] + record.round * record.rules["query"]
    if len(rows) != expected:
        yield f"has {len(rows)} labelled images, but its protocol labels {expected} by round {record.round}"
    if (np.diff(rows) <= 0).any() or (len(rows) and rows[0] < 0):
        yield "labels an image twice"
    low, high = binomial_interval(int(right.sum()), len(right))
    found = {
        "labelled": len(rows),
        "n": len(right),
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
    }
    yield from unequal(told, found, "answers")


def of_one_file(records: Sequence[Record], arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Where records of one strategy contradict each other: one round has one set of labels, and labels stay."""
    rounds: dict[int, set[str]] = {}
    for record in records:
        if isinstance(record, ActiveLearningRecord) and "labelled" in record.arrays:
            rounds.setdefault(record.round, set()).add(record.arrays["labelled"])
    name = records[0].set_name if records else ""
    for number, hashes in rounds.items():
        if len(hashes) > 1:
            yield f"{name}: round {number} has {len(hashes)} sets of labelled images"
        before = rounds.get(number - 1, set())
        if len(hashes) == len(before) == 1:
            earlier, later = (arrays.get(next(iter(of))) for of in (before, hashes))
            if earlier is not None and later is not None and not np.isin(earlier, later).all():
                yield f"{name}: round {number} lacks labels of round {number - 1}"
