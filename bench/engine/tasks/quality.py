"""Runs metrics of image quality on databases of images that people scored: ``task = "quality"``."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch

from oodbench import code_hash
from oodbench.datasets.name import is_absolute
from oodbench.datasets.quality.database import QualityDatabase, load_database
from oodbench.engine.executors.worker import reproducible
from oodbench.errors import BadData, MissingData, Unsuitable, UsageError, around_call, contained, counted, reason_in
from oodbench.paths import DataRoots
from oodbench.progress import Part, Progress
from oodbench.protocols import stratified_order
from oodbench.quality.metric import NotFinite, QualityMetric, load_metric
from oodbench.registry import find, records, unknown
from oodbench.results.folder import RunFolder
from oodbench.results.pass_file import hash_of
from oodbench.results.provenance import provenance
from oodbench.results.recompute import quality_figures
from oodbench.results.records import QualityRecord, Status
from oodbench.suites.tasks import ALL, QualitySuite

BATCH = 2**21  # pixels of the reference images of a batch
FAMILY = "quality_metrics"


def run(
    suite: QualitySuite,
    *,
    data: DataRoots = None,
    out: str | Path | None = None,
    limit: int | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    cell_timeout: float | None = None,
) -> RunFolder:
    """Compute the missing records of a run, and return its folder. Metrics run on the CPU.

    ``limit``: the most images of each database, drawn by the seed with equal shares of the reference images. If a metric or a
    database fails, the others still run.

    Raises UsageError for unknown metrics and databases, for parameters of metrics that do not run, and for a run folder of
    other settings.
    """
    _check_names(suite)
    progress, cpu = progress or Progress(), torch.device("cpu")
    folder = RunFolder(out or Path("runs") / suite.name)
    with reproducible(cpu, progress, cell_timeout), folder.locked(progress.say, fresh):
        if fresh:
            folder.clear(progress.say)
        settings = {"task": suite.task, "seed": suite.seed, "limit": limit}
        settings |= {f"parameters of {name}": values for name, values in suite.parameters.items()}
        about = provenance(str(cpu)) | {"limit": limit}
        told = suite.model_dump(mode="json") | {"databases": list(map(recorded, suite.databases))}
        folder.check_settings(settings, progress.say, suite=told, provenance=about)
        current = _Run(suite, folder, progress, about, data, limit)
        works = [current.read(name) for name in suite.databases]
        progress.expect(sum(len(work.rows) * len(work.missing) for work in works))
        for work in works:
            current.compute(work)
        folder.tidy()
    return folder


def recorded(name: str) -> str:
    """The name of a database in results: without the folder of its file, which is private."""
    base, colon, path = name.partition(":")
    return f"{base}{colon}{PurePath(path).name}"


def plan(suite: QualitySuite, *, data: DataRoots, limit: int | None) -> list[str]:
    """What ``run`` would do, line by line; databases are read, and nothing is computed."""
    _check_names(suite)
    lines = []
    for name in suite.databases:
        try:
            with contained():
                found = load_database(name, data=data)
        except UsageError:
            raise
        except Exception as error:
            lines.append(f"database  {name}, skipped: {reason_in(error)}")
            continue
        limited = "" if limit is None else f", limited to {limit:,}"
        official = f" of {found.official_size:,}" if found.official_size not in (None, len(found.scores)) else ""
        lines.append(f"database  {name}, {len(found.scores):,}{official} images{limited}")
    names = _expanded(suite.metrics)
    built = {name: _built(name, suite, data) for name in names if name in records(FAMILY)}  # a file may hold any others
    broken = {name: metric for name, metric in built.items() if isinstance(metric, Exception)}
    lines.append(f"metrics   {', '.join(name for name in names if name not in broken)}")
    return [
        *lines,
        *(f"metric    {name}, skipped: {reason_in(error).removeprefix(f'{name}: ')}" for name, error in broken.items()),
    ]


def _check_names(suite: QualitySuite) -> None:
    """Raise UsageError for unknown names, databases with one name in results, and parameters of a metric that does not run."""
    for name in suite.databases:
        find("quality_databases", name.partition(":")[0])
    names = [recorded(name) for name in suite.databases]
    if twice := next((name for name in names if names.count(name) > 1), None):
        if len(set(suite.databases)) < len(names):
            raise UsageError(f"suite {suite.name}: databases names {twice} twice; remove one")
        raise UsageError(
            f"suite {suite.name}: two databases are called {twice} in results; rename a file or folder, or leave one out"
        )
    if not all(name.startswith("scores:") for name in suite.databases):  # a file may hold values of any metric
        for name in suite.metrics:
            if name != ALL:
                find(FAMILY, name)
    named = [*suite.metrics, *(records(FAMILY) if ALL in suite.metrics else ())]
    for name in suite.parameters:
        if name not in named:
            listing = f"the metrics of this run are {', '.join(suite.metrics)}"
            raise UsageError(f"parameters: {unknown('quality metric', name, named, listing)}")


def _expanded(metrics: Sequence[str]) -> list[str]:
    """The names of metrics, once each, with every known one in place of ``all``."""
    known = [name for name, record in records(FAMILY).items() if not record.error]
    return list(dict.fromkeys(name for one in metrics for name in (known if one == ALL else [one])))


def _built(name: str, suite: QualitySuite, data: DataRoots) -> tuple[QualityMetric, dict[str, str]] | Exception:
    """The metric and the SHA-256 of its files by name, or why it cannot be had. Raises UsageError for wrong parameters."""
    try:
        with contained(), around_call.get()(f"building {name}"):
            metric = load_metric(name, data=data, **suite.parameters.get(name, {}))
            return metric, {Path(path).name: digest for path, digest in metric.files().items()}
    except UsageError:
        raise
    except Exception as error:
        return error


class _Work(NamedTuple):
    """What a run computes on one database: the records that are missing, by metric, on these rows."""

    name: str
    database: QualityDatabase | None
    rows: np.ndarray
    missing: dict[str, QualityRecord]


class _Run:
    def __init__(
        self,
        suite: QualitySuite,
        folder: RunFolder,
        progress: Progress,
        about: dict[str, Any],
        data: DataRoots,
        limit: int | None,
    ) -> None:
        self.suite, self.folder, self.progress, self.about = suite, folder, progress, about
        self.data, self.limit = data, limit
        self.built: dict[str, tuple[QualityMetric, dict[str, str]] | Exception] = {}  # as of ``_built``, by metric

    def read(self, name: str) -> _Work:
        """Read a database, and find its records that are not finished. If it cannot be read, they say so."""
        self.progress.stage(f"{name}: reading")
        try:
            with contained(), around_call.get()(f"reading {name}", ends=False):
                found, error = load_database(name, data=self.data), None
        except UsageError:
            raise
        except Exception as problem:  # whatever a third party's loader raises
            self.progress.fail(name, problem)
            found, error = None, problem
        metrics = self._metrics(found)
        templates = {metric: self._record(metric, name, found, of) for metric, of in metrics.items()}
        missing = {metric: record for metric, record in templates.items() if not self.folder.finished(record)}
        if done := len(metrics) - len(missing):
            self.progress.say(f"Resuming {self.folder.path}: {counted(done, 'cell')} of {name} already done")
        if found is None:
            failed = [_without_figures(record, error) for record in missing.values()]
            path = name.partition(":")[2]
            if is_absolute(path):  # its folder is private, as in ``recorded``
                failed = [one.model_copy(update={"reason": one.reason.replace(path, PurePath(path).name)}) for one in failed]
            self._write(failed, {})
        return _Work(name, found, np.arange(0) if found is None else self._rows(found), missing)

    def compute(self, work: _Work) -> None:
        """Compute the missing records of a database, one after another."""
        if work.database is None:
            return
        metrics = self._metrics(work.database)
        for name, record in work.missing.items():
            part = Part(self.progress, f"{work.name}: {name}", units=len(work.rows))
            part.expect(len(work.rows))
            part.stage(counted(len(work.rows), "image"))
            self._metric(metrics[name], record, work.database, work.rows, part)
            part.end()

    def _metrics(self, database: QualityDatabase | None) -> dict[str, QualityMetric | Exception | None]:
        """By name: the metric, why it cannot be built, or None if the database has its values (or may have them, unread)."""
        given = {} if database is None else database.values
        if given:
            names = list(given) if ALL in self.suite.metrics else self.suite.metrics
        else:
            names = _expanded(self.suite.metrics)
        unread = set(names) - set(records(FAMILY)) if database is None else set()
        found: dict[str, QualityMetric | Exception | None] = dict.fromkeys(names)
        for name in (name for name in found if name not in given and name not in unread):
            if name not in self.built:
                self.built[name] = _built(name, self.suite, self.data)
            built = self.built[name]
            found[name] = built if isinstance(built, Exception) else built[0]
        return found

    def _record(
        self, name: str, database: str, found: QualityDatabase | None, metric: QualityMetric | Exception | None
    ) -> QualityRecord:
        """What is known of a record before it has figures."""
        built = metric if isinstance(metric, QualityMetric) else None
        files = self.built.get(name)
        return QualityRecord(
            metric=name,
            parameters=built.parameters() if built else self.suite.parameters.get(name, {}),
            non_default={key: (value, default) for key, (value, default) in built.non_default().items()} if built else {},
            files=files[1] if built and isinstance(files, tuple) else {},
            code=code_hash.of_class(type(built)) if built else "",
            higher_is_better=built.higher_is_better if built else True,
            database=recorded(database),
            fingerprint=f"{found.fingerprint} {self.limit}" if found and self.limit else found.fingerprint if found else "",
            score=found.score_name if found else "",
            score_higher_is_better=found.higher_is_better if found else True,
            size=(len(found.scores), found.official_size) if found else None,
            seed=self.suite.seed,
            status="failed",
            provenance=self.about,
        )

    def _rows(self, database: QualityDatabase) -> np.ndarray:
        count = len(database.scores)
        if self.limit is None or self.limit >= count:
            return np.arange(count)
        return np.sort(stratified_order(count, database.reference_of, self.suite.seed)[: self.limit])

    def _metric(
        self,
        metric: QualityMetric | Exception | None,
        record: QualityRecord,
        database: QualityDatabase,
        rows: np.ndarray,
        progress: Progress,
    ) -> None:
        """Compute one record, and write it."""
        seconds = None
        try:
            if isinstance(metric, Exception):
                raise metric
            if metric is None:
                values = database.values[record.metric][rows]
            else:
                with contained():
                    values, seconds = self._values(metric, database, rows, progress)
            arrays = {"values": values, "scores": database.scores[rows], "groups": database.reference_of[rows]}
            if database.deviations is not None:
                arrays["deviations"] = database.deviations[rows]
            found = quality_figures(record, arrays)
        except Exception as error:
            self.progress.fail(f"{record.metric} on {record.database}", error)
            self._write([_without_figures(record, error)], {})
            return
        stored = {role: hash_of(array) for role, array in arrays.items()}
        known = {"status": "ok", "arrays": stored, "n": len(rows), **found}
        known |= {"ms_per_image": None if seconds is None else 1000 * seconds / len(rows)}
        self._write([record.model_copy(update=known)], {stored[role]: array for role, array in arrays.items()})

    def _values(
        self, metric: QualityMetric, database: QualityDatabase, rows: np.ndarray, progress: Progress
    ) -> tuple[np.ndarray, float]:
        """The metric's values (N,), and the seconds that it took without reading images."""
        if not len(database.distorted):
            raise Unsuitable(
                f"{database.name} has no images, only values of {', '.join(database.values)}; add a column {metric.name} to it"
            )
        found: list[np.ndarray] = []
        seconds = 0.0
        for references, distorted in _batches(database, rows):
            start = time.perf_counter()
            with around_call.get()(f"one call of {metric.name}"):
                try:
                    values = metric.score(references, distorted)
                except NotFinite as error:
                    row = int(rows[sum(map(len, found)) + error.row])
                    raise NotFinite(metric.name, error.row, error.value, database.label(row)) from error
            seconds += time.perf_counter() - start
            if not isinstance(values, torch.Tensor) or values.shape != (len(references),) or not bool(values.isfinite().all()):
                shown = f"shape {tuple(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
                raise BadData(f"{metric.name} gave {shown}, not one finite value per image ({len(references)},)")
            found.append(values.double().cpu().numpy())
            progress.advance(len(references))
        return np.concatenate(found), seconds

    def _write(self, records: list[QualityRecord], arrays: dict[str, np.ndarray]) -> None:
        if records:
            self.folder.write(records, arrays, say=self.progress.say)


