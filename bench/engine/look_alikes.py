"""Images that look alike without being equal: saved again at another size or quality, or frames of one video."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from oodbench import protocols
from oodbench.image_set import THUMBNAIL, ImageSet
from oodbench.protocols import Sides, Split

LIMIT = 8.0  # of 255 grey levels; CIFAR-10 saved again as JPEG stays below, different images of real sets differ by 9 or more
SHARE = 0.25  # of an image's own contrast: flat images all look alike
# Small images change much when they are saved at another size, and their contrast too: most with a bilinear filter, which
# blurs. So they are compared with a blurred copy of the known image too. In units of their contrast, practically all digits
# of 8×8 pixels that were saved at twice the size or more, with any usual filter, then differ by less than this, and at most
# 2 % of other digits, saved at another size, come as close to one of the classes of the suite.
SMALL_SHARE = 0.23
BLUR = 4  # times the size at which the blurred copy is saved; the blur hardly depends on it
CHUNK = 512  # rows compared at once


def look_alikes(
    images: ImageSet, rows: np.ndarray, others: ImageSet, other_rows: np.ndarray, by_contrast: bool = False
) -> np.ndarray:
    """Which of these images look like one of the others: bool (len(rows),).

    Two images look alike if their thumbnails of 16×16 differ by at most 8 grey levels (root mean square), and by at most a
    quarter of the standard deviation of the first; or, ``by_contrast``, by at most .23 if both are scaled to mean 0 and
    standard deviation 1; there a blurred copy of the other counts too. What counts as one image
    (``protocols.same_images``) does not.
    """
    found = np.zeros(len(rows), dtype=bool)
    if images.images.shape[1] != others.images.shape[1] or not len(other_rows):
        return found
    numbers, other_numbers = (torch.from_numpy(ids) for ids in protocols.same_images(images, others))
    theirs, known = others.thumbnails[other_rows].float(), other_numbers[other_rows]
    if by_contrast:
        theirs = _standardised(torch.cat([theirs, _blurred(theirs, others.images.shape)]))
        known = known.repeat(2)
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


def _blurred(thumbnails: Tensor, shape: Sequence[int]) -> Tensor:
    """(N, D) with the small sides enlarged and shrunk by bilinear filters, for images of this shape (N, C, H, W)."""
    sides = [min(THUMBNAIL, pixels) for pixels in shape[2:]]
    enlarged_sides = [side * BLUR if side < THUMBNAIL else side for side in sides]
    enlarged = interpolate(thumbnails.unflatten(1, (shape[1], *sides)), size=enlarged_sides, mode="bilinear")
    return interpolate(enlarged, size=sides, mode="bilinear", antialias=True).flatten(1)


def _standardised(thumbnails: Tensor) -> Tensor:
    """(N, D), each with mean 0 and standard deviation 1."""
    centred = thumbnails - thumbnails.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt().clamp_min(1)


def _differences(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of every pair: (A, D), (B, D) -> (A, B)."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return (squares.clamp_min(0) / a.shape[1]).sqrt()
