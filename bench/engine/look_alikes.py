"""Images that look alike without being equal: saved again at another size or quality, or frames of one video."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from oodbench import protocols
from oodbench.image_set import THUMBNAIL, ImageSet
from oodbench.protocols import Sides, Split

LIMIT = 8.0  # of 255 grey levels; CIFAR-10 saved again as JPEG stays below, different images of real sets differ by 9 or more
SHARE = 0.25  # of an image's own contrast: flat images all look alike
# Small images change much when they are saved at another size, and their contrast too. In units of their contrast, 96 % of
# digits of 8×8 pixels change by less than this (half of them with bilinear filters), and at most 2 % of other digits, saved
# at another size, come as close to one of the classes of the suite.
SMALL_SHARE = 0.3
CHUNK = 512  # rows compared at once


def look_alikes(
    images: ImageSet, rows: np.ndarray, others: ImageSet, other_rows: np.ndarray, by_contrast: bool = False
) -> np.ndarray:
    """Which of these images look like one of the others: bool (len(rows),).

    Two images look alike if their thumbnails of 16×16 differ by at most 8 grey levels (root mean square), and by at most a
    quarter of the standard deviation of the first; or, ``by_contrast``, by at most .3 if both are scaled to mean 0 and
    standard deviation 1. What counts as one image (``protocols.same_images``) does not.
    """
    found = np.zeros(len(rows), dtype=bool)
    if images.images.shape[1] != others.images.shape[1] or not len(other_rows):
        return found
    numbers, other_numbers = (torch.from_numpy(ids) for ids in protocols.same_images(images, others))
    theirs, known = others.thumbnails[other_rows].float(), other_numbers[other_rows]
    if by_contrast:
        theirs = _standardised(theirs)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        mine = images.thumbnails[part].float()
        if mine.shape[1] != theirs.shape[1]:
            return found
        contrast = mine.std(1, correction=0)
        if by_contrast:
            mine, most = _standardised(mine), SMALL_SHARE * (contrast > LIMIT)
        else:
            most = (SHARE * contrast).clamp_max(LIMIT)
        far = _differences(mine, theirs) > most[:, None]
        same = numbers[part][:, None] == known
        found[start : start + CHUNK] = (~far & ~same).any(1).numpy()
    return found


def of_split(split: Split, learnt_from: Sides, tested_on: Sides) -> int:
    """How many tested images look like one that the heads learnt from, of the same side."""
    inside = look_alikes(tested_on[0], split.in_test, learnt_from[0], split.in_validation)
    outside = look_alikes(tested_on[1], split.out_test, learnt_from[1], split.out_validation)
    return int(inside.sum() + outside.sum())


def of_in_distribution(images: ImageSet, known: Iterable[ImageSet]) -> int:
    """How many anomalous images look like one of these in-distribution sets."""
    small = min(images.images.shape[2:]) < THUMBNAIL
    rows = np.arange(len(images))
    found = [look_alikes(images, rows, others, np.arange(len(others)), by_contrast=small) for others in known]
    return int(np.any(found, axis=0).sum())


def _standardised(thumbnails: Tensor) -> Tensor:
    """(N, D), each with mean 0 and standard deviation 1."""
    centred = thumbnails - thumbnails.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt().clamp_min(1)


def _differences(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of every pair: (A, D), (B, D) -> (A, B)."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return (squares.clamp_min(0) / a.shape[1]).sqrt()
