"""Requirements for every data set, built-in or third-party: each check is a function of a ``Subject``, the set under check.

It returns its finding, or raises: ``Skipped`` if there is nothing to check, and any other error if the set does not fulfil
the contract. Checks that need missing files are skipped.
"""

import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from oodbench import protocols, registry
from oodbench.conformance.outcomes import Failed, Skipped, require
from oodbench.datasets.load import OWN, from_roots, load_dataset, takes_parts
from oodbench.datasets.name import BY_PATH, Name, canonical, is_absolute, parse
from oodbench.errors import MissingData, Unsuitable, UsageError, reason
from oodbench.image_set import KINDS, ImageSet
from oodbench.paths import DataRoots

SPLITS = ("train", "test")
MOST_COPIES = 0.01  # share of test images that are also training images: published sets have a few
SIZE = 8  # pixels per side that images are resized to


class Subject:
    """A data set under check; each split is loaded once."""

    def __init__(self, name: str, data: DataRoots) -> None:
        self.name, self.data = canonical(name), data
        self.parsed: Name = parse(name)
        self._loaded: dict[str, ImageSet | Exception] = {}

    @property
    def is_own(self) -> bool:
        """Whether it is the user's own images, named by a path."""
        return self.parsed.base in BY_PATH

    def load(self, split: str) -> ImageSet:
        """The split as a run gets it: RGB, in one size."""
        return load_dataset(self.name, data=self.data, split=split)

    def original(self, root: Path, split: str) -> ImageSet:
        """The result of the loader itself."""
        if self.is_own:
            return OWN[self.parsed.base](root, self.parsed.path, split)
        loader = registry.load("datasets", self.parsed.base)
        return loader(root, split, self.parsed.part, self.parsed.part_level) if takes_parts(loader) else loader(root, split)

    def found(self, split: str) -> ImageSet:
        """The result of the loader itself, for the data root that holds the set."""
        return from_roots(self.parsed, self.data, lambda root: self.original(root, split))

    @property
    def lacks_part(self) -> bool:
        """Whether it has parts and none is named."""
        return not self.is_own and not self.parsed.part and takes_parts(registry.load("datasets", self.parsed.base))

    def loaded(self, split: str) -> ImageSet | Exception:
        """A split, or the error that it raised."""
        if split not in self._loaded:
            try:
                self._loaded[split] = self.load(split)
            except Exception as error:
                self._loaded[split] = error
        return self._loaded[split]

    @property
    def missing(self) -> MissingData | None:
        """The message about the missing files, if any split reports some."""
        return next((found for split in SPLITS if isinstance(found := self.loaded(split), MissingData)), None)

    @cached_property
    def splits(self) -> dict[str, ImageSet]:
        """The available splits. Raises Skipped if there are none."""
        there = {split: found for split in SPLITS if isinstance(found := self.loaded(split), ImageSet)}
        if not there:
            raise Skipped("its files are missing" if self.missing else "could not be loaded")
        return there


def loads(subject: Subject) -> str:
    """The splits train and test load, or report missing files, or report that they do not exist."""
    found = {split: subject.loaded(split) for split in SPLITS}
    for split, images in found.items():
        if isinstance(images, Unsuitable):
            raise Skipped(str(images))
        if isinstance(images, Exception) and not isinstance(images, MissingData | UsageError):
            raise Failed(f"its split {split} does not load: {reason(images)}")
    if all(isinstance(images, UsageError) for images in found.values()):
        if subject.lacks_part:
            raise Skipped(str(found["test"]))
        raise Failed(f"has neither a split train nor test: {found['test']}")
    if subject.missing and not any(isinstance(images, ImageSet) for images in found.values()):
        raise Skipped(str(subject.missing))
    there = [f"{split} {len(images):,}" for split, images in subject.splits.items()]
    absent = [f"no {split}" for split, images in found.items() if isinstance(images, Exception)]
    return ", ".join([*there, *absent]) + " images"


def images(subject: Subject) -> str:
    """uint8 (N, 1 or 3, H, W) from its loader; resized RGB, in one size, from oodbench; all rows decode."""
    shapes = []
    for split, found in subject.splits.items():
        own = subject.found(split)
        require(isinstance(own, ImageSet), f"its loader gives {type(own).__name__}, not an ImageSet")
        shape = tuple(own.images.shape)
        require(len(shape) == 4 and shape[0] == len(own), f"{split}: images have shape {shape}, but there are {len(own)}")
        for row in (0, len(own) - 1):  # one at a time, because sizes may vary
            image = own.read([row])
            sound = image.dtype == torch.uint8 and image.dim() == 4 and image.shape[:2] in ((1, 1), (1, 3))
            require(sound, f"{split}: row {row} is {image.dtype} {tuple(image.shape)}, not uint8 (1, 1 or 3, H, W)")
            if isinstance(own.images, Tensor) or (shape[2] and shape[3]):
                require(tuple(image.shape[1:]) == shape[1:], f"{split}: row {row} is {tuple(image.shape)}, images are {shape}")
        sized = load_dataset(subject.name, data=subject.data, split=split, size=SIZE)
        wanted = (len(found), 3, SIZE, SIZE)
        require(tuple(sized.images.shape) == wanted, f"{split}: resized it is {tuple(sized.images.shape)}, not {wanted}")
        shapes.append(f"{split} {tuple(found.images.shape)}")
    return ", ".join(shapes)


