"""Passes that workers share: what they need is packed once, batches become shards, and their results are joined in order."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from oodbench import passes
from oodbench.classifier import Classifier
from oodbench.detector import Detector
from oodbench.engine.executors.far_errors import FarError
from oodbench.engine.executors.worker import Shard, Task, packed
from oodbench.errors import OodbenchError, reason
from oodbench.forward.guard import Guard
from oodbench.image_set import ImageSet

SHARDS = 4  # per worker: small ones balance the load and lose little with a worker, large ones cost fewer messages
SETS = 2  # that workers hold: the in-distribution images, and those under test
TRIES = 3  # of a shard whose worker dies


class Sharded(ABC):
    """Computes passes in workers.

    ``packets`` holds what workers need, by key: the network with the detectors, and the sets that were passed last.
    """

    def __init__(self) -> None:
        self.packets: dict[int, bytes] = {}
        self._keys = itertools.count()
        self._fit = -1  # the key of ``_classifier`` and ``_places``
        self._classifier: Classifier | None = None
        self._places: dict[Detector, int] = {}
        self._unsendable: passes.Errors = {}
        self._sets: list[tuple[ImageSet, int]] = []  # the last passed comes last

    @property
    @abstractmethod
    def width(self) -> int:
        """How many tasks run at once."""

    @abstractmethod
    def compute(self, tasks: Sequence[Task], on_batch: passes.OnBatch) -> Sequence[Shard | FarError]:
        """The results of all tasks, in order. Raises OodbenchError for a task whose workers died ``TRIES`` times."""

    @abstractmethod
    def close(self) -> None:
        """End all workers, and what they are computing."""

    def statistics(
        self,
        jobs: Mapping[Detector, passes.Settings],
        classifier: Classifier | None,
        images: ImageSet,
        pieces: Sequence[np.ndarray],
        *,
        signals: frozenset[str],
        precision: torch.dtype | None = None,
        workers: int = 0,
        on_batch: passes.OnBatch = lambda n: None,
        guard: Guard | None = None,
        on_error: passes.OnError = passes.raise_it,
        riders: Collection[Detector] = (),
        keep: passes.Keep = lambda detector, values, rows: values,
    ) -> tuple[dict[Detector, np.ndarray], dict[Detector, float]]:
        """As ``passes.statistics``. ``keep`` must be the same for all passes over these images."""
        self._pack_detectors(jobs, classifier)
        errors = {detector: self._unsendable[detector] for detector in jobs if detector in self._unsendable}
        sendable = {detector: settings for detector, settings in jobs.items() if detector not in errors}
        found = passes.Computed({detector: [] for detector in sendable}, dict.fromkeys(sendable, 0.0), errors)
        if sendable:
            task = Task(
                fit=self._fit,
                images=self._pack_images(images, keep, with_twins="base" in signals),
                alive=list(self.packets),
                jobs=[(self._places[detector], settings) for detector, settings in sendable.items()],
                riders=[self._places[detector] for detector in riders if detector in sendable],
                pieces=pieces,
                signals=signals,
                precision=precision,
                workers=workers,
                guarded=guard is not None,
            )
            shards = [task._replace(pieces=some) for some in shards_of(pieces, SHARDS * self.width)]
            self._join(self.compute(shards, on_batch), list(self._places), images, found)
        return passes.joined(found, images, pieces, on_error)

    @staticmethod
    def _join(
        shards: Sequence[Shard | FarError], detectors: Sequence[Detector], images: ImageSet, found: passes.Computed
    ) -> None:
        """Add the shards to what was found, in order: the first error of the pass or of a detector counts, as it does here."""
        for shard in shards:
            if isinstance(shard, FarError):
                raise shard.here()
            if shard.thumbnails is not None:
                images.set_thumbnails(*shard.thumbnails)
            for number, error in shard.errors.items():
                found.errors.setdefault(detectors[number], error.here())
            for number, parts in shard.parts.items():
                found.parts[detectors[number]] += parts
                found.seconds[detectors[number]] += shard.seconds[number]
        for detector in found.errors:
            found.parts.pop(detector, None)

    def _pack_detectors(self, jobs: Collection[Detector], classifier: Classifier | None) -> None:
        """Pack the network with all detectors that were asked for so far, if some are new."""
        known = self._places if classifier is self._classifier else {}
        new = [detector for detector in jobs if detector not in known and detector not in self._unsendable]
        if not new and classifier is self._classifier:
            return
        detectors = [*known, *new]
        try:
            data = packed((classifier, detectors))
        except Exception as error:
            self._unsendable |= {one: _cannot_send("it", why) for one in new if (why := _refused(one)) is not None}
            detectors = [one for one in detectors if one not in self._unsendable]
            if (why := _refused((classifier, detectors))) is not None:
                raise _cannot_send("the network", why) from error
            data = packed((classifier, detectors))
        self.packets.pop(self._fit, None)
        self._fit, self._classifier = next(self._keys), classifier
        self._places = {detector: number for number, detector in enumerate(detectors)}
        self.packets[self._fit] = data

    def _pack_images(self, images: ImageSet, keep: passes.Keep, with_twins: bool) -> int:
        known = [pair for pair in self._sets if pair[0] is images]
        if not known:
            slim = replace(images, labels=None, negatives=None, noisy=None, attack_record=None)
            if not with_twins and images.clean is not images.images:
                slim.clean = None
            try:
                known = [(images, next(self._keys))]
                self.packets[known[0][1]] = packed((slim, keep))
            except Exception as error:
                raise _cannot_send(images.name, error) from error
        self._sets = [pair for pair in self._sets if pair[0] is not images] + known
        for _, key in self._sets[:-SETS]:
            del self.packets[key]
        self._sets = self._sets[-SETS:]
        return known[0][1]


def _refused(thing: object) -> Exception | None:
    """Why a thing cannot be packed."""
    try:
        packed(thing)
    except Exception as error:
        return error
    return None


def _cannot_send(what: str, error: Exception) -> OodbenchError:
    return OodbenchError(f"{what} cannot be sent to other processes ({reason(error)}); use --executor local")


def shards_of(pieces: Sequence[np.ndarray], count: int) -> list[Sequence[np.ndarray]]:
    """The pieces in at most this many runs of nearly equal length."""
    cuts = np.linspace(0, len(pieces), min(count, len(pieces)) + 1).astype(int)
    return [pieces[start:end] for start, end in itertools.pairwise(cuts)]
