"""Runs every detector against every set on one model, in one shared pass, and writes a cell for each pairing.

The training images go by once for all detectors that learn, the in-distribution test images once for all sets, each
set once for all detectors. A cell that lies finished in the run folder is not computed again. A plug-in that fails, a
set that is missing and a score that is not a number become cells with a status and a reason.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oodbench import metrics, passes, protocols, timing
from oodbench.classifier import Classifier
from oodbench.detector import Detector, load_detector
from oodbench.errors import BadData, MissingData, OodbenchError, Unsuitable, UsageError, reason
from oodbench.heads import HEADS, Head
from oodbench.image_set import ImageSet
from oodbench.progress import Progress
from oodbench.results import Cell, RunFolder, Status, cost_key, provenance
from oodbench.store import Setting, StatisticsStore
from oodbench.suite import ShiftSet, Suite, load_suite


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
        model, weights, detectors, datasets, protocols, seed, batch_size: instead of what the suite says.
        parameters: hyper-parameters by detector, ``{"knn": {"k": 10}}``.
        data: the data root; by default ``$OODBENCH_DATA`` or the user's cache folder.
        out: the run folder, by default ``runs/<suite>``. A run that lies there is resumed; ``fresh`` starts over.
        limit: at most so many images of each test set, drawn by a seeded stratified shuffle. Training sets stay whole.
        measure_costs: measure each detector's standalone cost at the end.

    Raises UsageError for unknown names, and MissingData where the in-distribution set or the weights are absent.
    """
    chosen = customised(
        load_suite(suite) if not isinstance(suite, Suite) else suite,
        model=model,
        detectors=detectors,
        parameters=parameters,
        datasets=datasets,
        protocols=protocols,
        seed=seed,
        batch_size=batch_size,
    )
    from oodbench.models.load import resolve_device

    folder = RunFolder(out if out is not None else Path("runs") / (chosen.name or "suite"))
    session = _Run(chosen, folder, progress or Progress(), data=data, workers=workers, limit=limit)
    target = resolve_device(device)
    session.load_detectors()
    session.load_sets()
    session.load_model(weights, target)
    with folder.locked():
        if fresh:
            folder.clear()
        session.settle()
        session.run_cells()
        if measure_costs:
            session.measure_costs()
    return folder


def plan(suite: Suite, *, data: str | Path | None = None, out: str | Path | None = None, limit: int | None = None) -> list[str]:
    """What ``run`` would do, line by line: sets are read, but no network is loaded and nothing is written."""
    session = _Run(
        suite, RunFolder(out or Path("runs") / (suite.name or "suite")), Progress(), data=data, workers=0, limit=limit
    )
    session.load_detectors()
    session.load_sets()
    lines = [f"{suite.name}: {suite.title}", f"model {suite.model or 'none'}, run folder {session.folder.path}"]
    lines += [f"fit on    {suite.in_distribution} ({suite.train_split}), {len(session.train):,} images"]
    lines += [f"inside    {suite.in_distribution} ({suite.test_split}), {len(session.inside):,} images"]
    for pairing in session.pairings:
        found = f"{len(pairing.images):,} images" if pairing.images is not None else f"skipped: {reason(pairing.error)}"
        lines.append(f"outside   {pairing.name} ({pairing.kind}), {found}")
    for name in suite.detectors:
        broken = f" fails: {session.broken[name][1]}" if name in session.broken else ""
        lines.append(f"detector  {name}: {', '.join(session.protocols_of(name))}{broken}")
    cells = len(session.pairings) * sum(len(session.protocols_of(name)) for name in suite.detectors)
    return [*lines, f"{cells} cells"]


