"""Tiles of the two photographs that are embedded in scikit-learn, under the generated corruptions.

Nobody scored these images: the level of a corruption, from 1 to 5, takes the place of the score. So figures tell whether a
metric orders the levels of several corruptions consistently, not whether it agrees with people.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from oodbench.datasets.corruptions import CORRUPTIONS, corrupt
from oodbench.datasets.formats.embedded import scikit_learn_file
from oodbench.datasets.formats.files import decode
from oodbench.datasets.name import LEVELS
from oodbench.datasets.quality.database import QualityDatabase, fingerprint
from oodbench.errors import UsageError
from oodbench.paths import DataRoots

FILES = ("china.jpg", "flower.jpg")
SIDE = 176  # pixels of a tile: enough for metrics of five scales
SEED = 0


def load(path: str = "", *, data: DataRoots = None) -> QualityDatabase:
    """Load 12 tiles of 176x176 pixels, none of which overlaps another, under 8 corruptions at 5 levels: 480 images.

    Images are generated on demand, the same each time. A lower level is better.

    Raises UsageError for a path after the name.
    """
    if path:
        raise UsageError(f"photos:{path}: photos is embedded and has no path; write photos")
    files = [scikit_learn_file("images", name) for name in FILES]
    tiles = torch.cat([_tiles(decode(file)) for file in files])
    made = [(tile, name, level) for tile in range(len(tiles)) for name in CORRUPTIONS for level in LEVELS]
    reference_of = np.array([tile for tile, _, _ in made], np.int64)
    levels = np.array([level for _, _, level in made], np.float64)
    return QualityDatabase(
        "photos",
        tiles,  # type: ignore[arg-type]  # a tensor is a sequence of tensors
        Corrupted(tiles, made),
        reference_of,
        levels,
        higher_is_better=False,
        score_name="level",
        fingerprint=fingerprint(files, reference_of, levels, text=f"{SIDE} {SEED} {list(CORRUPTIONS)}"),
        distortions=[name for _, name, _ in made],
        levels=levels,
        official_size=len(made),
    )


class Corrupted(Sequence[Tensor]):
    """Tiles under corruptions, each generated on demand: uint8 RGB (3, 176, 176)."""

    def __init__(self, tiles: Tensor, made: Sequence[tuple[int, str, int]]) -> None:
        self._tiles, self._made = tiles, made

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, row: int) -> Tensor:  # type: ignore[override]  # no slices
        tile, name, level = self._made[row]
        return corrupt(self._tiles[tile : tile + 1], name, level, SEED, torch.tensor([tile]))[0]


def _tiles(photograph: Tensor) -> Tensor:
    """Cut a photograph (3, H, W) into tiles (N, 3, SIDE, SIDE), row by row."""
    tiles = photograph.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE)  # (3, rows, columns, SIDE, SIDE)
    return tiles.permute(1, 2, 0, 3, 4).reshape(-1, 3, SIDE, SIDE).contiguous()
