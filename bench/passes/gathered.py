"""Statistics of a pass on their way from the device: they stay there until the pass ends, or a block of them is full."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from oodbench.models.stopwatch import Moment, Stopwatch
from oodbench.passes.turns import Errors, Keep

if TYPE_CHECKING:
    from oodbench.detector import Detector

BLOCK_BYTES = 2**26  # of statistics that stay on an accelerator at most


class Found(NamedTuple):
    """What a detector gave for a batch (n, S, D), when it began and ended, and what it requires of the batch."""

    values: Tensor
    start: Moment
    end: Moment
    checks: Sequence[tuple[Tensor, Exception]]


class Batch(NamedTuple):
    """What detectors gave for the batch of these rows (n,).

    shared: when the forward pass began and ended. sharers: the number of detectors that share it. logits: (n, classes), or
    None if they are not wanted.
    """

    rows: np.ndarray
    found: Mapping["Detector", Found]
    shared: tuple[Moment, Moment]
    sharers: int
    logits: Tensor | None


class Gathered:
    """The parts of a pass, float64 (n, S, D) each, and the seconds of each detector, or the error that it failed with.

    keep: as of ``computed``. logits: receives the logits, float64 (n, classes).
    """

    def __init__(
        self, detectors: Iterable["Detector"], device: torch.device, keep: Keep, logits: list[np.ndarray] | None
    ) -> None:
        self.parts: dict[Detector, list[np.ndarray]] = {detector: [] for detector in detectors}
        self.seconds = dict.fromkeys(self.parts, 0.0)
        self.errors: Errors = {}
        self._device, self._keep, self._logits = device, keep, logits
        self._waiting: list[Batch] = []
        self._bytes = 0

    def fail(self, detector: "Detector", error: Exception) -> None:
        del self.parts[detector]
        self.errors[detector] = error

    def add(self, batch: Batch) -> None:
        self._waiting.append(batch)
        tensors = [found.values for found in batch.found.values()] + ([] if batch.logits is None else [batch.logits])
        self._bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def copy(self, *, all_of_it: bool = False) -> None:
        """Copy what waits, if it is on the CPU already, is a full block, or is all that comes."""
        if not (all_of_it or self._device.type == "cpu" or self._bytes >= BLOCK_BYTES):
            return
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        for detector in list(self.parts):
            given = [(batch, batch.found[detector]) for batch in waiting if detector in batch.found]
            try:
                _require([check for _, found in given for check in found.checks])
                for _, some in groupby(given, lambda pair: pair[1].values.shape[2]):
                    alike = list(some)
                    rows = np.concatenate([batch.rows for batch, _ in alike])
                    values = _copied([found.values for _, found in alike])
                    self.parts[detector].append(self._keep(detector, values, rows))
            except Exception as error:
                self.fail(detector, error)
        if self._logits is not None and (wanted := [batch.logits for batch in waiting if batch.logits is not None]):
            self._logits.append(_copied(wanted))
        for batch in waiting:
            shared = Stopwatch.seconds(*batch.shared) / batch.sharers
            for detector, found in batch.found.items():
                self.seconds[detector] += Stopwatch.seconds(found.start, found.end) + shared


def _require(checks: Sequence[tuple[Tensor, Exception]]) -> None:
    """Raise the error of the first check that does not hold, after one copy from the device for all."""
    if checks:
        held = torch.stack([holds for holds, _ in checks]).tolist()
        for (_, error), holds in zip(checks, held, strict=True):
            if not holds:
                raise error


def _copied(tensors: list[Tensor]) -> np.ndarray:
    """Several tensors (n, …) as one float64 array (N, …), in one copy from the device.

    The memory is NumPy's: small tensors that live until a pass ends keep the large ones of forward passes from being allocated
    where earlier ones were, and memory grows with the number of batches.
    """
    one = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    found: np.ndarray = one.cpu().double().numpy().copy()
    return found