def customised(
    suite: Suite,
    *,
    model: str | None = None,
    detectors: Sequence[str] | None = None,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    datasets: Sequence[str] | None = None,
    protocols: Sequence[str] | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
) -> Suite:
    """The suite with what is given instead of its own. A set that the suite names keeps its kind and levels."""
    known = {s.name: s for s in suite.sets} | {name: ShiftSet(name=name, kind=kind) for name, kind in suite.names_and_kinds()}
    merged = {name: dict(values) for name, values in suite.parameters.items()}
    for name, values in (parameters or {}).items():
        merged[name] = merged.get(name, {}) | dict(values)
    changes: dict[str, Any] = {
        "model": model,
        "detectors": list(detectors) if detectors else None,
        "parameters": merged,
        "sets": [known.get(name, ShiftSet(name=name)) for name in datasets] if datasets else None,
        "protocols": list(protocols) if protocols else None,
        "seed": seed,
        "batch_size": batch_size,
    }
    for protocol in protocols or ():
        if protocol not in Suite.model_fields["protocols"].annotation.__args__[0].__args__:  # type: ignore[union-attr]
            raise UsageError(f"unknown protocol '{protocol}' (unsupervised or per-shift)")
    if strangers := set(merged) - set(changes["detectors"] or suite.detectors):
        raise UsageError(f"parameters are given for {', '.join(sorted(strangers))}, which does not run; add --detector")
    return suite.model_copy(update={name: value for name, value in changes.items() if value is not None})


@dataclass
class _Pairing:
    """One set against the in-distribution one; ``images`` None where it could not be read, with the reason why."""

    name: str  # as asked, with its level
    kind: str
    images: ImageSet | None
    error: Exception | None = None

    @property
    def dataset_and_level(self) -> tuple[str, int | None]:
        stem, at, level = self.name.rpartition("@")
        return (stem, int(level)) if at and level.isdigit() else (self.name, None)


