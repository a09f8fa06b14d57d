"""Shared by detectors on the last linear layer: energy, logits of altered features, and the base of ASH and SCALE."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from oodbench.classifier import Classifier
from oodbench.detector import Detector
from oodbench.detectors._parameters import require_finite, require_grid
from oodbench.errors import Unsuitable
from oodbench.probe import Probe


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """−T·logsumexp(z / T), higher = more anomalous: (N, classes) -> (N,)."""
    return -temperature * torch.logsumexp(logits / temperature, 1)


def logits_of(features: Tensor, classifier: Classifier) -> Tensor:
    """W f + b in float64: (N, d) -> (N, classes)."""
    weight, bias = classifier.weight_and_bias
    return torch.addmm(bias.double(), features.double(), weight.double().T)


class Shaping(Detector):
    """Base of ASH, ASH-S and SCALE: the energy of features that ``shaped`` alters, guided by the largest ones of each image.

    features (N, d), at least 0 -> (N, settings), one column per percentile. Percentiles of the grid that keep none of the
    network's features are left out.
    """

    signals = ("features",)
    shift_head = "choose"

    def __init__(self, name: str, percentile: float, percentiles: Sequence[float]) -> None:
        require_finite(name, "between 0 and 100", percentile=percentile)
        require_grid(name, "between 0 and 100", percentiles=percentiles)
        self.percentile, self.percentiles = percentile, sorted(map(float, percentiles))  # JSON values; the last may be left out
        self.grid = [{"percentile": p} for p in self.percentiles]

    def check(self, classifier: Classifier | None) -> None:
        if classifier is not None:
            served = [p for p in self.percentiles if kept(classifier.head.in_features, p)]
            self.grid = [{"percentile": p} for p in served] or [self.setting]

    def statistics(self, probe: Probe) -> Tensor:
        features = probe.features.double()
        columns = []
        for setting in self.settings:
            values, places = largest(features, setting["percentile"], probe)
            columns.append(energy(logits_of(self.shaped(features, values, places), probe.classifier)))
        return torch.stack(columns, 1)

    @abstractmethod
    def shaped(self, features: Tensor, values: Tensor, places: Tensor) -> Tensor:
        """Features (N, d) altered, given values and places (N, k) of the largest ones."""


def kept(width: int, percentile: float) -> int:
    """k = d − round(d·percentile/100)."""
    return width - round(width * percentile / 100)


def largest(features: Tensor, percentile: float, probe: Probe) -> tuple[Tensor, Tensor]:
    """Values and indices, each (N, k), of the k largest features of each image (N, d).

    Raises Unsuitable if a feature is negative, because the sum then does not measure activity, or if k is 0.
    """
    name = probe.classifier.name
    negative = Unsuitable(f"assumes features of at least 0 (after a ReLU), but {name} also has negative ones")
    probe.require(~(features < 0), negative)
    width = features.shape[1]
    count = kept(width, percentile)
    if count < 1:
        raise Unsuitable(f"percentile {percentile} keeps none of the {width} features of {name}; give a lower percentile")
    # Search once per k: among equal values topk's choice depends on k, and must not depend on the grid.
    values, places = features.topk(count, 1, sorted=False)
    return values, places


def scale_of(features: Tensor, values: Tensor) -> Tensor:
    """exp(Σf / Σ kept f) of each image (N, 1), given its features (N, d) and the values (N, k) of the kept ones."""
    # Features that are all 0 stay 0 for every factor.
    top = values.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.exp(features.sum(1, keepdim=True) / top)
