"""What each protocol tests on a set, with heads that learnt from nothing, from a part of the set, or from another set."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from oodbench import protocols
from oodbench.datasets.name import CHANGED
from oodbench.detector import Detector
from oodbench.engine import look_alikes
from oodbench.engine.choosing import Choice, choose
from oodbench.engine.loaded_suite import LoadedSuite, LoadedTestSet
from oodbench.engine.statistics_cache import Jobs, Setting, StatisticsCache, merged
from oodbench.errors import BadData, MissingData, OodbenchError, Unsuitable, reason
from oodbench.heads import HEADS, Head
from oodbench.image_set import ImageSet
from oodbench.protocols import Sides, Split

NOTHING = np.empty(0, dtype=np.int64)  # rows


class Trial(NamedTuple):
    """One protocol on one test set: the rows that are tested, and the head of each detector or why it has none."""

    split: Split
    heads: Mapping[Detector, Head | Exception]
    settings: Mapping[Detector, list[Setting]]  # those that the head chose from
    choices: Mapping[Detector, Choice] = MappingProxyType({})  # under validation
    look_alikes: int = 0  # as in a record: tested images that look like one that the heads learnt from

    def chosen(self) -> dict[Detector, list[Setting]]:
        """The one setting that each head keeps."""
        heads = ((detector, self.heads[detector]) for detector in self.settings)
        return {d: [self.settings[d][head.setting_]] for d, head in heads if isinstance(head, Head)}


class MeasuredTestSet:
    """A test set and the in-distribution images beside it: their statistics, and the heads that learnt from their validation
    rows.

    split: its ``per_shift`` split, or the reason why it has none. seed: of the heads that draw.
    """

    def __init__(
        self, kind: str, split: Split | Unsuitable, in_distribution: StatisticsCache, anomalous: StatisticsCache, seed: int
    ) -> None:
        self.kind, self.split, self.in_distribution, self.anomalous = kind, split, in_distribution, anomalous
        self.seed = seed
        self.heads: dict[Detector, Head | Exception] = {}

    @property
    def sides(self) -> Sides:
        return Sides(self.in_distribution.images, self.anomalous.images)

    @cached_property
    def copies(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Which images of either side are one image (``protocols.same_images``), or None if all are different."""
        inside, outside = protocols.same_images(*self.sides)
        return (inside, outside) if len(np.unique(np.concatenate([inside, outside]))) < len(inside) + len(outside) else None

    def learn(self, detectors: Iterable[Detector], alongside: Jobs | None = None) -> Split:
        """Fit the shift heads of these detectors on the validation rows of both sides, and return the split.

        ``alongside`` is computed in the same pass over the validation rows. Raises Unsuitable where there is no split.
        """
        if not isinstance(self.split, Split):
            raise self.split
        new = {detector: detector.shift_settings for detector in detectors if detector not in self.heads}
        self.anomalous.ensure((merged(alongside or {}, new), self.split.out_validation))
        self.in_distribution.ensure((new, self.split.in_validation))
        for detector in new:
            self.heads[detector] = self._fitted(detector, self.split)
        return self.split

    def _fitted(self, detector: Detector, split: Split) -> Head | Exception:
        assert detector.shift_head is not None
        head = HEADS[detector.shift_head]()
        head.seed = self.seed

        def seen(cache: StatisticsCache, rows: np.ndarray) -> np.ndarray:
            return detector.columns_of(cache.get(detector, detector.shift_settings, rows))

        try:
            fit = seen(self.in_distribution, split.in_fit), seen(self.anomalous, split.out_fit)
            choose = seen(self.in_distribution, split.in_choose), seen(self.anomalous, split.out_choose)
            head.fit(fit, choose, "auroc" if self.kind == "adversarial" else "tnr95")
        except Exception as error:
            return error
        return head


class ChosenOn(MeasuredTestSet):
    """The images that hyper-parameters are chosen on, under ``validation``.

    choices: of each detector that has learnt and did not fail.
    """

    def __init__(self, split: Split | Unsuitable, in_distribution: StatisticsCache, anomalous: StatisticsCache) -> None:
        super().__init__("validation", split, in_distribution, anomalous, seed=0)
        self.choices: dict[Detector, Choice] = {}

    def _fitted(self, detector: Detector, split: Split) -> Head | Exception:
        sides = (self.in_distribution, split.in_choose), (self.anomalous, split.out_choose)
        try:
            seen = [detector.columns_of(cache.get(detector, detector.shift_settings, rows)) for cache, rows in sides]
            self.choices[detector] = choose(detector, *seen)
        except Exception as error:
            return error
        return self.choices[detector].head


