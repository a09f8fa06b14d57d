"""What the detectors of a run learn before they are scored: each once, when it is needed, and each failing alone."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from oodbench import calibration, passes, protocols
from oodbench.detector import Detector
from oodbench.engine.loaded_suite import LoadedSuite
from oodbench.errors import BadData, reason
from oodbench.heads import HEADS, Head
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet


class Fitting:
    """The detectors of a run.

    Attributes:
        detectors: by name.
        broken: why a detector can have no figures, by name.
        heads: the unsupervised head of each, calibrated once it is fitted.
        signals: what all of them ask of a probe, so that some of them get the same arithmetic as all.
        probabilities: by name, for detectors that give class probabilities, what their figures need of each image (N, 4);
            the network's are under ``""``. See ``calibration.per_image``.
    """

    def __init__(self, loaded: LoadedSuite, progress: Progress) -> None:
        self.loaded, self.progress, self.workers = loaded, progress, loaded.workers
        self.detectors, self.broken = loaded.detectors, dict(loaded.broken)
        if loaded.unsuitable:
            progress.say(reason(loaded.unsuitable))
            readers = [name for name, detector in self.detectors.items() if detector.reads_network]
            self.broken |= dict.fromkeys(readers, loaded.unsuitable)
        self.heads: dict[Detector, Head] = {d: HEADS[d.unsupervised_head]() for d in self.detectors.values()}
        self.signals = passes.signals_of(self.sound(self.detectors))
        self.probabilities: dict[str, np.ndarray] = {}
        self._begun: set[str] = set()
        self._failing: dict[str, Any] = {"guard": loaded.guard, "on_error": self.break_}
        train, seed = loaded.train, loaded.suite.seed
        held_out = protocols.held_out(len(train), protocols.labels_of(train), seed)
        if loaded.validation is not None:
            held_out[:] = False
        self.train_set = TrainingSet(train, train.labels, held_out, seed, loaded.data, loaded.validation)

    def sound(self, names: Iterable[str]) -> list[Detector]:
        """The detectors of these names that are not broken, in the suite's order."""
        wanted = set(names)
        return [detector for name, detector in self.detectors.items() if name in wanted and name not in self.broken]

    def break_(self, detector: Detector, error: Exception) -> None:
        """Note why this detector can have no figures."""
        self.broken[detector.name] = error
        self.progress.fail(detector.name, error, type(detector).__module__)

    def fit(self, names: Iterable[str]) -> None:
        """Fit the detectors of these names that are not fitted yet, in one pass over the training images."""
        new = {name for name in names if name not in self._begun}
        self._begun |= new
        suite, classifier = self.loaded.suite, self.loaded.classifier
        options: dict[str, Any] = {"batch_size": suite.batch_size, "workers": self.workers} | self._failing
        passes.learn(self.sound(new), classifier, self.train_set, progress=self.progress, **options)
        heads = {detector: self.heads[detector] for detector in self.sound(new)}
        passes.calibrate(heads, classifier, self.train_set, signals=self.signals, **options)

    def judge_probabilities(self, names: Iterable[str]) -> None:
        """Collect the class probabilities that detectors give, and the network's, on the labelled test images."""
        images, classifier = self.loaded.in_distribution, self.loaded.classifier
        giving = [detector for detector in self.sound(names) if detector.gives_probabilities]
        if not giving or images.labels is None or self.loaded.unsuitable:
            return
        self.progress.stage(f"{images.name}: class probabilities of {len(images):,} images")
        self.progress.expect(len(images))
        found, network = passes.probabilities(
            giving,
            classifier,
            images,
            self.loaded.suite.batch_size,
            signals=self.signals,
            workers=self.workers,
            on_batch=self.progress.advance,
            **self._failing,
        )
        labels = images.labels.numpy()
        try:
            if network is not None:
                self.probabilities[""] = calibration.per_image(network, labels)
        except BadData as error:  # a network of other classes than the set's
            self.progress.fail("no accuracy or calibration is reported", error)
            return
        for detector, values in found.items():
            try:
                self.probabilities[detector.name] = calibration.per_image(values, labels)
            except BadData as error:
                self.break_(detector, error)
