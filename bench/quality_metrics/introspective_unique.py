"""Introspective UNIQUE: gradients of the decoder in place of responses.

Kwon, Prabhushankar, Temel and AlRegib (ICIP 2019, arXiv 1908.09998); as "introspective" in Prabhushankar and AlRegib
(arXiv 2209.08425).
"""

import math

import torch
from torch import Tensor

from oodbench.errors import BadData
from oodbench.quality_metrics._sharpness import kurtosis
from oodbench.quality_metrics.unique import UNIQUE


class IntrospectiveUNIQUE(UNIQUE):
    """Rank correlation of both images' projections on the gradient that the reference gives the decoder.

    With X the reference's whitened patches (192, m), A their responses and X̂ their reconstructions, the gradient of the mean
    squared error is G = (X̂ − X) Aᵀ/m. The patches of both images are projected on the reference's G,
    Y = GᵀX. Features are the magnitude and the angle of the complex logarithm log(Y/(1 − Y)); those of units whose kurtosis
    in G (as in MS-UNIQUE) is above 3 are doubled. Features below .025 count as 0; the value is |Spearman's ρ|¹⁰.

    This follows the authors' code of gradients for image quality. Whether the published figures of introspective UNIQUE come
    from the same code is not known.

    Args:
        folder: as for ``unique``; the file must hold the decoder too (optTheta in the authors' file).
    """

    address = "https://github.com/olivesgatech/Stochastic-Surprisal (IQA/InputWeights)"

    def responses(self, reference: Tensor, distorted: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened patches (192, m) each -> (2, units, m) each."""
        (model,) = self.dictionaries(reference.device)
        if model.decoder_weight is None or model.decoder_bias is None:
            raise BadData(f"{self.paths()[0]} has no decoder (optTheta); {self.name or 'introspective-unique'} needs one")
        code = model.encode(reference)
        error = model.decoder_weight @ code + model.decoder_bias[:, None] - reference
        gradient = error @ code.T / reference.shape[1]  # (192, units)
        gain = torch.where(kurtosis(gradient.T) > 3, 2.0, 1.0)[:, None]
        return _features(gradient.T @ reference, gain), _features(gradient.T @ distorted, gain)


def _features(projection: Tensor, gain: Tensor) -> Tensor:
    """(units, m) -> magnitude and angle of log(y/(1 − y)), each times the unit's gain: (2, units, m)."""
    ratio = projection / (1 - projection)
    real, imaginary = ratio.abs().log(), math.pi * (ratio < 0)
    return torch.stack([gain * torch.hypot(real, imaginary), gain * torch.atan2(imaginary, real)])