class Trials:
    """Makes the trials of one test set after another.

    heads: the unsupervised head of each detector.
    in_distribution: statistics of the in-distribution test images, which every set without negatives of its own is tested
        against.
    new_cache: (images, rows that come in separate batches) -> a cache for them.
    """

    def __init__(
        self,
        loaded: LoadedSuite,
        heads: Mapping[Detector, Head],
        in_distribution: StatisticsCache,
        new_cache: Callable[[ImageSet, np.ndarray], StatisticsCache],
    ) -> None:
        self.loaded, self.heads, self.in_distribution, self._new_cache = loaded, heads, in_distribution, new_cache
        self._source: MeasuredTestSet | None = None  # kept, because transfer learns from it for all sets

    def of(
        self, test_set: LoadedTestSet, images: ImageSet, wanted: Mapping[str, list[Detector]]
    ) -> tuple[dict[str, Trial | OodbenchError], MeasuredTestSet]:
        """The trial of each protocol, or the reason why it cannot be run; and the set with its statistics.

        One pass over the set: first the validation rows, whose statistics fit the heads, then the rows that are tested.
        """
        measured = self.measured(test_set, images)
        alone = {detector: [detector.setting] for detector in wanted.get("unsupervised", [])}
        sides, made = measured.sides, images.kind in CHANGED
        trials: dict[str, Trial | OodbenchError] = {}
        alike: dict[str, Callable[[], int]] = {}
        for protocol, detectors in wanted.items():
            grids = {detector: detector.shift_settings for detector in detectors}
            try:
                if protocol == "unsupervised":
                    trials[protocol] = Trial(protocols.whole(*sides), self.heads, alone)
                    alike[protocol] = partial(look_alikes.of_in_distribution, images, self.loaded.known)
                elif protocol == "per-shift":
                    split = measured.learn(detectors, alone)
                    trials[protocol] = Trial(split, measured.heads, grids)
                    alike[protocol] = partial(look_alikes.of_split, split, sides, sides)
                else:
                    source, split = self._learnt_elsewhere(protocol, detectors, sides)
                    alike[protocol] = partial(look_alikes.of_split, split, source.sides, sides)
                    if isinstance(source, ChosenOn):
                        split = self._of_tested_sides(split)
                        trials[protocol] = Trial(split, source.heads, grids, source.choices)
                    else:
                        trials[protocol] = Trial(split, source.heads, grids)
            except (Unsuitable, BadData) as error:
                trials[protocol] = error
        sound = {protocol: trial for protocol, trial in trials.items() if isinstance(trial, Trial)}
        measured.anomalous.ensure(*((trial.chosen(), trial.split.out_test) for trial in sound.values()))
        measured.in_distribution.ensure(*((trial.chosen(), trial.split.in_test) for trial in sound.values()))
        if not made:  # after the passes, which keep thumbnails of what they decode
            trials |= {protocol: trial._replace(look_alikes=alike[protocol]()) for protocol, trial in sound.items()}
        return trials, measured

    def measured(self, test_set: LoadedTestSet, images: ImageSet) -> MeasuredTestSet:
        """A set with the in-distribution images beside it, whose statistics are computed when they are needed."""
        is_source, seed = test_set is self.loaded.source, self.loaded.suite.seed
        if is_source and self._source is not None:
            return self._source
        split: Split | Unsuitable = Unsuitable("nothing is learnt from this set")
        if is_source or "per-shift" in self.loaded.suite.protocols:
            try:
                inside = images.negatives or self.loaded.in_distribution
                split = protocols.per_shift(inside, images, seed, self.loaded.suite.learnt_share)
            except Unsuitable as error:
                split = error
        validation = (split.in_validation, split.out_validation) if isinstance(split, Split) else (NOTHING, NOTHING)
        negatives = self.in_distribution if images.negatives is None else self._new_cache(images.negatives, validation[0])
        measured = MeasuredTestSet(test_set.kind, split, negatives, self._new_cache(images, validation[1]), seed)
        if is_source:
            self._source = measured
        return measured

    def _learnt_elsewhere(self, protocol: str, detectors: Iterable[Detector], sides: Sides) -> tuple[MeasuredTestSet, Split]:
        """The set that transfer or validation learns from, and what is tested here.

        Raises Unsuitable or BadData where it cannot learn.
        """
        loaded, name = self.loaded, ""
        measured: MeasuredTestSet
        try:
            if protocol == "validation":
                assert loaded.suite.validation_set is not None
                name, measured = loaded.suite.validation_set.label, self._chosen_on
            else:
                assert loaded.source is not None
                name = loaded.source.name
                if loaded.source.images is None:
                    raise loaded.source.error or BadData("it cannot be read")
                measured = self.measured(loaded.source, loaded.source.images)
            learnt = measured.learn(detectors)
        except Exception as error:
            kind = Unsuitable if isinstance(error, Unsuitable | MissingData) else BadData
            raise kind(f"{protocol} learns from {name}: {reason(error)}") from error
        return measured, protocols.transfer(learnt, measured.sides, sides, protocol)

    @cached_property
    def _chosen_on(self) -> ChosenOn:
        """The images that hyper-parameters are chosen on, whose statistics are computed when they are needed."""
        suite, sides = self.loaded.suite, self.loaded.choosing
        assert sides is not None  # the protocol is asked for
        tested = sides.in_distribution is self.loaded.in_distribution
        split: Split | Unsuitable
        try:
            split = protocols.choosing(sides, suite.seed, suite.learnt_share if tested else None)
        except Unsuitable as error:
            split = error
        inside = self.in_distribution if tested else self._new_cache(sides.in_distribution, NOTHING)
        return ChosenOn(split, inside, self._new_cache(sides.anomalous, NOTHING))

    def _of_tested_sides(self, split: Split) -> Split:
        """Of the rows that chose, those of images that are tested otherwise."""
        tested = self._chosen_on.in_distribution is self.in_distribution
        return replace(split, in_choose=split.in_choose if tested else NOTHING, out_choose=NOTHING)
