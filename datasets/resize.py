"""One resize kernel for all sets: a different kernel per set would be a cue that separates them."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from oodbench.batching import decoded_batches
from oodbench.errors import BadData
from oodbench.image_set import Images
from oodbench.progress import Progress

MANY = 5_000  # number of images from which decoding reports progress and may start processes
CHUNK = 2**22  # bytes of pixels that a worker returns at a time


def decoded(images: Images, workers: int, progress: Progress, name: str = "images") -> Tensor:
    """Decode all images, which have one size, to uint8 (N, C, H, W). The result does not depend on the number of workers.

    ``workers`` processes decode a set of at least ``MANY`` images. With 0 workers, and for smaller sets, this process does.
    """
    many = len(images) >= MANY
    if many:
        progress.stage(f"decoding {len(images):,} images of {name}")
        progress.expect(len(images))
    result = torch.empty(tuple(images.shape), dtype=torch.uint8)
    step = max(1, CHUNK // max(1, result[:1].numel()))
    pieces = [np.arange(start, min(start + step, len(images))) for start in range(0, len(images), step)]
    for piece, batch in zip(pieces, decoded_batches(images, pieces, workers if many else 0, name=name), strict=True):
        result[int(piece[0]) : int(piece[-1]) + 1] = batch
        if many:
            progress.advance(len(piece))
    return result


class Resized:
    """``Images`` (N, 3, H, W) of the given size, resized on demand from grey or RGB images of any size as by ``fit``."""

    def __init__(self, images: Tensor | Images, size: tuple[int, int], resize: str, shorter_side: int | None = None) -> None:
        self._images, self._size, self._resize, self._shorter_side = images, size, resize, shorter_side
        self.shape = (len(images), 3, *size)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        return torch.stack([fit(self._own(row), self._size, self._resize, self._shorter_side) for row in rows])

    def _own(self, row: int) -> Tensor:
        # Indexing a tensor by an int gives a view; indexing by a list would start torch's threads for each image.
        return self._images[row] if isinstance(self._images, Tensor) else self._images[[row]][0]


def fit(image: Tensor, size: tuple[int, int], resize: str, shorter_side: int | None = None) -> Tensor:
    """Resize an image: uint8 (1 or 3, h, w) -> uint8 (3, H, W), size = (H, W). What has its size already is not resampled.

    ``resize`` and ``shorter_side`` as of ``Transform``; with a shorter side, the longer one and the place
    of the crop are rounded as torchvision does. Raises BadData for any other input.
    """
    if image.dtype != torch.uint8 or image.dim() != 3 or len(image) not in (1, 3) or 0 in image.shape:
        raise BadData(f"an image is {image.dtype} {tuple(image.shape)}; give uint8 (1 or 3, H, W)")
    whole = size
    if shorter_side is not None:
        least = min(image.shape[1:])
        whole = shorter_side * image.shape[1] // least, shorter_side * image.shape[2] // least
    if tuple(image.shape[1:]) != whole:
        # Grey as a 2-D array (h, w), colour as (h, w, 3): as PIL accepts and returns them.
        pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy()
        # PIL's filters are antialiased when shrinking, and round to uint8.
        resized = np.array(Image.fromarray(pixels).resize(whole[::-1], Image.Resampling[resize.upper()]))
        image = torch.from_numpy(np.atleast_3d(resized)).permute(2, 0, 1)
    top, left = (round((has - wanted) / 2) for has, wanted in zip(whole, size, strict=True))
    return image[:, top : top + size[0], left : left + size[1]].expand(3, *size)