class _Run:
    """The state of one run: what was loaded, what is fitted, what is known of the in-distribution test images."""

    def __init__(
        self, suite: Suite, folder: RunFolder, progress: Progress, *, data: str | Path | None, workers: int, limit: int | None
    ) -> None:
        if limit is not None and limit < 1:
            raise UsageError(f"--limit takes a number of images of at least 1, not {limit}")
        self.suite, self.folder, self.progress = suite, folder, progress
        self.data, self.workers, self.limit = data, workers, limit
        self.detectors: dict[str, Detector] = {}
        self.broken: dict[str, tuple[Status, str]] = {}  # by detector: why none of its cells can be had
        self.heads: dict[str, Head] = {}  # unsupervised, calibrated
        self._fitted = False

    # Loading

    def load_detectors(self) -> None:
        """Every detector of the suite; one that cannot be built is noted as broken."""
        for name in self.suite.detectors:
            try:
                self.detectors[name] = load_detector(name, **self.suite.parameters.get(name, {}))
            except UsageError:
                raise
            except Exception as error:
                self.broken[name] = ("failed", reason(error))
                self.progress.say(f"{name}: {reason(error)}")

    def load_sets(self) -> None:
        """Raises where the in-distribution set cannot be read; another set becomes a pairing with the reason."""
        suite = self.suite
        self.progress.stage("loading the sets")
        self.train = self._load_set(suite.in_distribution, suite.train_split, suite.size)
        self.size = suite.size or self.train.images.shape[-1]
        inside = self._load_set(suite.in_distribution, suite.test_split, self.size)
        if protocols.shares_images(self.train, inside):
            raise BadData(f"{suite.in_distribution}: its {suite.train_split} and {suite.test_split} splits are the same images")
        self.inside = protocols.limited(inside, self.limit, suite.seed)
        self.pairings = [self._load_pairing(name, kind) for name, kind in suite.names_and_kinds()]

    def load_model(self, weights: str | Path | None, device: torch.device) -> None:
        """Raises where the weights are absent, or the network does not take these images."""
        self.classifier: Classifier | None = None
        self.device = torch.device("cpu")
        if self.suite.model is not None:
            from oodbench.models.load import load_model

            self.progress.stage(f"loading {self.suite.model}")
            self.classifier = load_model(
                self.suite.model, weights, data=self.data, device=str(device), require_weights=True, progress=False
            )
            self.classifier.check(self.inside.read(range(min(2, len(self.inside)))) / 255)
            self.device = device

    def _load_set(self, name: str, split: str, size: int | None) -> ImageSet:
        from oodbench.datasets.load import load_dataset

        return load_dataset(name, data=self.data, split=split, size=size, resize=self.suite.resize, seed=self.suite.seed)

    def _load_pairing(self, name: str, kind: str | None) -> _Pairing:
        try:
            images = protocols.limited(self._load_set(name, "test", self.size), self.limit, self.suite.seed)
            if images.images.shape[1:] != self.inside.images.shape[1:]:
                raise BadData(
                    f"{name} holds images of shape {tuple(images.images.shape[1:])} and {self.inside.name}"
                    f" {tuple(self.inside.images.shape[1:])}; give the suite a size"
                )
            return _Pairing(name, kind or images.kind, images)
        except UsageError:
            raise
        except Exception as error:
            self.progress.say(f"{name}: {reason(error)}")
            return _Pairing(name, kind or "far-ood", None, error)

    def settle(self) -> None:
        """Agree with what lies in the run folder."""
        suite = self.suite
        shared: dict[str, Any] = {
            "model": suite.model or "",
            "in_distribution": suite.in_distribution,
            "size": self.size,
            "resize": suite.resize,
            "seed": suite.seed,
            "limit": self.limit,
            "weights": self.weights_hash,
            "in-distribution images": self.inside.fingerprint,
            "training images": self.train.fingerprint,
        }
        shared |= {f"parameters of {name}": detector.parameters() for name, detector in self.detectors.items()}
        self.provenance = provenance(str(self.device)) | {"batch_size": suite.batch_size, "limit": self.limit}
        self.folder.settle(shared, {"suite": suite.model_dump(mode="json"), "provenance": self.provenance})

    @property
    def weights_hash(self) -> str:
        return self.classifier.weights_hash if self.classifier else ""

    # Cells

    def run_cells(self) -> None:
        """Every cell that is not finished yet."""
        open_cells = {pairing.name: self._open_cells(pairing) for pairing in self.pairings}
        done = sum(self._cell_count(pairing) for pairing in self.pairings) - sum(map(len, open_cells.values()))
        if done:
            self.progress.say(f"{done} cells lie finished in {self.folder.path}; going on with the rest")
        readable = [pairing for pairing in self.pairings if open_cells[pairing.name] and pairing.images is not None]
        if readable:
            images = sum(len(pairing.images or ()) for pairing in readable)
            self.progress.expect(len(self.train) + len(self.inside) + images)
        for pairing in self.pairings:
            cells = open_cells[pairing.name]
            if cells and pairing.images is None:
                status: Status = "skipped" if isinstance(pairing.error, MissingData | Unsuitable) else "failed"
                for name, protocol in cells:
                    self._write_without_figures(pairing, name, protocol, status, reason(pairing.error))
            elif cells:
                self._fit()
                self.progress.stage(f"{pairing.name}: {len(pairing.images):,} images")
                self._run_pairing(pairing, pairing.images, cells)

    def protocols_of(self, name: str) -> list[str]:
        """The protocols under which a detector has a row: per-shift only if it learns something there."""
        learns = name not in self.detectors or self.detectors[name].shift_head is not None
        return [protocol for protocol in self.suite.protocols if protocol == "unsupervised" or learns]

    def _cell_count(self, pairing: _Pairing) -> int:
        return sum(len(self.protocols_of(name)) for name in self.suite.detectors)

    def _open_cells(self, pairing: _Pairing) -> list[tuple[str, str]]:
        return [
            (name, protocol)
            for name in self.suite.detectors
            for protocol in self.protocols_of(name)
            if not self.folder.finished(self._cell(pairing, name, protocol))
        ]

    def _cell(self, pairing: _Pairing, name: str, protocol: str, status: Status = "ok", **fields: Any) -> Cell:
        dataset, level = pairing.dataset_and_level
        sets = [self.inside] + ([pairing.images] if pairing.images is not None else [])
        return Cell(
            model=self.suite.model or "",
            weights_hash=self.weights_hash,
            in_distribution=self.suite.in_distribution,
            in_fingerprint=self.inside.fingerprint,
            train_fingerprint=self.train.fingerprint,
            detector=name,
            parameters=self.detectors[name].parameters() if name in self.detectors else self.suite.parameters.get(name, {}),
            protocol=protocol,
            dataset=dataset,
            level=level,
            kind=pairing.kind,
            fingerprint=pairing.images.fingerprint if pairing.images is not None else "",
            seed=self.suite.seed,
            sizes={images.name: (len(images), images.official_size) for images in sets},
            status=status,
            provenance=getattr(self, "provenance", {}),
            **fields,
        )

    def _write_without_figures(self, pairing: _Pairing, name: str, protocol: str, status: Status, why: str) -> None:
        self.folder.write(self._cell(pairing, name, protocol, status, reason=why))

    # Fitting

    def _fit(self) -> None:
        """Once, before the first cell that needs it: fit on the training images, calibrate, and open the test images."""
        if self._fitted:
            return
        self._fitted = True
        for detector in self.detectors.values():
            try:
                detector.check(self.classifier)
            except Exception as error:
                self._break(detector, error)
        observing = [detector for name, detector in self.detectors.items() if detector.observes and name not in self.broken]
        labels = self.train.labels
        held_out = protocols.held_out(len(self.train), None if labels is None else labels.numpy(), self.suite.seed)
        if observing:
            self.progress.stage(f"fitting on {len(self.train):,} training images")
            passes.observe(
                observing,
                self.classifier,
                self.train,
                labels,
                held_out,
                self.suite.batch_size,
                workers=self.workers,
                on_batch=self.progress.advance,
                on_error=self._break,
            )
        self._calibrate(np.flatnonzero(held_out))
        self.signals = passes.signals_of(list(self.detectors.values()))
        # Validation rows of every set are a beginning of this order, so their batches serve all sets.
        order = protocols.stratified_order(
            len(self.inside), None if self.inside.labels is None else self.inside.labels.numpy(), self.suite.seed
        )
        first = order[: min(protocols.VALIDATION_SIZE, len(order) // 2)] if "per-shift" in self.suite.protocols else order[:0]
        self.inside_statistics = self._store(self.inside, first)
        self.progress.stage(f"{self.inside.name}: {len(self.inside):,} in-distribution test images")
        jobs = {
            d: [d.setting]
            for name, d in self.detectors.items()
            if name not in self.broken and "unsupervised" in self.suite.protocols
        }
        self.inside_statistics.ensure(jobs, np.arange(len(self.inside)))

    def _calibrate(self, rows: np.ndarray) -> None:
        heads = {name: HEADS[detector.unsupervised_head]() for name, detector in self.detectors.items()}
        wanting = {d: [d.setting] for name, d in self.detectors.items() if heads[name].calibrates and name not in self.broken}
        if wanting:
            found, _ = passes.statistics(
                wanting,
                self.classifier,
                self.train,
                passes.pieces_of(rows, self.suite.batch_size),
                workers=self.workers,
                on_error=self._break,
            )
            for detector, values in found.items():
                heads[detector.name].calibrate(values)
        self.heads = heads

    def _break(self, detector: Detector, error: Exception) -> None:
        self.broken[detector.name] = (_status(error), reason(error))
        self.progress.say(f"{detector.name}: {reason(error)}")

    def _store(self, images: ImageSet, first: np.ndarray) -> StatisticsStore:
        return StatisticsStore(
            images,
            self.classifier,
            first,
            batch_size=self.suite.batch_size,
            signals=self.signals,
            workers=self.workers,
            on_batch=self.progress.advance,
        )

    # One set

    def _run_pairing(self, pairing: _Pairing, images: ImageSet, cells: list[tuple[str, str]]) -> None:
        """One pass over the set: validation rows, whose statistics fit the heads, then the test rows."""
        split = None
        why = ""
        if "per-shift" in self.suite.protocols:
            try:
                split = protocols.per_shift(self.inside, images, self.suite.seed)
            except Unsuitable as error:
                why = reason(error)
        validation = np.concatenate([split.out_fit, split.out_choose]) if split else np.empty(0, dtype=np.int64)
        outside = self._store(images, validation)
        jobs: dict[Detector, list[Setting]] = {}
        for name, protocol in cells:
            if name not in self.broken and (protocol == "unsupervised" or split):
                detector = self.detectors[name]
                wanted = [detector.setting] if protocol == "unsupervised" else _candidates(detector)
                jobs.setdefault(detector, []).extend(s for s in wanted if s not in jobs.get(detector, []))
        outside.ensure(jobs, validation)
        heads: dict[str, Head | Exception] = {}
        for name, protocol in cells:
            if protocol == "per-shift" and split and name not in self.broken:
                try:
                    heads[name] = self._shift_head(self.detectors[name], outside, split, pairing.kind)
                except Exception as error:
                    heads[name] = error
        self._ensure_test(outside, cells, heads, split)
        for name, protocol in cells:
            if name in self.broken:
                self._write_without_figures(pairing, name, protocol, *self.broken[name])
            elif protocol == "per-shift" and split is None:
                self._write_without_figures(pairing, name, protocol, "skipped", why)
            else:
                head = self.heads[name] if protocol == "unsupervised" else heads[name]
                used = protocols.whole(self.inside, images) if protocol == "unsupervised" or split is None else split
                self._write_cell(pairing, name, protocol, head, outside, used)

    def _shift_head(self, detector: Detector, outside: StatisticsStore, split: protocols.Split, kind: str) -> Head:
        assert detector.shift_head is not None
        head = HEADS[detector.shift_head]()
        settings = _candidates(detector)
        fit, choose = (
            (self.inside_statistics.get(detector, settings, in_rows), outside.get(detector, settings, out_rows))
            for in_rows, out_rows in ((split.in_fit, split.out_fit), (split.in_choose, split.out_choose))
        )
        head.fit(fit, choose, "auroc" if kind == "adversarial" else "tnr95")
        return head

    def _ensure_test(
        self,
        outside: StatisticsStore,
        cells: list[tuple[str, str]],
        heads: dict[str, Head | Exception],
        split: protocols.Split | None,
    ) -> None:
        """The rest of the set, and in-distribution rows at newly chosen settings, each in one pass for all detectors."""
        everything: dict[Detector, list[Setting]] = {}
        chosen: dict[Detector, list[Setting]] = {}
        for name, protocol in cells:
            if name in self.broken:
                continue
            detector = self.detectors[name]
            if protocol == "unsupervised":
                everything.setdefault(detector, []).append(detector.setting)
            elif isinstance(head := heads.get(name), Head):
                chosen[detector] = [_candidates(detector)[head.setting_]]
        rows = np.arange(len(outside.images))
        test = {d: everything.get(d, []) + chosen.get(d, []) for d in everything | chosen}
        if split:
            outside.ensure(test, np.concatenate([split.out_test]))
            self.inside_statistics.ensure(chosen, split.in_test)
        outside.ensure(everything, rows)

    def _write_cell(
        self,
        pairing: _Pairing,
        name: str,
        protocol: str,
        head: Head | Exception,
        outside: StatisticsStore,
        split: protocols.Split,
    ) -> None:
        detector = self.detectors[name]
        start = time.perf_counter()
        try:
            if isinstance(head, Exception):
                raise head
            setting = _candidates(detector)[head.setting_] if protocol == "per-shift" else detector.setting
            in_scores = head.score(self.inside_statistics.get(detector, [setting], split.in_test))
            out_scores = head.score(outside.get(detector, [setting], split.out_test))
            if np.ptp(np.concatenate([in_scores, out_scores])) == 0:
                raise BadData(f"all scores are {in_scores[0]:g}: they tell nothing apart")
            shared = protocols.shares_images(self.inside, outside.images)
            figures = metrics.evaluate(
                in_scores,
                out_scores,
                in_clusters=self.inside.base_index[split.in_test].numpy() if shared else None,
                out_clusters=outside.images.base_index[split.out_test].numpy() if shared else None,
                seed=self.suite.seed,
            )
        except Exception as error:
            self.progress.say(f"{name} on {pairing.name}: {reason(error)}")
            self._write_without_figures(pairing, name, protocol, _status(error), reason(error))
            return
        spent = outside.seconds(detector, _candidates(detector) if protocol == "per-shift" else [setting])
        cell = self._cell(
            pairing,
            name,
            protocol,
            n_in=len(in_scores),
            n_out=len(out_scores),
            metrics=asdict(figures),
            setting=setting,
            head=detector.shift_head if protocol == "per-shift" else detector.unsupervised_head,
            wall_seconds=spent + time.perf_counter() - start,
        )
        self.folder.write(cell, {"in_scores": in_scores, "out_scores": out_scores, **dict(split)})

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
        (_, images), *_ = passes.batches(self.inside, self.classifier, [rows])
        measured = timing.standalone_costs(
            jobs, self.classifier, images, on_step=lambda: self.progress.advance(timing.BATCH_SIZE)
        )
        self.folder.write_costs(costs | measured)


def _candidates(detector: Detector) -> list[Setting]:
    """The settings that a detector's shift head sees."""
    assert detector.shift_head is not None
    return list(detector.grid) if HEADS[detector.shift_head].chooses else [detector.setting]


def _status(error: Exception) -> Status:
    return "skipped" if isinstance(error, Unsuitable | MissingData) else "failed"


__all__ = ["OodbenchError", "run"]
