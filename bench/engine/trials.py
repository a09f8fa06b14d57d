"""What is tested on a set under each protocol, by heads that learnt from nothing, from a part of it, or from another set."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from oodbench import protocols
from oodbench.detector import Detector
from oodbench.engine.loaded_suite import LoadedSuite, Pairing
from oodbench.engine.statistics_cache import Jobs, Setting, StatisticsCache, merged
from oodbench.errors import BadData, MissingData, OodbenchError, Unsuitable, reason
from oodbench.heads import HEADS, Head
from oodbench.image_set import ImageSet
from oodbench.protocols import Sides, Split

NOTHING = np.empty(0, dtype=np.int64)  # rows


class Trial(NamedTuple):
    """What one protocol asks of one set: the rows that are tested, and a head for each detector or why it has none."""

    split: Split
    heads: Mapping[Detector, Head | Exception]
    settings: Mapping[Detector, list[Setting]]  # those that the head chose from

    def chosen(self) -> dict[Detector, list[Setting]]:
        """The one setting that each head keeps."""
        heads = ((detector, self.heads[detector]) for detector in self.settings)
        return {d: [self.settings[d][head.setting_]] for d, head in heads if isinstance(head, Head)}


class Shift:
    """One anomalous set and what stands against it: their statistics, and the heads that learnt from the validation parts.

    split: its ``per_shift`` split, or why there is none.
    """

    def __init__(self, kind: str, split: Split | Unsuitable, inside: StatisticsCache, outside: StatisticsCache) -> None:
        self.kind, self.split, self.inside, self.outside = kind, split, inside, outside
        self.heads: dict[Detector, Head | Exception] = {}

    @property
    def sides(self) -> Sides:
        return Sides(self.inside.images, self.outside.images)

    def learn(self, detectors: Iterable[Detector], alongside: Jobs | None = None) -> Split:
        """Fit the shift heads of these detectors on the validation rows of both sides; returns the split.

        ``alongside`` is computed in the same pass over the validation rows. Raises Unsuitable where there is no split.
        """
        if not isinstance(self.split, Split):
            raise self.split
        new = {detector: detector.shift_settings for detector in detectors if detector not in self.heads}
        self.outside.ensure((merged(alongside or {}, new), self.split.out_validation))
        self.inside.ensure((new, self.split.in_validation))
        for detector in new:
            self.heads[detector] = self._fitted(detector, self.split)
        return self.split

    def _fitted(self, detector: Detector, split: Split) -> Head | Exception:
        assert detector.shift_head is not None
        head = HEADS[detector.shift_head]()

        def seen(store: StatisticsCache, rows: np.ndarray) -> np.ndarray:
            return detector.columns_of(store.get(detector, detector.shift_settings, rows))

        try:
            fit = seen(self.inside, split.in_fit), seen(self.outside, split.out_fit)
            choose = seen(self.inside, split.in_choose), seen(self.outside, split.out_choose)
            head.fit(fit, choose, "auroc" if self.kind == "adversarial" else "tnr95")
        except Exception as error:
            return error
        return head


class Trials:
    """Makes the trials of one set after another.

    heads: the unsupervised head of each detector. inside: statistics of the in-distribution test images, which stand
    against every set that brings no negatives of its own.
    new_store: (images, rows that come in batches of their own) -> a store for them.
    """

    def __init__(
        self,
        inputs: LoadedSuite,
        heads: Mapping[Detector, Head],
        inside: StatisticsCache,
        new_store: Callable[[ImageSet, np.ndarray], StatisticsCache],
    ) -> None:
        self.inputs, self.heads, self.inside, self._new_store = inputs, heads, inside, new_store
        self._source: Shift | None = None  # kept, for transfer learns from it for all sets

    def of(
        self, pairing: Pairing, images: ImageSet, wanted: Mapping[str, list[Detector]]
    ) -> tuple[dict[str, Trial | OodbenchError], Shift]:
        """By protocol, the trial of the detectors that want it, or why there is none; and the set, its statistics computed.

        One pass over the set: first the validation rows, whose statistics fit the heads, then the rows that are tested.
        """
        shift = self._shift(pairing, images)
        alone = {detector: [detector.setting] for detector in wanted.get("unsupervised", [])}
        trials: dict[str, Trial | OodbenchError] = {}
        for protocol, detectors in wanted.items():
            grids = {detector: detector.shift_settings for detector in detectors}
            try:
                if protocol == "unsupervised":
                    trials[protocol] = Trial(protocols.whole(*shift.sides), self.heads, alone)
                elif protocol == "per-shift":
                    trials[protocol] = Trial(shift.learn(detectors, alone), shift.heads, grids)
                else:
                    source, split = self._transferred(detectors, shift.sides)
                    trials[protocol] = Trial(split, source.heads, grids)
            except (Unsuitable, BadData) as error:
                trials[protocol] = error
        sound = [trial for trial in trials.values() if isinstance(trial, Trial)]
        shift.outside.ensure(*((trial.chosen(), trial.split.out_test) for trial in sound))
        shift.inside.ensure(*((trial.chosen(), trial.split.in_test) for trial in sound))
        return trials, shift

    def _shift(self, pairing: Pairing, images: ImageSet) -> Shift:
        is_source = pairing is self.inputs.source
        if is_source and self._source is not None:
            return self._source
        split: Split | Unsuitable = Unsuitable("nothing is learnt from this set")
        if is_source or "per-shift" in self.inputs.suite.protocols:
            try:
                split = protocols.per_shift(images.negatives or self.inputs.inside, images, self.inputs.suite.seed)
            except Unsuitable as error:
                split = error
        validation = (split.in_validation, split.out_validation) if isinstance(split, Split) else (NOTHING, NOTHING)
        inside = self.inside if images.negatives is None else self._new_store(images.negatives, validation[0])
        shift = Shift(pairing.kind, split, inside, self._new_store(images, validation[1]))
        if is_source:
            self._source = shift
        return shift

    def _transferred(self, detectors: Iterable[Detector], sides: Sides) -> tuple[Shift, Split]:
        """The set that transfer learns from, and what is tested here. Raises Unsuitable where that cannot be."""
        source = self.inputs.source
        assert source is not None  # the protocol is asked for
        try:
            if source.images is None:
                raise source.error or BadData("it cannot be read")
            shift = self._shift(source, source.images)
            learnt = shift.learn(detectors)
        except Exception as error:
            kind = Unsuitable if isinstance(error, Unsuitable | MissingData) else BadData
            raise kind(f"transfer learns from {source.name}: {reason(error)}") from error
        return shift, protocols.transfer(learnt, shift.sides, sides)
