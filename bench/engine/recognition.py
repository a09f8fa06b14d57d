"""Recognition: how good class probabilities are, of the network and of detectors, on every set with the network's classes.

The probabilities are computed on the batches on which detectors are computed anyway, so they cost no further forward pass of
a set. Only temperatures need the held-out images, in the pass in which heads are calibrated.
"""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oodbench import calibration, protocols
from oodbench.datasets.name import recorded
from oodbench.detector import Detector
from oodbench.engine.fitting import Fitting
from oodbench.engine.loaded_suite import LoadedSuite, LoadedTestSet
from oodbench.engine.recorder import Measured, Recorder, status_of
from oodbench.engine.statistics_cache import StatisticsCache
from oodbench.errors import BadData, Unsuitable, counted, reason_in
from oodbench.heads import Head
from oodbench.image_set import CSID, ImageSet
from oodbench.passes import Keep
from oodbench.probe import Probe
from oodbench.results.folder import RunFolder
from oodbench.results.pass_file import hash_of
from oodbench.results.records import IN_DISTRIBUTION, NETWORK, NETWORK_SOURCES, scaled

ROLE = "probabilities"


class Source(Detector):
    """A source of class probabilities, as a job of a pass: the network's softmax, or what a detector gives.

    If it ``is_scaled``, softmax(logits / T) with the ``temperature`` T that was fitted.

    ``statistics`` gives the probabilities (N, classes).
    """

    temperature: float  # of a scaled source

    def __init__(self, of: Detector | None = None, is_scaled: bool = False) -> None:
        name = NETWORK if of is None else of.name
        self.name, self.of, self.is_scaled = scaled(name) if is_scaled else name, of, is_scaled
        self.signals = ("logits",) if of is None else of.signals

    def statistics(self, probe: Probe) -> Tensor:
        if self.is_scaled:
            return (self.logits(probe) / self.temperature).softmax(1)
        return probe.softmax if self.of is None else self._given(self.of, probe)

    def logits(self, probe: Probe) -> Tensor:
        """float64 (N, classes): the network's, or log p of the probabilities p of a detector."""
        if self.of is None:
            return probe.logits
        given = self._given(self.of, probe).double()
        sound = (given >= -calibration.NEGATIVE).all(1) & ((given.sum(1) - 1).abs() <= calibration.OFF_ONE)
        probe.require(sound, BadData("probabilities are negative, not finite, or do not sum to 1; normalise them"))
        return given.clamp_min(calibration.LEAST).log()  # p = 0 has no logarithm, and counts here as it does in NLL

    def _given(self, of: Detector, probe: Probe) -> Tensor:
        def compute() -> Tensor:
            with torch.no_grad():  # no loss is a function of them
                given = of.probabilities(probe)
            if given is None:
                raise GivesNone(f"{of.name} gives no class probabilities with its hyper-parameters")
            if not isinstance(given, Tensor):
                raise BadData(f"probabilities(probe) gave {type(given).__name__}; it must return a tensor (N, classes)")
            if given.dim() != 2 or len(given) != len(probe) or not given.is_floating_point():
                what = f"{str(given.dtype).removeprefix('torch.')} of shape {tuple(given.shape)}"
                what += f" for {counted(len(probe), 'image')}"
                raise BadData(f"probabilities(probe) gave {what}; return floats (N, classes)")
            return given

        return probe.once(("probabilities", id(of)), compute)


class GivesNone(Unsuitable):
    """A detector that may give class probabilities gives none with its hyper-parameters."""


class Logits(Detector):
    """The logits of a source, as a job of the pass that calibrates heads."""

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.signals = source, source.name, source.signals

    def statistics(self, probe: Probe) -> Tensor:
        return self.source.logits(probe)


class Temperature(Head):
    """Fits the temperature to logits (n, 1, classes) and the labels (n,) of the same images."""

    calibrates = True
    temperature_: float

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels.numpy()

    def calibrate(self, inside: np.ndarray) -> None:
        self.temperature_ = calibration.fitted_temperature(inside[:, 0], self.labels)


