"""Runs every detector against every set on one model, in one shared pass, and writes a record for each pairing.

The training images pass once for all detectors that learn, the in-distribution test images once for all sets, and each set
once for all detectors. Finished records are not computed again. A plug-in that fails, a set that is missing and a score that
is not a number become records with a status and a reason.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from oodbench import code_hash, protocols
from oodbench.datasets.name import MISCLASSIFIED, recorded
from oodbench.detector import Detector
from oodbench.engine import costs, executors, misclassified, precision, timing
from oodbench.engine.executors.worker import reproducible
from oodbench.engine.fitting import Fitting
from oodbench.engine.loaded_suite import LoadedSuite, LoadedTestSet, Row
from oodbench.engine.network import load_network, try_network
from oodbench.engine.origins import note_origins
from oodbench.engine.plan import default_folder, no_row
from oodbench.engine.recognition import Recognition
from oodbench.engine.recorder import Measured, Recorder
from oodbench.engine.space import require_space
from oodbench.engine.statistics_cache import StatisticsCache
from oodbench.engine.trials import MeasuredTestSet, Trial, Trials
from oodbench.errors import BadData, CannotWrite, contained, counted, reason
from oodbench.image_set import ImageSet
from oodbench.models.build import brings_weights
from oodbench.models.device import resolve_device
from oodbench.models.exact import EXACT, set_float32
from oodbench.paths import DataRoots, size
from oodbench.progress import Progress
from oodbench.results.folder import RunFolder
from oodbench.results.network import as_provenance, stored
from oodbench.results.provenance import provenance
from oodbench.results.records import DetectionRecord, RecognitionRecord, SetRecord
from oodbench.suite import Suite


def run(
    suite: Suite,
    *,
    weights_key: str | None = None,
    data: DataRoots = None,
    out: str | Path | None = None,
    device: str = "auto",
    workers: int = 0,
    cache_images: bool = False,
    limit: int | None = None,
    fresh: bool = False,
    measure_costs: bool = True,
    progress: Progress | None = None,
    cell_timeout: float | None = None,
    executor: str = executors.LOCAL,
    on_results: Callable[[RunFolder], None] = lambda folder: None,
    like_this: int = 1,
) -> RunFolder:
    """Run a suite and return its run folder. Arguments and errors as of ``oodbench.run``.

    ``on_results`` is called when all cells are done, before costs are measured. ``like_this`` is how many runs of this size,
    with this one, the disk must have room for.
    """
    progress = progress or Progress()
    target = resolve_device(device)
    folder = RunFolder(out or default_folder(suite))
    executors.parse(executor)
    with reproducible(target, progress, cell_timeout), folder.locked(progress.say, fresh):
        progress.stage(f"loading {suite.model or 'no network'}")
        network = load_network(suite, suite.weights, target, data, weights_key)
        set_float32(EXACT)  # again, because a module that defines a network may have allowed TF32
        loaded = LoadedSuite(
            suite, progress, data=data, limit=limit, workers=workers, cache_images=cache_images, network=network
        )
        loaded.load_test_sets(progress)
        needed = require_space(folder.path, loaded, like_this)
        if like_this > 1:
            progress.say(f"{counted(like_this, 'run')} will take about {size(needed)} on disk")
        if idle := [name for name in suite.detectors if not loaded.rows_of(name)]:
            progress.say(f"{', '.join(idle)}: {no_row(suite)}")
        for kind in ("benign", MISCLASSIFIED):
            names = [one.name for one in loaded.test_sets if one.kind == kind]
            if names and "unsupervised" not in suite.protocols:
                progress.say(f"{', '.join(names)}: {kind} sets are tested under unsupervised only; add --protocol unsupervised")
        if fresh:
            folder.clear(progress.say)
        current = _Run(loaded, folder, progress, executor)
        note_origins(loaded, folder)
        current.try_network()
        loaded.attack(progress)  # takes minutes, so after the folder took these settings
        with executors.opened(executor, target, progress, cell_timeout) as current.statistics:
            current.run_sets(estimate=measure_costs)
        precision.measure(folder, current.fitting, progress)
        on_results(folder)
        if measure_costs:
            costs.measure(folder, current.fitting, progress)
        folder.tidy()
    return folder


class _Run:
    """The records of a run, and what is known of the in-distribution test images."""

    statistics: Callable[..., Any]  # what does the passes over sets

    def __init__(self, loaded: LoadedSuite, folder: RunFolder, progress: Progress, executor: str) -> None:
        self.loaded, self.folder, self.progress, self.suite = loaded, folder, progress, loaded.suite
        self.fitting = Fitting(loaded, progress)
        about = provenance(str(loaded.device)) | {"batch_size": loaded.batch_size, "limit": loaded.limit}
        about |= {"executor": executor}
        if loaded.precision is not None:
            about["precision"] = self.suite.precision
            progress.say(precision.announced(loaded))
        about["weights"] = Path(self.suite.weights).name if self.suite.weights else None
        self.recorder = Recorder(loaded, self.fitting, about)
        self.recognition = Recognition(loaded, self.fitting, self.recorder)
        self.trials: Trials | None = None  # once opened
        self._last: MeasuredTestSet | None = None  # the set that came last
        self.spent: dict[str, float] = {}  # seconds by detector, on the sets
        shared: dict[str, Any] = {
            "model": loaded.network_name,
            "in_distribution": recorded(self.suite.in_distribution),
            **asdict(loaded.transform),
            "seed": self.suite.seed,
            "limit": loaded.limit,
            "validation": self.suite.validation,
            "learnt_share": self.suite.learnt_share,
            "precision": self.suite.precision,
            "weights": loaded.weights_hash,
            "layers": loaded.classifier.layer_names if loaded.classifier else [],
            "in-distribution images": loaded.in_distribution.fingerprint,
            "training images": loaded.train.fingerprint if loaded.train else "",
        }
        if loaded.classifier is not None and brings_weights(self.suite.model or ""):  # not ours, so its code may change
            shared["code of the network"] = code_hash.of_network(loaded.classifier)[:16]
        if loaded.source is not None:
            shared["transfer_from"] = loaded.source.name
        if loaded.choosing is not None and self.suite.validation_set is not None:
            shared["validation_set"] = [self.suite.validation_set.label, *(images.fingerprint for images in loaded.choosing)]
        shared |= {f"set {recorded(one.name)}": [one.first, one.settings] for one in self.suite.each_set().values()}
        detectors = loaded.detectors
        if any("base" in (detector.signals or ()) for detector in detectors.values()):  # may depend on an image's batch
            shared |= {"batch_size": loaded.batch_size, "protocols": list(self.suite.protocols)}
        shared |= {f"parameters of {name}": detector.parameters() for name, detector in detectors.items()}
        used = self.suite.recorded() | asdict(loaded.transform) | {"batch_size": loaded.batch_size}
        folder.check_settings(shared, progress.say, suite=used, provenance=about | self._card())

    def _card(self) -> dict[str, Any]:
        """The card of the weights, for the provenance; empty without one. A file that cannot be read is reported."""
        if isinstance(self.loaded.card, BadData):
            self.progress.say(reason(self.loaded.card))
        return {"model_card": self.loaded.card} if isinstance(self.loaded.card, dict) else {}

    def try_network(self) -> None:
        """Report how often the network is right on the in-distribution test images, measured once for the run folder."""
        loaded = self.loaded
        found = stored(self.folder.manifest().provenance)
        if found is None and loaded.classifier is not None and not loaded.unsuitable:
            found = try_network(
                loaded.classifier,
                loaded.in_distribution,
                loaded.train,
                name=loaded.network_name,
                batch_size=loaded.batch_size,
                seed=self.suite.seed,
                progress=self.progress,
                workers=loaded.workers,
            )
            loaded.guard.ignore_changes()
            self.folder.add_provenance(**as_provenance(found))
        for line in found.lines() if found is not None else ():
            self.progress.say(line)

    def run_sets(self, estimate: bool) -> None:
        """Compute every record that is not finished yet. With ``estimate`` the expected time is reported first."""
        work = self._missing()
        present = [(test_set, rows) for test_set, rows in work if rows and test_set.images is not None]
        costly = [(test_set, rows) for test_set, rows in present if test_set.kind != MISCLASSIFIED]
        costs.expect(self.loaded, costly, self.progress)
        if present:
            self._open({row.detector for _, rows in present for row in rows}, [test_set for test_set, _ in present])
            self.spent.clear()
            if estimate:
                costs.say_estimate(self.fitting, costly, self.progress)
        for test_set, rows in work:
            if test_set.images is not None and rows:
                self.progress.stage(f"{test_set.name}: {counted(len(test_set.images), 'image')}")
                try:
                    with contained():
                        self._run_set(test_set, test_set.images, rows)
                except CannotWrite:
                    raise
                except Exception as error:  # an image that is only decoded now
                    test_set.error = error
                    self.progress.fail(test_set.name, error)
            if test_set.error and rows:
                self._write([self.recorder.without_figures(test_set, row, test_set.error) for row in rows], [])
        for name, count in self.folder.outdated(self.recorder.code).items():
            self.progress.say(
                f"{name}: {counted(count, 'cell')} of its earlier code left, on sets, protocols or variants that are not in"
                " this run; run them too, or start over with --fresh"
            )
        if estimate and self.spent:
            self.progress.say(f"the detectors took {timing.format_breakdown(self.spent)}")

    def _missing(self) -> list[tuple[LoadedTestSet, list[Row]]]:
        """The unfinished rows of each set. Reports what is already done, and which earlier records are void and why."""
        work, void, done = [], Counter[str](), 0
        for test_set in self.loaded.test_sets:
            rows = self.loaded.rows(test_set)
            records = {row: self.recorder.record(test_set, row) for row in rows}
            missing = [row for row, record in records.items() if not self.folder.finished(record)]
            done += len(rows) - len(missing)
            for row in missing:
                before = self.folder.earlier(records[row])
                available = test_set.images is not None and row.detector in self.loaded.detectors
                if available and before is not None and before.status == "ok":
                    void[_what_changed(before, records[row])] += 1
            work.append((test_set, missing))
        if done:
            self.progress.say(f"Resuming {self.folder.path}: {counted(done, 'cell')} already done")
        for why, count in void.items():
            self.progress.say(f"{why}: computing {counted(count, 'cell')} again")
        return work

    def _open(self, names: Collection[str], test_sets: Collection[LoadedTestSet]) -> None:
        """Fit these detectors, and pass over the in-distribution test images, before the first set."""
        self.recognition.fit(names, test_sets, self.folder)
        images = self.loaded.in_distribution
        # The validation rows of every set are the first of this order, so their batches serve all sets.
        order = protocols.stratified_order(len(images), protocols.labels_of(images), self.suite.seed)
        few = protocols.validation_size(len(order), self.suite.learnt_share)
        cache = self._cache(images, order[: few if self.loaded.learns else 0])
        if "unsupervised" in self.suite.protocols:
            self.progress.stage(f"{images.name}: {len(images):,} in-distribution test images")
            cache.ensure(({d: [d.setting] for d in self.fitting.sound(names)}, np.arange(len(images))))
        self.trials = Trials(self.loaded, self.fitting.heads, cache, self._cache)

    def _cache(self, images: ImageSet, first: np.ndarray) -> StatisticsCache:
        return StatisticsCache(
            images,
            self.loaded.classifier,
            first,
            batch_size=self.loaded.batch_size,
            signals=self.fitting.signals,
            precision=self.loaded.precision,
            workers=self.loaded.workers,
            guard=self.loaded.guard,
            on_changed=self.recognition.break_,
            on_batch=self.progress.advance,
            spent=self.spent,
            riders=self.recognition.riders(images),
            keep=self.recognition.keep(images),
            statistics=self.statistics,
        )

    def _run_set(self, test_set: LoadedTestSet, images: ImageSet, rows: list[Row]) -> None:
        """Pass once over a set, and write its records together."""
        assert self.trials is not None
        wanted: dict[str, list[Detector]] = {}
        for row in rows:
            if row.detector not in self.fitting.broken:
                wanted.setdefault(row.protocol, []).append(self.loaded.detectors[row.detector])
        trials: Mapping[str, Trial | Exception]
        of_answers = test_set.kind == MISCLASSIFIED
        if of_answers:
            trials, measured = self._tell_answers_apart(test_set, images, wanted)
        else:
            trials, measured = self.trials.of(test_set, images, wanted)
        found: list[Measured] = []
        if any(isinstance(trial, Trial) for trial in trials.values()):  # so there was a pass
            self._recognise(self.trials.in_distribution)
            found = [] if of_answers else self.recognition.measured(test_set, measured.anomalous)
        self._last = measured
        without: list[DetectionRecord] = []
        for row in rows:
            trial = self.fitting.broken.get(row.detector) or trials[row.protocol]
            if isinstance(trial, Trial):
                try:
                    found.append(self.recorder.measured(test_set, row, trial, measured))
                    continue
                except Exception as error:
                    trial = error
                    self.progress.fail(f"{row.name} on {test_set.name}", error)
            without.append(self.recorder.without_figures(test_set, row, trial))
        self._write(without, found)

    def _tell_answers_apart(
        self, test_set: LoadedTestSet, images: ImageSet, wanted: Mapping[str, list[Detector]]
    ) -> tuple[dict[str, Trial | Exception], MeasuredTestSet]:
        """The trial of the network's right and wrong answers on these images, or why there is none; and their statistics.

        The statistics are those of the set that came before, if it has the same images, or of the in-distribution images.
        """
        assert self.trials is not None
        if images is self.loaded.in_distribution:
            cache = self.trials.in_distribution
        elif self._last is not None and self._last.anomalous.images is images:
            cache = self._last.anomalous
        else:
            cache = self.trials.measured(test_set, images).anomalous
        trials: dict[str, Trial | Exception] = {}
        for protocol, detectors in wanted.items():
            cache.ensure(({detector: [detector.setting] for detector in detectors}, np.arange(len(images))))
            try:
                right = self.recognition.right(cache)
                trials[protocol] = misclassified.trial_of(right, images.name, self.fitting.heads, detectors)
            except Exception as error:
                trials[protocol] = error
        return trials, misclassified.Answers(test_set.kind, cache, self.suite.seed)

    def _recognise(self, in_distribution: StatisticsCache) -> None:
        """Judge class probabilities on the in-distribution test images, and write the records, once."""
        if not self.recognition.judged:
            self.recognition.judge(in_distribution)
            self._write([], self.recognition.measured(self.recognition.in_distribution, in_distribution))

    def _write(self, without: list[DetectionRecord], found: list[Measured]) -> None:
        found = [one for one in found if not (isinstance(one.record, RecognitionRecord) and self.folder.finished(one.record))]
        own = {hash: array for one in found for hash, array in one.own.items()}
        shared = {hash: array for one in found for hash, array in one.shared.items()}
        records: list[SetRecord] = [*(one.record for one in found), *without]
        if not records:
            return
        kept = self.folder.write(records, own, shared, self.progress.say)
        for why, count in Counter(record.reason for record in kept).items():
            self.progress.say(f"{records[0].set_name}: {why}; keeping the existing result of {counted(count, 'cell')}")


def _what_changed(before: DetectionRecord, now: DetectionRecord) -> str:
    """Why a record with figures does not count any more."""
    if before.scoring_version != now.scoring_version:
        return "this oodbench scores differently"
    if before.code != now.code:
        return f"{now.row}: the code of its detector changed"
    changed = sorted(name for name in now.decides if getattr(before, name) != getattr(now, name))
    return f"{now.row}: {', '.join(changed) or 'something'} changed"
