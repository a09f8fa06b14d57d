"""``load_dataset``: from a name to images, all sets through the same resizing, colour and checks.

Names: ``cifar10``; ``cifar10:airplane`` or ``cifar10:0``, one class; ``cifar10+noise@3``, a corruption at level 3;
``cifar10:airplane+noise@3``; ``folder:PATH``, a folder below the data root, with ``folder:PATH:class`` and ``+noise@3`` too.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from oodbench import registry
from oodbench.classifier import Classifier
from oodbench.datasets import corruptions
from oodbench.datasets.resize import FILTERS, Fitted
from oodbench.errors import BadData, OodbenchError, UsageError, reason
from oodbench.image_set import Images, ImageSet
from oodbench.paths import data_root

SIZE_WHERE_SIZES_VARY = 32
IN_MEMORY = 2 * 2**30  # bytes of pixels up to which a set is decoded once, into one tensor


class Name(NamedTuple):
    """A set's name taken apart; what is not there is empty."""

    base: str
    path: str = ""  # of a folder
    wanted_class: str = ""
    corruption: str = ""
    level: int | None = None


def load_dataset(
    name: str,
    *,
    data: str | Path | None = None,
    split: str = "test",
    size: int | None = None,
    resize: str = "bilinear",
    classifier: Classifier | None = None,
    seed: int = 0,
) -> ImageSet:
    """The images of a set by its name, uint8 (N, 3, H, W).

    Args:
        name: see the head of this module.
        data: the data root; by default ``$OODBENCH_DATA``, else the cache folder.
        size: height and width in pixels. None keeps the set's own size, and makes images 32x32 where a set's sizes vary.
        resize: ``bilinear`` or ``lanczos``, antialiased (PIL's filters) and rounded to 8 bits; nothing is resampled that
            has its size already.
        classifier: for sets that are made against a network, as attacks are; no present set looks at it.
        seed: of the randomness of a corruption.

    Raises UsageError for a name, split, class or level that there is not, MissingData where the set's files are absent,
    BadData where they are broken.
    """
    parsed = parse(name)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise UsageError(f"size is {size!r}; give a number of pixels, or None for the set's own size")
    if resize not in FILTERS:
        raise UsageError(registry.unknown("resize filter", resize, FILTERS, f"known: {', '.join(FILTERS)}"))
    images = _uniform(_original(parsed, data_root(data), split), size, resize)
    if parsed.wanted_class:
        images = one_class(images, parsed.wanted_class)
    if parsed.corruption and parsed.level:
        images = corrupted(images, parsed.corruption, parsed.level, seed)
    return replace(images, name=name, split=split)


def parse(name: str) -> Name:
    """Take a name apart. Raises UsageError for an unknown corruption, and for a level that is missing or not 1 to 5."""
    original, plus, change = name.partition("+")
    base, _, rest = original.partition(":")
    path, _, wanted_class = rest.partition(":") if base == "folder" else ("", "", rest)
    if original.endswith(":") and base != "folder":
        raise UsageError(f"'{name}' names no class; write {base} for all of it, or {base}:CLASS")
    if not plus:
        return Name(base, path, wanted_class)
    corruption, _, level = change.partition("@")
    corruptions.require(corruption, int(level) if level.isdecimal() else repr(level))
    return Name(base, path, wanted_class, corruption, int(level))


def one_class(images: ImageSet, wanted: str) -> ImageSet:
    """The images of one class, named or numbered; ``base_index`` points into the whole set.

    Raises UsageError for a class that the set does not have, BadData where it has no image of it.
    """
    if images.labels is None:
        raise UsageError(f"{images.name} has no labels, so no class '{wanted}'; leave ':{wanted}' out")
    if wanted in images.classes:
        label = images.classes.index(wanted)
    elif wanted.isdecimal() and (not images.classes or int(wanted) < len(images.classes)):
        label = int(wanted)
    else:
        listing = f"{len(images.classes)} classes: {', '.join(images.classes[:10])}{', …' * (len(images.classes) > 10)}"
        raise UsageError(registry.unknown(f"class of {images.name}", wanted, images.classes, listing))
    rows = torch.nonzero(images.labels == label).flatten()
    if len(rows) == 0:
        raise BadData(f"{images.name} ({images.split}) holds no image of class '{wanted}'; choose another class")
    # Of a whole set the class is whole. Of a subset its official size is not known: the set's own stays, as a mark.
    official = {images.split: len(rows)} if images.official_size == len(images) else images.source.official_size
    return replace(images.select(rows), source=replace(images.source, official_size=official))


def corrupted(images: ImageSet, corruption: str, level: int, seed: int) -> ImageSet:
    """The set under a corruption, labels kept. An image's randomness hangs on its row in the base set."""
    index = images.base_index
    pixels: Tensor | Images
    if isinstance(images.images, Tensor):
        pixels = corruptions.corrupt(images.images, corruption, level, seed, index)
    else:
        pixels = corruptions.Corrupted(images.images, corruption, level, seed, index)
    return replace(
        images,
        images=pixels,
        kind="corruption",
        level=level,
        base=images.base or images.fingerprint,
        source=replace(images.source, title=f"{images.source.title}, with {corruption} at level {level}, generated"),
    )


def _original(name: Name, root: Path, split: str) -> ImageSet:
    """What the loader of the base gives, after a check that it kept its contract."""
    if name.base == "folder":
        from oodbench.datasets.folder import folder

        return folder(root, name.path, split)
    loader = registry.load("datasets", name.base)
    owner = registry.find("datasets", name.base).owner
    try:
        images = loader(root, split)
    except OodbenchError:
        raise
    except Exception as error:
        raise OodbenchError(f"dataset '{name.base}' of {owner} cannot be loaded: {reason(error)}") from error
    if not isinstance(images, ImageSet):
        raise BadData(f"dataset '{name.base}' of {owner} gave {type(images).__name__}; a loader returns an ImageSet")
    if len(images.images.shape) != 4 or images.images.shape[1] not in (1, 3):
        raise BadData(f"dataset '{name.base}' of {owner} has shape {tuple(images.images.shape)}, not (N, 1 or 3, H, W)")
    if images.labels is None:
        return images
    last = len(images.classes) - 1 if images.classes else torch.inf
    if images.labels.is_floating_point() or images.labels.min() < 0 or images.labels.max() > last:
        raise BadData(f"dataset '{name.base}' of {owner} has labels that are not 0, 1, … {last}; a loader gives int64 (N,)")
    return replace(images, labels=images.labels.to(torch.int64))


def _uniform(images: ImageSet, size: int | None, resize: str) -> ImageSet:
    """The set in RGB and in one size, in memory unless it is too large."""
    pixels = images.images
    height, width = (size, size) if size else pixels.shape[2:]  # 0 where sizes vary
    wanted = (height or SIZE_WHERE_SIZES_VARY, width or SIZE_WHERE_SIZES_VARY)
    if isinstance(pixels, Tensor) and tuple(pixels.shape[1:]) == (3, *wanted):
        return images
    fitted = Fitted(pixels, wanted, resize)
    if len(images) * 3 * wanted[0] * wanted[1] > IN_MEMORY:
        return replace(images, images=fitted)
    decoded = torch.empty(fitted.shape, dtype=torch.uint8)
    for row in range(len(images)):
        decoded[row] = fitted[[row]][0]
    return replace(images, images=decoded)
