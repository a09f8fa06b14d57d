"""Images that look alike without being equal: saved again at another size or quality, or frames of one video."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from oodbench import protocols
from oodbench.image_set import THUMBNAIL, ImageSet
from oodbench.protocols import Sides, Split

LIMIT = 8.0  # of 255 grey levels; CIFAR-10 saved again as JPEG stays below, different images of real sets differ by 9 or more
SHARE = 0.25  # of an image's own contrast: flat images all look alike
LEAST = (1 - SHARE**2) ** 0.5 - 1e-4  # correlation of two within that share, whatever the contrast of the second
# What a filter does to a small image when it is saved at another size can exceed these limits. So the known images that come
# nearest, in units of contrast, are saved at other sizes with every usual filter, and compared within a limit that copies keep.
# No image of a quarter of the test sets of CIFAR-100, TinyImageNet and GTSRB, or of the textures, comes as close to CIFAR-10;
# of digits of other classes, saved at 5 to 7 pixels, at most 2.5 % do, and saved larger, none.
SAVED_SHARE = 0.18
NEAR = 0.7  # in units of contrast; the original comes so near, and nearest, unless images are smaller than a thumbnail
CANDIDATES = 20  # known images for each image that is so small
# Lanczos and Hamming filters do what these do, within the limit. None is nearest neighbour by corners, as in OpenCV.
FILTERS = (Resampling.NEAREST, Resampling.BOX, Resampling.BILINEAR, Resampling.BICUBIC, None)
LARGEST = 64  # pixels of the shorter side; the thumbnail of a larger image hardly shows the filter
CHUNK, BLOCK = 512, 8192  # images compared at once, with so many others
PAIRS = 64  # of an image and a known one, saved at all sizes at once
MEANS = 4  # of blocks of a thumbnail, per side: they show which known images cannot be the original
SLACK = 1e-3  # of a limit, for the rounding of float32


def look_alikes(
    images: ImageSet, rows: np.ndarray, others: ImageSet, other_rows: np.ndarray, saved_again: bool = False
) -> np.ndarray:
    """Which of these images look like one of the others: bool (len(rows),).

    Two images look alike if their thumbnails of 16×16 differ by at most 8 grey levels (root mean square), and by at most a
    quarter of the standard deviation of the first. With ``saved_again``, also if the first looks like the other as saved at
    another size: both scaled to mean 0 and standard deviation 1, they differ by at most .18. What counts as one image
    (``protocols.same_images``) does not.
    """
    found = np.zeros(len(rows), dtype=bool)
    if images.images.shape[1] != others.images.shape[1] or not len(other_rows):
        return found
    if images.thumbnails.shape[1] != others.thumbnails.shape[1]:
        return found
    mine, known = torch.from_numpy(rows), torch.from_numpy(other_rows)
    ids, known_ids = (
        torch.from_numpy(of)[at] for of, at in zip(protocols.same_images(images, others), (mine, known), strict=True)
    )
    shared = torch.isin(ids, known_ids)
    candidates, least = (CANDIDATES, -1) if min(images.images.shape[2:]) < THUMBNAIL else (1, 1 - NEAR**2 / 2)
    candidates = min(candidates, len(known)) if saved_again else 0
    alike, contrast = torch.zeros(len(mine), dtype=torch.bool), torch.empty(len(mine))
    nearest, places = torch.full((len(mine), candidates), -torch.inf), torch.zeros(len(mine), candidates, dtype=torch.int64)
    for block in torch.arange(len(known)).split(BLOCK):
        theirs = _scaled(others.thumbnails[known[block]])
        for part in torch.arange(len(mine)).split(CHUNK):
            some = _scaled(images.thumbnails[mine[part]])
            contrast[part] = some.contrast
            correlations = some.thumbnails @ theirs.thumbnails.T / theirs.thumbnails.shape[1]
            for row in shared[part].nonzero()[:, 0]:  # what is one image does not count
                correlations[row, ids[part[row]] == known_ids[block]] = -torch.inf
            row, place = (correlations >= LEAST).nonzero(as_tuple=True)
            squares = _squares(some, theirs, correlations, row, place)
            alike[part[row[squares <= (SHARE * some.contrast[row]).clamp_max(LIMIT).square()]]] = True
            if candidates:
                values, place = correlations.topk(min(candidates, len(block)))
                nearest[part], kept = torch.cat([nearest[part], values], 1).topk(candidates)
                places[part] = torch.cat([places[part], block[place]], 1).gather(1, kept)
    near = (nearest >= least) & (contrast > LIMIT)[:, None] & ~alike[:, None]
    for pairs in near.nonzero().split(PAIRS) if near.any() else ():
        row, place = pairs[:, 0], places[pairs[:, 0], pairs[:, 1]]
        thumbnails = _scaled(images.thumbnails[mine[row]]).thumbnails
        alike[row[_are_saved_again(thumbnails, others.read(known[place]))]] = True
    return alike.numpy()


def of_split(split: Split, learnt_from: Sides, tested_on: Sides) -> int:
    """How many tested images look like one that the heads learnt from, of the same side."""
    inside = look_alikes(tested_on[0], split.in_test, learnt_from[0], split.in_validation)
    outside = look_alikes(tested_on[1], split.out_test, learnt_from[1], split.out_validation)
    return int(inside.sum() + outside.sum())


def of_in_distribution(images: ImageSet, known: Iterable[ImageSet]) -> int:
    """How many anomalous images look like one of these in-distribution sets."""
    small = min(images.images.shape[2:]) <= LARGEST
    rows = np.arange(len(images))
    found = [look_alikes(images, rows, others, np.arange(len(others)), saved_again=small) for others in known]
    return int(np.any(found, axis=0).sum())


class _Scaled(NamedTuple):
    thumbnails: Tensor  # (N, D), each with mean 0 and standard deviation 1
    mean: Tensor  # (N,)
    contrast: Tensor  # (N,): the standard deviation, at least 1


def _scaled(thumbnails: Tensor) -> _Scaled:
    contrast, mean = torch.std_mean(thumbnails.float(), 1, correction=0)
    contrast = contrast.clamp_min(1)
    return _Scaled((thumbnails - mean[:, None]) / contrast[:, None], mean, contrast)


def _squares(a: _Scaled, b: _Scaled, correlations: Tensor, row: Tensor, place: Tensor) -> Tensor:
    """Mean square differences of these pairs, in grey levels: (pairs,)."""
    first, second = a.contrast[row], b.contrast[place]
    spread = first.square() + second.square() - 2 * first * second * correlations[row, place]
    return (a.mean[row] - b.mean[place]).square() + spread


def _are_saved_again(thumbnails: Tensor, images: Tensor) -> Tensor:
    """Which of these scaled thumbnails (N, D) are of the image of their row (N, C, H, W), saved at another size: bool (N,)."""
    found = torch.zeros(len(images), dtype=torch.bool)
    images, ways = images.float(), list(_sizes_and_filters(*images.shape[2:]))
    possible = _may_be_saved_again(thumbnails, images, ways)
    for (down, across), rows in zip(ways, possible.T, strict=True):
        if rows.any():
            version = _scaled(((images[rows] @ across.T).mT @ down.T).mT.flatten(1)).thumbnails
            found[rows] |= (thumbnails[rows] - version).square().mean(1) <= SAVED_SHARE**2
    return found


def _may_be_saved_again(thumbnails: Tensor, images: Tensor, ways: list[tuple[Tensor, Tensor]]) -> Tensor:
    """bool (N, ways): False only where ``_are_saved_again`` could find nothing.

    Means of blocks are a projection, which shortens the difference of two thumbnails; whatever contrast the second is scaled
    by, the difference is at least the distance of the first from the line through the second.
    """
    (height, width), channels = (len(line) for line in ways[0]), images.shape[1]
    if height % MEANS or width % MEANS:
        return torch.ones(len(images), len(ways), dtype=torch.bool)
    downs, acrosses = (
        torch.stack([line.unflatten(0, (MEANS, -1)).mean(1) for line in lines]) for lines in zip(*ways, strict=True)
    )
    half = (images @ acrosses.flatten(0, 1).T).unflatten(-1, (len(ways), MEANS))  # (N, channels, H, ways, blocks)
    version = torch.einsum("kbh,nchka->nkcba", downs, half).flatten(2)  # (N, ways, channels · blocks · blocks)
    version -= version.mean(2, keepdim=True)
    mine = thumbnails.reshape(len(images), channels, MEANS, height // MEANS, MEANS, width // MEANS).mean((3, 5)).flatten(1)
    along = torch.einsum("nd,nkd->nk", mine, version).clamp_min(0).square() / version.square().sum(2).clamp_min(1e-12)
    apart = (mine.square().sum(1)[:, None] - along) / mine.shape[1]  # per pixel of the thumbnail, as blocks are equally large
    return apart <= SAVED_SHARE**2 * (1 + SLACK)


def _sizes_and_filters(height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What saving at a size with a filter makes of columns and of rows: matrices, as ``_line`` says.

    Above twice the size, a filter does much the same at every size.
    """
    shorter = min(height, width)
    for side in (*range(shorter // 2 + 1, 2 * shorter + 2), 4 * shorter):
        for resample in FILTERS:
            down, across = (_line(pixels, round(pixels * side / shorter), resample) for pixels in (height, width))
            yield down, across


@cache
def _line(pixels: int, saved: int, resample: Resampling | None) -> Tensor:
    """The matrix that resizes a line to ``saved`` pixels, back, and to a thumbnail: (≤ 16, pixels)."""
    line = np.eye(pixels, dtype=np.float32)
    if resample is None:
        line = line[np.arange(saved) * pixels // saved]
    else:
        line = np.asarray(Image.fromarray(line).resize((pixels, saved), resample))
    read = np.array(Image.fromarray(line).resize((pixels, pixels), Resampling.BILINEAR))
    return adaptive_avg_pool1d(torch.from_numpy(read).T, min(THUMBNAIL, pixels)).T
