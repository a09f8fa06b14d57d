"""Computes the figures of a record again from its stored arrays, and from nothing else."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from oodbench import calibration, metrics
from oodbench.datasets.name import MISCLASSIFIED
from oodbench.errors import BadData
from oodbench.results.facts import CalibrationRecord
from oodbench.results.folder import RunFolder
from oodbench.results.records import DetectionRecord, QualityRecord
from oodbench.results.schema_1 import SCORING_VERSION as NOT_STORED

TOLERANCE = 1e-9  # of a figure, which another processor may round otherwise


class Figures(NamedTuple):
    """The figures of a record that follow from its arrays."""

    metrics: metrics.Metrics
    auroc_clean: float | None
    calibration: CalibrationRecord | None
    aurc: float | None
    excess_aurc: float | None


def figures_of(arrays: Mapping[str, np.ndarray], seed: int, kind: str) -> Figures:
    """All figures from the arrays of a record by role; ``in_scores`` and ``out_scores`` are needed. ``kind``: of its set.

    Both the run that makes a record and whoever verifies it call this.
    """
    in_scores, out_scores = arrays["in_scores"], arrays["out_scores"]
    clean = None
    if "in_noisy" in arrays:
        clean = metrics.auroc(in_scores[~_tested(arrays, "in_noisy", "in_test")], out_scores)
    found = metrics.evaluate(in_scores, out_scores, seed=seed, **clusters_of(arrays))
    area = excess = None
    if kind == MISCLASSIFIED:
        right = np.repeat([True, False], [len(in_scores), len(out_scores)])
        area = calibration.area_under_risk_coverage(-np.concatenate([in_scores, out_scores]), right)
        excess = area - calibration.least_area(right)
    return Figures(found, clean, calibration_of(arrays), area, excess)


def clusters_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The base image of each score of both sides, as arguments of ``evaluate``; empty where all images are their own."""
    if "in_base" not in arrays:
        return {}
    return {
        "in_clusters": _tested(arrays, "in_base", "in_test"),
        "out_clusters": _tested(arrays, "out_base", "out_test"),
    }


def calibration_of(arrays: Mapping[str, np.ndarray]) -> CalibrationRecord | None:
    """The figures of class probabilities, from what ``calibration.per_image`` says of each image."""
    if "probabilities" not in arrays:
        return None
    network = arrays.get("network_probabilities")
    return CalibrationRecord(
        detector=calibration.figures(arrays["probabilities"]),
        network=None if network is None else calibration.figures(network),
    )


def recompute(folder: RunFolder, record: DetectionRecord) -> Figures:
    """The figures of a stored record, from the folder's files alone. Raises BadData where its arrays are missing."""
    return figures_of(arrays_of(folder, record), record.seed, record.kind)


def arrays_of(folder: RunFolder, record: DetectionRecord) -> dict[str, np.ndarray]:
    """The arrays of a stored record by role. Raises BadData where they cannot give its figures."""
    if record.status != "ok":
        raise BadData(f"{record.row} on {record.set_name} has no figures ({record.reason}), so there is nothing to recompute")
    if record.scoring_version == NOT_STORED:
        raise BadData(
            f"{record.row} on {record.set_name}: an older oodbench does not store what its figures need; run it again"
        )
    arrays = folder.arrays(record)
    if missing := {"in_scores", "out_scores"} - arrays.keys():
        raise BadData(f"{record.row} on {record.set_name} stores no {sorted(missing)[0]}; run it again")
    return arrays


def quality_figures(record: QualityRecord, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """``figures`` and ``line`` of a record from its arrays by role. Both the run and whoever verifies it call this."""
    from oodbench.quality.statistics import figures  # which loads scipy

    given: dict[str, Any] = {"deviations": arrays.get("deviations"), "groups": arrays["groups"], "seed": record.seed}
    given |= {"values_higher_is_better": record.higher_is_better, "scores_higher_is_better": record.score_higher_is_better}
    both = {"figures": "logistic", "line": "line"}
    return {name: figures(arrays["values"], arrays["scores"], mapping=mapping, **given) for name, mapping in both.items()}


def _tested(arrays: Mapping[str, np.ndarray], role: str, rows: str) -> np.ndarray:
    """The values of the rows that are tested; without a split that is every row."""
    return arrays[role][arrays[rows]] if rows in arrays else arrays[role]


def unequal(told: Mapping[str, Any], found: Mapping[str, Any], source: str = "scores") -> Iterator[str]:
    """Which figures that a record tells are not those found again from its ``source``."""
    of_record, again = _flat(told), _flat(found)
    for name in sorted(of_record.keys() | again.keys()):
        stored, computed = of_record.get(name), again.get(name)
        if stored is None or computed is None or not abs(stored - computed) <= TOLERANCE:
            yield f"{name} is {stored}, but its {source} give {computed}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """``{"metrics": {"auroc": .9}}`` -> ``{"metrics.auroc": .9}``, without what is None."""
    found: dict[str, float] = {}
    for name, value in values.items():
        inner = value.model_dump() if isinstance(value, BaseModel) else vars(value) if is_dataclass(value) else value
        if isinstance(inner, dict):
            found |= _flat(inner, f"{prefix}{name}.")
        elif inner is not None:
            found[prefix + name] = inner
    return found
