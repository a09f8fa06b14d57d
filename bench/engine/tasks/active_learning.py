"""Runs strategies of active learning: ``task = "active-learning"``."""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from oodbench import code_hash, protocols
from oodbench.active_learning.pool import Pool, outputs_of
from oodbench.active_learning.protocol import PROTOCOLS, Protocol
from oodbench.active_learning.strategy import Strategy, load_strategy, selected
from oodbench.active_learning.training import Trained, train
from oodbench.classifier import Classifier
from oodbench.datasets.load import load_dataset
from oodbench.detector import load_detector
from oodbench.detectors.introspective import Introspective
from oodbench.engine.executors.worker import reproducible
from oodbench.errors import BadData, UsageError, around_call, contained, counted, reason_in
from oodbench.image_set import CSID, ImageSet
from oodbench.metrics import binomial_interval
from oodbench.models import imports_code
from oodbench.models.build import build
from oodbench.models.device import resolve_device
from oodbench.paths import DataRoots
from oodbench.progress import Progress
from oodbench.registry import find, records
from oodbench.results.folder import RunFolder
from oodbench.results.pass_file import hash_of
from oodbench.results.provenance import provenance
from oodbench.results.records import ActiveLearningRecord
from oodbench.suites.tasks import ALL, ActiveLearningSuite
from oodbench.training_set import TrainingSet

FAMILY = "strategies"
H = "introspective"  # the detector that gives introspective features
BATCH = 256
H_STEPS, H_RATE = 500, 0.005  # of Adam: with the few images of a round, the detector's 40 epochs are too few


def run(
    suite: ActiveLearningSuite,
    *,
    data: DataRoots = None,
    out: str | Path | None = None,
    device: str = "auto",
    limit: int | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    cell_timeout: float | None = None,
) -> RunFolder:
    """Run the rounds that are missing, and return the run folder.

    The results of a round are written when it ends, and an interrupted run resumes with the round that it was in. ``limit``:
    the most images of each test set, drawn by the seed. If a strategy fails, the others still run.

    Raises UsageError for unknown names, for a pool that is smaller than the protocol needs and for a run folder of other
    settings, MissingData for missing sets, BadData for sets without labels or with other classes, and Unsuitable for a network
    without a final linear layer.
    """
    progress, target = progress or Progress(), resolve_device(device)
    folder = RunFolder(out or Path("runs") / suite.name)
    with reproducible(target, progress, cell_timeout), folder.locked(progress.say, fresh):
        if fresh:
            folder.clear(progress.say)
        strategies = strategies_of(suite)
        progress.expect(len(strategies) * len(suite.features) * (rules_of(suite).rounds + 1))
        current = _Run(suite, folder, progress, target, data, limit)
        for name, strategy in strategies.items():
            for features in suite.features:
                current.trajectory(name, strategy, features)
        folder.tidy()
    return folder


def plan(suite: ActiveLearningSuite, *, data: DataRoots, limit: int | None) -> list[str]:
    """What ``run`` would do, line by line; sets are read, and nothing is computed. Raises as ``run``.

    A network ``module:function`` is not imported.
    """
    strategies, rules = strategies_of(suite), rules_of(suite)
    sets = _read(suite, rules, data, limit, Progress())
    if not imports_code(suite.model):
        _network(suite, sets.classes)
    numbers = ", ".join(f"{rules.labelled(number):,}" for number in range(rules.rounds + 1))
    pool = f"{suite.in_distribution} ({suite.train_split}), {counted(len(sets.train), 'image')}"
    lines = [f"model     {suite.model}", f"pool      {pool}", f"labelled  {numbers}"]
    lines += [f"tested on {name}, {counted(len(images), 'image')}" for name, images in sets.tests.items()]
    return [*lines, *(f"strategy  {name} ({', '.join(suite.features)})" for name in strategies)]


