"""Uniform noise, generated."""

from pathlib import Path

import numpy as np
import torch

from oodbench.datasets.fetching.catalogue import CATALOGUE
from oodbench.datasets.formats.layout import require_split
from oodbench.image_set import ImageSet, Source

COUNT = CATALOGUE["uniform"].images["test"]
SIZE, SEED = 8, 0


def uniform(root: Path, split: str) -> ImageSet:
    """Draw 500 grey images (500, 1, 8, 8), each pixel uniform in 0…255 and seeded; grey for the same reason as ``photos``."""
    require_split("uniform", split, ("test",))
    pixels = np.random.default_rng(SEED).integers(0, 256, (COUNT, 1, SIZE, SIZE), dtype=np.uint8)
    return ImageSet(
        torch.from_numpy(pixels),
        name="uniform",
        split=split,
        kind="far-ood",
        source=Source("Uniform noise, generated", licence="public domain", citation="Hendrycks & Gimpel, ICLR 2017"),
    )
