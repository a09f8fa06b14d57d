"""A detector under check, on a tiny network that learnt an easy task, with the fits that several checks need."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oodbench import registry
from oodbench.classifier import Classifier
from oodbench.conformance.outcomes import Failed, Skipped
from oodbench.conformance.task import easy_shift, easy_task, trained_classifier
from oodbench.conformance.watch import Watched, watch
from oodbench.detector import Detector, load_detector
from oodbench.errors import Unsuitable, reason
from oodbench.probe import Probe

TRAIN, LABELS = easy_task(400, seed=0)
INSIDE, INSIDE_LABELS = easy_task(60, seed=1)
OUTSIDE = easy_shift(60, seed=2)
MANY = torch.cat([easy_task(100, seed=5)[0], easy_shift(100, seed=6)])  # for company


class Subject:
    """A detector under check, with the fits that several checks need, each made once."""

    def __init__(self, make: Callable[[], Detector], record: registry.Record | None = None) -> None:
        self.make, self.record = make, record

    @cached_property
    def classifier(self) -> Classifier:
        return trained_classifier()

    def fit(
        self,
        classifier: Classifier | None = None,
        images: Tensor = TRAIN,
        labels: Tensor = LABELS,
        detector: Detector | None = None,
        **options: Any,
    ) -> Detector:
        """Fitted on the task's training images."""
        return (detector or self.make()).fit(classifier or self.classifier, images, labels, **options)

    @cached_property
    def first(self) -> tuple[Detector, np.ndarray] | Exception:
        """The detector, fitted, and its scores of the task's test images; or what it raised."""
        try:
            detector = self.fit()
            columns(self.classifier, detector, INSIDE)
        except Exception as error:
            return error
        try:
            return detector, detector.score(self.classifier, INSIDE)
        except Exception as error:  # Unsuitable too: it computes statistics, so this network does suit it
            return Failed(reason(error))

    @property
    def fitted(self) -> Detector:
        """The detector, fitted. Raises Skipped where that cannot be had."""
        return self._sound()[0]

    @property
    def scores(self) -> np.ndarray:
        """Of the task's test images. Raises Skipped where they cannot be had."""
        return self._sound()[1]

    def _sound(self) -> tuple[Detector, np.ndarray]:
        if isinstance(self.first, Unsuitable):
            raise Skipped(f"does not suit the network of this check: {self.first}")
        if isinstance(self.first, Exception):
            raise Skipped("could not be fitted")
        return self.first

    @property
    def rtol(self) -> float:
        """A step on the input follows the sign of a float32 gradient, which rounding turns where it is next to nothing."""
        return 1e-2 if "input_gradient" in self.fitted.declared_signals else 1e-4

    @cached_property
    def double(self) -> tuple[Classifier, Detector]:
        """A network in float64, and the detector fitted on it."""
        self._sound()
        classifier = trained_classifier(torch.float64)
        return classifier, self.fit(classifier)

    @cached_property
    def shifted(self) -> Detector:
        """Fitted with a shift to learn from."""
        return self.fit(shift_images=OUTSIDE)

    @cached_property
    def watched(self) -> Watched:
        """What it changes while it fits and scores."""
        self._sound()
        return watch(self.make(), trained_classifier(), TRAIN, LABELS, INSIDE)


def subject(name: str, parameters: Mapping[str, Any]) -> Subject:
    """A detector by name, with these hyper-parameters over those that make its training short."""
    quick = getattr(registry.load("detectors", name), "quick", {})

    def make() -> Detector:
        return load_detector(name, **{**quick, **parameters})

    with suppress(TypeError, ValueError):  # the first check says it; a misspelt name is said at once
        make()
    return Subject(make, registry.find("detectors", name))


@contextmanager
def probing(classifier: Classifier, detector: Detector, images: Tensor) -> Iterator[Probe]:
    probe = Probe(classifier, images.clone(), detector.declared_signals)
    with probe.mode():
        yield probe


def columns(classifier: Classifier, detector: Detector, images: Tensor) -> np.ndarray:
    """Its columns (N, D) at its own setting."""
    with probing(classifier, detector, images) as probe, detector.computing([detector.setting]):
        return detector.grouped_statistics(probe)[:, 0]
