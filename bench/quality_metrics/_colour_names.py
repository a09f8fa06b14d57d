"""Names of colours: the table of van de Weijer, Schmid, Verbeek and Larlus (IEEE TIP 2009), and distances between names."""

import zlib
from pathlib import Path

import torch
from torch import Tensor

from oodbench.datasets.formats.mat_file import read_arrays
from oodbench.errors import BadData, reason

ADDRESS = "http://lear.inrialpes.fr/people/vandeweijer/code/ColorNaming.tar"
NAMES = ("black", "blue", "brown", "grey", "green", "orange", "pink", "purple", "red", "white", "yellow")
ENTRIES = 32**3  # of the table: 32 levels per channel
# Distances below 1, largest saving first. All other names are 1 apart.
NEAR = (
    ("grey", "white", 0.68809),
    ("black", "grey", 0.76544),
    ("orange", "red", 0.92114),
    ("brown", "grey", 0.93538),
    ("black", "brown", 0.9497),
)


def read_table(path: Path) -> Tensor:
    """The array ``w2c`` of the authors' file: float64 (32768, 11), the probability of each name. Raises BadData for others."""
    try:
        table = read_arrays(path, {"w2c": ENTRIES * len(NAMES) * 8})["w2c"]
    except (KeyError, ValueError, zlib.error) as error:
        raise BadData(f"{path} has no table w2c ({reason(error)}); take w2c.mat from {ADDRESS}") from error
    found = torch.from_numpy(table.copy()).double()
    if found.shape != (ENTRIES, len(NAMES)) or not (found.isfinite() & (found >= 0)).all():
        raise BadData(f"{path}: w2c is {tuple(found.shape)}, not 32768 x 11 probabilities; take w2c.mat from {ADDRESS}")
    return found


def names_of(colours: Tensor, table: Tensor) -> Tensor:
    """RGB from 0 to 255, (N, 3, H, W) -> the probability of each name: (N, H, W, 11)."""
    red, green, blue = (colours / 8).floor().long().clamp(0, 31).unbind(1)
    return table.to(colours.device)[red + 32 * green + 32**2 * blue]


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Names (..., 11) each -> their earth mover's distance (...,).

    What both have in common stays, and the rest moves at cost 1 except between near names. Mass only moves from a surplus to
    a deficit, so the near names form at most two chains or stars at a time, and moving as much as possible in order of
    saving is optimal.
    """
    left = first - second  # surplus where positive
    found = torch.maximum(left.clamp(min=0).sum(-1), (-left).clamp(min=0).sum(-1))
    for one, other, cost in NEAR:
        i, j = NAMES.index(one), NAMES.index(other)
        moved = torch.where(left[..., i] * left[..., j] < 0, torch.minimum(left[..., i].abs(), left[..., j].abs()), 0.0)
        found = found - (1 - cost) * moved
        for place in (i, j):
            left[..., place] -= left[..., place].sign() * moved
    return found
