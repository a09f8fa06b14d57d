"""The data set dead-leaves: discs of all sizes that cover each other, as leaves on the ground do.

The dead leaves model has the statistics of natural images (edges, occlusion, the same at every scale) without any object:
Lee, Mumford and Huang, Occlusion Models for Natural Images, IJCV 2001. Baradad et al., Learning to See by Looking at Noise,
NeurIPS 2021 (arXiv 2106.05963), train networks on such images.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from oodbench import ImageSet, Source
from oodbench.errors import UsageError

COUNT, SIZE = 500, 32
LEAVES = 1600  # per image; about one pixel in a thousand lies below all of them
RADII = 1.0, 16.0  # pixels
TINT = 40  # grey levels by which a channel is off the grey of its leaf, at most
SOURCE = Source(
    "Dead leaves, generated",
    "https://doi.org/10.1023/A:1011109015675",
    "public domain",
    "Lee, Mumford and Huang, Occlusion Models for Natural Images, IJCV 2001",
    {"test": COUNT},
)


def load_dead_leaves(root: Path, split: str, part: str, level: int | None) -> ImageSet:
    """500 seeded images, (500, 3, 32, 32) in colour, or (500, 1, 32, 32) as the part ``grey``. ``root`` is not read.

    Raises UsageError for another split or part.
    """
    if split != "test":
        raise UsageError(f"dead-leaves has no split '{split}'; it has test")
    if part not in ("", "grey") or level is not None:
        raise UsageError(
            f"dead-leaves has no part '{part}{'' if level is None else f'@{level}'}'; it has grey, without a level"
        )
    images = torch.stack([torch.from_numpy(dead_leaves(seed, 1 if part else 3)) for seed in range(COUNT)])
    # The grey image of a row is that of the same leaves, so both sets have one base: a run keeps such pairs together.
    name = f"dead-leaves/{part}" if part else "dead-leaves"
    return ImageSet(images, name=name, split=split, kind="far-ood", base="dead-leaves", source=SOURCE)


@cache
def dead_leaves(seed: int, channels: int) -> np.ndarray:
    """One image, uint8 (channels, 32, 32). The leaves of a seed have the same shapes and greys in colour and in grey.

    Radii have the density r⁻³, for which a magnified image looks like any other. Only sums, products and roots are rounded,
    which every machine does alike.
    """
    random = np.random.default_rng(seed)
    smallest, largest = RADII
    rest = (smallest / largest) ** 2
    radius = smallest / np.sqrt(1 - random.random(LEAVES) * (1 - rest))  # (leaves,)
    centre = random.random((2, LEAVES)) * (SIZE + 2 * largest) - largest  # leaves from outside reach in
    grey = random.integers(0, 256, (LEAVES, 1))
    tint = random.integers(-TINT, TINT + 1, (LEAVES, 3))
    pixel = np.arange(SIZE)[:, None] + 0.5
    rows, columns = ((pixel - along) ** 2 for along in centre)  # (32, leaves) each
    covers = rows[:, None] + columns[None] < radius**2  # (32, 32, leaves)
    covers[..., -1] = True  # the ground
    colours = np.clip(grey + tint, 0, 255) if channels == 3 else grey  # (leaves, channels)
    return colours.astype(np.uint8)[covers.argmax(-1)].transpose(2, 0, 1)  # of the first leaf that covers the pixel
