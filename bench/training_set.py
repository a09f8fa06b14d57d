"""What detectors learn from: the in-distribution training images, batch by batch, and their number and that of features."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from oodbench.batching import batches, pieces_of
from oodbench.classifier import Classifier
from oodbench.errors import BadData, Unsuitable, contained
from oodbench.image_set import ImageSet
from oodbench.models.device import available_memory
from oodbench.paths import DataRoots, size
from oodbench.probe import Probe
from oodbench.progress import Progress

if TYPE_CHECKING:
    from oodbench.detector import Detector

LARGE = 10**9  # bytes of a fit that are reported
MOST_BYTES = 2**63  # that a number of bytes may name
FEWER = "learn from fewer training images (fit_images in a suite, oodbench run --fit-images)"


@dataclass(frozen=True)
class FitSize:
    """What the memory of a fit depends on.

    Attributes:
        images: number of training images.
        held_out: number of images to calibrate on: those of them that are held out, or the validation images.
        features, classes: inputs and outputs of the network's last linear layer; 0 without one.
        channels: of each layer of ``classifier.layer_names``; empty if no detector reads layers, or they cannot be read.
        itemsize: bytes of one feature.
    """

    images: int
    held_out: int
    features: int = 0
    classes: int = 0
    channels: tuple[int, ...] = ()
    itemsize: int = 4


@dataclass(frozen=True)
class TrainingSet:
    """The images that ``Detector.prepare`` trains on.

    Attributes:
        images: uint8 or floats in [0, 1], (N, C, H, W).
        labels: int64 (N,), or None.
        held_out: bool (N,), the tenth used to calibrate heads and thresholds: train on the others. All False if there
            are ``validation`` images.
        validation: other in-distribution images to calibrate on, which the network has never seen; or None.
        seed: random seed for all randomness.
        data: the data root or roots, for detectors that load weights.
    """

    images: Tensor | ImageSet
    labels: Tensor | None
    held_out: np.ndarray
    seed: int = 0
    data: DataRoots = None
    validation: ImageSet | None = None

    def __len__(self) -> int:
        return len(self.images)

    def copy(self) -> "TrainingSet":
        """A training set that may be written into; images that decode on demand are the same."""
        return replace(
            self,
            images=self.images.clone() if isinstance(self.images, Tensor) else self.images.copy(),
            labels=None if self.labels is None else self.labels.clone(),
            held_out=self.held_out.copy(),
            validation=None if self.validation is None else self.validation.copy(),
        )

    @property
    def rows(self) -> np.ndarray:
        """The rows to train on: those that are not held out."""
        return np.flatnonzero(~self.held_out)

    def batches(self, rows: np.ndarray, batch_size: int, classifier: Classifier | None) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(rows, images) in batches, in the given order: floats in [0, 1] on the classifier's device and in its dtype."""
        return batches(self.images, classifier, pieces_of(rows, batch_size))

    def probes(
        self, classifier: Classifier | None, signals: Iterable[str], rows: np.ndarray | None = None, batch_size: int = 256
    ) -> Iterator[Probe]:
        """One probe per batch of these rows (by default of ``rows``), in order."""
        for _, images in self.batches(self.rows if rows is None else rows, batch_size, classifier):
            yield Probe(classifier, images, signals, clean=images)


class FitMemory:
    """What the fits of detectors take in memory, and whether it has room for them.

    Attributes:
        size: what the detectors are told, with the channels of layers if one of them reads layers.
        needed: bytes by detector, of those that learn.
    """

    def __init__(
        self, detectors: Sequence["Detector"], classifier: Classifier | None, train_set: TrainingSet, progress: Progress
    ) -> None:
        learning = [detector for detector in detectors if detector.observes or detector.prepares]
        layered = any(detector.declared_signals & {"layers", "maps"} for detector in learning)
        self.size = size_of(train_set, classifier, layered)
        self.needed: dict[Detector, int] = {}
        self._learning, self._say = dict.fromkeys(learning), progress.say
        self._free = available_memory(classifier.device if classifier else torch.device("cpu"))

    def require(self, detector: "Detector") -> None:
        """Note and report what the fit takes. Raises Unsuitable if it takes more than is free."""
        if detector not in self._learning:
            return
        needed = fit_memory(detector, self.size)
        if self._free is not None and needed > self._free:
            fewer = fit_memory(detector, replace(self.size, images=1, held_out=1)) <= self._free
            remedy = FEWER if fewer else "leave it out, or use a machine with more"
            raise Unsuitable(f"its fit takes about {size(needed)} of memory, and {size(self._free)} are free; {remedy}")
        if needed >= LARGE:
            self._say(f"{detector.name}: the fit takes about {size(needed)} of memory")
        self.needed[detector] = needed

    def note_all(self, on_error: Callable[["Detector", Exception], None]) -> None:
        """Note what all fits take, without a report. A detector that does not tell is given to ``on_error``."""
        for detector in self._learning:
            try:
                with contained():
                    self.needed[detector] = fit_memory(detector, self.size)
            except Exception as error:
                on_error(detector, error)

    @property
    def together(self) -> int:
        """Bytes of all: detectors train their own networks one after another, and observe together."""
        trained = [needed for detector, needed in self.needed.items() if detector.prepares]
        return max([sum(needed for detector, needed in self.needed.items() if detector.observes), *trained])

    def report(self) -> None:
        """Warn if all fits together take more than is free."""
        if self._free is not None and self.together > self._free:
            self._say(
                f"the fits take about {size(self.together)} of memory together, and {size(self._free)} are free; {FEWER}, or"
                " run fewer detectors at once"
            )


def fit_memory(detector: "Detector", of: FitSize) -> int:
    """``Detector.memory``. Raises BadData if that is not a number of bytes."""
    needed = detector.memory(of)
    if not isinstance(needed, Real) or not 0 <= needed < MOST_BYTES:
        raise BadData(f"its memory(size) gave {str(needed)[:40]}, which is not a number of bytes")
    return int(needed)


def size_of(train_set: TrainingSet, classifier: Classifier | None, layered: bool) -> FitSize:
    """What detectors are told before they are fitted; if ``layered``, with the channels of layers, by a pass of one image."""
    held_out = int(train_set.held_out.sum()) if train_set.validation is None else len(train_set.validation)
    size = FitSize(len(train_set), held_out)
    if classifier is None:
        return size
    size = replace(size, itemsize=classifier.dtype.itemsize)
    with suppress(Unsuitable):  # detectors that read the head or the layers raise it, too
        head = classifier.head
        size = replace(size, features=head.in_features, classes=head.out_features)
        if layered and len(train_set):
            (probe,) = train_set.probes(classifier, ("layers",), np.arange(1))
            with probe.mode():
                size = replace(size, channels=tuple(layer.shape[1] for layer in probe.layers))
    return size
