"""Shared by detectors on the last linear layer: energy, logits of altered features, and requirements of ASH and SCALE."""

import torch
from torch import Tensor

from oodbench.classifier import Classifier
from oodbench.errors import Unsuitable, UsageError


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """−T·logsumexp(z / T), higher = more anomalous: (N, classes) -> (N,)."""
    return -temperature * torch.logsumexp(logits / temperature, 1)


def logits_of(features: Tensor, classifier: Classifier) -> Tensor:
    """W f + b in float64: (N, d) -> (N, classes)."""
    weight, bias = classifier.weight_and_bias
    return torch.addmm(bias.double(), features.double(), weight.double().T)


def require_percentile(detector: str, percentile: float) -> None:
    """Raise UsageError for a percentile outside (0, 100)."""
    if not 0 < percentile < 100:
        raise UsageError(f"{detector}: percentile = {percentile}; give a number above 0 and below 100")


def largest(features: Tensor, percentile: float, classifier: Classifier) -> tuple[Tensor, Tensor]:
    """Values and indices, each (N, k), of the k = d − round(d·percentile/100) largest features of each image (N, d).

    Raises Unsuitable if a feature is negative, because the sum then does not measure activity, or if k is 0.
    """
    if bool((features < 0).any()):
        raise Unsuitable(f"assumes features of at least 0 (after a ReLU), but {classifier.name} also has negative ones")
    width = features.shape[1]
    kept = width - round(width * percentile / 100)
    if kept < 1:
        raise Unsuitable(
            f"percentile {percentile} keeps none of the {width} features of {classifier.name}; give a lower percentile"
        )
    values, places = features.topk(kept, 1, sorted=False)
    return values, places
