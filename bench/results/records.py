"""Records: what a run found, one typed model per task, with all that decides it.

A record names its arrays (scores, split, base rows) by the hash of their content; ``oodbench.results.pass_file`` keeps
them, and ``oodbench.results.recompute`` computes the figures again from them.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from oodbench.datasets.name import CORRUPTIONS, source_and_change
from oodbench.metrics import Metrics
from oodbench.quality.figures import QualityFigures
from oodbench.results.facts import AttackRecord, CalibrationRecord, CorruptionRecord, Int64, RecognitionFigures

SCHEMA_VERSION = 2
# Raised when the harness itself (probe, heads, protocols, metrics) may give other figures: records of an older version are
# computed again.
SCORING_VERSION = 2


def scaled(source: str) -> str:
    """The name of a source of class probabilities after temperature scaling."""
    return f"{source}-scaled"


# Sources of class probabilities: the network's softmax, as it is and after temperature scaling. A detector is one by its name.
NETWORK, SCALED = NETWORK_SOURCES = ("network", scaled("network"))
IN_DISTRIBUTION = "in-distribution"  # the kind of the in-distribution test images, beside ``image_set.KINDS``

Status = Literal["ok", "skipped", "failed"]

# Roles of arrays: rows of a split, what the sides are made from, which negatives are noisy, and what of class probabilities
# the figures need of each image.
SPLIT_ROLES = ("in_fit", "in_choose", "in_test", "out_fit", "out_choose", "out_test")
CHOICE_ROLES = ("in_choice", "out_choice")  # under validation: the scores of both sides that choice_auroc is computed from


ELSEWHERE = ("transfer", "validation")  # protocols whose heads learn from another set than the one that is tested


class Record(BaseModel, ABC):
    """What every record says, whatever its task. A run keeps the records of one set together, in one file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: str
    seed: Int64
    scoring_version: Int64 = SCORING_VERSION
    fingerprint: str  # of the set; empty where it could not be read
    code: str = ""  # hash of the code of the detector, metric or strategy; empty where that could not be loaded
    # How it went.
    status: Status
    reason: str = ""
    # Hash by role of the arrays that the figures are computed from.
    arrays: dict[str, str] = {}
    provenance: dict[str, Any] = {}

    # Names of the fields that decide the figures.
    decides: ClassVar[frozenset[str]] = frozenset({"task", "seed", "scoring_version", "fingerprint", "code"})

    @property
    def key(self) -> str:
        """Hash of all that decides the figures: a record with another key is another record."""
        values = self.model_dump(mode="json", include=set(self.decides))
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @property
    @abstractmethod
    def set_name(self) -> str:
        """The name of the set, with its level."""

    @property
    @abstractmethod
    def row(self) -> str:
        """What tables call it."""

    @property
    @abstractmethod
    def place(self) -> tuple[str, str]:
        """Which record of its set this is."""

    @property
    @abstractmethod
    def plugin(self) -> str:
        """The detector, metric or strategy, of which ``code`` is the code; empty for the network itself."""


class SetRecord(Record, ABC):
    """What a record says of a network on one set, which is named by its parts: ``dataset`` is the name without ``level``."""

    model: str
    weights_hash: str
    in_distribution: str
    train_fingerprint: str
    detector: str
    parameters: dict[str, Any]
    dataset: str
    level: Int64 | None
    kind: str
    corruption: CorruptionRecord | None = None
    attack: AttackRecord | None = None
    sizes: dict[str, tuple[Int64, Int64 | None]] = {}  # images here and in the official set, by set name
    # For what calibrates: whether the network has seen the images ("training") or not ("validation").
    calibrated_on: Literal["", "training", "validation"] = ""

    decides: ClassVar[frozenset[str]] = Record.decides | {
        "model", "weights_hash", "in_distribution", "train_fingerprint", "detector", "parameters", "dataset", "level", "kind",
    }  # fmt: skip

    @property
    def set_name(self) -> str:
        """The name of the set with its level."""
        return self.dataset if self.level is None else f"{self.dataset}@{self.level}"

    @property
    def plugin(self) -> str:
        return self.detector


class DetectionRecord(SetRecord):
    """One detector on one set under one protocol. Rates are fractions in [0, 1]."""

    task: Literal["detection"] = "detection"
    in_fingerprint: str  # of the in-distribution side: the test images, or the set's own negatives
    variant: str = ""  # which of the detector's variants; empty for its own score
    non_default: dict[str, tuple[Any, Any]] = {}  # the parameters that are not the detector's defaults: (value, default)
    protocol: str
    transfer_from: str = ""  # under transfer: the set that the head learnt from; under validation: what it was chosen on
    transfer_fingerprint: str = ""  # content of that set and of its negatives, and its kind
    # What came out; None where nothing did.
    n_in: Int64 | None = None
    n_out: Int64 | None = None
    # Tested images that look like one that the head learnt from, or, unsupervised, like an in-distribution one.
    look_alikes: Int64 = 0
    metrics: Metrics | None = None
    aurc: float | None = None  # of right and wrong answers: the area under the risk-coverage curve
    excess_aurc: float | None = None  # over the best possible order
    auroc_clean: float | None = None  # against the clean negatives alone, where negatives are clean and noisy
    setting: dict[str, Any] | None = None  # the setting of the grid that the head chose, or the detector's own
    choice_auroc: float | None = None  # under validation: AUROC of that setting on the images that it was chosen on
    head: str | None = None
    drawn_once: bool = False  # whether the detector made networks of its own, from the run's seed
    wall_seconds: float | None = None
    calibration: CalibrationRecord | None = None

    decides: ClassVar[frozenset[str]] = SetRecord.decides | {
        "in_fingerprint", "variant", "protocol", "transfer_from", "transfer_fingerprint",
    }  # fmt: skip

    @property
    def row(self) -> str:
        """What tables call the detector, or the variant of it."""
        return row_name(self.detector, self.variant)

    @property
    def place(self) -> tuple[str, str]:
        """Which record of its set this is."""
        return self.row, self.protocol


