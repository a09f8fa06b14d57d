"""What a detector that trains a network may see: the in-distribution training images, batch by batch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from oodbench.batching import batches, pieces_of
from oodbench.classifier import Classifier
from oodbench.image_set import ImageSet
from oodbench.paths import DataRoots
from oodbench.probe import Probe


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
