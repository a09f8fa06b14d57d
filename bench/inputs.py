"""What a run works on: the detectors, sets and model of a suite, loaded.

What the whole run hangs on, the in-distribution set and the weights, raises; another set that cannot be read and a
detector that cannot be built are kept with the reason, for their cells to say it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oodbench import protocols
from oodbench.classifier import Classifier
from oodbench.detector import Detector, load_detector
from oodbench.errors import BadData, UsageError, reason
from oodbench.heads import HEADS
from oodbench.image_set import ImageSet
from oodbench.progress import Progress
from oodbench.registry import unknown
from oodbench.suite import Suite


@dataclass
class Pairing:
    """One set against the in-distribution one; ``images`` is None where it could not be read, and ``error`` says why."""

    name: str  # as asked, with its level
    kind: str
    images: ImageSet | None
    error: Exception | None = None

    @property
    def dataset_and_level(self) -> tuple[str, int | None]:
        """``cifar10+noise@3`` -> (``cifar10+noise``, 3); an @ in a folder's own name is no level."""
        if self.name.startswith("folder:") and "+" not in self.name:
            return self.name, None
        stem, at, level = self.name.rpartition("@")
        return (stem, int(level)) if at and level.isdigit() else (self.name, None)


class Inputs:
    """A suite, loaded.

    detectors: by name; broken: why a detector could not be built, by name.
    classifier, weights_hash, device: after ``load_model``.
    train, inside: the in-distribution training and test images; pairings: the other sets, in the suite's order.
    size: pixels a side, of all images.
    """

    def __init__(self, suite: Suite, progress: Progress, *, data: str | Path | None = None, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise UsageError(f"--limit takes a number of images of at least 1, not {limit}")
        self.suite, self.data, self.limit = suite, data, limit
        self.detectors: dict[str, Detector] = {}
        self.broken: dict[str, Exception] = {}
        for name in suite.detectors:
            try:
                self.detectors[name] = _sound_detector(name, suite.parameters.get(name, {}))
            except UsageError:
                raise
            except Exception as error:
                self.broken[name] = error
                progress.say(f"{name}: {reason(error)}")
        progress.stage("loading the sets")
        self.train = self._load_set(suite.in_distribution, suite.train_split, suite.size)
        self.size = suite.size or int(self.train.images.shape[-1])
        inside = self._load_set(suite.in_distribution, suite.test_split, self.size)
        if protocols.shares_images(self.train, inside):
            raise BadData(f"{suite.in_distribution}: its {suite.train_split} and {suite.test_split} splits are the same images")
        self.inside = protocols.limited(inside, limit, suite.seed)
        self.pairings = [self._load_pairing(name, kind, progress) for name, kind in suite.names_and_kinds()]
        self.classifier: Classifier | None = None
        self.weights_hash = ""
        self.device = torch.device("cpu")

    def load_model(self, weights: str | Path | None, device: torch.device) -> None:
        """Raises where the weights are absent, or the network does not take these images."""
        from oodbench.models.load import load_model

        if self.suite.model is not None:
            self.device = device
            self.classifier = load_model(
                self.suite.model, weights, data=self.data, device=str(device), require_weights=True, progress=False
            )
            self.classifier.check(self.inside.read(range(min(2, len(self.inside)))) / 255)
            self.weights_hash = self.classifier.weights_hash

    def protocols_of(self, name: str) -> list[str]:
        """The protocols under which a detector has a row: per-shift only if it learns something there."""
        if name not in self.detectors:
            return [*self.suite.protocols[:1]]  # one row, to say why
        learns = self.detectors[name].shift_head is not None
        return [protocol for protocol in self.suite.protocols if protocol == "unsupervised" or learns]

    def _load_set(self, name: str, split: str, size: int | None) -> ImageSet:
        from oodbench.datasets.load import load_dataset

        return load_dataset(name, data=self.data, split=split, size=size, resize=self.suite.resize, seed=self.suite.seed)

    def _load_pairing(self, name: str, kind: str | None, progress: Progress) -> Pairing:
        try:
            images = protocols.limited(self._load_set(name, "test", self.size), self.limit, self.suite.seed)
            self._refuse_in_distribution(images)
            return Pairing(name, kind or images.kind, images)
        except UsageError:
            raise
        except Exception as error:
            progress.say(f"{name}: {reason(error)}")
            return Pairing(name, kind or "far-ood", None, error)

    def _refuse_in_distribution(self, images: ImageSet) -> None:
        """The same pictures on both sides would be told apart by nothing. Also computes the fingerprint, reading all."""
        if images.kind not in ("corruption", "adversarial") and protocols.shares_images(self.inside, images):
            both = np.intersect1d(self.inside.base_index.numpy(), images.base_index.numpy())
            if len(both):
                raise BadData(f"{len(both)} images of {images.name} are in-distribution test images; leave the set out")


def _sound_detector(name: str, parameters: dict[str, Any]) -> Detector:
    """The detector, checked for what every cell of it needs. Raises UsageError for values it does not take."""
    try:
        detector = load_detector(name, **parameters)
    except (TypeError, ValueError) as error:
        if parameters:
            raise UsageError(f"{name} does not take {parameters}: {reason(error)}") from error
        raise
    for head in (detector.unsupervised_head, detector.shift_head):
        if head is not None and head not in HEADS:
            raise BadData(unknown(f"head of {name}", head, HEADS, f"known: {', '.join(HEADS)}"))
    try:
        json.dumps(detector.parameters(), allow_nan=False)
    except (AttributeError, TypeError, ValueError) as error:
        raise BadData(
            f"{name}: its constructor's arguments must be plain attributes of the same name, and JSON values: {error}"
        ) from error
    return detector
