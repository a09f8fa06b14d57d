"""What the detectors of a run learn before they are scored: each once, when it is needed, and each failing alone."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from oodbench import passes, protocols
from oodbench.detector import Detector
from oodbench.engine.loaded_suite import LoadedSuite
from oodbench.errors import reason
from oodbench.heads import HEADS, Head
from oodbench.paths import size
from oodbench.progress import Progress
from oodbench.training_set import LARGE, FitMemory, TrainingSet


class Fitting:
    """The detectors of a run.

    Attributes:
        detectors: by name.
        broken: why a detector can have no figures, by name.
        heads: the unsupervised head of each, calibrated once it is fitted.
        signals: what all of them ask of a probe, so that some of them get the same arithmetic as all.
        probabilities: by name, for detectors that give class probabilities, what their figures need of each image (N, 4);
            the network's are under ``""``. See ``calibration.per_image`` and ``Recognition.judge``.
        train_set: what they learn from; None where there is neither a training nor a validation image.
    """

    def __init__(self, loaded: LoadedSuite, progress: Progress) -> None:
        self.loaded, self.progress, self.workers = loaded, progress, loaded.workers
        self.detectors, self.broken = loaded.detectors, dict(loaded.broken)
        if loaded.unsuitable:
            progress.say(reason(loaded.unsuitable))
            readers = [name for name, detector in self.detectors.items() if detector.reads_network]
            self.broken |= dict.fromkeys(readers, loaded.unsuitable)
        if loaded.untrained:
            learners = [name for name, detector in self.detectors.items() if loaded.learns_from_training(detector)]
            self.broken = dict.fromkeys(learners, loaded.untrained) | self.broken
        self.heads: dict[Detector, Head] = {d: HEADS[d.unsupervised_head]() for d in self.detectors.values()}
        self.signals = passes.signals_of(self.sound(self.detectors))
        self.probabilities: dict[str, np.ndarray] = {}
        self._begun: set[str] = set()
        self._failing: dict[str, Any] = {"guard": loaded.guard, "on_error": self.break_}
        self.train_set: TrainingSet | None = None
        # Without training images nobody observes any, and heads are calibrated on the validation images alone.
        if (train := loaded.train or loaded.validation) is not None:
            seed = loaded.suite.seed
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

    def expected_memory(self) -> str:
        """What all fits take in memory, and those of the detectors that take most; empty if that is not known.

        A detector that does not tell is broken.
        """
        if self.train_set is None:
            return ""
        memory = FitMemory(self.sound(self.detectors), self.loaded.classifier, self.train_set, self.progress)
        memory.note_all(self.break_)
        large = sorted(memory.needed.items(), key=lambda item: -item[1])
        of = ", ".join(f"{detector.name} {size(needed)}" for detector, needed in large if needed >= LARGE)
        return f"about {size(memory.together)} for the fits" + (f": {of}" if of else "") if memory.together else ""

    def fit(
        self,
        names: Iterable[str],
        also: Callable[[], Mapping[Detector, Head]] = dict,
        failed: dict[Detector, Exception] | None = None,
    ) -> None:
        """Fit the detectors of these names that are not fitted yet, in one pass over the training images.

        ``also``: gives other jobs whose heads are then calibrated in the same pass; ``failed`` receives their errors.
        """
        new = {name for name in names if name not in self._begun}
        self._begun |= new
        if self.train_set is None:
            return
        loaded, classifier = self.loaded, self.loaded.classifier
        options: dict[str, Any] = {"batch_size": loaded.batch_size, "workers": self.workers} | self._failing
        passes.learn(self.sound(new), classifier, self.train_set, progress=self.progress, **options)

        def on_error(detector: Detector, error: Exception) -> None:
            if detector in others and failed is not None:
                failed[detector] = error
            else:
                self.break_(detector, error)

        others = also()
        heads = {detector: self.heads[detector] for detector in self.sound(new)} | dict(others)
        options |= {"signals": self.signals, "precision": self.loaded.precision, "on_error": on_error}
        passes.calibrate(heads, classifier, self.train_set, **options)