def strategies_of(suite: ActiveLearningSuite) -> dict[str, Strategy | Exception]:
    """By name: the strategy, or why it cannot be created. Raises UsageError for unknown names and parameters."""
    for name, values in suite.parameters.items():
        if name == H:
            load_detector(H, **values)
        else:
            find(FAMILY, name)
    known = [name for name, record in records(FAMILY).items() if not record.error]
    found: dict[str, Strategy | Exception] = {}
    for name in dict.fromkeys(name for one in suite.strategies for name in (known if one == ALL else [one])):
        try:
            found[name] = load_strategy(name, **suite.parameters.get(name, {}))
        except UsageError:
            raise
        except Exception as error:  # whatever another package raises
            found[name] = error
    return found


def rules_of(suite: ActiveLearningSuite) -> Protocol:
    """The protocol of a suite, with the suite's own numbers."""
    keys = ("start", "query", "rounds", "batch_size", "until", "most_epochs")
    return PROTOCOLS[suite.protocol].override(**{name: getattr(suite, name) for name in keys})


class _Sets(NamedTuple):
    train: ImageSet  # the pool
    tests: dict[str, ImageSet]
    classes: int


def _read(suite: ActiveLearningSuite, rules: Protocol, data: DataRoots, limit: int | None, progress: Progress) -> _Sets:
    """The sets of a run. Raises what ``run`` says of sets."""
    whole = load_dataset(suite.in_distribution, split=suite.train_split, data=data, progress=progress)
    train, last = protocols.limited(whole, suite.pool, suite.seed), rules.labelled(rules.rounds)
    if train.labels is None:
        raise BadData(f"{suite.in_distribution} has no labels; name a labelled set")
    several: dict[str, Sequence[str]] = {"test_sets": suite.tested, "features": suite.features}
    for key, names in several.items():
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"suite {suite.name}: {key} names {twice} twice; remove one")
    tests = {name: load_dataset(name, data=data, progress=progress) for name in suite.tested}
    for images in tests.values():
        if images.labels is None:
            raise BadData(f"{images.name} has no labels, so accuracy on it is unknown; leave it out of test_sets")
        if images.kind != CSID and images.classes != train.classes:
            raise BadData(f"{images.name} has other classes than {train.name}; leave it out of test_sets")
    if len(train) < last:
        raise UsageError(
            f"{suite.in_distribution} has {counted(len(train), 'image')} to label, and {suite.protocol} labels {last:,}; lower"
            " start, query or rounds in the suite"
        )
    classes = max(len(train.classes), int(train.labels.max()) + 1)
    if classes < 2:
        raise BadData(f"{suite.in_distribution} has one class, which leaves nothing to learn; name another set")
    return _Sets(train, {name: protocols.limited(images, limit, suite.seed) for name, images in tests.items()}, classes)


def _network(suite: ActiveLearningSuite, classes: int) -> Classifier:
    """An untrained network. Raises UsageError for an unknown one, Unsuitable or BadData for one that does not fit."""
    network = build(suite.model, classes)
    if (given := network.head.out_features) != classes:
        gives = f"{suite.model} gives {counted(given, 'logit')}"
        raise BadData(f"{gives}, but {suite.in_distribution} has {classes:,} classes; use another model")
    return network