def _without_figures(record: QualityRecord, error: Exception | None) -> QualityRecord:
    assert error is not None
    status: Status = "skipped" if isinstance(error, MissingData | Unsuitable) else "failed"
    target = records(FAMILY)[record.metric].target if record.metric in records(FAMILY) else ""
    why = reason_in(error, target).removeprefix(f"{record.metric}: ")  # tables say the name
    return record.model_copy(update={"status": status, "reason": why})


def _batches(database: QualityDatabase, rows: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of images of one size, (n, 3, H, W) each; a batch may be one image."""
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    for row in rows:
        with around_call.get()(f"reading images of {database.name}"):
            pair = database.references[int(database.reference_of[row])], database.distorted[int(row)]
        if pair[0].shape != pair[1].shape:
            sizes = " and ".join(f"{image.shape[2]}x{image.shape[1]}" for image in pair)
            raise BadData(
                f"{database.name}: image {int(row) + 1} and its reference differ in size ({sizes}); replace one of them"
            )
        if held and (held[0][0].shape != pair[0].shape or (len(held) + 1) * pair[0][0].numel() > BATCH):
            yield _stacked(held)
            held = []
        held.append(pair)
    if held:
        yield _stacked(held)


def _stacked(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    references, distorted = zip(*pairs, strict=True)
    return torch.stack(references), torch.stack(distorted)
