"""Images that look alike without being equal: saved again at another size or quality, or frames of one video."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from oodbench import protocols
from oodbench.image_set import THUMBNAIL, ImageSet
from oodbench.protocols import Sides, Split

LIMIT = 8.0  # of 255 grey levels; CIFAR-10 saved again as JPEG stays below, different images of real sets differ by 9 or more
SHARE = 0.25  # of an image's own contrast: flat images all look alike
# Resampling changes images of 8×8 pixels by up to 43 grey levels and .36 of their contrast. Other digits differ by .37 or
# more from those of the network's classes, but by as little as .18 within one class.
SMALL_SHARE = 0.365
CHUNK = 512  # rows compared at once


def look_alikes(
    images: ImageSet,
    rows: np.ndarray,
    others: ImageSet,
    other_rows: np.ndarray,
    limit: float = LIMIT,
    share: float = SHARE,
) -> np.ndarray:
    """Which of these images look like one of the others: bool (len(rows),).

    Two images look alike if their thumbnails of 16×16 differ by at most ``limit`` grey levels (root mean square), and by at
    most ``share`` of the standard deviation of the first. What counts as one image (``protocols.same_images``) does not.
    """
    found = np.zeros(len(rows), dtype=bool)
    if images.images.shape[1] != others.images.shape[1] or not len(other_rows):
        return found
    numbers, other_numbers = (torch.from_numpy(ids) for ids in protocols.same_images(images, others))
    theirs, known = others.thumbnails[other_rows].float(), other_numbers[other_rows]
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        mine = images.thumbnails[part].float()
        if mine.shape[1] != theirs.shape[1]:
            return found
        most = (share * mine.std(1, correction=0)).clamp_max(limit)
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
    limit, share = (math.inf, SMALL_SHARE) if small else (LIMIT, SHARE)
    rows = np.arange(len(images))
    found = [look_alikes(images, rows, others, np.arange(len(others)), limit, share) for others in known]
    return int(np.any(found, axis=0).sum())


def _differences(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of every pair: (A, D), (B, D) -> (A, B)."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return (squares.clamp_min(0) / a.shape[1]).sqrt()