class RecognitionRecord(SetRecord):
    """One source of class probabilities on one set with the network's classes."""

    task: Literal["recognition"] = "recognition"
    source: str  # one of ``NETWORK_SOURCES``, or the detector whose own class probabilities they are, as it is or ``scaled``
    detector: str = ""  # that detector, if any
    parameters: dict[str, Any] = {}
    # What came out; None where nothing did.
    n: Int64 | None = None
    figures: RecognitionFigures | None = None
    temperature: float | None = None  # that the logits are divided by, where it was fitted

    decides: ClassVar[frozenset[str]] = SetRecord.decides | {"source"}

    @property
    def row(self) -> str:
        return self.source

    @property
    def unscaled(self) -> str:
        """The source that this one is, or that it scales."""
        return self.detector or NETWORK

    @property
    def is_scaled(self) -> bool:
        """Whether it is a source after temperature scaling."""
        return self.source == scaled(self.unscaled)

    @property
    def place(self) -> tuple[str, str]:
        return self.source, self.task


def row_name(detector: str, variant: str) -> str:
    """``gradcon``, or ``gradcon:recon`` for a variant."""
    return f"{detector}:{variant}" if variant else detector


def cost_key(detector: str, parameters: dict[str, Any], setting: dict[str, Any] | None) -> str:
    """The name of a detector's cost at a setting in costs.json."""
    return json.dumps([detector, parameters, setting or {}], sort_keys=True)


def corruption_record(dataset: str, level: int | None, kind: str, seed: int) -> CorruptionRecord | None:
    """How a corrupted set was made, as its name says: generated (``cifar10+haze``) or official (``cifar10c/fog``)."""
    _, change = source_and_change(dataset)
    if kind != "corruption" or level is None or not change:
        return None
    if change in CORRUPTIONS:
        return CorruptionRecord(corruption=change, level=level, origin="generated", seed=seed)
    return CorruptionRecord(corruption=change, level=level, origin="official")


class QualityRecord(Record):
    """One metric of image quality on one database of images that people scored."""

    task: Literal["quality"] = "quality"
    metric: str
    parameters: dict[str, Any] = {}
    non_default: dict[str, tuple[Any, Any]] = {}  # the parameters that are not the metric's defaults: (value, default)
    files: dict[str, str] = {}  # SHA-256 by name of the files that the metric reads, such as weights
    higher_is_better: bool = True  # whether a larger value means better quality
    database: str
    score: str = ""  # what people's scores are called, such as MOS or DMOS
    score_higher_is_better: bool = True
    size: tuple[Int64, Int64 | None] | None = None  # images here and in the whole database
    # What came out; None where nothing did. ``line``: with a straight line in place of the logistic function.
    n: Int64 | None = None
    figures: QualityFigures | None = None
    line: QualityFigures | None = None
    ms_per_image: float | None = None  # None where the values came from a file

    decides: ClassVar[frozenset[str]] = Record.decides | {"metric", "parameters", "files", "database"}

    @property
    def set_name(self) -> str:
        return self.database

    @property
    def row(self) -> str:
        return self.metric

    @property
    def plugin(self) -> str:
        return self.metric

    @property
    def place(self) -> tuple[str, str]:
        return self.metric, self.task


class ActiveLearningRecord(Record):
    """The accuracy of the network of one round on one set; a strategy with one kind of features is a file."""

    task: Literal["active-learning"] = "active-learning"
    model: str
    in_distribution: str
    strategy: str
    features: str
    parameters: dict[str, Any] = {}
    protocol: str
    rules: dict[str, Any]  # the values of the protocol
    round: Int64
    dataset: str  # the set that is tested, with its level
    # What came out; None where nothing did.
    labelled: Int64 | None = None
    n: Int64 | None = None
    accuracy: float | None = None  # of the network, or with introspective features of H
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    train_accuracy: float | None = None  # on the labelled images, during the last epoch
    epochs: Int64 | None = None
    restarts: Int64 | None = None
    seconds: float | None = None  # of training

    decides: ClassVar[frozenset[str]] = Record.decides | {
        "model", "in_distribution", "strategy", "features", "parameters", "protocol", "rules", "round", "dataset",
    }  # fmt: skip

    @property
    def last_round(self) -> int | None:
        """The number of the last round of the rules, as far as a file that may say anything gives one."""
        rounds = self.rules.get("rounds")
        return rounds if isinstance(rounds, int) and 0 <= rounds < 2**31 else None

    @property
    def set_name(self) -> str:
        return f"{self.strategy} {self.features}"

    @property
    def row(self) -> str:
        return self.set_name

    @property
    def place(self) -> tuple[str, str]:
        return f"round {self.round}", self.dataset

    @property
    def plugin(self) -> str:
        return self.set_name  # with introspective features the code of H counts too
