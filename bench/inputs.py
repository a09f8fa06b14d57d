"""What a run works on: the detectors, sets and model of a suite, loaded.

What the whole run hangs on, the in-distribution set and the weights, raises; another set that cannot be read and a
detector that cannot be built are kept with the reason, for their cells to say it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from oodbench import protocols
from oodbench.classifier import Classifier
from oodbench.detector import Detector, load_detector
from oodbench.errors import BadData, UsageError, reason
from oodbench.image_set import ImageSet
from oodbench.progress import Progress
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
        stem, at, level = self.name.rpartition("@")
        return (stem, int(level)) if at and level.isdigit() else (self.name, None)


class Inputs:
    """Attributes:
    detectors: by name; broken: why a detector could not be built, by name.
    train, inside: the in-distribution training and test images; pairings: the other sets, in the suite's order.
    size: pixels a side, of all images.
    classifier, device: after ``load_model``.
    """

    def __init__(self, suite: Suite, progress: Progress, *, data: str | Path | None = None, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise UsageError(f"--limit takes a number of images of at least 1, not {limit}")
        self.suite, self.data, self.limit = suite, data, limit
        self.detectors: dict[str, Detector] = {}
        self.broken: dict[str, Exception] = {}
        for name in suite.detectors:
            try:
                self.detectors[name] = load_detector(name, **suite.parameters.get(name, {}))
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

    @property
    def weights_hash(self) -> str:
        return self.classifier.weights_hash if self.classifier else ""

    def protocols_of(self, name: str) -> list[str]:
        """The protocols under which a detector has a row: per-shift only if it learns something there."""
        learns = name not in self.detectors or self.detectors[name].shift_head is not None
        return [protocol for protocol in self.suite.protocols if protocol == "unsupervised" or learns]

    def _load_set(self, name: str, split: str, size: int | None) -> ImageSet:
        from oodbench.datasets.load import load_dataset

        return load_dataset(name, data=self.data, split=split, size=size, resize=self.suite.resize, seed=self.suite.seed)

    def _load_pairing(self, name: str, kind: str | None, progress: Progress) -> Pairing:
        try:
            images = protocols.limited(self._load_set(name, "test", self.size), self.limit, self.suite.seed)
            return Pairing(name, kind or images.kind, images)
        except UsageError:
            raise
        except Exception as error:
            progress.say(f"{name}: {reason(error)}")
            return Pairing(name, kind or "far-ood", None, error)
