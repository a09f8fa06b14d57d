"""One frame from a run folder: the columns that tables and files show, and behind them the facts that notes are made of."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel, ValidationError

from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import COLUMNS
from oodbench.leaderboard.notes import DRAWN_ONCE, LOOK_ALIKES, REMARKS
from oodbench.results.facts import CalibrationRecord
from oodbench.results.folder import RunFolder
from oodbench.results.json_files import Costs, Manifest
from oodbench.results.records import DetectionRecord, SetRecord, cost_key
from oodbench.suite import Suite

Kind = TypeVar("Kind", bound=SetRecord)

# What a table says beside its figures, one value per record. Facts are JSON text, empty where there are none.
FACTS = (
    "weights",  # hash of the network's weights
    "in_fingerprint",  # content of the in-distribution side: the test images, or a set's own negatives
    "train_fingerprint",  # content of the training images, which detectors are fitted on
    "fingerprint",  # content of the set; empty where it could not be read
    "transfer_from",  # the set that the head learnt from, under transfer, or was chosen on, under validation
    "choice",  # {"setting": {hyper-parameter: value}, "auroc": on the set it was chosen on}, under validation
    "non_default",  # {hyper-parameter: [value, default]}
    "attack",  # settings, success rate and norms of an attack
    "calibration",  # accuracy and calibration of the detector's own class probabilities, and the network's
    "auroc_clean",  # a number: AUROC against the clean negatives alone, where noisy ones stand beside them
    "look_alikes",  # a number: tested images that look like one that the head learnt from, or an in-distribution one
    "computed_by",  # version of the harness's scoring and hash of the detector's code
    "about",  # {option: value}: what runs may differ in that their names do not show
    "machine",  # what the run was made on, and so its costs
    "sizes",  # {set: [images here, images in the official set]}
)

OPTIONS = ("limit", "validation", "size", "resize", "seed")  # that may change the test images


def frame_of(folder: RunFolder) -> pd.DataFrame:
    """One row per record: ``COLUMNS``, then ``FACTS``."""
    costs, manifest = folder.costs(), folder.manifest()
    of_run = {"machine": machine_of(manifest), "about": _json(_about(manifest))}
    columns: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, *FACTS)}
    for record in in_order(folder):
        row = _row(record, costs) | of_run
        for name, values in columns.items():
            values.append(escape.without_surrogates(row.get(name)))
    return pd.DataFrame(columns)


def frames_of(folders: Sequence[RunFolder]) -> pd.DataFrame:
    """The frames of several run folders, one below the other."""
    return pd.concat([frame_of(folder) for folder in folders], ignore_index=True)


def in_order(folder: RunFolder) -> list[DetectionRecord]:
    """The records of detection of a folder, as ``ordered`` orders them."""
    return ordered(folder, folder.records())


def ordered(folder: RunFolder, records: Iterable[Kind]) -> list[Kind]:
    """Records of a folder, set by set as its suite lists them; sets of earlier runs come last, by name."""
    try:
        suite = Suite.model_validate(folder.manifest().suite)
    except ValidationError:  # another oodbench's
        return list(records)
    places = {name: place for place, name in enumerate(suite.each_set())}
    return sorted(records, key=lambda record: places.get(record.set_name, len(places)))  # stable


def _about(manifest: Manifest) -> dict[str, Any]:
    """The options of a run: its file of weights (None: the model's own) and ``OPTIONS``, as far as run.json says."""
    settings, provenance = manifest.settings, manifest.provenance
    file = {"weights": provenance["weights"]} if "weights" in provenance else {}  # settings hold the hash alone
    file |= {"precision": manifest.suite.get("precision", "float32")}
    return file | {name: settings[name] for name in OPTIONS if name in settings}


def machine_of(manifest: Manifest) -> str:
    """Device, number of threads and system, as far as run.json says."""
    about = manifest.provenance
    threads = {None: "", 1: "1 thread"}.get(about.get("threads"), f"{about.get('threads')} threads")
    parts = (str(about.get("device", "")), threads, about.get("platform"))
    return ", ".join(filter(None, parts)) or "an unknown machine"


def _row(record: DetectionRecord, costs: Costs) -> dict[str, Any]:
    ok = record.status == "ok"
    cost = costs.get(cost_key(record.detector, record.parameters, record.setting), {}) if ok else {}
    metrics = vars(record.metrics) if record.metrics else {}
    facts = {
        "weights": record.weights_hash,
        "checkpoint": record.weights_hash,
        "non_default": _json(record.non_default),
        "attack": _json(record.attack),
        "choice": _json(_choice(record)),
        "calibration": _json(_figures(record.calibration)),
        "computed_by": f"{record.scoring_version} {record.code}" if ok else None,
        "sizes": _json(record.sizes),
    }
    return {**vars(record), **facts, **metrics, **cost, "detector": record.row, "reason": _remark(record)}


def _choice(record: DetectionRecord) -> dict[str, Any]:
    return {} if record.choice_auroc is None else {"setting": record.setting, "auroc": record.choice_auroc}


def _remark(record: DetectionRecord) -> str:
    """Why there are no figures, or what a reader must know of them: hyper-parameters that are not defaults, calibration on
    images that the network was trained on, networks of its own that one seed gave, tested images that look like known
    ones. Semicolons separate remarks."""
    if record.status != "ok":
        return record.reason
    changes = ", ".join(f"{name} {value} (default {default})" for name, (value, default) in record.non_default.items())
    seen = "calibrated on training images, which the network has seen" if record.calibrated_on == "training" else ""
    drawn = DRAWN_ONCE if record.drawn_once else ""
    alike = f"{record.look_alikes} {LOOK_ALIKES}" if record.look_alikes else ""
    return REMARKS.join(filter(None, (changes, seen, drawn, alike)))


def _figures(calibration: CalibrationRecord | None) -> dict[str, float]:
    """``accuracy`` and the like of the detector, ``network_accuracy`` and the like of the network."""
    if calibration is None:
        return {}
    network = calibration.network.model_dump() if calibration.network else {}
    return calibration.detector.model_dump() | {f"network_{name}": value for name, value in network.items()}


def _json(facts: Any) -> str:
    if isinstance(facts, BaseModel):
        return facts.model_dump_json()
    return json.dumps(facts, sort_keys=True) if facts else ""
