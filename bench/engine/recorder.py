"""Makes the records of a run: what decides each, and its figures with the arrays that they are computed from."""

import hashlib
import time
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from oodbench import code_hash, metrics
from oodbench.datasets.name import MISCLASSIFIED, parse, recorded
from oodbench.detector import Detector
from oodbench.engine.fitting import Fitting
from oodbench.engine.loaded_suite import LoadedSuite, LoadedTestSet, Row
from oodbench.engine.trials import MeasuredTestSet, Trial
from oodbench.errors import BadData, MissingData, Unsuitable, reason_in
from oodbench.heads import HEADS
from oodbench.image_set import ImageSet
from oodbench.protocols import LEARNT_SHARE
from oodbench.results.pass_file import hash_of
from oodbench.results.recompute import figures_of
from oodbench.results.records import (
    CHOICE_ROLES,
    ELSEWHERE,
    SPLIT_ROLES,
    DetectionRecord,
    RecognitionRecord,
    SetRecord,
    Status,
    corruption_record,
)

UNFITTED = ("unsupervised", "validation")  # protocols whose heads are fitted to no anomalous image
PROBABILITY_ROLES = ("probabilities", "network_probabilities")


class Measured(NamedTuple):
    """A record with figures, and its arrays by hash: the set's own, and those that many sets share."""

    record: SetRecord
    own: dict[str, np.ndarray]
    shared: dict[str, np.ndarray]


class Recorder:
    """Makes records of one run; ``provenance`` is theirs."""

    def __init__(self, loaded: LoadedSuite, fitting: Fitting, provenance: dict[str, Any]) -> None:
        self.loaded, self.fitting, self.suite, self.provenance = loaded, fitting, loaded.suite, provenance

    @cached_property
    def code(self) -> dict[str, str]:
        """Hash of each detector's code, by name."""
        return {name: code_hash.of_class(type(detector))[:16] for name, detector in self.loaded.detectors.items()}

    def record(self, test_set: LoadedTestSet, row: Row, status: Status = "ok", **fields: Any) -> DetectionRecord:
        """What decides the record of a row on a set, and ``fields`` of what came out."""
        loaded, images = self.loaded, test_set.images
        detector = loaded.detectors.get(row.detector)
        learnt_from, content, used = self._learnt_from(row.protocol)
        negatives = images.negatives if images is not None else None
        return DetectionRecord(
            **self._of_set(test_set, *used, loaded.train, loaded.in_distribution, images),
            in_fingerprint=(negatives or loaded.in_distribution).fingerprint,
            detector=row.detector,
            variant=row.variant,
            parameters=detector.parameters() if detector else self.suite.parameters.get(row.detector, {}),
            code=self.code.get(row.detector, ""),
            non_default=_non_default(detector, row, self.suite.learnt_share) if detector else {},
            protocol=row.protocol,
            transfer_from=learnt_from,
            transfer_fingerprint=content,
            status=status,
            **fields,
        )

    def _learnt_from(self, protocol: str) -> tuple[str, str, list[ImageSet | None]]:
        """The set that transfer or validation learns from: its name, the content of all that decides heads, and its images."""
        source, choosing, chosen_on = self.loaded.source, self.loaded.choosing, self.suite.validation_set
        if protocol == "transfer" and source is not None:
            # The kind decides how the head chooses.
            negatives: ImageSet | None = source.images and source.images.negatives
            content = _hash(source.images, negatives, source.kind) if source.images else ""
            return source.name, content, [source.images]
        if protocol == "validation" and choosing and chosen_on:
            return chosen_on.label, _hash(choosing.anomalous, choosing.in_distribution, protocol), [*choosing]
        return "", "", []

    def recognition(self, test_set: LoadedTestSet, status: Status, **fields: Any) -> RecognitionRecord:
        """The record of a source of class probabilities on a set, which ``fields`` name, and what came out."""
        return RecognitionRecord(**self._of_set(test_set, test_set.images), status=status, **fields)

    def _of_set(self, test_set: LoadedTestSet, *used: ImageSet | None) -> dict[str, Any]:
        """The fields that every record of a set has; ``used`` are the sets whose sizes it tells."""
        loaded, images = self.loaded, test_set.images
        name = parse(test_set.name)
        return {
            "model": loaded.network_name,
            "weights_hash": loaded.weights_hash,
            "in_distribution": recorded(self.suite.in_distribution),
            "train_fingerprint": loaded.train.fingerprint if loaded.train else "",
            "dataset": name.dataset,
            "level": name.severity,
            "kind": test_set.kind,
            "fingerprint": images.fingerprint if images is not None else "",
            "corruption": corruption_record(name.dataset, name.severity, test_set.kind, self.suite.seed),
            "attack": images.attack_record if images is not None else None,
            "seed": self.suite.seed,
            "sizes": {f"{s.name} ({s.split})": (len(s), s.official_size) for s in used if s is not None},
            "provenance": self.provenance,
        }

    def without_figures(self, test_set: LoadedTestSet, row: Row, error: Exception | None) -> DetectionRecord:
        """The record that says why there are no figures: skipped where that is nobody's fault, else failed."""
        code = type(self.loaded.detectors.get(row.detector)).__module__
        return self.record(test_set, row, status_of(error), reason=reason_in(error or BadData("no reason"), code))

    def measured(self, test_set: LoadedTestSet, row: Row, trial: Trial, measured: MeasuredTestSet) -> Measured:
        """The record of a row with its figures. Raises what the head was not fitted for, and BadData for useless scores."""
        detector = self.loaded.detectors[row.detector]
        head, settings = trial.heads[detector], trial.settings[detector]
        start = time.perf_counter()
        if isinstance(head, Exception):
            raise head
        head = detector.head_of(row.variant, head)
        setting = settings[head.setting_]
        sides = (measured.in_distribution, trial.split.in_test), (measured.anomalous, trial.split.out_test)
        in_scores, out_scores = (
            head.score(detector.columns_of(cache.get(detector, [setting], rows), row.variant)) for cache, rows in sides
        )
        if metrics.alike(np.concatenate([in_scores, out_scores])):
            raise BadData(f"all scores are {in_scores[0]:g}, up to rounding: they tell nothing apart")
        arrays = {"in_scores": in_scores, "out_scores": out_scores, **self._arrays(row, trial, measured)}
        choice = trial.choices.get(detector)
        if choice is not None:
            arrays |= dict(zip(CHOICE_ROLES, (choice.in_scores, choice.out_scores), strict=True))
        if test_set.kind == MISCLASSIFIED:
            arrays |= {"in_test": trial.split.in_test, "out_test": trial.split.out_test}
        figures = figures_of(arrays, self.suite.seed, test_set.kind)
        hashes = {role: hash_of(array) for role, array in arrays.items()}
        record = self.record(
            test_set,
            row,
            arrays=hashes,
            n_in=len(in_scores),
            n_out=len(out_scores),
            look_alikes=trial.look_alikes,
            metrics=figures.metrics,
            auroc_clean=figures.auroc_clean,
            calibration=figures.calibration,
            aurc=figures.aurc,
            excess_aurc=figures.excess_aurc,
            setting=setting,
            choice_auroc=None if choice is None else choice.auroc,
            head=_head(detector, row),
            calibrated_on=self._calibrated_on(detector, row),
            drawn_once=detector.prepares and detector.caches,  # what is not cached was read from files
            wall_seconds=measured.anomalous.seconds(detector, settings if row.protocol == "per-shift" else [setting])
            + time.perf_counter()
            - start,
        )
        same_negatives = measured.in_distribution.images is self.loaded.in_distribution and test_set.kind != MISCLASSIFIED
        shared = _shared_roles(row.protocol, same_negatives)
        return Measured(
            record,
            {hashes[role]: array for role, array in arrays.items() if role not in shared},
            {hashes[role]: array for role, array in arrays.items() if role in shared},
        )

    def _calibrated_on(self, detector: Detector, row: Row) -> Literal["", "training", "validation"]:
        by_head = row.protocol in UNFITTED and HEADS[_head(detector, row)].calibrates
        if not detector.reads_network or not (detector.calibrates or by_head):
            return ""
        return "validation" if by_head and row.protocol == "validation" else self.calibrating

    @property
    def calibrating(self) -> Literal["training", "validation"]:
        """The images that heads and temperatures are calibrated on."""
        return "training" if self.loaded.validation is None else "validation"

    def _arrays(self, row: Row, trial: Trial, measured: MeasuredTestSet) -> dict[str, np.ndarray]:
        """By role, what the figures need beside the scores."""
        arrays: dict[str, np.ndarray] = {}
        if row.protocol != "unsupervised":
            arrays |= dict(trial.split)
        sides = measured.sides
        if measured.copies:
            arrays |= dict(zip(("in_base", "out_base"), measured.copies, strict=True))
        if sides.in_distribution.noisy is not None:
            arrays["in_noisy"] = sides.in_distribution.noisy.numpy()
        if row.detector in self.fitting.probabilities:
            given = self.fitting.probabilities.get(row.detector), self.fitting.probabilities.get("")
            arrays |= {role: array for role, array in zip(PROBABILITY_ROLES, given, strict=True) if array is not None}
        return arrays


