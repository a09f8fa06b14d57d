"""Patches of the two photographs that are embedded in scikit-learn."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from oodbench.datasets import TABLE
from oodbench.datasets.fetching.catalogue import CATALOGUE
from oodbench.datasets.formats.embedded import scikit_learn_file
from oodbench.datasets.formats.layout import require_split
from oodbench.image_set import ImageSet, Source

COUNT = CATALOGUE["photos"].images["test"]
SIZE, SEED = 8, 0


def photos(root: Path, split: str) -> ImageSet:
    """Cut 500 grey patches (500, 1, 8, 8), seeded, half from each photograph; none overlaps another, also of the other split.

    ``val``, to choose hyper-parameters on, has as many other patches of the same photographs.

    They are grey because the digits are grey: colour alone would separate the two sets, without any network.
    """
    require_split("photos", split, ("test", "val"))
    random = np.random.default_rng(SEED)
    files = [scikit_learn_file("images", name) for name in ("china.jpg", "flower.jpg")]
    greys = [np.asarray(Image.open(file).convert("L")) for file in files]
    patches = []
    for grey in greys:
        rows, columns = (side // SIZE for side in grey.shape)
        tiles = grey[: rows * SIZE, : columns * SIZE].reshape(rows, SIZE, columns, SIZE).swapaxes(1, 2).reshape(-1, SIZE, SIZE)
        tested = random.choice(len(tiles), COUNT // len(greys), replace=False)
        rest = np.setdiff1d(np.arange(len(tiles)), tested)
        patches.append(tiles[tested if split == "test" else rest[:: len(rest) // len(tested)][: len(tested)]])
    return ImageSet(
        torch.from_numpy(np.concatenate(patches)[:, None]),
        name="photos",
        split=split,
        kind="far-ood",
        source=Source(
            "Patches of scikit-learn's sample images",
            TABLE["photos"].source,
            "CC BY 2.0",
            "china.jpg by danielbuechele and flower.jpg by vultilion, Flickr",
        ),
    )
