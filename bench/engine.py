"""Runs every detector against every set on one model, in one shared pass, and writes a cell for each pairing.

The training images go by once for all detectors that learn, the in-distribution test images once for all sets, each
set once for all detectors. A cell that lies finished in the run folder is not computed again. A plug-in that fails, a
set that is missing and a score that is not a number become cells with a status and a reason.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oodbench import metrics, passes, protocols, timing
from oodbench.detector import Detector
from oodbench.errors import BadData, MissingData, Unsuitable, reason
from oodbench.heads import HEADS, Head
from oodbench.image_set import ImageSet
from oodbench.inputs import Inputs, Pairing
from oodbench.progress import Progress
from oodbench.protocols import Split
from oodbench.results import Cell, RunFolder, Status, cost_key, provenance
from oodbench.store import StatisticsStore, merged
from oodbench.suite import Suite, load_suite


def run(
    suite: str | Path | Suite = "digits",
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    detectors: Sequence[str] | None = None,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    datasets: Sequence[str] | None = None,
    protocols: Sequence[str] | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int = 0,
    seed: int | None = None,
    limit: int | None = None,
    fresh: bool = False,
    measure_costs: bool = True,
    progress: Progress | None = None,
) -> RunFolder:
    """Run a suite and return its run folder: ``.frame()`` is a DataFrame, a row a cell, and ``.path`` the folder.

    Args:
        suite: the name of a suite in the package, a TOML file, or a ``Suite``.
        model, detectors, datasets, protocols, seed, batch_size: instead of what the suite says.
        weights: the model's weights file; by default the one under the data root.
        parameters: hyper-parameters by detector, ``{"knn": {"k": 10}}``.
        data: the data root; by default ``$OODBENCH_DATA`` or the user's cache folder.
        out: the run folder, by default ``runs/<suite>``. A run that lies there is resumed; ``fresh`` starts over.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: processes that decode sets too large for memory.
        limit: at most so many images of each test set, drawn by a seeded stratified shuffle. Training sets stay whole.
        measure_costs: measure each detector's standalone cost at the end.

    Raises UsageError for unknown names, and MissingData where the in-distribution set or the weights are absent.
    """
    from oodbench.models.load import resolve_device

    suite = suite if isinstance(suite, Suite) else load_suite(suite)
    suite = suite.customised(
        model=model,
        detectors=detectors,
        parameters=parameters,
        datasets=datasets,
        protocols=protocols,
        seed=seed,
        batch_size=batch_size,
    )
    progress = progress or Progress()
    target = resolve_device(device)
    folder = RunFolder(out or default_folder(suite))
    # The same algorithms each time, so that a resumed run ends with the figures of an uninterrupted one.
    with folder.locked(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        inputs = Inputs(suite, progress, data=data, limit=limit)
        progress.stage(f"loading {suite.model or 'no network'}")
        inputs.load_model(weights, target)
        if fresh:
            folder.clear()
        current = _Run(inputs, folder, progress, workers)
        current.run_cells()
        if measure_costs:
            current.measure_costs()
    return folder


def default_folder(suite: Suite) -> Path:
    return Path("runs") / (suite.name or "suite")


def plan(suite: Suite, *, data: str | Path | None = None, out: str | Path | None = None, limit: int | None = None) -> list[str]:
    """What ``run`` would do, line by line: sets are read, but no network is loaded and nothing is written."""
    inputs = Inputs(suite, Progress(), data=data, limit=limit)
    lines = [
        f"{suite.name}: {suite.title}",
        f"model     {suite.model or 'none'}",
        f"folder    {out or default_folder(suite)}",
        f"fit on    {suite.in_distribution} ({suite.train_split}), {len(inputs.train):,} images",
        f"inside    {suite.in_distribution} ({suite.test_split}), {len(inputs.inside):,} images",
    ]
    for pairing in inputs.pairings:
        found = f"skipped: {reason(pairing.error)}" if pairing.error else f"{len(pairing.images or ()):,} images"
        lines.append(f"outside   {pairing.name} ({pairing.kind}), {found}")
    for name in suite.detectors:
        fails = f", fails: {reason(inputs.broken[name])}" if name in inputs.broken else ""
        lines.append(f"detector  {name}: {', '.join(inputs.protocols_of(name))}{fails}")
    return [*lines, f"{len(inputs.pairings) * sum(len(inputs.protocols_of(name)) for name in suite.detectors)} cells"]


class _Run:
    """What is fitted, and what is known of the in-distribution test images."""

    def __init__(self, inputs: Inputs, folder: RunFolder, progress: Progress, workers: int) -> None:
        self.inputs, self.folder, self.progress, self.workers = inputs, folder, progress, workers
        self.suite, self.inside, self.detectors = inputs.suite, inputs.inside, inputs.detectors
        self.broken = dict(inputs.broken)  # by detector: why none of its cells can be had
        self.heads = {name: HEADS[detector.unsupervised_head]() for name, detector in self.detectors.items()}
        self.signals = passes.signals_of(list(self.detectors.values()))
        self._is_fitted = False
        self.inside_store: StatisticsStore | None = None  # once opened
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
        shared |= {f"parameters of {name}": detector.parameters() for name, detector in self.detectors.items()}
        folder.settle(shared, {"suite": self.suite.model_dump(mode="json"), "provenance": self.about})

    # Cells

    def run_cells(self) -> None:
        """Every cell that is not finished yet."""
        wanted = [(name, protocol) for name in self.suite.detectors for protocol in self.inputs.protocols_of(name)]
        todo = [
            (pairing, [(n, p) for n, p in wanted if not self.folder.finished(self._cell(pairing, n, p))])
            for pairing in self.inputs.pairings
        ]
        if done := len(wanted) * len(todo) - sum(len(cells) for _, cells in todo):
            self.progress.say(f"{done} cells lie finished in {self.folder.path}; going on with the rest")
        self._expect([len(pairing.images) for pairing, cells in todo if cells and pairing.images is not None])
        for pairing, cells in todo:
            if pairing.images is not None and cells:
                self._open()
                self.progress.stage(f"{pairing.name}: {len(pairing.images):,} images")
                try:
                    self._run_pairing(pairing, pairing.images, cells)
                except BadData as error:  # an image that is only decoded now
                    pairing.error = error
                    self.progress.say(f"{pairing.name}: {reason(error)}")
            for name, protocol in cells if pairing.error else ():
                self._write_reason(pairing, name, protocol, pairing.error)

    def _expect(self, sizes: list[int]) -> None:
        """Tell the progress bar about how much work sets of these sizes are, fitting and calibrating included."""
        if not sizes:
            return
        alone = {d: [d.setting] for d in self.detectors.values()}
        grids = {d: d.shift_settings for d in self.detectors.values() if d.shift_head and "per-shift" in self.suite.protocols}
        test, validation = (passes.effort(jobs, self.inputs.classifier) for jobs in (alone, merged(alone, grids)))
        self.progress.expect(len(self.inputs.train))
        for size in [len(self.inside), *sizes]:
            few = min(protocols.VALIDATION_SIZE, size // 2)
            self.progress.expect(few * validation + (size - few) * test)

    def _cell(self, pairing: Pairing, name: str, protocol: str, status: Status = "ok", **fields: Any) -> Cell:
        dataset, level = pairing.dataset_and_level
        sets = [images for images in (self.inputs.train, self.inside, pairing.images) if images is not None]
        return Cell(
            model=self.suite.model or "",
            weights_hash=self.inputs.weights_hash,
            in_distribution=self.suite.in_distribution,
            in_fingerprint=self.inside.fingerprint,
            train_fingerprint=self.inputs.train.fingerprint,
            detector=name,
            parameters=self.detectors[name].parameters() if name in self.detectors else self.suite.parameters.get(name, {}),
            protocol=protocol,
            dataset=dataset,
            level=level,
            kind=pairing.kind,
            fingerprint=pairing.images.fingerprint if pairing.images is not None else "",
            seed=self.suite.seed,
            sizes={f"{images.name} ({images.split})": (len(images), images.official_size) for images in sets},
            status=status,
            provenance=self.about,
            **fields,
        )

    def _write_reason(self, pairing: Pairing, name: str, protocol: str, error: Exception | None) -> None:
        """A cell without figures."""
        status: Status = "skipped" if isinstance(error, Unsuitable | MissingData) else "failed"
        cell = self._cell(pairing, name, protocol, status, reason=reason(error or BadData("no reason")))
        if not self.folder.write(cell):
            self.progress.say(f"{name} on {pairing.name} keeps its figures of before: {cell.reason}")

    # Fitting

    def _open(self) -> None:
        """Once, before the first cell that needs it: fit, and pass over the in-distribution test images."""
        if self.inside_store is not None:
            return
        self._fit()
        # Validation rows of every set are a beginning of this order, so their batches serve all sets.
        order = protocols.stratified_order(len(self.inside), _labels(self.inside), self.suite.seed)
        validation = min(protocols.VALIDATION_SIZE, len(order) // 2) if "per-shift" in self.suite.protocols else 0
        self.inside_store = self._store(self.inside, order[:validation])
        if "unsupervised" in self.suite.protocols:
            self.progress.stage(f"{self.inside.name}: {len(self.inside):,} in-distribution test images")
            self.inside_store.ensure({d: [d.setting] for d in self._sound()}, np.arange(len(self.inside)))

    def _fit(self) -> None:
        """Once: one pass over the training images for all, and one over the held-out ones for heads that calibrate."""
        if self._is_fitted:
            return
        self._is_fitted = True
        for detector in self.detectors.values():
            try:
                detector.check(self.inputs.classifier)
            except Exception as error:
                self._break(detector, error)
        train, classifier = self.inputs.train, self.inputs.classifier
        held_out = protocols.held_out(len(train), _labels(train), self.suite.seed)
        options: dict[str, Any] = {"workers": self.workers, "on_error": self._break}
        self.progress.stage(f"fitting on {len(train):,} training images")
        if observing := [detector for detector in self._sound() if detector.observes]:
            size = self.suite.batch_size
            advance = self.progress.advance
            passes.observe(observing, classifier, train, train.labels, held_out, size, on_batch=advance, **options)
        if wanting := {d: [d.setting] for d in self._sound() if self.heads[d.name].calibrates}:
            pieces = passes.pieces_of(np.flatnonzero(held_out), self.suite.batch_size)
            for detector, values in passes.statistics(wanting, classifier, train, pieces, **options)[0].items():
                self.heads[detector.name].calibrate(values)

    def _sound(self) -> list[Detector]:
        return [detector for name, detector in self.detectors.items() if name not in self.broken]

    def _break(self, detector: Detector, error: Exception) -> None:
        self.broken[detector.name] = error
        self.progress.say(f"{detector.name}: {reason(error)}")

    def _store(self, images: ImageSet, first: np.ndarray) -> StatisticsStore:
        return StatisticsStore(
            images,
            self.inputs.classifier,
            first,
            batch_size=self.suite.batch_size,
            signals=self.signals,
            workers=self.workers,
            on_batch=self.progress.advance,
        )

    # One set

    def _run_pairing(self, pairing: Pairing, images: ImageSet, cells: list[tuple[str, str]]) -> None:
        """One pass over the set: first the validation rows, whose statistics fit the heads, then the test rows."""
        assert self.inside_store is not None
        inside = self.inside_store
        split: Split | None = None
        too_small: Exception | None = None
        if "per-shift" in self.suite.protocols:
            try:
                split = protocols.per_shift(self.inside, images, self.suite.seed)
            except Unsuitable as error:
                too_small = error
        sound = [(self.detectors[name], protocol) for name, protocol in cells if name not in self.broken]
        unsupervised = {d: [d.setting] for d, protocol in sound if protocol == "unsupervised"}
        learning = {d: d.shift_settings for d, protocol in sound if protocol == "per-shift" and split}
        outside = self._store(images, split.out_validation if split else np.empty(0, dtype=np.int64))
        heads: dict[str, Head | Exception] = {}
        if split:
            outside.ensure(merged(unsupervised, learning), split.out_validation)
            inside.ensure(learning, split.in_validation)
            heads = {d.name: _shift_head(d, inside, outside, split, pairing.kind) for d in learning}
            chosen = {
                d: [settings[head.setting_]] for d, settings in learning.items() if isinstance(head := heads[d.name], Head)
            }
            outside.ensure(merged(unsupervised, chosen), split.out_test)
            inside.ensure(chosen, split.in_test)
        outside.ensure(unsupervised, np.arange(len(images)))
        whole = protocols.whole(self.inside, images)
        for name, protocol in cells:
            if name in self.broken:
                self._write_reason(pairing, name, protocol, self.broken[name])
            elif protocol == "unsupervised":
                self._write_cell(pairing, name, protocol, self.heads[name], outside, whole)
            elif split is None:
                self._write_reason(pairing, name, protocol, too_small)
            else:
                self._write_cell(pairing, name, protocol, heads[name], outside, split)

    def _write_cell(
        self,
        pairing: Pairing,
        name: str,
        protocol: str,
        head: Head | Exception,
        outside: StatisticsStore,
        split: Split,
    ) -> None:
        assert self.inside_store is not None
        detector = self.detectors[name]
        start = time.perf_counter()
        try:
            if isinstance(head, Exception):
                raise head
            settings = detector.shift_settings if protocol == "per-shift" else [detector.setting]
            setting = settings[head.setting_]
            in_scores = head.score(self.inside_store.get(detector, [setting], split.in_test))
            out_scores = head.score(outside.get(detector, [setting], split.out_test))
            figures = self._figures(in_scores, out_scores, outside.images, split)
        except Exception as error:
            self.progress.say(f"{name} on {pairing.name}: {reason(error)}")
            self._write_reason(pairing, name, protocol, error)
            return
        cell = self._cell(
            pairing,
            name,
            protocol,
            n_in=len(in_scores),
            n_out=len(out_scores),
            metrics=asdict(figures),
            setting=setting,
            head=detector.shift_head if protocol == "per-shift" else detector.unsupervised_head,
            wall_seconds=outside.seconds(detector, settings) + time.perf_counter() - start,
        )
        self.folder.write(cell, {"in_scores": in_scores, "out_scores": out_scores, **dict(split)})

    def _figures(self, in_scores: np.ndarray, out_scores: np.ndarray, images: ImageSet, split: Split) -> metrics.Metrics:
        if np.ptp(np.concatenate([in_scores, out_scores])) == 0:
            raise BadData(f"all scores are {in_scores[0]:g}: they tell nothing apart")
        clusters = {}
        if protocols.shares_images(self.inside, images):
            clusters = {
                "in_clusters": self.inside.base_index[split.in_test].numpy(),
                "out_clusters": images.base_index[split.out_test].numpy(),
            }
        return metrics.evaluate(in_scores, out_scores, seed=self.suite.seed, **clusters)

    # Costs

    def measure_costs(self) -> None:
        """Standalone cost of every detector and setting among the finished cells that is not in costs.json yet."""
        costs = self.folder.costs()
        jobs: dict[str, timing.Job] = {}
        for cell in self.folder.cells():
            key = cost_key(cell.detector, cell.parameters, cell.setting)
            if cell.status == "ok" and key not in costs and cell.detector in self.detectors:
                jobs[key] = timing.Job(self.detectors[cell.detector], cell.setting or {})
        if not jobs:
            return
        self._fit()
        self.progress.stage(f"measuring what {len(jobs)} settings cost by themselves")
        self.progress.expect(timing.REPEATS * timing.BATCH_SIZE)
        rows = np.resize(np.arange(len(self.inside)), timing.BATCH_SIZE)
        (_, images), *_ = passes.batches(self.inside, self.inputs.classifier, [rows])
        measured = timing.standalone_costs(
            jobs, self.inputs.classifier, images, on_step=lambda: self.progress.advance(timing.BATCH_SIZE)
        )
        self.folder.write_costs(costs | measured)


def _labels(images: ImageSet) -> np.ndarray | None:
    return None if images.labels is None else images.labels.numpy()


def _shift_head(
    detector: Detector, inside: StatisticsStore, outside: StatisticsStore, split: Split, kind: str
) -> Head | Exception:
    """The head fitted on validation rows of both sides, or why it could not be."""
    assert detector.shift_head is not None
    head = HEADS[detector.shift_head]()
    settings = detector.shift_settings
    try:
        fit = inside.get(detector, settings, split.in_fit), outside.get(detector, settings, split.out_fit)
        choose = inside.get(detector, settings, split.in_choose), outside.get(detector, settings, split.out_choose)
        head.fit(fit, choose, "auroc" if kind == "adversarial" else "tnr95")
    except Exception as error:
        return error
    return head