class _Run:
    def __init__(
        self,
        suite: ActiveLearningSuite,
        folder: RunFolder,
        progress: Progress,
        device: torch.device,
        data: DataRoots,
        limit: int | None,
    ) -> None:
        self.suite, self.folder, self.progress, self.device = suite, folder, progress, device
        progress.stage(f"reading {suite.in_distribution}")
        self.protocol = rules_of(suite)
        self.train, self.tests, self.classes = _read(suite, self.protocol, data, limit, progress)
        network = _network(suite, self.classes)
        digest = hashlib.sha256("".join(one.fingerprint for one in (self.train, *self.tests.values())).encode())
        self.fingerprint = digest.hexdigest()[:16]
        settings = {"task": suite.task, "model": suite.model, "in_distribution": suite.in_distribution, "seed": suite.seed}
        settings |= {"protocol": suite.protocol, "rules": vars(self.protocol), "limit": limit, "images": self.fingerprint}
        # Records hold those of their strategy, but not those of H, which no later run here may change.
        settings |= {f"parameters of {H}": {}, "code of the network": code_hash.of_network(network)[:16]}
        settings |= {f"parameters of {name}": values for name, values in suite.parameters.items()}
        self.about = provenance(str(device)) | {"limit": limit}
        folder.check_settings(settings, progress.say, suite=suite.model_dump(mode="json"), provenance=self.about)
        self.start = np.sort(np.random.default_rng(suite.seed).permutation(len(self.train))[: self.protocol.start])
        self._code = cache(code_hash.of_class)
        self._first: Trained | None = None  # the network of the first round, which all strategies share

    def trajectory(self, name: str, strategy: Strategy | Exception, features: str) -> None:
        """The rounds of one strategy with one kind of features."""
        rounds, rows = self.protocol.rounds + 1, self.start
        if isinstance(strategy, Exception):
            self._fail(name, features, None, 0, strategy)
            self.progress.advance(rounds)
            return
        done = self._done(strategy, features)
        self.progress.advance(len(done))
        if len(done) == rounds:
            self.progress.say(f"{name} {features}: already done")
            return
        if done:
            self.progress.say(f"Resuming {name} {features} at round {len(done)} of {self.protocol.rounds}")
        for number in range(max(0, len(done) - 1), rounds):
            again = " (finished; its network chooses the next images)" if number < len(done) else ""
            rows = done[number] if again else rows
            title = f"{name} {features}, round {number} of {self.protocol.rounds}: {len(rows):,} labelled images{again}"
            self.progress.stage(title)
            try:
                with contained():
                    rows = self._round(strategy, features, number, rows, number < len(done))
            except Exception as error:
                self._fail(name, features, strategy, number, error)
                self.progress.advance(rounds - max(number, len(done)))
                return
            if not again:
                self.progress.advance(1)

    def _round(self, strategy: Strategy, features: str, number: int, rows: np.ndarray, finished: bool) -> np.ndarray:
        """Train and test the network of a round, unless it is finished; returns the rows that are labelled in the next one."""
        if finished and number == self.protocol.rounds:
            return rows
        trained = self._network(rows, number)
        images = TrainingSet(self.train, self.train.labels, np.ones(len(self.train), dtype=bool), self._seed(number))
        images.held_out[rows] = False
        introspective = None
        if features == H:
            introspective = cast(Introspective, load_detector(H, **self._of_h(len(rows))))
            introspective.prepare(images, trained.classifier, Progress())
        if not finished:
            self._test(strategy, features, number, rows, trained, introspective)
        if number == self.protocol.rounds:
            return rows
        left = np.setdiff1d(np.arange(len(self.train)), rows)
        unlabelled, labelled = (outputs_of(images, trained.classifier, of, BATCH) for of in (left, rows))
        pool = Pool(unlabelled, labelled, trained.classifier.head, introspective)
        random = np.random.default_rng([self.suite.seed, number])
        with around_call.get()(f"one call of {strategy.name}"):
            query = selected(strategy, pool, self.protocol.query, random)
        return np.sort(np.concatenate([rows, left[query]]))

    def _of_h(self, images: int) -> dict[str, Any]:
        """The settings of H for this many images; the paper states none."""
        epochs = -(-H_STEPS // -(-images // Introspective().batch_size))
        return {"lr": H_RATE, "epochs": epochs} | self.suite.parameters.get(H, {})

    def _seed(self, number: int) -> int:
        """The seed of the network of a round, the same for all strategies."""
        return int(np.random.SeedSequence([self.suite.seed, number]).generate_state(1)[0])

    def _network(self, rows: np.ndarray, number: int) -> Trained:
        if number == 0 and self._first is not None:
            return self._first
        found = train(
            self.suite.model,
            self.train,
            rows,
            self.protocol,
            classes=self.classes,
            seed=self._seed(number),
            device=self.device,
        )
        if found.accuracy < self.protocol.until:
            self.progress.say(
                f"{self.suite.model} is right on {100 * found.accuracy:.1f} % of {len(rows):,} labelled images after"
                f" {found.epochs} epochs, below {100 * self.protocol.until:g} %; raise most_epochs"
            )
        if number == 0:
            self._first = found
        return found

    def _test(
        self,
        strategy: Strategy,
        features: str,
        number: int,
        rows: np.ndarray,
        trained: Trained,
        introspective: Introspective | None,
    ) -> None:
        """Write the records of a round: one per test set."""
        made, arrays = [], {hash_of(rows): rows}
        for name, images in self.tests.items():
            right = _right(images, trained.classifier, introspective)
            low, high = binomial_interval(int(right.sum()), len(right))
            arrays[hash_of(right)] = right
            made.append(
                self._record(strategy.name, features, strategy, number, name).model_copy(
                    update={
                        "status": "ok",
                        "arrays": {"labelled": hash_of(rows), "right": hash_of(right)},
                        "labelled": len(rows),
                        "n": len(right),
                        "accuracy": float(right.mean()),
                        "accuracy_low": low,
                        "accuracy_high": high,
                        "train_accuracy": trained.accuracy,
                        "epochs": trained.epochs,
                        "restarts": trained.restarts,
                        "seconds": trained.seconds,
                    }
                )
            )
        self.folder.write(made, arrays, say=self.progress.say)

    def _done(self, strategy: Strategy, features: str) -> list[np.ndarray]:
        """The labelled rows of the rounds that are finished, from the first on."""
        found: list[np.ndarray] = []
        for number in range(self.protocol.rounds + 1):
            wanted = [self._record(strategy.name, features, strategy, number, name) for name in self.tests]
            if not all(map(self.folder.finished, wanted)):
                break
            earlier = self.folder.earlier(wanted[0])
            assert earlier is not None
            found.append(self.folder.arrays(earlier)["labelled"])
        return found

    def _record(self, name: str, features: str, strategy: Strategy | None, number: int, dataset: str) -> ActiveLearningRecord:
        """What is known of a record before it has figures."""
        kinds: list[type] = [type(strategy)] if strategy else []
        kinds += [Introspective] if features == H else []
        return ActiveLearningRecord(
            model=self.suite.model,
            in_distribution=self.suite.in_distribution,
            strategy=name,
            features=features,
            parameters=strategy.parameters() if strategy else self.suite.parameters.get(name, {}),
            code=" ".join(self._code(kind) for kind in kinds),
            protocol=self.suite.protocol,
            rules=vars(self.protocol),
            round=number,
            dataset=dataset,
            fingerprint=self.fingerprint,
            seed=self.suite.seed,
            status="failed",
            provenance=self.about,
        )

    def _fail(self, name: str, features: str, strategy: Strategy | None, number: int, error: Exception) -> None:
        """Write that this round and those after it have no figures, and why."""
        target = records(FAMILY)[name].target if name in records(FAMILY) else ""
        self.progress.fail(f"{name} {features}", error, target)
        why = reason_in(error, target)
        left = [
            self._record(name, features, strategy, later, dataset).model_copy(update={"reason": why})
            for later in range(number, self.protocol.rounds + 1)
            for dataset in self.tests
        ]
        self.folder.write(left, {}, say=self.progress.say)


def _right(images: ImageSet, classifier: Classifier, introspective: Introspective | None) -> np.ndarray:
    """Whether the network, or H, is right on each image: bool (N,)."""
    assert images.labels is not None
    tested = TrainingSet(images, images.labels, np.zeros(len(images), dtype=bool))
    found = []
    for first in range(0, len(images), BATCH):
        rows = np.arange(first, min(first + BATCH, len(images)))
        outputs = outputs_of(tested, classifier, rows, BATCH)
        features, logits = map(torch.from_numpy, outputs)
        if introspective is not None:
            logits = introspective.classes(features, logits)
        found.append((logits.argmax(1) == images.labels[torch.from_numpy(rows)]).numpy())
    return np.concatenate(found)
