"""Scores a few images of a finished run again, and compares them with the stored scores.

``verify`` shows that figures follow from scores; a replay shows that scores follow from the images and the network.
"""

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from oodbench.datasets.name import MISCLASSIFIED
from oodbench.detector import Detector
from oodbench.engine import precision
from oodbench.engine.fitting import Fitting
from oodbench.engine.loaded_suite import LoadedSuite, LoadedTestSet
from oodbench.engine.network import load_network
from oodbench.engine.statistics_cache import StatisticsCache
from oodbench.errors import BadData, UsageError, contained, counted, no_exit, one_line, reason
from oodbench.image_set import ImageSet
from oodbench.models.build import brings_weights
from oodbench.models.device import resolve_device
from oodbench.models.exact import exact
from oodbench.models.load import weights_path
from oodbench.paths import DataRoots
from oodbench.progress import Progress
from oodbench.results.bundle import open_folders
from oodbench.results.folder import RunFolder
from oodbench.results.provenance import provenance
from oodbench.results.records import DetectionRecord
from oodbench.suite import Suite
from oodbench.suites.tasks import DETECTION

# Of a score, relative to its size and to the spread of the set's scores: rounding in other batches; rounding of another device
# or of a step along the sign of a gradient, which flips near zero.
ALIKE, ROUGH = 1e-4, 1e-2
DIGITS = 16  # times the rounding of a lower precision, in which batches of another size differ
Side = tuple[str, np.ndarray, StatisticsCache]  # in or out, rows, and their statistics
SIDES = {"in": "in-distribution", "out": "anomalous"}
SAME_FACTS = ("torch", "numpy", "device", "threads")  # without which a network that trains again may end elsewhere


