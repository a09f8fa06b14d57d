"""How sharp the units of a dictionary are."""

from torch import Tensor

from oodbench.quality_metrics._sparse_autoencoder import SIDE


def kurtosis(weight: Tensor) -> Tensor:
    """(units, 192) -> kurtosis of each unit's weights on the first channel, 3 for a Gaussian, corrected for bias: (units,).

    All weights are centred together first, and each pixel is divided by its largest magnitude.
    """
    luma = weight[:, : SIDE**2]
    luma = luma - luma.mean()
    luma = luma / luma.abs().amax(0)
    n, centred = luma.shape[1], luma - luma.mean(1, keepdim=True)
    biased = (centred**4).mean(1) / (centred**2).mean(1) ** 2
    return (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * biased - 3 * (n - 1)) + 3
