"""MS-UNIQUE (Prabhushankar, Temel and AlRegib, Electronic Imaging 2017, arXiv 1811.08947)."""

import torch
from torch import Tensor

from oodbench.quality_metrics._sharpness import kurtosis
from oodbench.quality_metrics.unique import UNIQUE


class MSUNIQUE(UNIQUE):
    """UNIQUE with five dictionaries, whose sharp units count more.

    Dictionaries of 81, 121, 169, 400 and 625 units answer each patch, and |Spearman's ρ|¹⁰ is over all answers. A unit's
    answer is doubled if the kurtosis of its weights on the luma is above 5, and halved if it is below 2. Before that, the
    weights of all units are centred together and each pixel is divided by its largest magnitude. Kurtosis is corrected for
    bias, as in the authors' code.

    Args:
        folder: where the dictionaries are, absolute or below a data root: ``ImageNet_Weights_YGCr.mat`` and
            ``ImageNet_Weights_YGCr_Ux192.mat`` of the authors, or ``unique-U.safetensors``, for each number of units U.
    """

    units = (81, 121, 169, 400, 625)
    address = "https://github.com/olivesgatech/MS-UNIQUE (InputWeights)"

    def responses(self, reference: Tensor, distorted: Tensor) -> tuple[Tensor, Tensor]:
        sides: tuple[list[Tensor], list[Tensor]] = [], []
        for dictionary in self.dictionaries(reference.device):
            sharpness = kurtosis(dictionary.weight)
            gain = torch.where(sharpness > 5, 2.0, torch.where(sharpness < 2, 0.5, 1.0))[:, None]
            for side, patches in zip(sides, (reference, distorted), strict=True):
                side.append(gain * dictionary.encode(patches))
        return torch.cat(sides[0]), torch.cat(sides[1])