@dataclass
class Replay:
    """What ``replay`` found.

    Attributes:
        seed: of the drawn images.
        sets, detectors: names of what was scored again.
        scores: how many scores were compared.
        largest: the largest difference, in tolerances; at most 1 where all agree.
        tolerances: by detector, relative to a score's size and the spread of its set.
        problems: what disagrees, one line each.
        left_out: what could not be scored again and why, one line each.
    """

    seed: int
    sets: dict[str, None] = field(default_factory=dict)
    detectors: dict[str, None] = field(default_factory=dict)
    scores: int = 0
    largest: float = 0.0
    tolerances: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether some scores were compared, and all agree."""
        return not self.problems and self.scores > 0

    def lines(self) -> list[str]:
        """The outcome for people, the summary last."""
        counts = ((self.scores, "score"), (len(self.detectors), "detector"), (len(self.sets), "set"))
        outcome = "all agree" if self.ok else counted(len(self.problems), "problem") if self.scores else "nothing was compared"
        found = [*self.problems, *(f"not replayed: {why}" for why in self.left_out)]
        if self.tolerances:
            sizes = " or ".join(sorted({f"{tolerance:g}" for tolerance in self.tolerances.values()}))
            found.append(
                f"largest difference: {self.largest:.2g} times the tolerance, which is {sizes} times the size of a score plus"
                " the spread of its set"
            )
        found.append(f"replayed with --seed {self.seed}: {', '.join(counted(*one) for one in counts)}: {outcome}")
        return list(map(one_line, found))

    def about(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        values = asdict(self)
        return values | {"sets": list(self.sets), "detectors": list(self.detectors), "ok": self.ok}


def replay(
    path: str | Path,
    count: int,
    *,
    detectors: Sequence[str] = (),
    datasets: Sequence[str] = (),
    weights: str | Path | None = None,
    trust_model: bool = False,
    data: DataRoots = None,
    device: str = "auto",
    seed: int | None = None,
    progress: Progress | None = None,
) -> Replay:
    """Score ``count`` random images of each side of each set again, with detectors fitted anew, and compare the scores.

    Only unsupervised scores are compared: heads of the other protocols learn from whole sets. A study is replayed run by run.
    Figures are not verified; ``oodbench.verify`` does that.

    Args:
        path: the folder of a run or study, or a bundle.
        count: images of each side of each set.
        detectors: replay these alone; by default all of the run.
        datasets: replay these alone; by default all of the run.
        weights: the network's weights file, by default the one under the data root.
        trust_model: whether the run may name a model ``module:function``, which is imported.
        data: the data root or roots, as of ``oodbench.run``.
        device: as of ``oodbench.run``.
        seed: of the draw; by default another one each time, which the result tells.

    Raises UsageError for a count below 1, for a run of another task than detection and for names that the run does not have,
    MissingData where the in-distribution set or the weights are missing, and BadData for a damaged folder.
    """
    if count < 1:
        raise UsageError(f"cannot replay {count} images; give at least 1")
    progress, target = progress or Progress(), resolve_device(device)
    found = Replay(secrets.randbelow(2**31) if seed is None else seed)
    for folder in open_folders(Path(path), verified=True):
        with contained(), no_exit(), exact(target):
            _Replaying(folder, found, progress, trust_model, list(detectors), list(datasets)).run(count, weights, data, target)
    return found


class _Replaying:
    """Replays one run into ``found``."""

    def __init__(
        self, folder: RunFolder, found: Replay, progress: Progress, trust_model: bool, detectors: list[str], datasets: list[str]
    ) -> None:
        self.folder, self.found, self.progress = folder, found, progress
        self.manifest = folder.manifest()
        if (task := self.manifest.settings.get("task", DETECTION)) != DETECTION:
            raise UsageError(f"{folder.name} is a run of {task}, and --replay is for runs of detection; leave it out")
        records = [record for record in folder.records() if record.protocol == "unsupervised" and record.status == "ok"]
        records = [record for record in records if record.kind != MISCLASSIFIED]  # scores of other sets, in another order
        for asked, known in ((detectors, {r.detector for r in records}), (datasets, {r.set_name for r in records})):
            if strangers := [name for name in asked if name not in known]:
                raise UsageError(
                    f"{folder.name} has no unsupervised scores of {strangers[0]}; it has those of {', '.join(sorted(known))}"
                )
        self.records = [
            record
            for record in records
            if record.detector in (detectors or [record.detector]) and record.set_name in (datasets or [record.set_name])
        ]
        try:
            suite = Suite.model_validate(self.manifest.suite)
        except ValidationError as error:
            raise BadData(f"{folder.name}: another version of oodbench wrote its suite; replay it with that version") from error
        model = suite.model or ""
        if ":" in model and brings_weights(model) and not trust_model:
            raise UsageError(f"{folder.name} names the model {model}, which is code; if you trust it, use --trust-model")
        names = list(dict.fromkeys(record.detector for record in self.records))
        sets = list(dict.fromkeys(record.set_name for record in self.records))
        self.suite = suite.override(detectors=names, datasets=sets, protocols=["unsupervised"]) if names else suite
        self.random = np.random.default_rng(found.seed)

    def run(self, count: int, weights: str | Path | None, data: DataRoots, device: torch.device) -> None:
        if not self.records:
            self.found.left_out.append(f"{self.folder.name}: it has no unsupervised scores")
            return
        limit = self.manifest.settings.get("limit")
        network = load_network(self.suite, weights or self._weights(data), device, data)
        loaded = LoadedSuite(self.suite, self.progress, data=data, limit=limit, network=network)
        here = {
            "weights": loaded.weights_hash,
            "training images": loaded.train.fingerprint if loaded.train else "",
            "in-distribution images": loaded.in_distribution.fingerprint,
        }
        if other := [what for what, value in here.items() if self.manifest.settings.get(what) != value]:
            option = "--weights" if other[0] == "weights" else "--data"
            self.found.problems.append(
                f"{self.folder.name}: the {other[0]} here are not those of the run; name its own with {option}"
            )
            return
        loaded.load_test_sets(self.progress)
        loaded.attack(self.progress)
        fitting = Fitting(loaded, self.progress)
        names = [name for name, detector in loaded.detectors.items() if self._replayable(name, loaded, detector)]
        fitting.fit(names)
        self.found.problems += [f"{name}: it fails here ({reason(error)})" for name, error in loaded.broken.items()]
        inside = self._drawn(loaded.in_distribution, count)
        cache = self._cache(loaded, fitting, loaded.in_distribution, inside)
        for test_set in loaded.test_sets:
            self.progress.stage(f"{test_set.name}: scoring again")
            mine = [record for record in self.records if record.set_name == test_set.name and record.detector in names]
            self._replay_set(test_set, mine, count, (inside, cache), loaded, fitting)

    def _weights(self, data: DataRoots) -> Path | None:
        """The file of the run's weights, if it is here under its name; the model's own otherwise."""
        name = self.manifest.provenance.get("weights")
        if self.suite.model is None or not isinstance(name, str):
            return None
        path = weights_path(self.suite.model, Path(name).name, data)
        return path if path is not None and path.exists() else None

    def _replayable(self, name: str, loaded: LoadedSuite, detector: Detector) -> bool:
        about, now = self.manifest.provenance, provenance(str(loaded.device))
        if "base" in detector.declared_signals:
            self.found.left_out.append(f"{name}: its scores may depend on the other images of a batch")
        elif detector.prepares and (other := [fact for fact in SAME_FACTS if about.get(fact) != now[fact]]):
            self.found.left_out.append(
                f"{name}: it trains networks, which would get other weights here ({other[0]}: {about.get(other[0])} in the run,"
                f" {now[other[0]]} here)"
            )
        else:
            return True
        return False

    def _replay_set(
        self,
        test_set: LoadedTestSet,
        records: list[DetectionRecord],
        count: int,
        of_inside: tuple[np.ndarray, StatisticsCache],
        loaded: LoadedSuite,
        fitting: Fitting,
    ) -> None:
        images = test_set.images
        if images is None:
            self.found.left_out.append(f"{test_set.name}: {reason(test_set.error or BadData('it cannot be read'))}")
            return
        if any(record.fingerprint != images.fingerprint for record in records):
            self.found.problems.append(f"{test_set.name}: the images here are not those of the run; name its own with --data")
            return
        outside = self._drawn(images, count)
        if images.negatives is not None:
            inside = self._drawn(images.negatives, count)
            of_inside = inside, self._cache(loaded, fitting, images.negatives, inside)
        sides = (("in", *of_inside), ("out", outside, self._cache(loaded, fitting, images, outside)))
        for record in records:
            detector = loaded.detectors[record.detector]
            if (error := fitting.broken.get(record.detector)) is None:
                self._compare(record, detector, sides, fitting)
            else:
                self.found.problems.append(f"{record.row} on {record.set_name}: it fails here ({reason(error)})")

    def _compare(self, record: DetectionRecord, detector: Detector, sides: Sequence[Side], fitting: Fitting) -> None:
        arrays = self.folder.arrays(record)
        spread = float(np.concatenate([arrays["in_scores"], arrays["out_scores"]]).std())
        tolerance = self.found.tolerances[record.detector] = self._tolerance(detector, fitting)
        for side, rows, cache in sides:
            stored = arrays[f"{side}_scores"]
            try:
                statistics = cache.get(detector, [detector.setting], np.arange(len(rows)))
                head = detector.head_of(record.variant, fitting.heads[detector])
                again = head.score(detector.columns_of(statistics, record.variant))
            except Exception as error:  # a detector may raise any
                self.found.problems.append(f"{record.row} on {record.set_name}: it fails here ({reason(error)})")
                return
            far = np.abs(again - stored[rows]) / (tolerance * (np.abs(stored[rows]) + spread))
            self.found.scores += len(rows)
            self.found.largest = max(self.found.largest, float(far.max(initial=0)))
            if (wrong := np.flatnonzero(~(far <= 1))).size:
                first = wrong[0]
                self.found.problems.append(
                    f"{record.row} on {record.set_name}: {len(wrong)} of {counted(len(rows), 'score')} of {SIDES[side]} images"
                    f" differ; row {rows[first]} has the stored score {stored[rows[first]]:g}, and now {again[first]:g}"
                )
        self.found.sets[record.set_name] = None
        self.found.detectors[record.detector] = None

    def _tolerance(self, detector: Detector, fitting: Fitting) -> float:
        device = str(self.manifest.provenance.get("device", "")).split(":")[0].split(" ")[0]
        other = device != str(fitting.loaded.device).split(":")[0]
        if fitting.loaded.precision is not None and precision.uses(detector):
            return DIGITS * torch.finfo(fitting.loaded.precision).eps
        return ROUGH if other or "input_gradient" in detector.declared_signals else ALIKE

    def _drawn(self, images: ImageSet, count: int) -> np.ndarray:
        return np.sort(self.random.choice(len(images), min(count, len(images)), replace=False))

    def _cache(self, loaded: LoadedSuite, fitting: Fitting, images: ImageSet, rows: np.ndarray) -> StatisticsCache:
        options: dict[str, Any] = {"batch_size": loaded.batch_size, "signals": fitting.signals}
        options |= {"precision": loaded.precision, "guard": loaded.guard}
        drawn = images.select(torch.from_numpy(rows))
        return StatisticsCache(drawn, loaded.classifier, np.arange(0), on_changed=fitting.break_, **options)
