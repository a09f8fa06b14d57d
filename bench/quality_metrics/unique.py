"""UNIQUE (Temel, Prabhushankar and AlRegib, IEEE Signal Processing Letters 2016, arXiv 1810.06631)."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from oodbench.errors import BadData
from oodbench.quality.metric import QualityMetric
from oodbench.quality_metrics._files import find, require_path, sha256
from oodbench.quality_metrics._images import resized
from oodbench.quality_metrics._sparse_autoencoder import SparseAutoencoder, channels, patches_of, read, whitened
from oodbench.quality_metrics._sparse_autoencoder import train as train_unique

__all__ = ["UNIQUE", "train_unique"]

SUPPRESSED = 0.025  # responses below it count as none


class UNIQUE(QualityMetric):
    """Rank correlation of the responses of a learnt dictionary.

    Both images are halved (bicubic) and converted to Y, green and Cr. Their whole 8x8 patches are centred and whitened (ZCA,
    ε = .1), each image's by its own covariance. A dictionary of 400 sigmoid units answers each patch; answers below .025
    count as 0. The value is |ρ|¹⁰, with Spearman's ρ over all answers: 1 for identical images.

    The authors' dictionary was learnt from 100,000 patches of ImageNet, and is not included. ``train_unique`` of this module
    learns one from any images. If both files are present, the authors' is used.

    Args:
        folder: where the dictionaries are, absolute or below a data root: ``ImageNet_Weights_YGCr.mat`` of the authors, or
            ``unique-400.safetensors`` of ``train_unique(images).save``.
    """

    smallest_side = 32  # four patches
    units: ClassVar[tuple[int, ...]] = (400,)
    address: ClassVar[str] = "https://github.com/olivesgatech/UNIQUE-Project-Repository (Complete Pipeline)"

    def __init__(self, folder: str = "models") -> None:
        require_path("unique", folder=folder)
        self.folder = folder
        self._dictionaries: list[SparseAutoencoder] = []

    def paths(self) -> list[Path]:
        """The file of each dictionary. Raises MissingData, with what to do, if one is in no data root."""
        return [self._path(units) for units in self.units]

    def files(self) -> dict[str, str]:
        return {str(path): sha256(path) for path in self.paths()}

    def compare(self, references: Tensor, distorted: Tensor) -> Tensor:
        halves = (channels(resized(images, 0.5)) for images in (references, distorted))
        pairs = zip(*halves, strict=True)
        responses = (self.responses(*(whitened(patches_of(image)) for image in pair)) for pair in pairs)
        return torch.stack([self._agreement(*pair) for pair in responses])

    def responses(self, reference: Tensor, distorted: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened patches (192, m) each -> (units, m) each."""
        (dictionary,) = self.dictionaries(reference.device)
        return dictionary.encode(reference), dictionary.encode(distorted)

    def dictionaries(self, device: torch.device) -> list[SparseAutoencoder]:
        if not self._dictionaries:
            self._dictionaries = [read(path) for path in self.paths()]
        return [dictionary.to(device) for dictionary in self._dictionaries]

    def _path(self, units: int) -> Path:
        authors = f"ImageNet_Weights_YGCr{'' if units == 400 else f'_{units}x192'}.mat"
        own = f"unique-{units}.safetensors"
        remedy = (
            f"download {authors} from {self.address}, or learn a dictionary from your own images:"
            f" oodbench.quality_metrics.unique.train_unique(images, {units}).save(FILE), with FILE named"
            f" {self.folder}/{own} in a data root"
        )
        if len(self.units) > 1:
            remedy += f"; the metric needs one file per size: {', '.join(map(str, self.units))}"
        return find(self.name or "unique", [f"{self.folder}/{authors}", f"{self.folder}/{own}"], self.data, remedy)

    def _agreement(self, reference: Tensor, distorted: Tensor) -> Tensor:
        """|Spearman's ρ|¹⁰ of all responses, those below ``SUPPRESSED`` set to 0. Raises BadData if one side is constant."""
        from scipy.stats import rankdata

        ranks = []
        for responses in (reference, distorted):
            kept = torch.where(responses < SUPPRESSED, 0.0, responses).flatten()
            ranks.append(torch.from_numpy(rankdata(kept.cpu().numpy())))
            if ranks[-1].min() == ranks[-1].max():
                raise BadData(
                    f"{self.name or type(self).__name__}: an image has the same response everywhere, so its ranks are not"
                    " defined; leave it out, or use another dictionary"
                )
        return torch.corrcoef(torch.stack(ranks))[0, 1].abs() ** 10
