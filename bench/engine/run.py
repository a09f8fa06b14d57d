"""Runs every detector against every set on one model, in one shared pass, and writes a cell for each pairing.

The training images go by once for all detectors that learn, the in-distribution test images once for all sets, each
set once for all detectors. A cell that lies finished in the run folder is not computed again. A plug-in that fails, a
set that is missing and a score that is not a number become cells with a status and a reason.
"""

import hashlib
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oodbench import metrics, passes, protocols
from oodbench.batching import batches
from oodbench.datasets.name import parse
from oodbench.detector import Detector
from oodbench.engine import timing
from oodbench.engine.fitting import Fitting
from oodbench.engine.loaded_suite import LoadedSuite, Pairing, Row
from oodbench.engine.statistics_cache import StatisticsCache, merged
from oodbench.engine.trials import Shift, Trial, Trials
from oodbench.errors import BadData, MissingData, Unsuitable, reason
from oodbench.image_set import ImageSet
from oodbench.models.device import resolve_device
from oodbench.progress import Progress
from oodbench.protocols import Sides, Split
from oodbench.results.folder import Cell, RunFolder, Status, cost_key, provenance
from oodbench.suite import Suite


def run(
    suite: Suite,
    *,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    workers: int = 0,
    limit: int | None = None,
    fresh: bool = False,
    measure_costs: bool = True,
    progress: Progress | None = None,
) -> RunFolder:
    """Run a suite and return its run folder. Arguments and errors as of ``oodbench.run``."""
    progress = progress or Progress()
    target = resolve_device(device)
    folder = RunFolder(out or default_folder(suite))
    # The same algorithms each time, so that a resumed run ends with the figures of an uninterrupted one.
    with folder.locked(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        inputs = LoadedSuite(suite, progress, data=data, limit=limit, workers=workers)
        progress.stage(f"loading {suite.model or 'no network'}")
        inputs.load_model(weights, target)
        inputs.load_pairings(progress)
        if fresh:
            folder.clear()
        current = _Run(inputs, folder, progress)
        inputs.attack(progress)  # minutes: after the folder took these settings
        current.run_cells(estimate=measure_costs)
        if measure_costs:
            current.measure_costs()
    return folder


def default_folder(suite: Suite) -> Path:
    return Path("runs") / (suite.name or "suite")


def plan(suite: Suite, *, data: str | Path | None = None, out: str | Path | None = None, limit: int | None = None) -> list[str]:
    """What ``run`` would do, line by line: sets are read, but no network is loaded and nothing is written."""
    inputs = LoadedSuite(suite, Progress(), data=data, limit=limit)
    inputs.load_pairings(Progress())
    lines = [
        f"{suite.name}: {suite.title}",
        f"model     {suite.model or 'none'}",
        f"folder    {out or default_folder(suite)}",
        f"fit on    {suite.in_distribution} ({suite.train_split}), {len(inputs.train):,} images",
        f"inside    {suite.in_distribution} ({suite.test_split}), {len(inputs.inside):,} images",
    ]
    for pairing in inputs.pairings:
        found = f"skipped: {reason(pairing.error)}" if pairing.error else f"{len(pairing.images or ()):,} images"
        if parse(pairing.name).attack and not pairing.error:
            found += f", to be attacked against {suite.model}" if suite.model else ", skipped: there is no network to attack"
        lines.append(f"outside   {pairing.name} ({pairing.kind}), {found}")
    if inputs.source is not None:
        lines.append(f"transfer  learns from {inputs.source.name}")
    for name in suite.detectors:
        fails = f", fails: {reason(inputs.broken[name])}" if name in inputs.broken else ""
        protocols_of: dict[str, list[str]] = {}
        for row in inputs.rows_of(name):
            protocols_of.setdefault(row.name, []).append(row.protocol)
        lines += [f"detector  {row}: {', '.join(some)}{fails}" for row, some in protocols_of.items()]
    return [*lines, f"{sum(len(inputs.rows(pairing)) for pairing in inputs.pairings)} cells"]


class _Run:
    """The cells of a run, and what is known of the in-distribution test images."""

    def __init__(self, inputs: LoadedSuite, folder: RunFolder, progress: Progress) -> None:
        self.inputs, self.folder, self.progress = inputs, folder, progress
        self.suite, self.inside, self.detectors = inputs.suite, inputs.inside, inputs.detectors
        self.fitting = Fitting(inputs, progress)
        self.trials: Trials | None = None  # once opened
        self.spent: dict[str, float] = {}  # seconds by detector, on the sets
        self.about = provenance(str(inputs.device)) | {"batch_size": self.suite.batch_size, "limit": inputs.limit}
        shared: dict[str, Any] = {
            "model": self.suite.model or "",
            "in_distribution": self.suite.in_distribution,
            "size": inputs.size,
            "resize": self.suite.resize,
            "seed": self.suite.seed,
            "limit": inputs.limit,
            "weights": inputs.weights_hash,
            "in-distribution images": self.inside.fingerprint,
            "training images": inputs.train.fingerprint,
        }
        if inputs.source is not None:
            shared["transfer_from"] = inputs.source.name
        shared |= {f"set {one.name}": [one.first, one.settings] for one in self.suite.each_set().values()}
        if any("base" in (detector.signals or ()) for detector in self.detectors.values()):  # may hang on an image's batch
            shared |= {"batch_size": self.suite.batch_size, "protocols": list(self.suite.protocols)}
        shared |= {f"parameters of {name}": detector.parameters() for name, detector in self.detectors.items()}
        folder.settle(shared, {"suite": self.suite.model_dump(mode="json"), "provenance": self.about})

    # Cells

    def run_cells(self, estimate: bool) -> None:
        """Every cell that is not finished yet; before them, with ``estimate``, about what they will take."""
        wanted = [(pairing, self.inputs.rows(pairing)) for pairing in self.inputs.pairings]
        todo = [(pairing, [r for r in rows if not self.folder.finished(self._cell(pairing, r))]) for pairing, rows in wanted]
        if done := sum(len(rows) for _, rows in wanted) - sum(len(rows) for _, rows in todo):
            self.progress.say(f"{done} cells lie finished in {self.folder.path}; going on with the rest")
        at_hand = [(pairing, rows) for pairing, rows in todo if rows and pairing.images is not None]
        names = {row.detector for _, rows in at_hand for row in rows}
        self._expect([len(pairing.images) for pairing, _ in at_hand if pairing.images is not None])
        if at_hand:
            self._open(names)
            self.spent.clear()
            if estimate:
                self._say_what_it_will_take(at_hand)
        for pairing, rows in todo:
            if pairing.images is not None and rows:
                self.progress.stage(f"{pairing.name}: {len(pairing.images):,} images")
                try:
                    self._run_pairing(pairing, pairing.images, rows)
                except Exception as error:  # an image that is only decoded now
                    pairing.error = error
                    self.progress.say(f"{pairing.name}: {reason(error)}")
            for row in rows if pairing.error else ():
                self._write_reason(pairing, row, pairing.error)
        if estimate and self.spent:
            self.progress.say(f"the detectors took {timing.format_breakdown(self.spent)}")

    def _expect(self, sizes: list[int]) -> None:
        """Tell the progress bar about how much work sets of these sizes are, fitting and calibrating included."""
        if not sizes:
            return
        alone = {d: [d.setting] for d in self.detectors.values()}
        grids = {d: d.shift_settings for d in self.detectors.values() if d.shift_head} if self._learns else {}
        test, validation = (passes.pass_equivalents(jobs, self.inputs.classifier) for jobs in (alone, merged(alone, grids)))
        self.progress.expect(len(self.inputs.train))
        for size in [len(self.inside), *sizes]:
            few = min(protocols.VALIDATION_SIZE, size // 2)
            self.progress.expect(few * validation + (size - few) * test)

    @property
    def _learns(self) -> bool:
        """Whether heads may learn from shifts."""
        return any(protocol != "unsupervised" for protocol in self.suite.protocols)

    def _cell(self, pairing: Pairing, row: Row, status: Status = "ok", **fields: Any) -> Cell:
        name = parse(pairing.name)
        detector = self.detectors.get(row.detector)
        source = self.inputs.source if row.protocol == "transfer" else None
        negatives = pairing.images.negatives if pairing.images is not None else None
        inside = self.inside if negatives is None else negatives
        sets = [self.inputs.train, self.inside, pairing.images, source.images if source else None]
        return Cell(
            model=self.suite.model or "",
            weights_hash=self.inputs.weights_hash,
            in_distribution=self.suite.in_distribution,
            in_fingerprint=inside.fingerprint,
            train_fingerprint=self.inputs.train.fingerprint,
            detector=row.detector,
            variant=row.variant,
            parameters=detector.parameters() if detector else self.suite.parameters.get(row.detector, {}),
            changed=self._changed(detector, row) if detector else {},
            protocol=row.protocol,
            transfer_from=source.name if source else "",
            transfer_fingerprint=_learnt_from(source),
            dataset=name.dataset,
            level=name.severity,
            kind=pairing.kind,
            fingerprint=pairing.images.fingerprint if pairing.images is not None else "",
            made=pairing.images.made if pairing.images is not None else {},
            seed=self.suite.seed,
            sizes={f"{s.name} ({s.split})": (len(s), s.official_size) for s in sets if s is not None},
            status=status,
            provenance=self.about,
            **fields,
        )

    def _changed(self, detector: Detector, row: Row) -> dict[str, list[Any]]:
        """Hyper-parameters that are not the defaults, but for those that the head chooses."""
        chosen = detector.setting if row.protocol != "unsupervised" and len(detector.shift_settings) > 1 else {}
        return {name: pair for name, pair in detector.changed().items() if name not in chosen}

    def _write_reason(self, pairing: Pairing, row: Row, error: Exception | None) -> None:
        """A cell without figures."""
        status: Status = "skipped" if isinstance(error, Unsuitable | MissingData) else "failed"
        cell = self._cell(pairing, row, status, reason=reason(error or BadData("no reason")))
        if not self.folder.write(cell):
            self.progress.say(f"{row.name} on {pairing.name} keeps its figures of before: {cell.reason}")

    def _open(self, names: Collection[str]) -> None:
        """Before the first cell: fit these detectors, and pass over the in-distribution test images."""
        self.fitting.fit(names)
        self.fitting.judge_probabilities(names)
        # Validation rows of every set are a beginning of this order, so their batches serve all sets.
        order = protocols.stratified_order(len(self.inside), protocols.labels_of(self.inside), self.suite.seed)
        inside = self._store(self.inside, order[: min(protocols.VALIDATION_SIZE, len(order) // 2) if self._learns else 0])
        if "unsupervised" in self.suite.protocols:
            self.progress.stage(f"{self.inside.name}: {len(self.inside):,} in-distribution test images")
            inside.ensure(({d: [d.setting] for d in self.fitting.sound(names)}, np.arange(len(self.inside))))
        self.trials = Trials(self.inputs, self.fitting.heads, inside, self._store)

    def _say_what_it_will_take(self, at_hand: Sequence[tuple[Pairing, list[Row]]]) -> None:
        """One line, the dearest detectors first: who waits for hours must know it before."""
        classifier = None if self.inputs.unsuitable else self.inputs.classifier
        (_, images), *_ = batches(self.inside, classifier, [np.arange(min(self.suite.batch_size, len(self.inside)))])
        detectors = self.fitting.sound({row.detector for _, rows in at_hand for row in rows})
        learning = {row.detector for _, rows in at_hand for row in rows if row.protocol != "unsupervised"}
        bare, alone = timing.seconds_per_image({d: [d.setting] for d in detectors}, classifier, images)
        _, grid = timing.seconds_per_image({d: d.shift_settings for d in detectors if d.name in learning}, classifier, images)
        seconds = {"the network": 0.0} | dict.fromkeys((d.name for d in alone), 0.0)
        for pairing, rows in at_hand:
            size = len(pairing.images or ())
            validation = min(protocols.VALIDATION_SIZE, size // 2)
            seconds["the network"] += size * bare
            for detector in alone:
                asked = {row.protocol for row in rows if row.detector == detector.name}
                # Each protocol may choose a setting of its own; without a grid they share one.
                settings = len(asked) if len(detector.shift_settings) > 1 else min(1, len(asked))
                seconds[detector.name] += settings * size * alone[detector]
                if "per-shift" in asked and detector in grid:
                    seconds[detector.name] += validation * (grid[detector] - alone[detector])
        if alone:
            sets = "1 set" if len(at_hand) == 1 else f"{len(at_hand)} sets"
            self.progress.say(f"{sets} will take about {timing.format_breakdown(seconds)}")

    def _store(self, images: ImageSet, first: np.ndarray) -> StatisticsCache:
        return StatisticsCache(
            images,
            self.inputs.classifier,
            first,
            batch_size=self.suite.batch_size,
            signals=self.fitting.signals,
            workers=self.inputs.workers,
            on_batch=self.progress.advance,
            spent=self.spent,
        )

    # One set

    def _run_pairing(self, pairing: Pairing, images: ImageSet, rows: list[Row]) -> None:
        assert self.trials is not None
        wanted: dict[str, list[Detector]] = {}
        for row in rows:
            if row.detector not in self.fitting.broken:
                wanted.setdefault(row.protocol, []).append(self.detectors[row.detector])
        trials, shift = self.trials.of(pairing, images, wanted)
        for row in rows:
            if row.detector in self.fitting.broken:
                self._write_reason(pairing, row, self.fitting.broken[row.detector])
            elif isinstance(trial := trials[row.protocol], Trial):
                self._write_cell(pairing, row, trial, shift)
            else:
                self._write_reason(pairing, row, trial)

    def _write_cell(self, pairing: Pairing, row: Row, trial: Trial, shift: Shift) -> None:
        detector, split = self.detectors[row.detector], trial.split
        head, settings = trial.heads[detector], trial.settings[detector]
        start = time.perf_counter()
        try:
            if isinstance(head, Exception):
                raise head
            setting = settings[head.setting_]
            sides = (shift.inside, split.in_test), (shift.outside, split.out_test)
            in_scores, out_scores = (
                head.score(detector.columns_of(store.get(detector, [setting], rows), row.variant)) for store, rows in sides
            )
            figures = self._figures(in_scores, out_scores, shift.sides, split)
        except Exception as error:
            self.progress.say(f"{row.name} on {pairing.name}: {reason(error)}")
            self._write_reason(pairing, row, error)
            return
        cell = self._cell(
            pairing,
            row,
            n_in=len(in_scores),
            n_out=len(out_scores),
            metrics=asdict(figures),
            setting=setting,
            head=detector.unsupervised_head if row.protocol == "unsupervised" else detector.shift_head,
            wall_seconds=shift.outside.seconds(detector, settings if row.protocol == "per-shift" else [setting])
            + time.perf_counter()
            - start,
            extras=self.fitting.extras.get(row.detector, {}) | _against_clean(in_scores, out_scores, shift, split),
        )
        self.folder.write(cell, {"in_scores": in_scores, "out_scores": out_scores, **dict(split)})

    def _figures(self, in_scores: np.ndarray, out_scores: np.ndarray, sides: Sides, split: Split) -> metrics.Metrics:
        if np.ptp(np.concatenate([in_scores, out_scores])) == 0:
            raise BadData(f"all scores are {in_scores[0]:g}: they tell nothing apart")
        clusters = {}
        if protocols.shares_images(*sides):
            clusters = {
                "in_clusters": sides.inside.base_index[split.in_test].numpy(),
                "out_clusters": sides.outside.base_index[split.out_test].numpy(),
            }
        return metrics.evaluate(in_scores, out_scores, seed=self.suite.seed, **clusters)

    # Costs

    def measure_costs(self) -> None:
        """Standalone cost of every detector and setting among the finished cells that is not in costs.json yet."""
        costs = self.folder.costs()
        wanted: dict[str, timing.Job] = {}
        for cell in self.folder.cells():
            key = cost_key(cell.detector, cell.parameters, cell.setting)
            if cell.status == "ok" and key not in costs and cell.detector in self.detectors:
                wanted[key] = timing.Job(self.detectors[cell.detector], cell.setting or {})
        self.fitting.fit({job.detector.name for job in wanted.values()})
        jobs = {key: job for key, job in wanted.items() if job.detector.name not in self.fitting.broken}
        if not jobs:
            return
        self.progress.stage(f"measuring what {len(jobs)} settings cost by themselves")
        self.progress.expect(timing.REPEATS * timing.BATCH_SIZE)
        rows = np.resize(np.arange(len(self.inside)), timing.BATCH_SIZE)
        (_, images), *_ = batches(self.inside, self.inputs.classifier, [rows])
        measured = timing.standalone_costs(
            jobs,
            None if self.inputs.unsuitable else self.inputs.classifier,
            images,
            on_step=lambda: self.progress.advance(timing.BATCH_SIZE),
        )
        self.folder.write_costs(costs | measured)


def _learnt_from(source: Pairing | None) -> str:
    """All that a head of ``transfer`` hangs on: the images of the source, its negatives, and its kind (how it chooses)."""
    if source is None or source.images is None:
        return ""
    negatives = source.images.negatives
    decides = [source.images.fingerprint, negatives.fingerprint if negatives else "", source.kind]
    return hashlib.sha256(" ".join(decides).encode()).hexdigest()[:16]


def _against_clean(in_scores: np.ndarray, out_scores: np.ndarray, shift: Shift, split: Split) -> dict[str, float]:
    """AUROC against the clean negatives alone, where half of them are noisy: noise that is plain to see makes them easy."""
    noisy = shift.inside.images.noisy
    if noisy is None:
        return {}
    return {"auroc_clean": metrics.auroc(in_scores[~noisy[split.in_test].numpy()], out_scores)}
