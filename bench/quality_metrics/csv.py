"""CSV (Temel and AlRegib, Signal Processing: Image Communication 48, 2016)."""

from pathlib import Path

import torch
from torch import Tensor

from oodbench.quality.metric import QualityMetric
from oodbench.quality_metrics._ciede2000 import ciede2000
from oodbench.quality_metrics._colour_names import ADDRESS, distance, names_of, read_table
from oodbench.quality_metrics._files import find, require_path, sha256
from oodbench.quality_metrics._images import filtered, lab, laplacian_of_gaussian, resized

BLOCK, SIGMA = 20, 50.0  # pixels of a block and of the filter
STABILISER = 0.001
MOST_DIFFERENT = 20.0  # ΔE₀₀
NAMES_WEIGHT = 0.9


class CSV(QualityMetric):
    """Differences of colour, structure and retinal response.

    The value is 1 − (mean over pixels of B·R·(.9 N + .1 E))^¼: 1 for identical images, with four maps.

    - R: the cube root of the product over channels of |LoG(x) − LoG(y)|, a filter of 20x20 pixels with σ = 50 (edges repeated).
    - B: the same of |x − y| after each block of 20x20 pixels is normalised by its mean and its standard deviation + .001.
    - E: min(ΔE₀₀, 20)/20 of the blocks' mean colours.
    - N: the earth mover's distance between the names of these colours, eleven probabilities each; names are 1 apart, some a
      little less (black and brown .9497, black and grey .76544, brown and grey .93538, grey and white .68809, orange and red
      .92114).

    N and E are resized to the image (bicubic), and the smallest value of each map is subtracted. Blocks at the right and lower
    edge are smaller if the sides are not multiples of 20.

    The table of names, ``w2c.mat`` of ColorNaming.tar, is by other authors and not included. It was learnt from photographs,
    so it cannot be computed from a formula, and no permissive licence for it is known.

    Args:
        table: its file, absolute or below a data root.
    """

    smallest_side = 2

    def __init__(self, table: str = "models/w2c.mat") -> None:
        require_path("csv", table=table)
        self.table = table
        self._names: Tensor | None = None

    def path(self) -> Path:
        """Raises MissingData, with what to do, if the file is in no data root."""
        return find(
            self.name or "csv", self.table, self.data, f"take w2c.mat from {ADDRESS} (van de Weijer et al. 2009), or set table"
        )

    def files(self) -> dict[str, str]:
        return {str(path := self.path()): sha256(path)}

    def compare(self, references: Tensor, distorted: Tensor) -> Tensor:
        if self._names is None:
            self._names = read_table(self.path())
        x, y = references.double(), distorted.double()
        retina = filtered(x - y, laplacian_of_gaussian(BLOCK, SIGMA), "replicate").abs().prod(1) ** (1 / 3)
        structure = (_normalised(x) - _normalised(y)).abs().prod(1) ** (1 / 3)
        mean_x, mean_y = _block_means(x), _block_means(y)
        different = ciede2000(lab(mean_x), lab(mean_y)).clamp(max=MOST_DIFFERENT) / MOST_DIFFERENT
        named = distance(names_of(mean_x, self._names), names_of(mean_y, self._names))
        maps = resized(torch.stack([named, different], 1), x.shape[-2:])
        named, different = (maps - maps.amin((2, 3), keepdim=True)).unbind(1)
        colour = NAMES_WEIGHT * named + (1 - NAMES_WEIGHT) * different
        return 1 - (structure * retina * colour).mean((1, 2)) ** 0.25


def _blocks(side: int, device: torch.device) -> Tensor:
    """(blocks, side): 1 where a pixel is in a block."""
    place = torch.arange(side, device=device) // BLOCK
    return (place == torch.arange(-(-side // BLOCK), device=device)[:, None]).double()


def _block_means(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H/20, W/20), rounded up."""
    rows, columns = (_blocks(side, images.device) for side in images.shape[-2:])
    return rows @ images @ columns.T / (rows.sum(1)[:, None] * columns.sum(1))


def _normalised(images: Tensor) -> Tensor:
    """Minus the mean of its block, over the block's standard deviation (of n − 1) + .001."""
    rows, columns = (_blocks(side, images.device) for side in images.shape[-2:])
    centred = images - rows.T @ _block_means(images) @ columns
    count = rows.sum(1)[:, None] * columns.sum(1)
    deviation = (rows @ centred**2 @ columns.T / (count - 1).clamp(min=1)).sqrt()
    return centred / (rows.T @ deviation @ columns + STABILISER)
