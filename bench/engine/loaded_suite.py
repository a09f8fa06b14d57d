"""What a run works on: the detectors, sets and model of a suite, loaded.

Errors in what the whole run needs, the in-distribution set and the weights, are raised. A test set that cannot be read and
a detector that cannot be built are kept with the reason, which their records report.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from oodbench import protocols
from oodbench.batching import default_batch_size
from oodbench.datasets import load
from oodbench.datasets.adversarial.adversarial_sets import resolve
from oodbench.datasets.name import CHANGED, MISCLASSIFIED, parse, parse_unchanged, recorded, without_answers
from oodbench.datasets.transform import Transform
from oodbench.detector import Detector
from oodbench.engine.network import NO_NETWORK, Network
from oodbench.engine.parts import with_parts
from oodbench.engine.sound_detector import sound_detector
from oodbench.errors import BadData, NoSuchSplit, OodbenchError, Unsuitable, UsageError, around_call, counted, reason
from oodbench.forward.guard import Guard
from oodbench.heads import HEADS
from oodbench.image_set import CSID, ImageSet, joined
from oodbench.models.device import precision_on
from oodbench.passes import require_unchanged
from oodbench.paths import DataRoots
from oodbench.progress import Progress
from oodbench.protocols import Sides
from oodbench.results.records import row_name
from oodbench.suite import Suite, TestSet, ValidationSet

FIXED_SEED = 0  # of what the protocol validation draws to choose on, whatever the seed of the run


class Row(NamedTuple):
    """A row of the leaderboard: a detector, or one of its variants, under one protocol."""

    detector: str
    protocol: str
    variant: str = ""

    @property
    def name(self) -> str:
        return row_name(self.detector, self.variant)


@dataclass
class LoadedTestSet:
    """A set under test. ``images`` is None where it could not be read, and ``error`` says why."""

    name: str  # as in results, with its level
    kind: str
    images: ImageSet | None
    error: Exception | None = None


class LoadedSuite:
    """A suite, loaded.

    detectors: by name; broken: why a detector could not be built, by name.
    train, in_distribution: the in-distribution training and test images; train is None where the set has no such split, and
        ``untrained`` says why. validation: the test images set apart to calibrate on, which no set contains, or None.
    transform: how all images are brought to one size: as the network states it, but for what the suite says.
    classifier, weights_hash, device, network_name, card: of the network; unsuitable: why no detector can read it.
    test_sets: after ``load_test_sets``, in the suite's order; those that are attacked after ``attack``.
    source: the set that transfer learns from, tested or not; None without that protocol.
    choosing: the images that the protocol validation chooses on; None without that protocol.
    """

    def __init__(
        self,
        suite: Suite,
        progress: Progress,
        *,
        data: DataRoots = None,
        limit: int | None = None,
        workers: int = 0,
        cache_images: bool = False,
        network: Network = NO_NETWORK,
    ) -> None:
        if limit is not None and limit < 1:
            raise UsageError(f"--limit takes a number of images of at least 1, not {limit}")
        self.suite = suite = with_parts(suite, data)
        self.data, self.limit, self.workers, self._cache_images = data, limit, workers, cache_images
        self.classifier, self.weights_hash, self.device, self.network_name, self.card = network
        self._originals: dict[tuple[Any, ...], ImageSet] = {}
        self.validation: ImageSet | None = None
        self._to_attack: list[tuple[LoadedTestSet, TestSet]] = []
        self.detectors: dict[str, Detector] = {}
        self.broken: dict[str, Exception] = {}
        self.guard = Guard(None)
        for name in suite.detectors:
            try:
                with around_call.get()(f"building {name}"):
                    detector = sound_detector(name, suite.parameters.get(name, {}))
                require_unchanged(self.guard)
                self.detectors[name] = detector
            except UsageError:
                raise
            except Exception as error:
                self.broken[name] = error
                progress.fail(name, error)
        # Before anything long, so that a wrong name is reported now.
        inside = parse_unchanged(suite.in_distribution, f", and list {suite.in_distribution} among the sets")
        for one in suite.each_set().values():
            parsed = parse(one.name)
            if parsed.benign and (parsed.base, parsed.path) != (inside.base, inside.path):
                raise UsageError(
                    f"{one.name}: alarms are right on images of another set; test {inside.original}+{parsed.benign} instead"
                )
            if parsed.misclassified and one.first is not None:
                raise UsageError(f"{one.name}: its images are those of {without_answers(one.name)}; leave out the key first")
            if parsed.attack:
                resolve(parsed.attack, one.settings)
            elif one.settings:
                raise UsageError(f"{one.name}: settings are for attacks ({', '.join(one.settings)}); leave them out")
        progress.stage("loading the sets")
        stated = self.classifier.transform if self.classifier is not None else None
        self.transform = (stated or Transform()).replaced(suite.size, suite.resize, suite.shorter_side)
        in_distribution = TestSet(name=suite.in_distribution)
        self.train: ImageSet | None = None
        self.untrained: Unsuitable | None = None
        try:
            train = self._original(in_distribution, suite.train_split, None, progress)
            self.train = protocols.limited(train, suite.fit_images, suite.seed)
        except NoSuchSplit as error:
            if all(map(self.learns_from_training, self.detectors.values())):
                raise
            self.untrained = Unsuitable(f"it learns from training images, and there are none: {reason(error)}")
            progress.say(f"{reason(error)}; detectors that learn from training images are skipped")
        any_split = self.train or self._original(in_distribution, suite.test_split, None, progress)
        height, width = any_split.images.shape[-2:]
        if height != width:
            raise UsageError(
                f"{any_split.name}: its images are {width}x{height} pixels, not square; give the pixels per side to which all"
                " images are resized: --size N (in a suite, size)"
            )
        self.transform = self.transform if self.transform.size else self.transform.replaced(size=int(width))
        self.batch_size = suite.batch_size or default_batch_size(int(width), self.device)
        if suite.validation:
            self.validation = self._set_apart(self._original(in_distribution, suite.test_split, None, progress))
            self._originals.clear()  # they still hold the images set apart
        self.in_distribution = self._original(in_distribution, suite.test_split, limit, progress)
        if self.validation is not None and len(leak := protocols.copies_of(self.validation, self.in_distribution)):
            some = f"{counted(len(leak), 'image')} of {self.in_distribution.name}"
            raise OodbenchError(
                f"{some} would be both set apart for validation and tested on; remove duplicate images, or leave out validation"
            )
        if self.train is not None:
            self._compare_splits(self.train, progress)
        for images in self.known:
            images.clean = images.images  # their own clean twins
        self.test_sets: list[LoadedTestSet] = []
        self.source: LoadedTestSet | None = None
        self.choosing: Sides | None = None
        self.unsuitable: Unsuitable | None = None
        if self.classifier is not None:
            first = self.in_distribution.read(range(min(2, len(self.in_distribution)))) / 255
            try:
                with suppress(BadData):  # logits that are not finite: detectors fail on their images, and name them
                    self.classifier.check(first)
            except Unsuitable as error:
                self.unsuitable = error
            self.guard = Guard(self.classifier, None if self.unsuitable else first[:1])

    def _compare_splits(self, train: ImageSet, progress: Progress) -> None:
        """Raise BadData for training and test images that are the same, or of other classes; report a few that are both."""
        inside = self.in_distribution
        if protocols.shares_images(train, inside):
            raise BadData(f"{inside.name}: its {train.split} and {inside.split} splits are the same images")
        protocols.require_same_classes(train, inside)
        if copies := len(protocols.copies_of(train, inside)):
            progress.say(
                f"{inside.name}: {copies} of {counted(len(inside), 'test image')} are also training images, which flatters the"
                " network and detectors that remember them; remove them from a split"
            )

    def load_test_sets(self, progress: Progress) -> None:
        """Load all sets but the attacks: the images that are attacked take their place until ``attack``."""
        sets = self.suite.each_set()
        # Right and wrong answers are of the images of another set, which is read first.
        wanted = sorted((one for one in sets.values() if one.tested), key=lambda one: parse(one.name).misclassified)
        transfers = self.suite.transfer_from if "transfer" in self.suite.protocols else None
        if transfers is not None and not sets[transfers].tested:
            wanted.append(sets[transfers])
        for one in wanted:
            test_set = self._load_test_set(one, progress)
            if one.tested:
                self.test_sets.append(test_set)
            if one.name == transfers:
                self.source = test_set
            if parse(one.name).attack:
                self._to_attack.append((test_set, one))
        if self.suite.full_spectrum:
            self._take_in_shifted()
        if self.suite.validation_set is not None and "validation" in self.suite.protocols:
            self.choosing = self._load_choosing(self.suite.validation_set, progress)
        self._originals.clear()
        # Behind the set whose images they share, so that its statistics serve them too.
        place = {one.name: number for number, one in enumerate(self.test_sets)}
        self.test_sets.sort(key=lambda one: place.get(without_answers(one.name), place[one.name]))

    def _load_choosing(self, chosen_on: ValidationSet, progress: Progress) -> Sides:
        """The images that hyper-parameters are chosen on. Raises an error where one of the sides cannot be read."""
        one, split = TestSet(name=chosen_on.name), self.suite.validation_split
        try:
            inside = self.validation or self.in_distribution
            if split is not None:
                inside = self._original(TestSet(name=self.suite.in_distribution), split, self.limit, progress)
            outside = self._original(one, chosen_on.split, None, progress)
            most = min(size for size in (chosen_on.images, self.limit, len(outside)) if size is not None)
            return Sides(inside, self._changed(protocols.limited(outside, most, FIXED_SEED), one, progress))
        except OodbenchError as error:
            remedy = "leave out the protocol validation, or choose on other images (validation_set and validation_split)"
            why = f"cannot choose hyper-parameters on {chosen_on.label}: {reason(error)}"
            raise type(error)(f"{why}; or {remedy}") from error

    def _take_in_shifted(self) -> None:
        """Make the sets of the kind csid a part of the in-distribution test images."""
        shifted = [one.images for one in self.test_sets if one.kind == CSID and one.images is not None]
        self.test_sets = [one for one in self.test_sets if one.kind != CSID or one.images is None]
        if shifted:
            self.in_distribution = joined([self.in_distribution, *shifted])
            self.in_distribution.clean = self.in_distribution.images

    def attack(self, progress: Progress) -> None:
        """Make the attacked sets, against the loaded model."""
        for test_set, one in self._to_attack:
            if test_set.images is not None:
                self._change(test_set, test_set.images, one, progress)

    @cached_property
    def precision(self) -> torch.dtype | None:
        """Of the forward passes of detectors that need no gradient; None for the network's own. Raises UsageError if the device
        cannot compute in it, and for a network of another precision than float32, which autocast does not lower."""
        if self.classifier is None:
            return None
        if (lower := precision_on(self.device, self.suite.precision)) and (own := self.classifier.dtype) != torch.float32:
            raise UsageError(
                f"precision {self.suite.precision} is for networks in float32, and {self.suite.model} is in"
                f" {str(own).removeprefix('torch.')}; convert it with module.float(), or leave out --precision"
            )
        return lower

    @property
    def known(self) -> list[ImageSet]:
        """All in-distribution images."""
        return [one for one in (self.in_distribution, self.train, self.validation) if one is not None]

    def learns_from_training(self, detector: Detector) -> bool:
        """Whether the detector has no figures without training images."""
        calibrates = HEADS[detector.unsupervised_head].calibrates and not self.suite.validation
        return detector.observes or detector.prepares or calibrates

    @property
    def learns(self) -> bool:
        """Whether heads may learn from shifts."""
        return any(protocol != "unsupervised" for protocol in self.suite.protocols)

    def rows_of(self, name: str) -> list[Row]:
        """The rows of one detector: one per protocol in which it learns something, and unsupervised one per variant."""
        if name not in self.detectors:
            return [Row(name, protocol) for protocol in self.suite.protocols[:1]]  # one row, to report why
        detector, rows = self.detectors[name], []
        for protocol in self.suite.protocols:
            if protocol == "unsupervised":
                rows += [Row(name, protocol, variant) for variant in ("", *detector.variants)]
            elif detector.is_tunable if protocol == "validation" else detector.shift_head is not None:
                rows.append(Row(name, protocol))
        return rows

    def rows(self, test_set: LoadedTestSet) -> list[Row]:
        """The rows with a record on this set: no transfer row on its own source, and none that learn from harmless changes or
        from answers."""
        rows = [row for name in self.suite.detectors for row in self.rows_of(name)]
        if test_set.kind in ("benign", MISCLASSIFIED):
            return [row for row in rows if row.protocol == "unsupervised"]
        return [row for row in rows if row.protocol != "transfer" or test_set is not self.source]

    def _original(self, one: TestSet, split: str, limit: int | None, progress: Progress) -> ImageSet:
        """A set before it is corrupted or attacked, read once for all sets that are made from it."""
        parsed = parse(one.name)
        key = parsed.original, split, one.first, limit
        if key not in self._originals:
            images = load.original(parsed, self.data, split, self.transform, self.workers, progress, self._cache_images)
            images = self._without_validation(images)
            if limit is not None:
                images = protocols.limited(images, limit, self.suite.seed)
            elif one.first is not None and one.first < len(images):
                images = images.select(torch.arange(one.first))
            if images.read_as:
                images.hash_files(progress)
            self._originals[key] = images
        return self._originals[key]

    def _set_apart(self, images: ImageSet) -> ImageSet:
        """The validation images: the first of a seeded, stratified order of all in-distribution test images."""
        size = self.suite.validation
        if size > (most := len(images) // 2):
            raise UsageError(
                f"validation = {size:,}, but {images.name} ({images.split}) has {len(images):,} images; set apart at most"
                f" {most:,}"
            )
        return protocols.limited(images, size, self.suite.seed)

    def _without_validation(self, images: ImageSet) -> ImageSet:
        """A set without copies of the validation images, if it was made from the same base."""
        if self.validation is None or not protocols.shares_images(images, self.validation):
            return images
        numbers, apart = protocols.same_images(images, self.validation)
        return images.select(torch.from_numpy(np.flatnonzero(~np.isin(numbers, apart))))

    def _load_test_set(self, one: TestSet, progress: Progress) -> LoadedTestSet:
        parsed = parse(one.name)
        kind = one.kind or parsed.kind
        test_set = LoadedTestSet(recorded(one.name), kind or "far-ood", None)
        if parsed.misclassified:
            return self._sharing_images(test_set, one, progress)
        try:
            images = self._original(one, "test", self.limit, progress)
        except UsageError:
            raise
        except Exception as error:
            test_set.error = error
            if reason(error) not in {reason(other.error) for other in self.test_sets if other.error}:  # as at other levels
                progress.fail(one.name, error)
            return test_set
        test_set.kind = kind or images.kind
        if test_set.kind == CSID:
            images = replace(images, kind=CSID)
        if parsed.attack:
            test_set.images = images
        else:
            self._change(test_set, images, one, progress)
        return test_set

    def _sharing_images(self, test_set: LoadedTestSet, one: TestSet, progress: Progress) -> LoadedTestSet:
        """A set of right and wrong answers with the images that they are of: those of another set, if that is loaded."""
        test_set.kind, name = MISCLASSIFIED, without_answers(one.name)
        inside = LoadedTestSet(recorded(self.suite.in_distribution), "", self.in_distribution)
        found = next((other for other in (inside, *self.test_sets) if other.name == recorded(name)), None)
        found = found or self._load_test_set(one.model_copy(update={"name": name, "kind": None}), progress)
        test_set.images, test_set.error = found.images, found.error
        return test_set

    def _change(self, test_set: LoadedTestSet, images: ImageSet, one: TestSet, progress: Progress) -> None:
        """Give a test set its images, corrupted or attacked as its name says, or the reason why it has none."""
        test_set.images = None
        try:
            test_set.images = self._changed(images, one, progress)
        except UsageError:
            raise
        except Exception as error:
            test_set.error = error
            progress.fail(one.name, error)

    def _changed(self, images: ImageSet, one: TestSet, progress: Progress) -> ImageSet:
        """The images, corrupted or attacked as the name says. Raises BadData where some are in-distribution images."""
        parsed = parse(one.name)
        if parsed.attack and images.labels is not None and images.classes != self.in_distribution.classes:
            raise Unsuitable(f"the network knows other classes than those of {images.name}; attack {self.in_distribution.name}")
        changed = load.changed(
            images,
            parsed,
            classifier=self.classifier,
            seed=self.suite.seed,
            settings=one.settings,
            progress=progress,
            batch_size=self.batch_size,
        )
        changed.fingerprint  # noqa: B018  # reads all images, or the files of a large set, so that a missing one is found here
        self._refuse_in_distribution(changed)
        return protocols.with_twins(changed, self.in_distribution)

    def _refuse_in_distribution(self, images: ImageSet) -> None:
        """Raise BadData where the set holds in-distribution images: no detector could tell these apart."""
        if images.kind in CHANGED:
            return
        numbers, *known = protocols.same_images(images, *self.known)
        copies = [np.flatnonzero(np.isin(numbers, of)) for of in known]
        if len(rows := np.unique(np.concatenate(copies))):
            splits = dict.fromkeys(of.split for of, found in zip(self.known, copies, strict=True) if len(found))
            more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
            raise BadData(
                f"row {rows[0]}{more} of {images.name}: also in {self.in_distribution.name} ({' and '.join(splits)}), which is"
                " in-distribution; remove such images, or leave the set out"
            )
