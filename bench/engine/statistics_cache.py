"""Statistics of one set by detector and setting, computed when first needed and never twice.

A set is cut into fixed batches, whatever statistics are still missing. So a figure is the same bit for bit after a kill and
under other protocols.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from oodbench import passes
from oodbench.batching import pieces_of
from oodbench.classifier import Classifier
from oodbench.detector import Detector
from oodbench.errors import ChangedNetwork, TooSlow
from oodbench.forward.guard import Guard
from oodbench.image_set import ImageSet

Setting = dict[str, Any]
Jobs = Mapping[Detector, Sequence[Setting]]


class StatisticsCache:
    """The statistics of the detectors on one set, by detector and setting.

    first: rows that come in separate batches (the validation rows), because the other rows may never need the same settings.
    signals: what the probes keep ready; the same for every pass over this set. precision: as of ``passes.computed``.
    guard: of the network; on_changed: receives each detector that changed the network or took too long, and the error.
    on_batch: receives the work of each batch, in forward passes of one image.
    spent: receives the seconds of each detector, by name: its own work and an equal share of the shared forward pass.
    riders: computed on each batch that is passed for others; what is kept of them, as of all, is what ``keep`` gives.
    statistics: does the passes: ``passes.statistics``, or that of an executor.
    """

    def __init__(
        self,
        images: ImageSet,
        classifier: Classifier | None,
        first: np.ndarray,
        *,
        batch_size: int,
        signals: frozenset[str],
        precision: torch.dtype | None = None,
        workers: int = 0,
        guard: Guard | None = None,
        on_changed: passes.OnError = lambda detector, error: None,
        on_batch: passes.OnBatch = lambda work: None,
        spent: dict[str, float] | None = None,
        riders: Sequence[Detector] = (),
        keep: passes.Keep = lambda detector, values, rows: values,
        statistics: Callable[..., tuple[dict[Detector, np.ndarray], dict[Detector, float]]] = passes.statistics,
    ) -> None:
        rest = np.setdiff1d(np.arange(len(images)), first)
        self.images = images
        self.failures: dict[Detector, Exception] = {}
        self._on_changed, self._statistics = on_changed, statistics
        self._spent = {} if spent is None else spent
        self._pieces = pieces_of(np.sort(first), batch_size) + pieces_of(rest, batch_size)
        self._pass: dict[str, Any] = {
            "classifier": classifier,
            "images": images,
            "signals": signals,
            "precision": precision,
            "workers": workers,
            "guard": guard,
            "on_batch": on_batch,
            "on_error": self._fail,
            "riders": riders,
            "keep": keep,
        }
        self._values: dict[tuple[Detector, str], np.ndarray] = {}  # (N, D), NaN where not yet computed
        self._seconds: dict[tuple[Detector, str], float] = {}

    def ensure(self, *demands: tuple[Jobs, np.ndarray]) -> None:
        """Compute what is missing of each demand (settings, on the batches that hold its rows) in as few passes as possible.

        A detector that fails is noted in ``failures`` and not called again.
        """
        masks = [np.isin(np.arange(len(self.images)), rows) for _, rows in demands]
        # Batches that lack the same statistics share a pass.
        groups: dict[tuple[tuple[Detector, str], ...], list[np.ndarray]] = {}
        riding = {rider: [rider.setting] for rider in self._pass["riders"]}
        for piece in self._pieces:
            wanted = merged(*(jobs for (jobs, _), mask in zip(demands, masks, strict=True) if mask[piece].any()))
            missing = self._missing(wanted, piece[0])
            if missing:
                missing = self._missing(merged(wanted, riding), piece[0])
            groups.setdefault(missing, []).append(piece)
        for missing, pieces in groups.items():
            if missing:
                self._compute(missing, pieces)

    def get(self, detector: Detector, settings: Sequence[Setting], rows: np.ndarray) -> np.ndarray:
        """Statistics of these rows, float64 (len(rows), S, D). Raises the error that the detector failed with."""
        self.ensure(({detector: settings}, rows))
        if detector in self.failures:
            raise self.failures[detector]
        return np.stack([self._values[detector, _key(setting)][rows] for setting in settings], axis=1)

    def seconds(self, detector: Detector, settings: Sequence[Setting]) -> float:
        """Seconds of the detector at these settings on this set, with an equal share of the shared forward pass."""
        return sum(self._seconds.get((detector, _key(setting)), 0.0) for setting in settings)

    def _fail(self, detector: Detector, error: Exception) -> None:
        self.failures[detector] = error
        if isinstance(error, ChangedNetwork | TooSlow):
            self._on_changed(detector, error)

    def _missing(self, jobs: Jobs, row: int) -> tuple[tuple[Detector, str], ...]:
        """What is not known of the batch that begins with this row."""
        return tuple(
            (detector, _key(setting))
            for detector, settings in jobs.items()
            for setting in settings
            if detector not in self.failures and not self._known(detector, setting, row)
        )

    def _known(self, detector: Detector, setting: Setting, row: int) -> bool:
        values = self._values.get((detector, _key(setting)))
        return values is not None and not np.isnan(values[row]).any()

    def _compute(self, missing: tuple[tuple[Detector, str], ...], pieces: list[np.ndarray]) -> None:
        jobs: dict[Detector, list[Setting]] = {}
        for detector, key in missing:
            if not any(_key(known) == key for known in jobs.get(detector, [])):
                jobs.setdefault(detector, []).append(json.loads(key))
        found, seconds = self._statistics(jobs, pieces=pieces, **self._pass)
        rows = np.concatenate(pieces)
        for detector, values in found.items():
            if detector not in self._pass["riders"]:
                self._spent[detector.name] = self._spent.get(detector.name, 0.0) + seconds[detector]
            for place, setting in enumerate(jobs[detector]):
                slot = detector, _key(setting)
                self._values.setdefault(slot, np.full((len(self.images), values.shape[2]), np.nan))[rows] = values[:, place]
                self._seconds[slot] = self._seconds.get(slot, 0.0) + seconds[detector] / len(jobs[detector])


def _key(setting: Setting) -> str:
    return json.dumps(setting, sort_keys=True)


def merged(*jobs: Jobs) -> dict[Detector, list[Setting]]:
    """The settings of each detector over all jobs, each once."""
    together: dict[Detector, list[Setting]] = {}
    for some in jobs:
        for detector, settings in some.items():
            known = together.setdefault(detector, [])
            known.extend(setting for setting in settings if setting not in known)
    return together