def labels(subject: Subject) -> str:
    """int64 (N,), from 0 to the number of classes minus 1."""
    said = []
    for split, found in subject.splits.items():
        if found.labels is None:
            continue
        label = subject.found(split).labels
        require(
            label is not None and label.dtype == torch.int64,
            f"{split}: labels are {label.dtype if label is not None else None}",
        )
        require(found.labels.shape == (len(found),), f"{split}: labels are {tuple(found.labels.shape)} for {len(found)} images")
        low, high = int(found.labels.min()), int(found.labels.max())
        known = len(found.classes) or high + 1
        require(0 <= low <= high < known, f"{split}: labels range from {low} to {high}, but there are {known} classes")
        said.append(f"{split} {len(found.labels.unique())} of {known} classes")
    if not said:
        raise Skipped("has no labels")
    return ", ".join(said)


def fingerprint(subject: Subject) -> str:
    """The same content on every load."""
    for split, found in subject.splits.items():
        again = subject.load(split).fingerprint
        require(
            again == found.fingerprint, f"{split}: fingerprint {found.fingerprint}, then {again}: its pixels or order change"
        )
    return ", ".join(f"{split} {found.fingerprint}" for split, found in subject.splits.items())


def base_index(subject: Subject) -> str:
    """int64 (N,), each a row of the set that the images were made from."""
    for split, found in subject.splits.items():
        rows = found.base_index
        require(
            rows.dtype == torch.int64 and rows.shape == (len(found),),
            f"{split}: base_index is {rows.dtype} {tuple(rows.shape)}",
        )
        require(int(rows.min()) >= 0, f"{split}: base_index has the negative row {int(rows.min())}")
        if subject.parsed.whole != subject.name:
            base = load_dataset(subject.parsed.whole, data=subject.data, split=split)
            strangers = set(rows.tolist()) - set(base.base_index.tolist())
            require(not strangers, f"{split}: base_index has row {min(strangers, default=0)}, which is not in {base.name}")
            require(found.base == base.identity, f"{split}: base is {found.base}, but {base.name} has {base.identity}")
        elif not found.base:
            require(int(rows.max()) < len(found), f"{split}: base_index has row {int(rows.max())} of {len(found)} images")
    return "in range"


def splits_apart(subject: Subject) -> str:
    """Training images are not the test images, and both splits number their classes alike."""
    if len(subject.splits) < 2:
        raise Skipped(f"only the split {next(iter(subject.splits))} is available")
    train, test = subject.splits["train"], subject.splits["test"]
    require(not protocols.shares_images(train, test), "train and test are made from the same images")
    copies = protocols.copies_of(train, test)
    said = f"{len(copies)} of {len(test)} test images are also training images"
    require(len(copies) <= MOST_COPIES * len(test), f"{said}, the first in row {copies[0] if len(copies) else 0}")
    moved = [name for name in train.classes if name in test.classes and train.classes.index(name) != test.classes.index(name)]
    require(not moved, f"train and test number their classes differently ({', '.join(moved[:5])})")
    return said if len(copies) else "train and test are different images"


def source(subject: Subject) -> str:
    """Users must know its licence, and whom to cite."""
    if subject.is_own:
        raise Skipped(f"it is a {BY_PATH[subject.parsed.base]} of the user")
    found = next(iter(subject.splits.values()))
    empty = [field for field in ("title", "licence", "citation") if not getattr(found.source, field).strip()]
    require(not empty, f"its source has no {' and no '.join(empty)}; fill in oodbench.Source")
    require(found.kind in KINDS, f"unknown kind {found.kind}")
    return f"{found.source.licence}; {found.source.citation}"


def missing_files(subject: Subject) -> str:
    """If its files are missing, it raises MissingData; if it needs none, it loads."""
    if is_absolute(subject.parsed.path):
        raise Skipped("its path is absolute")
    with tempfile.TemporaryDirectory() as empty:
        try:
            subject.original(Path(empty), "test")
        except MissingData as error:
            require(bool(str(error)) and "\n" not in str(error), "MissingData must say in one line what is missing, and where")
            return "raises MissingData"
        except UsageError as error:
            raise Skipped(f"has no split test: {error}") from error
    return "needs no files"


def unknown_split(subject: Subject) -> str:
    """Asking for a split that it does not have raises UsageError."""
    subject.splits  # noqa: B018  # the splits of a folder are only known if the folder exists
    try:
        subject.found("no such split")
    except UsageError:
        return "raises UsageError"
    except MissingData as error:
        raise Failed("reports missing files for a split that does not exist; raise UsageError first") from error
    raise Failed("loads a split that does not exist")


CHECKS: dict[str, Callable[[Subject], str]] = {
    "loads": loads,
    "images": images,
    "labels": labels,
    "fingerprint": fingerprint,
    "base-index": base_index,
    "splits-apart": splits_apart,
    "source": source,
    "missing-files": missing_files,
    "unknown-split": unknown_split,
}
