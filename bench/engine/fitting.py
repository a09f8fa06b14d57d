"""What the detectors of a run learn before they are scored, each once, where it is needed; one that fails, fails alone."""

from collections.abc import Iterable
from typing import Any

from oodbench import passes, protocols
from oodbench.calibration import evaluate_probabilities
from oodbench.detector import Detector
from oodbench.engine.loaded_suite import LoadedSuite
from oodbench.errors import BadData, reason
from oodbench.heads import HEADS, Head
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

    def __init__(self, inputs: LoadedSuite, progress: Progress) -> None:
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
        train, seed = inputs.train, inputs.suite.seed
        held_out = protocols.held_out(len(train), protocols.labels_of(train), seed)
        self.train_set = TrainingSet(train, train.labels, held_out, seed, inputs.data)

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
        suite, classifier = self.inputs.suite, self.inputs.classifier
        options: dict[str, Any] = {"batch_size": suite.batch_size, "workers": self.workers, "on_error": self.break_}
        passes.learn(self.sound(new), classifier, self.train_set, progress=self.progress, **options)
        heads = {detector: self.heads[detector] for detector in self.sound(new)}
        passes.calibrate(heads, classifier, self.train_set, signals=self.signals, **options)

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
