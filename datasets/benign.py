"""Benign changes: what a person does not notice, or does not mind. A detector should raise no alarm on such images.

As for corruptions, the randomness of an image depends on the seed and on its row in the base set, and grey stays grey.
The last bit of a pixel saved as JPEG may depend on the version of libjpeg; the other changes are exact everywhere.
"""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from oodbench.random_numbers import hashed, image_keys, shifted


def jpeg(images: Tensor, keys: Tensor, quality: int) -> Tensor:
    """Save each image as JPEG and read it again, with Pillow's defaults (colour at half the resolution)."""
    return torch.stack([_saved(image, quality) for image in images])


def grey_level(images: Tensor, keys: Tensor) -> Tensor:
    """Add or subtract 1, at random for each pixel, in all channels alike; clipped to 0 and 255."""
    bits = shifted(hashed(keys, images[0, 0].numel()), 63).view(len(images), 1, *images.shape[2:])
    return (images.to(torch.int16) + (2 * bits - 1)).clamp(0, 255).to(torch.uint8)


def pixel_shift(images: Tensor, keys: Tensor) -> Tensor:
    """Move the image by one pixel left, right, up or down, at random; the pixels at the edge are repeated."""
    direction = shifted(hashed(keys, 1)[:, 0], 62)
    moved = torch.empty_like(images)
    for place, (axis, step) in enumerate([(3, 1), (3, -1), (2, 1), (2, -1)]):
        size = images.shape[axis]
        source = (torch.arange(size, device=images.device) + step).clamp(0, size - 1)
        moved[direction == place] = images[direction == place].index_select(axis, source)
    return moved


# Each takes uint8 images (N, C, H, W) and one key per image, int64 (N,), and returns images of the same shape.
BENIGN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "jpeg-95": partial(jpeg, quality=95),
    "jpeg-85": partial(jpeg, quality=85),
    "jpeg-75": partial(jpeg, quality=75),
    "grey-level": grey_level,
    "pixel-shift": pixel_shift,
}


def change(images: Tensor, name: str, seed: int, index: Tensor) -> Tensor:
    """Change copies of images, uint8 (N, C, H, W); ``name`` is one of ``BENIGN``, ``index`` (N,) as in ``corrupt``."""
    return BENIGN[name](images, image_keys(index.to(images.device), seed))


def _saved(image: Tensor, quality: int) -> Tensor:
    """uint8 (C, H, W) -> the same."""
    grey = bool((image == image[:1]).all())  # as grey, because three channels would not decode to equal ones
    pixels = image[0] if grey else image.permute(1, 2, 0).contiguous()
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality)
    read = torch.from_numpy(np.atleast_3d(np.array(Image.open(file)))).permute(2, 0, 1)
    return read.expand(image.shape)
