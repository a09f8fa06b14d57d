"""What the detectors of a run learn before they are scored, each once, where it is needed; one that fails, fails alone."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from oodbench import passes, protocols
from oodbench.calibration import evaluate_probabilities
from oodbench.detector import Detector
from oodbench.errors import BadData, reason
from oodbench.heads import HEADS, Head
from oodbench.inputs import Inputs
from oodbench.prepared import prepare
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet


class Fitting:
    """The detectors of a run.

    Attributes:
        detectors: by name. broken: by name, why none of its cells can be had.
        heads: the unsupervised head of each, calibrated once it is fitted.
        signals: what all of them ask of a probe, so that a few get the very arithmetic of all.
        extras: by name, what is said of the class probabilities of those that give some.
    """

    def __init__(self, inputs: Inputs, progress: Progress) -> None:
        self.inputs, self.progress, self.workers = inputs, progress, inputs.workers
        self.detectors, self.broken = inputs.detectors, dict(inputs.broken)
        if inputs.unsuitable:
            progress.say(reason(inputs.unsuitable))
            readers = [name for name, detector in self.detectors.items() if detector.declared_signals - {"images"}]
            self.broken |= dict.fromkeys(readers, inputs.unsuitable)
        self.heads: dict[Detector, Head] = {d: HEADS[d.unsupervised_head]() for d in self.detectors.values()}
        self.signals = passes.signals_of(self.sound(self.detectors))
        self.extras: dict[str, dict[str, float]] = {}
        self._begun: set[str] = set()

    def sound(self, names: Iterable[str]) -> list[Detector]:
        """Those of these detectors that are not broken, in the suite's order."""
        wanted = set(names)
        return [detector for name, detector in self.detectors.items() if name in wanted and name not in self.broken]

    def break_(self, detector: Detector, error: Exception) -> None:
        """Note why this detector can have no cells."""
        self.broken[detector.name] = error
        self.progress.say(f"{detector.name}: {reason(error)}")

    def fit(self, names: Iterable[str]) -> None:
        """Prepare those of these that are not fitted yet, show them the training images in one pass, calibrate their heads."""
        new = {name for name in names if name not in self._begun}
        self._begun |= new
        train, classifier, suite = self.inputs.train, self.inputs.classifier, self.inputs.suite
        held_out = protocols.held_out(len(train), protocols.labels_of(train), suite.seed)
        train_set = TrainingSet(train, train.labels, held_out, suite.seed, self.inputs.data)
        for detector in self.sound(new):
            try:
                detector.check(classifier)
                if detector.prepares:
                    prepare(detector, classifier, train_set, self.progress)
            except Exception as error:
                self.break_(detector, error)
        options: dict[str, Any] = {"workers": self.workers, "on_error": self.break_}
        if observing := [detector for detector in self.sound(new) if detector.observes]:
            self.progress.stage(f"fitting on {len(train):,} training images")
            size, advance = suite.batch_size, self.progress.advance
            passes.observe(observing, classifier, train, train.labels, held_out, size, on_batch=advance, **options)
        if wanting := {d: [d.setting] for d in self.sound(new) if self.heads[d].calibrates}:
            pieces = passes.pieces_of(np.flatnonzero(held_out), suite.batch_size)
            found, _ = passes.statistics(wanting, classifier, train, pieces, signals=self.signals, **options)
            for detector, values in found.items():
                try:
                    self.heads[detector].calibrate(values)
                except Exception as error:
                    self.break_(detector, error)

    def judge_probabilities(self, names: Iterable[str]) -> None:
        """Accuracy and calibration of those that give class probabilities, and the network's, on the labelled test images."""
        inside, classifier = self.inputs.inside, self.inputs.classifier
        giving = [detector for detector in self.sound(names) if detector.gives_probabilities]
        if not giving or inside.labels is None or self.inputs.unsuitable:
            return
        self.progress.stage(f"{inside.name}: class probabilities of {len(inside):,} images")
        self.progress.expect(len(inside))
        found, network = passes.probabilities(
            giving,
            classifier,
            inside,
            self.inputs.suite.batch_size,
            signals=self.signals,
            workers=self.workers,
            on_batch=self.progress.advance,
            on_error=self.break_,
        )
        labels = inside.labels.numpy()
        try:
            plain = {} if network is None else evaluate_probabilities(network, labels)
        except BadData as error:  # a network of other classes than the set's
            self.progress.say(f"no accuracy or calibration is reported: {reason(error)}")
            return
        for detector, values in found.items():
            try:
                own = evaluate_probabilities(values, labels)
            except BadData as error:
                self.break_(detector, error)
            else:
                self.extras[detector.name] = own | {f"network_{name}": value for name, value in plain.items()}
