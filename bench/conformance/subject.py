"""A detector under check, on a tiny network that learnt an easy task, with the fits shared by several checks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from oodbench.errors import Unsuitable, UsageError, contained, reason
from oodbench.forward.guard import Guard
from oodbench.probe import Probe

TRAIN, LABELS = easy_task(400, seed=0)
INSIDE, INSIDE_LABELS = easy_task(60, seed=1)
OUTSIDE = easy_shift(60, seed=2)
MANY = torch.cat([easy_task(100, seed=5)[0], easy_shift(100, seed=6)])  # other images for the same batch


class Subject:
    """A detector under check, with the fits shared by several checks, each done once."""

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
        """The detector fitted on the task's training images."""
        return (detector or self.make()).fit(classifier or self.classifier, images, labels, **options)

    @cached_property
    def first(self) -> tuple[Detector, np.ndarray] | Exception:
        """The fitted detector and its scores of the task's test images, or the error that it raised."""
        guard = Guard(self.classifier)
        found = self._fit_and_score()
        changed = guard.restore()
        if isinstance(found, Unsuitable) and changed:  # then unsuitable is what it made of the network
            return Failed(f"changed the network ({', '.join(changed)}), after which it raised: {found}")
        return found

    def _fit_and_score(self) -> tuple[Detector, np.ndarray] | Exception:
        try:
            detector = self.fit()
            with contained():
                columns(self.classifier, detector, INSIDE)
        except Exception as error:
            return error
        try:
            return detector, detector.score(self.classifier, INSIDE)
        except Exception as error:  # also Unsuitable: it computed statistics, so the network suits it
            failed = Failed(reason(error))
            failed.__cause__ = error
            return failed

    @property
    def fitted(self) -> Detector:
        """The fitted detector. Raises Skipped if it could not be fitted."""
        return self.sound()[0]

    @property
    def scores(self) -> np.ndarray:
        """Scores of the task's test images. Raises Skipped if there are none."""
        return self.sound()[1]

    def sound(self) -> tuple[Detector, np.ndarray]:
        """The fitted detector and its scores of the task's test images. Raises Skipped if there are none."""
        if isinstance(self.first, Unsuitable):
            raise Skipped(f"is unsuitable for the network of this check: {self.first}")
        if isinstance(self.first, Exception):
            raise Skipped("could not be fitted")
        return self.first

    @property
    def rtol(self) -> float:
        """Relative tolerance: a step on the input uses the sign of a float32 gradient, which rounding can flip near zero."""
        return 1e-2 if "input_gradient" in self.fitted.declared_signals else 1e-4

    @cached_property
    def double(self) -> tuple[Classifier, Detector]:
        """A float64 network, and the detector fitted on it."""
        self.sound()
        classifier = trained_classifier(torch.float64)
        return classifier, self.fit(classifier)

    @cached_property
    def shifted(self) -> Detector:
        """The detector fitted with a shift to learn from."""
        return self.fit(shift_images=OUTSIDE)

    @cached_property
    def watched(self) -> Watched:
        """What it changes during fit and score, also where they raise an error."""
        return watch(self.make(), trained_classifier(), TRAIN, LABELS, INSIDE)


def subject(name: str, parameters: Mapping[str, Any]) -> Subject:
    """A detector by name, with these hyper-parameters in addition to those that shorten training."""
    quick = getattr(registry.load("detectors", name), "quick", {})

    def make() -> Detector:
        return load_detector(name, **{**quick, **parameters})

    try:
        make()
    except Exception as error:
        if isinstance(error, UsageError):  # of a misspelt name; the first check reports all others
            raise
    return Subject(make, registry.find("detectors", name))


@contextmanager
def probing(classifier: Classifier, detector: Detector, images: Tensor) -> Iterator[Probe]:
    probe = Probe(classifier, images.clone(), detector.declared_signals)
    with probe.mode():
        yield probe


def columns(classifier: Classifier, detector: Detector, images: Tensor) -> np.ndarray:
    """Its columns (N, D) at its default setting."""
    with probing(classifier, detector, images) as probe, detector.computing([detector.setting]):
        return detector.grouped_statistics(probe)[:, 0]