def _head(detector: Detector, row: Row) -> str:
    """The name of a row's head."""
    if row.variant:
        return "identity"
    return detector.unsupervised_head if row.protocol in UNFITTED else str(detector.shift_head)


def status_of(error: Exception | None) -> Status:
    """Of a record without figures: ``skipped`` where that is nobody's fault."""
    return "skipped" if isinstance(error, Unsuitable | MissingData) else "failed"


def _shared_roles(protocol: str, same_negatives: bool) -> set[str]:
    """The roles whose arrays are the same for many sets."""
    shared = {*PROBABILITY_ROLES, *CHOICE_ROLES}
    if same_negatives:
        shared.add("in_base")
        if protocol == "unsupervised":
            shared.add("in_scores")
        if protocol in ELSEWHERE:
            shared |= {"in_scores", *SPLIT_ROLES} - {"out_test"}
    return shared


def _non_default(detector: Detector, row: Row, learnt_share: float) -> dict[str, tuple[Any, Any]]:
    """Hyper-parameters that are not the defaults, except those the head chooses from the grid, and the learnt share if it is
    not the default."""
    chosen = detector.setting if row.protocol != "unsupervised" and detector.chooses_setting else {}
    found = {name: (value, default) for name, (value, default) in detector.non_default().items() if name not in chosen}
    if row.protocol != "unsupervised" and learnt_share != LEARNT_SHARE:
        found["learnt_share"] = learnt_share, LEARNT_SHARE
    return found


def _hash(anomalous: ImageSet, negatives: ImageSet | None, kind: str) -> str:
    decides = [anomalous.fingerprint, negatives.fingerprint if negatives else "", kind]
    return hashlib.sha256(" ".join(decides).encode()).hexdigest()[:16]
