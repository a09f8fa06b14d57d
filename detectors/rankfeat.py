"""RankFeat: removal of rank-1 features (Song, Sebe and Wang, NeurIPS 2022, arXiv 2209.08590)."""

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors import _last_layer
from oodbench.errors import Unsuitable
from oodbench.probe import Probe


class RankFeat(Detector):
    """Energy of the mean of two logits: those without the largest singular component of each of the last two layers' maps.

    A map F (channels, places) of an image becomes F − σ₁u₁v₁ᵀ, and the rest of the network runs on it. The layers are the
    last two of the classifier, the last two stages of a ResNet as in the authors' code.

    maps (N, channels, …) of two forward passes -> (N,), float64. Raises Unsuitable for a layer whose maps have one place,
    as then nothing is left of them.
    """

    signals = ("edited",)

    def statistics(self, probe: Probe) -> Tensor:
        last = range(-min(2, len(probe.classifier.layer_names)), 0)
        logits = [probe.edited(place, without_first_component) for place in last or [-1]]
        return _last_layer.energy(torch.stack(logits).mean(0))


def without_first_component(maps: Tensor) -> Tensor:
    """F − σ₁u₁v₁ᵀ of each image's map: (N, channels, …) -> the same shape, float64."""
    matrix = maps.flatten(2).double()  # (N, channels, places)
    if matrix.shape[2] < 2:
        raise Unsuitable("removes one component from maps, but a layer has one value per channel; name layers with maps")
    if wide := matrix.shape[1] < matrix.shape[2]:
        matrix = matrix.mT
    first = torch.linalg.eigh(matrix.mT @ matrix).eigenvectors[:, :, -1:]  # of the smaller side: (N, side, 1)
    removed = matrix - matrix @ first @ first.mT
    return (removed.mT if wide else removed).reshape(maps.shape)
