"""What a worker does: it holds the network, the fitted detectors and the sets in turn, and computes shards of passes."""

import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import torch
from torch import Tensor

from oodbench import passes
from oodbench.batching import as_floats
from oodbench.classifier import Classifier
from oodbench.engine import calls
from oodbench.engine.executors.far_errors import FarError
from oodbench.errors import OodbenchError, contained, no_exit, reason
from oodbench.forward.guard import Guard
from oodbench.image_set import ImageSet
from oodbench.models.device import module_of
from oodbench.models.exact import exact
from oodbench.passes.memory import limited
from oodbench.progress import Progress


@contextmanager
def reproducible(device: torch.device, progress: Progress, cell_timeout: float | None) -> Iterator[None]:
    """Within this context, third-party code cannot end the process, its calls are watched, and passes are reproducible.

    All passes share the size to which batches are cut when memory is short.
    """
    # The same algorithms each time, so that a resumed run ends with the figures of an uninterrupted one.
    same = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    shared = limited(progress.say)
    with contained(), no_exit(), exact(device), same, shared, calls.watched(progress, cell_timeout):
        yield


class Conditions(NamedTuple):
    """What of the process of a run decides which modules and files a worker finds, and the last bits of what it computes."""

    path: list[str]
    folder: str
    device: torch.device
    cell_timeout: float | None
    threads: int
    dtype: torch.dtype
    deterministic: bool

    @classmethod
    def of_this_process(cls, device: torch.device, cell_timeout: float | None) -> "Conditions":
        return cls(
            list(sys.path),
            os.getcwd(),
            device,
            cell_timeout,
            torch.get_num_threads(),  # another number may change the order in which gradients are summed
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
        )

    @contextmanager
    def applied(self, progress: Progress) -> Iterator[None]:
        sys.path += [folder for folder in self.path if folder not in sys.path]
        if os.path.isdir(self.folder):  # another machine may lack it, and files with absolute paths are found all the same
            os.chdir(self.folder)
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        torch.use_deterministic_algorithms(self.deterministic)
        if (choose := getattr(module_of(self.device), "set_device", None)) and self.device.index is not None:
            choose(self.device)
        with reproducible(self.device, progress, self.cell_timeout):
            yield


class Task(NamedTuple):
    """A shard: some batches of one set.

    fit, images: keys of what was packed. alive: all keys that are still in use. jobs: places of detectors, and their settings.
    riders: places. guarded: whether detectors may not change the network.
    """

    fit: int
    images: int
    alive: Collection[int]
    jobs: Sequence[tuple[int, passes.Settings]]
    riders: Collection[int]
    pieces: Sequence[np.ndarray]
    signals: frozenset[str]
    precision: torch.dtype | None
    workers: int
    guarded: bool


class Shard(NamedTuple):
    """What a task gives: ``passes.Computed`` by the places of detectors, the work done, and thumbnails of decoded images."""

    parts: dict[int, list[np.ndarray]]
    seconds: dict[int, float]
    errors: dict[int, FarError]
    work: float
    thumbnails: tuple[np.ndarray, Tensor] | None


def packed(content: Any) -> bytes:
    """Bytes for a worker. Only what the process of a run packs itself is ever unpacked: unlike files, it may be pickled."""
    stream = BytesIO()
    torch.save(content, stream, pickle_module=cloudpickle)
    return stream.getvalue()


def unpacked(data: Any, device: torch.device) -> Any:
    """What was packed: tensors of any accelerator on this device, the others on the CPU."""

    def place(storage: Any, where: str) -> Any:
        return storage if where == "cpu" else torch.serialization.default_restore_location(storage, str(device))

    try:
        return torch.load(BytesIO(data), map_location=place, weights_only=False)
    except Exception as error:
        raise OodbenchError(
            f"a worker cannot read the network, the detectors or the images ({reason(error)}); install what they need on each"
            " machine, or use --executor local"
        ) from error


class Worker:
    """Holds what was packed, by key."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: dict[int, Any] = {}
        self._guards: dict[int, Guard] = {}

    def compute(self, task: Task, fetch: Callable[[int], Any]) -> Shard | FarError:
        """The result of a task, or the error that ends its pass. ``fetch`` gets what is packed under a key."""
        try:
            return self._computed(task, fetch)
        except Exception as error:
            return FarError.of(error)

    def _computed(self, task: Task, fetch: Callable[[int], Any]) -> Shard:
        for key in self._held.keys() - set(task.alive):
            del self._held[key]
            self._guards.pop(key, None)
        classifier, detectors = self._get(task.fit, fetch)
        images, keep = self._get(task.images, fetch)
        if task.guarded and task.fit not in self._guards:
            self._guards[task.fit] = self._guard(classifier, images, task.pieces[0][:1].copy())
        work: list[float] = []
        found = passes.computed(
            {detectors[place]: settings for place, settings in task.jobs},
            classifier,
            images,
            [piece.copy() for piece in task.pieces],  # Ray's are not writable
            signals=task.signals,
            precision=task.precision,
            workers=task.workers,
            on_batch=work.append,
            guard=self._guards[task.fit] if task.guarded else None,
            riders=[detectors[place] for place in task.riders],
            keep=keep,
        )
        place_of = {detectors[place]: place for place, _ in task.jobs}
        decoded = not isinstance(images.images, Tensor)
        return Shard(
            {place_of[detector]: parts for detector, parts in found.parts.items()},
            {place_of[detector]: found.seconds[detector] for detector in found.parts},
            {place_of[one]: FarError.of(error, type(one).__module__) for one, error in found.errors.items()},
            sum(work),
            images.kept_thumbnails(np.concatenate(task.pieces)) if decoded else None,
        )

    def _get(self, key: int, fetch: Callable[[int], Any]) -> Any:
        if key not in self._held:
            self._held[key] = unpacked(fetch(key), self._device)
        return self._held[key]

    @staticmethod
    def _guard(classifier: Classifier | None, images: ImageSet, rows: np.ndarray) -> Guard:
        if classifier is None:
            return Guard(None)
        return Guard(classifier, as_floats(images.read(rows), classifier.device, classifier.dtype))
