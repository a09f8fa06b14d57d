"""Patches of the two photographs that scikit-learn ships: nothing to download."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from oodbench.datasets.formats.layout import require_split
from oodbench.image_set import ImageSet, Source

COUNT, SIZE, SEED = 500, 8, 0


def photos(root: Path, split: str) -> ImageSet:
    """500 grey patches (500, 1, 8, 8) at seeded random places, half from each photograph.

    Grey, because the digits that they stand against are grey: colour would tell the two apart without any network.
    """
    require_split("photos", split, ("test",))
    random = np.random.default_rng(SEED)
    greys = [np.asarray(Image.fromarray(photo).convert("L")) for photo in load_sample_images().images]
    patches = []
    for i in range(COUNT):
        grey = greys[i % len(greys)]
        top, left = random.integers(grey.shape[0] - SIZE + 1), random.integers(grey.shape[1] - SIZE + 1)
        patches.append(grey[top : top + SIZE, left : left + SIZE])
    return ImageSet(
        torch.from_numpy(np.stack(patches)[:, None]),
        name="photos",
        split=split,
        kind="far-ood",
        source=Source(
            "Patches of scikit-learn's sample images",
            "https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_sample_images.html",
            "CC BY 2.0",
            "china.jpg by danielbuechele and flower.jpg by vultilion, Flickr",
        ),
    )