class Recognition:
    """The sources of a run, and the records of what they are worth.

    sources: after ``fit``; those of broken detectors too. judged: whether the in-distribution test images have been.
    """

    def __init__(self, loaded: LoadedSuite, fitting: Fitting, recorder: Recorder) -> None:
        self.loaded, self.fitting, self.recorder = loaded, fitting, recorder
        self.in_distribution = LoadedTestSet(recorded(loaded.suite.in_distribution), IN_DISTRIBUTION, loaded.in_distribution)
        self.sources: list[Source] = []
        self._why_not: dict[Detector, Exception] = {}  # why a scaled source can have no figures
        self.judged = False

    def fit(self, names: Collection[str], test_sets: Iterable[LoadedTestSet], folder: RunFolder) -> None:
        """Fit the detectors of these names, and the temperature of each source of class probabilities.

        A temperature is fitted if the folder lacks a record of it, on one of the sets or on the in-distribution images.
        """
        fitting, sets = self.fitting, [self.in_distribution, *test_sets]
        by_network = self.loaded.classifier is not None and not self.loaded.unsuitable and not fitting.signals <= {"images"}
        giving = [one for name, one in fitting.detectors.items() if name in names and one.gives_probabilities]
        known: list[Detector | None] = [None] if by_network else []
        self.sources = []
        for of in known + giving:
            if of is not None and of.name in NETWORK_SOURCES:
                why = "are not measured, because the network's have this name"
                fitting.progress.say(f"the class probabilities of the detector {of.name} {why}; rename the detector")
                continue
            self.sources.append(Source(of))
            tempered = Source(of, is_scaled=True)
            if of is not None and tempered.name in self.loaded.suite.detectors:
                why = f"{of.name} is not measured with temperature scaling, because {tempered.name} is a detector"
                fitting.progress.say(f"{why}; rename that detector")
            elif any(self._lacks(one, tempered, folder) for one in sets):
                self.sources.append(tempered)
        labels = self._labels()
        heads, failed = dict[Logits, Temperature](), dict[Detector, Exception]()

        def jobs() -> dict[Detector, Head]:
            if labels is not None:
                heads.update({Logits(one): Temperature(labels) for one in self.sources if one.is_scaled and self._sound(one)})
            return dict(heads.items())

        fitting.fit(names, jobs, failed)
        no_labels = Unsuitable("there are no images with labels to calibrate on")
        self._why_not = {one: no_labels for one in self.sources if one.is_scaled}
        for job, head in heads.items():
            if job in failed:
                self._why_not[job.source] = failed[job]
            else:
                del self._why_not[job.source]
                job.source.temperature = head.temperature_

    def _lacks(self, test_set: LoadedTestSet, source: Source, folder: RunFolder) -> bool:
        """Whether a source is judged on a set, and the folder has no figures of it."""
        shown = test_set.images is not None and shows_classes(test_set.images, self.loaded.in_distribution)
        return shown and not folder.finished(self.recorder.recognition(test_set, "ok", **self._about(source)))

    def _labels(self) -> Tensor | None:
        """The labels of the images that heads are calibrated on, if they have some."""
        train = self.fitting.train_set
        if train is None:
            return None
        if train.validation is not None:
            return train.validation.labels
        return None if train.labels is None else train.labels[torch.from_numpy(train.held_out)]

    def _sound(self, source: Source) -> bool:
        return source.of is None or source.of.name not in self.fitting.broken

    def break_(self, job: Detector, error: Exception) -> None:
        """Give up a detector that changed the network or took too long, also where that was as a source."""
        self.fitting.break_(job.of or job if isinstance(job, Source) else job, error)

    def riders(self, images: ImageSet) -> list[Source]:
        """The sources that are judged on these images: none where they do not show the network's classes."""
        if not shows_classes(images, self.loaded.in_distribution):
            return []
        return [source for source in self.sources if source not in self._why_not and self._sound(source)]

    @staticmethod
    def keep(images: ImageSet) -> Keep:
        """What is kept of each image: of probabilities what figures need (``calibration.per_image``), else all."""
        labels = protocols.labels_of(images)

        def kept(detector: Detector, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
            if not isinstance(detector, Source) or labels is None:
                return values
            return calibration.per_image(values[:, 0], labels[rows])[:, None]

        return kept

    def judge(self, cache: StatisticsCache) -> None:
        """Judge the class probabilities of detectors, and the network's, on the in-distribution test images, once.

        A detector whose probabilities fail there can have no figures.
        """
        self.judged = True
        found = {source: self._columns(source, cache) for source in self.riders(cache.images)}
        giving = {source: columns for source, columns in found.items() if source.of is not None and not source.is_scaled}
        given = self.fitting.probabilities
        for source, columns in found.items():
            if source.name == NETWORK and isinstance(columns, np.ndarray):
                given[""] = columns
            elif source.name == NETWORK and isinstance(columns, BadData) and giving:  # a network of other classes
                self.fitting.progress.fail("no accuracy or calibration is reported", columns)
                return
        for source, columns in giving.items():
            assert source.of is not None
            if isinstance(columns, np.ndarray):
                given[source.name] = columns
            elif not isinstance(columns, GivesNone):
                self.fitting.break_(source.of, columns)

    def measured(self, test_set: LoadedTestSet, cache: StatisticsCache) -> list[Measured]:
        """The records of all sources on a set, with what their figures need of each image; none if it has other classes."""
        if not shows_classes(cache.images, self.loaded.in_distribution):
            return []
        return [self._measured(test_set, source, self._columns(source, cache)) for source in self.sources]

    def right(self, cache: StatisticsCache) -> np.ndarray:
        """Whether the network is right on each image: bool (N,). Raises why that is not known."""
        if self.loaded.classifier is None or self.loaded.unsuitable:
            raise self.loaded.unsuitable or Unsuitable("this suite has no network, so there are no predictions to judge")
        if not shows_classes(cache.images, self.loaded.in_distribution):
            raise Unsuitable(
                f"{cache.images.name} has no labels, or its classes are not those of {self.loaded.in_distribution.name}"
            )
        columns = self._columns(next((source for source in self.sources if source.name == NETWORK), Source()), cache)
        if isinstance(columns, Exception):
            raise columns
        return columns[:, 1] != 0

    def _columns(self, source: Source, cache: StatisticsCache) -> np.ndarray | Exception:
        """``calibration.per_image`` (N, 4) of a source, or why it has none."""
        if source.of is not None and not self._sound(source):
            return self.fitting.broken[source.of.name]
        if source in self._why_not:
            return self._why_not[source]
        try:
            return cache.get(source, [source.setting], np.arange(len(cache.images)))[:, 0]
        except Exception as error:
            return error

    def _about(self, source: Source) -> dict[str, Any]:
        """What a record says of its source."""
        of = source.of
        if of is None:
            return {"source": source.name}
        code = self.recorder.code.get(of.name, "")
        return {"source": source.name, "detector": of.name, "parameters": of.parameters(), "code": code}

    def _measured(self, test_set: LoadedTestSet, source: Source, columns: np.ndarray | Exception) -> Measured:
        about = self._about(source)
        if isinstance(columns, Exception):
            reason = reason_in(columns, type(source.of).__module__)
            record = self.recorder.recognition(test_set, status_of(columns), reason=reason, **about)
            return Measured(record, {}, {})
        if source.is_scaled:
            about |= {"temperature": source.temperature, "calibrated_on": self.recorder.calibrating}
        array = hash_of(columns)
        figures = calibration.recognition_figures(columns)
        record = self.recorder.recognition(test_set, "ok", n=len(columns), figures=figures, arrays={ROLE: array}, **about)
        return Measured(record, {array: columns}, {})


def shows_classes(images: ImageSet, in_distribution: ImageSet) -> bool:
    """Whether labels of these images are classes that the network knows: those of the in-distribution images."""
    if images.labels is None or in_distribution.labels is None:
        return False
    if images.kind == CSID:
        return True
    same = images.classes == in_distribution.classes
    return same and (bool(images.classes) or protocols.shares_images(images, in_distribution))
