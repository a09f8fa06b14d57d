"""Protocols define who may learn from what, and draw the splits: seeded, stratified, and never across a base image.

``unsupervised``: a detector sees only in-distribution images; whole sets are test samples.
``per-shift``, as in the papers: a held-out part of the shift under test is used to fit and choose the head.
``transfer``: that part of one named shift is used to fit and choose the head, which is tested on all other sets.
``validation``, as in OpenOOD: only hyper-parameters are chosen, on a set that is never tested.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch

from oodbench.errors import BadData, OodbenchError, Unsuitable
from oodbench.image_set import ImageSet

LEARNT_SHARE = 0.5  # of the images of a side that heads may learn from; Lee et al. 2018 take .1 of adversarial images
VALIDATION_SIZE = 1000  # maximum images per side, as in Liang et al. 2018 and Lee et al. 2018
HELD_OUT_SHARE = 0.1  # of the training images, for thresholds and calibration


def stratified_order(size: int, labels: np.ndarray | None, seed: int) -> np.ndarray:
    """A seeded permutation of ``size`` rows; with labels (size,), every prefix has the classes in proportion."""
    random = np.random.default_rng(seed)
    shuffled = random.permutation(size)
    if labels is None:
        return shuffled
    place = np.empty(size)
    for label in np.unique(labels):
        rows = shuffled[labels[shuffled] == label]
        place[rows] = (np.arange(len(rows)) + random.random(len(rows))) / len(rows)
    return np.argsort(place, kind="stable")


def held_out(size: int, labels: np.ndarray | None, seed: int) -> np.ndarray:
    """bool (size,): the tenth of the training images that nothing is fitted on; at least one image."""
    mask = np.zeros(size, dtype=bool)
    mask[stratified_order(size, labels, seed)[: max(1, round(size * HELD_OUT_SHARE))]] = True
    return mask


def validation_size(size: int, share: float = LEARNT_SHARE) -> int:
    """Images of a side of ``size`` images that may be learnt from, at most."""
    return min(VALIDATION_SIZE, int(size * share + 1e-9))  # 100 · 0.29 is 29, which rounding may put just below


def limited(images: ImageSet, limit: int | None, seed: int) -> ImageSet:
    """The first ``limit`` images of the seeded, stratified order, in their original order; without a limit the whole set."""
    if limit is None or limit >= len(images):
        return images
    import torch

    return images.select(torch.from_numpy(np.sort(stratified_order(len(images), labels_of(images), seed)[:limit])))


class Sides(NamedTuple):
    """The two sides to separate: in-distribution images and anomalous images."""

    in_distribution: ImageSet
    anomalous: ImageSet


@dataclass(frozen=True)
class Split:
    """Rows of the in-distribution and the anomalous set: half of the validation rows fit, half choose, the rest is tested."""

    in_fit: np.ndarray
    in_choose: np.ndarray
    in_test: np.ndarray
    out_fit: np.ndarray
    out_choose: np.ndarray
    out_test: np.ndarray

    @property
    def in_validation(self) -> np.ndarray:
        return np.concatenate([self.in_fit, self.in_choose])

    @property
    def out_validation(self) -> np.ndarray:
        return np.concatenate([self.out_fit, self.out_choose])

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        return iter((field.name, getattr(self, field.name)) for field in fields(self))


def whole(inside: ImageSet, outside: ImageSet) -> Split:
    """The unsupervised split: everything is tested."""
    none = np.empty(0, dtype=np.int64)
    return Split(none, none, np.arange(len(inside)), none, none, np.arange(len(outside)))


def per_shift(inside: ImageSet, outside: ImageSet, seed: int, share: float = LEARNT_SHARE) -> Split:
    """Validation = min(1000, n_in · share, n_out · share) images from each side; all that are one image (``same_images``)
    together.

    Raises Unsuitable if a side has too few images to split.
    """
    in_ids, out_ids = same_images(inside, outside)
    in_order = in_ids[stratified_order(len(inside), labels_of(inside), seed)]
    out_order = out_ids[stratified_order(len(outside), labels_of(outside), seed)]
    in_order, out_order = _unique(in_order), _unique(out_order)
    size = min(validation_size(len(order), share) for order in (in_order, out_order))
    common = in_order[np.isin(in_order, out_order)]
    if len(common) and shares_images(inside, outside):
        # The anomalous images are copies of in-distribution ones: both sides use the same base images.
        in_order = out_order = common
        size = min(size, validation_size(len(common), share))
    elif len(common):  # a few images that happen to be on both sides: they are tested, and nothing is learnt from them
        in_order, out_order = (order[~np.isin(order, common)] for order in (in_order, out_order))
        size = min(size, len(in_order), len(out_order))
    if size < 4:
        common_images = f", {len(common)} of them in common" if len(common) else ""
        less = f" with learnt_share = {share:g}" if share != LEARNT_SHARE else ""
        raise Unsuitable(
            f"per-shift{less} needs {math.ceil(4 / share)} images per side; {inside.name} has {len(inside)} and {outside.name}"
            f" {len(outside)}{common_images}"
        )
    half = size // 2

    def parts(ids: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        fit, choose = np.isin(ids, order[:half]), np.isin(ids, order[half:size])
        return np.flatnonzero(fit), np.flatnonzero(choose), np.flatnonzero(~fit & ~choose)

    split = Split(*parts(in_ids, in_order), *parts(out_ids, out_order))
    sides = Sides(inside, outside)
    check_no_leak(split, sides, sides)
    return split


def choosing(sides: Sides, seed: int, share: float | None = None) -> Split:
    """The split of images that hyper-parameters are chosen on: all of both sides.

    With a ``share``, the in-distribution side is tested too, and only its validation images choose.

    Raises Unsuitable if none are left to choose on.
    """
    inside, outside = sides
    rows = np.arange(len(inside))
    if share is not None:
        rows = np.sort(stratified_order(len(inside), labels_of(inside), seed)[: validation_size(len(inside), share)])
    if not len(rows):
        raise Unsuitable(f"{inside.name} has too few images to choose hyper-parameters on; give more, or raise --limit")
    none = np.empty(0, dtype=np.int64)
    return Split(none, rows, none, none, np.arange(len(outside)), none)


def transfer(learnt: Split, learnt_from: Sides, tested_on: Sides, protocol: str = "transfer") -> Split:
    """The test split for heads that learnt from another pair of sides, with its ``per_shift`` or ``choosing`` split.

    It holds all images except copies of those that the heads learnt from. ``in_fit``, ``in_choose``, ``out_fit`` and
    ``out_choose`` are rows of ``learnt_from``.

    Raises Unsuitable if no images are left on a side.
    """

    *learnt_ids, in_ids, out_ids = same_images(*learnt_from, *tested_on)
    validation = zip(learnt_ids, (learnt.in_validation, learnt.out_validation), strict=True)
    known = np.concatenate([ids[rows] for ids, rows in validation])

    def fresh(side: ImageSet, ids: np.ndarray) -> np.ndarray:
        mask = ~np.isin(ids, known)
        if not mask.any():
            raise Unsuitable(
                f"all of {side.name} are copies of images of {learnt_from.anomalous.name} that {protocol} learns from"
            )
        return np.flatnonzero(mask)

    split = replace(learnt, in_test=fresh(tested_on.in_distribution, in_ids), out_test=fresh(tested_on.anomalous, out_ids))
    check_no_leak(split, learnt_from, tested_on)
    return split


def shares_images(a: ImageSet, b: ImageSet) -> bool:
    """Whether two sets were made from one base set."""
    return a.identity == b.identity


def with_twins(images: ImageSet, inside: ImageSet) -> ImageSet:
    """A set with the in-distribution test images that it was made from as clean twins, if all of them are there."""
    if images.clean is not None or not shares_images(inside, images):
        return images
    bases = inside.base_index.tolist()
    place = dict(zip(reversed(bases), reversed(range(len(bases))), strict=True))  # the first row: later ones are shifted
    rows = [place.get(int(base), -1) for base in images.base_index]
    return images if -1 in rows else replace(images, clean=inside.select(torch.tensor(rows)).images)


def same_images(*sets: ImageSet) -> list[np.ndarray]:
    """A number per image of each set, int64 (N,): equal for images that are one image, in order of first appearance.

    Two images are one if they were made from the same row of one base set, or if their pixels are equal; or both, by way of
    other images. Where one of the sets is known by its files, equal files count in place of equal pixels.
    """
    by_files = any(images.read_as for images in sets)
    identities = [images.identity for images in sets]
    rows = 1 + max(int(images.base_index.max()) for images in sets)  # of a base set, at most
    of_bases = [identities.index(images.identity) * rows + images.base_index.numpy() for images in sets]
    _, bases = np.unique(np.concatenate(of_bases), return_inverse=True)
    found = [one.file_contents if by_files and one.files else one.contents for one in sets]
    _, contents = np.unique(np.concatenate(found), return_inverse=True)
    _, first, inverse = np.unique(_linked(bases, contents), return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(first))[inverse]
    return np.split(numbers, np.cumsum([len(images) for images in sets])[:-1])


def _linked(bases: np.ndarray, contents: np.ndarray) -> np.ndarray:
    """A number per image (N,) of the images that its base (N,) and its content (N,) link it to, directly or not."""
    count, others = int(bases.max()) + 1, int(contents.max()) + 1
    if len(np.unique(bases * others + contents)) == count == others:
        return bases  # each base has one content, and each content one base: scipy takes a fifth of a second to load
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(bases)), (bases, count + contents)), shape=(count + others,) * 2)
    return np.asarray(connected_components(links, directed=False)[1])[bases]


def copies_of(train: ImageSet, test: ImageSet) -> np.ndarray:
    """The rows of ``test`` whose image is also in ``train``: int64 (k,)."""
    known, tested = same_images(train, test)
    return np.flatnonzero(np.isin(tested, known))


def require_same_classes(train: ImageSet, held_out: ImageSet) -> None:
    """Raise BadData where images of ``held_out`` have a class that ``train`` does not have under the same number."""
    if train.labels is None or held_out.labels is None or not train.classes or not held_out.classes:
        return
    labels = held_out.labels.unique().tolist()
    strange = [held_out.classes[n] for n in labels if held_out.classes[n] not in train.classes[n : n + 1]]
    if strange:
        some = ", ".join(strange[:5]) + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
        raise BadData(
            f"{held_out.name}: its {held_out.split} split has classes that its {train.split} split lacks or numbers otherwise"
            f" ({some}); give both splits the same classes"
        )


def check_no_leak(split: Split, learnt_from: Sides, tested_on: Sides) -> None:
    """Raise OodbenchError if one image is among both the test rows and the fitting or choosing rows."""
    ids = same_images(*learnt_from, *tested_on)
    learnt: set[int] = set()
    tested: set[int] = set()
    for name, rows in split:
        is_test = name.endswith("_test")
        of_side = ids[2 * is_test + name.startswith("out_")]
        (tested if is_test else learnt).update(of_side[rows].tolist())
    if leak := learnt & tested:
        names = f"{tested_on.in_distribution.name} and {tested_on.anomalous.name}"
        raise OodbenchError(f"{len(leak)} images of {names} would be both fitted and tested on")


def labels_of(images: ImageSet) -> np.ndarray | None:
    """int64 (N,), or None."""
    return None if images.labels is None else images.labels.numpy()


def _unique(order: np.ndarray) -> np.ndarray:
    """Unique values in order of first appearance."""
    return order[np.sort(np.unique(order, return_index=True)[1])]
