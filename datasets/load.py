"""``load_dataset``: load images by name, with the same resizing, colour and checks for all sets.

The forms of names are listed in ``oodbench.datasets.name``.
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oodbench import registry
from oodbench.classifier import Classifier
from oodbench.datasets import benign, corruptions
from oodbench.datasets.adversarial.adversarial_sets import attacked
from oodbench.datasets.adversarial.attacks import require as require_attack
from oodbench.datasets.folder import folder
from oodbench.datasets.formats.files import ImageFiles
from oodbench.datasets.formats.image_cache import kept
from oodbench.datasets.image_list import image_list
from oodbench.datasets.name import BY_PATH, FOLDER, IMAGE_LIST, NOT, Name, is_absolute, parse, without_answers
from oodbench.datasets.overlaps import shared_classes
from oodbench.datasets.resize import Resized, decoded
from oodbench.datasets.transform import Transform
from oodbench.errors import BadData, MissingData, OodbenchError, Unsuitable, UsageError, around_call, contained, reason_in
from oodbench.image_set import Changed, Images, ImageSet
from oodbench.paths import DataRoots, data_roots
from oodbench.progress import Progress

SIZE_WHERE_SIZES_VARY = 32
MOST_WORKERS = 1024  # more would only exhaust the machine
DIGITS = 18  # every number of so many digits fits into the int64 of labels
OWN: Mapping[str, Callable[[Path, str, str], ImageSet]] = {FOLDER: folder, IMAGE_LIST: image_list}  # loader(root, path, split)
IN_MEMORY = 2 * 2**30  # largest set, in bytes of pixels, that is decoded once into one tensor


def load_dataset(
    name: str,
    *,
    data: DataRoots = None,
    split: str = "test",
    size: int | None = None,
    resize: str | None = None,
    shorter_side: int | None = None,
    classifier: Classifier | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] = {},
    first: int | None = None,
    workers: int = 0,
    cache_images: bool = False,
    progress: Progress | None = None,
) -> ImageSet:
    """Load the images of a set by name, uint8 (N, 3, H, W).

    Args:
        name: see ``oodbench.datasets.name``.
        data: the data root, or several that are searched in order; by default ``$OODBENCH_DATA``, else the cache folder.
        size: pixels per side, in place of what the network states. Without either, a set keeps its own size, or 32x32 if sizes
            vary. Images that have the size already are not resampled.
        resize: the filter, in place of what the network states or ``bilinear``; see ``Transform``.
        shorter_side: pixels of the shorter side before the middle is cropped, as of ``Transform``.
        classifier: the network to attack. Its transform is used for any set.
        seed: random seed of a corruption or attack.
        settings: settings of an attack (``eps``, ``filtered``, …); see ``attacked``.
        first: load only the first N images.
        workers: number of processes that decode a set of many files.
        cache_images: whether to keep the decoded and resized images of a set of files in the cache folder, and to read them
            from there the next time.

    Raises UsageError for an unknown name, split, class, part or level, MissingData if the set's files are absent, BadData if
    they are broken, Unsuitable for an attack without a network.
    """
    parsed = parse(name)
    if first is not None and first < 1:
        raise UsageError(f"first is {first}; give a number of images of at least 1")
    if parsed.misclassified:
        raise UsageError(f"{name}: only a run knows which images a network gets wrong; load {without_answers(name)}")
    if parsed.attack:
        require_attack(parsed.attack)
    progress = progress or Progress()
    stated = classifier.transform if classifier is not None else None
    transform = (stated or Transform()).replaced(size, resize, shorter_side)
    images = original(parsed, data, split, transform, workers, progress, cache_images)
    if first is not None and first < len(images):
        images = images.select(torch.arange(first))
    return changed(images, parsed, classifier=classifier, seed=seed, settings=settings, progress=progress)


def original(
    parsed: Name,
    data: DataRoots,
    split: str,
    transform: Transform,
    workers: int,
    progress: Progress,
    cache_images: bool = False,
) -> ImageSet:
    """Load the set without its corruption or attack: RGB, in one size. Arguments and errors as in ``load_dataset``."""
    if not 0 <= workers <= MOST_WORKERS:
        raise UsageError(f"workers is {workers}; give a number of processes from 0 to {MOST_WORKERS:,}")
    # One call reads a whole set, which may take long: ours are only named.
    ours = parsed.base in BY_PATH or registry.find("datasets", parsed.base).distribution == "oodbench"
    with around_call.get()(f"loading {parsed.original}", ends=not ours):
        loaded = from_roots(parsed, data, lambda root: as_loaded(parsed, root, split))
    images = replace(_uniform(loaded, transform, workers, progress, cache_images), name=parsed.whole)
    if (left_out := shared_classes(parsed.base, parsed.wanted_class)) is not None:
        images = without_classes(images, [images.classes.index(name) for name in images.classes if name in left_out])
    elif parsed.wanted_class:
        images = by_class(images, parsed.wanted_class)
    return replace(images, name=parsed.original, split=split)


def changed(
    images: ImageSet,
    parsed: Name,
    *,
    classifier: Classifier | None,
    seed: int,
    settings: Mapping[str, Any],
    progress: Progress,
    batch_size: int = 256,
) -> ImageSet:
    """Apply the corruption, benign change or attack of the name, if it has one. Errors as in ``load_dataset``."""
    if settings and not parsed.attack:
        raise UsageError(f"{images.name}: settings are for attacks ({', '.join(settings)}); leave them out")
    if parsed.corruption and parsed.level:
        return corrupted(images, parsed.corruption, parsed.level, seed)
    if parsed.benign:
        return benignly_changed(images, parsed.benign, seed)
    if parsed.attack:
        if classifier is None:
            raise Unsuitable(f"{images.name}+{parsed.attack} is made against a network; name one (a suite's model)")
        return attacked(
            images, parsed.attack, classifier, seed=seed, settings=settings, progress=progress, batch_size=batch_size
        )
    return images


def by_class(images: ImageSet, wanted: str) -> ImageSet:
    """Select the images of one class, or after ``not-`` of all others; ``base_index`` refers to the whole set.

    A class has a name or a number. Raises UsageError for an unknown one, BadData if no image is left.
    """
    leaves_out = wanted.startswith(NOT) and wanted not in images.classes
    name = wanted.removeprefix(NOT) if leaves_out else wanted
    label = _label(images, name, wanted)
    assert images.labels is not None  # as it has a label
    found = images.labels == label
    if not found.any() and not (leaves_out and images.classes):
        raise BadData(f"{images.name} ({images.split}) holds no image of class '{name}'; choose another class")
    return without_classes(images, [label]) if leaves_out else _part(images, torch.nonzero(found).flatten())


def without_classes(images: ImageSet, left_out: Sequence[int]) -> ImageSet:
    """Select the images of all other classes, by number. Raises BadData if there is none."""
    assert images.labels is not None
    rows = torch.nonzero(~torch.isin(images.labels, torch.tensor(left_out))).flatten()
    if len(rows) == 0:
        raise BadData(f"{images.name} ({images.split}) holds only images of classes that are left out; use {images.name}")
    return _part(images, rows)


def _label(images: ImageSet, name: str, selection: str) -> int:
    """The number of a class. Raises UsageError for an unknown one, and for a set without labels."""
    if images.labels is None:
        raise UsageError(f"{images.name} has no labels, so no class '{name}'; leave ':{selection}' out")
    if name in images.classes:
        return images.classes.index(name)
    if name.isdecimal() and len(name) <= DIGITS and (not images.classes or int(name) < len(images.classes)):
        return int(name)
    if not images.classes:
        raise UsageError(f"{images.name} has no class '{name}'; its classes are numbers of at most {DIGITS} digits")
    listing = f"{len(images.classes)} classes: {', '.join(images.classes[:10])}{', …' * (len(images.classes) > 10)}"
    raise UsageError(registry.unknown("class", name, images.classes, listing, of=images.name))


def _part(images: ImageSet, rows: Tensor) -> ImageSet:
    """Select some classes. Of a whole set they count as whole; of a subset the set's official size is kept, which marks it as
    partial."""
    official = {images.split: len(rows)} if images.official_size == len(images) else images.source.official_size
    return replace(images.select(rows), source=replace(images.source, official_size=official))


def corrupted(images: ImageSet, corruption: str, level: int, seed: int) -> ImageSet:
    """Corrupt a set; labels are kept. The randomness of an image depends on its row in the base set.

    Raises Unsuitable if the corruption changes nothing, such as ``decolor`` on grey images.
    """
    change = partial(corruptions.corrupt, name=corruption, level=level, seed=seed)
    found = _made_from(images, change, f"{corruption}@{level}", f"with {corruption} at level {level}: C-style, generated")
    if isinstance(found.images, Tensor) and isinstance(images.images, Tensor) and torch.equal(found.images, images.images):
        raise Unsuitable(f"{corruption} leaves the images of {images.name} as they are: there is nothing to detect")
    return replace(found, kind="corruption", level=level)


def benignly_changed(images: ImageSet, name: str, seed: int) -> ImageSet:
    """A set after a benign change; labels are kept, and the randomness is as in ``corrupted``."""
    change = partial(benign.change, name=name, seed=seed)
    return replace(_made_from(images, change, name, f"after the benign change {name}"), kind="benign")


def _made_from(images: ImageSet, change: partial[Tensor], name: str, how: str) -> ImageSet:
    """The set after ``change(pixels, index=base_index)``, on demand if it decodes on demand, with its clean twins."""
    pixels, index = images.images, images.base_index
    return replace(
        images,
        images=change(pixels, index=index) if isinstance(pixels, Tensor) else Changed(pixels, change, index),
        clean=images.images,
        name=f"{images.name}+{name}",
        base=images.identity,
        source=replace(images.source, title=f"{images.source.title}, {how}"),
        read_as=f"{images.read_as}, {name}, seed {change.keywords['seed']}" if images.read_as else "",
    )


def takes_parts(loader: object) -> bool:
    """Whether a loader has parts: ``loader(root, split, part, level)`` rather than ``loader(root, split)``."""
    return callable(loader) and "part" in inspect.signature(loader).parameters


def from_roots(name: Name, data: DataRoots, load: Callable[[Path], ImageSet]) -> ImageSet:
    """What ``load(root)`` gives for the first data root that holds the set. Raises MissingData, naming all, if none does."""
    roots = data_roots(data)
    missing = []
    # An absolute folder is the same below every root; the images of an absolute list are not.
    for root in roots[:1] if is_absolute(name.path) and not os.path.isfile(name.path) else roots:
        try:
            return load(root)
        except MissingData as error:
            missing.append(error)
    if len(missing) == 1:
        raise missing[0]
    raise MissingData(f"{missing[0]}; also searched: {', '.join(map(str, roots[1:]))}") from missing[0]


def as_loaded(name: Name, root: Path, split: str) -> ImageSet:
    """Load the base set with its loader, and check that the loader kept its contract."""
    if name.base in BY_PATH:
        return OWN[name.base](root, name.path, split)
    loader = registry.load("datasets", name.base)
    owner = registry.find("datasets", name.base).owner
    if name.part and not takes_parts(loader):
        raise UsageError(f"{name.base} has no parts, so no '{name.part}'; write {name.base}")
    try:
        with contained():
            images = loader(root, split, name.part, name.part_level) if takes_parts(loader) else loader(root, split)
    except OodbenchError:
        raise
    except Exception as error:
        why = reason_in(error, registry.find("datasets", name.base).target)
        raise OodbenchError(f"dataset '{name.base}' of {owner} cannot be loaded: {why}") from error
    if not isinstance(images, ImageSet):
        raise BadData(f"dataset '{name.base}' of {owner} returned {type(images).__name__}; a loader must return an ImageSet")
    own = isinstance(images.images, ImageFiles)  # which reads the headers of all files to tell their shape
    if not own and (len(images.images.shape) != 4 or images.images.shape[1] not in (1, 3)):
        raise BadData(f"dataset '{name.base}' of {owner} has shape {tuple(images.images.shape)}, not (N, 1 or 3, H, W)")
    if images.labels is None:
        return images
    last = len(images.classes) - 1 if images.classes else torch.inf
    if images.labels.is_floating_point():
        raise BadData(f"dataset '{name.base}' of {owner} has {images.labels.dtype} labels; a loader must return int64 (N,)")
    if images.labels.min() < 0 or images.labels.max() > last:
        known = f"outside 0 to {last}, its classes" if images.classes else "below 0"
        raise BadData(f"dataset '{name.base}' of {owner} has labels {known}; correct the labels")
    return replace(images, labels=images.labels.to(torch.int64))


def _uniform(images: ImageSet, transform: Transform, workers: int, progress: Progress, cache_images: bool) -> ImageSet:
    """Convert the set to RGB in one size, in memory unless it is too large."""
    size = transform.size
    height, width = (size, size) if size else images.images.shape[2:]  # 0 where sizes vary
    wanted = (height or SIZE_WHERE_SIZES_VARY, width or SIZE_WHERE_SIZES_VARY)
    if not height:
        progress.say(
            f"{images.name} ({images.split}): its images vary in size and are resized to {wanted[1]}x{wanted[0]} pixels; if the"
            " network takes another size, give --size N (in a suite, size)"
        )

    read_as = f"uint8 RGB, {wanted[1]}x{wanted[0]}, {transform}"

    def uniform(pixels: Tensor | Images) -> Tensor | Images:
        cropped = transform.shorter_side is not None and wanted != 2 * (transform.shorter_side,)
        if isinstance(pixels, Tensor) and tuple(pixels.shape[1:]) == (3, *wanted) and not cropped:
            return pixels
        fitted: Images = Resized(pixels, wanted, transform.resize, transform.shorter_side)
        if cache_images and pixels is images.images and len(images.files):
            fitted = kept(fitted, images.files, read_as, f"{images.name} ({images.split})", workers, progress)
        too_large = len(pixels) * 3 * wanted[0] * wanted[1] > IN_MEMORY
        return fitted if too_large else decoded(fitted, workers, progress, images.name)

    changed = images.mapped(uniform)
    by_files = len(images.files) > 0 and not isinstance(changed["images"], Tensor)
    return replace(images, **changed, read_as=read_as if by_files else "")
