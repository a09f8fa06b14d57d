"""What a strategy sees of the images that it may choose."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from oodbench.classifier import Classifier
from oodbench.detectors.introspective import Introspective
from oodbench.training_set import TrainingSet

FEATURES = ("feed-forward", "introspective")
BLOCK = 4096  # images for which probabilities with dropout are computed together


class Outputs(NamedTuple):
    """What the last linear layer reads, float32 (N, d), and what it gives, float32 (N, classes)."""

    features: np.ndarray
    logits: np.ndarray


class Pool:
    """Images that nobody has labelled yet, as the network of this round sees them; ``len(pool)`` is their number N.

    Features and probabilities are the network's, or with ``introspective`` those of the network H that was fitted on the
    gradients of the labelled images (``Introspective``): the output of its last hidden layer, and its softmax.

    Attributes:
        features: float32 (N, d).
        probabilities: float64 (N, classes).
        labelled: float32 (M, d), features of the labelled images.
    """

    def __init__(
        self, unlabelled: Outputs, labelled: Outputs, head: nn.Linear, introspective: Introspective | None = None
    ) -> None:
        self._unlabelled, self._head, self._introspective = unlabelled, head, introspective
        self.features, self.labelled = (self._seen(outputs) for outputs in (unlabelled, labelled))
        self.probabilities = self._probabilities(*map(torch.from_numpy, unlabelled))

    def __len__(self) -> int:
        return len(self.features)

    def dropped(self, passes: int, p: float, random: np.random.Generator) -> Iterator[np.ndarray]:
        """Probabilities (N, classes) of each pass, in which each of the network's features is set to 0 with probability p."""
        weight, bias = self._head.weight.detach().cpu(), self._head.bias
        generator = torch.Generator().manual_seed(int(random.integers(2**63)))
        for _ in range(passes):
            found = []
            for features in torch.from_numpy(self._unlabelled.features).split(BLOCK):
                kept = torch.rand(features.shape, generator=generator) >= p
                features = features * kept / (1 - p)
                logits = features @ weight.T
                found.append(self._probabilities(features, logits if bias is None else logits + bias.detach().cpu()))
            yield np.concatenate(found)

    def _seen(self, outputs: Outputs) -> np.ndarray:
        if self._introspective is None:
            return outputs.features
        blocks = zip(*(torch.from_numpy(values).split(BLOCK) for values in outputs), strict=True)
        return np.concatenate([self._introspective.hidden(*block).float().numpy() for block in blocks])

    def _probabilities(self, features: Tensor, logits: Tensor) -> np.ndarray:
        if self._introspective is None:
            return logits.double().softmax(1).numpy()
        blocks = zip(features.split(BLOCK), logits.split(BLOCK), strict=True)
        return np.concatenate([self._introspective.classes(*block).softmax(1).numpy() for block in blocks])


def outputs_of(images: TrainingSet, classifier: Classifier, rows: np.ndarray, batch_size: int = 256) -> Outputs:
    """One pass over these rows."""
    found: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for probe in images.probes(classifier, ("features", "logits"), rows, batch_size):
        with torch.no_grad(), probe.mode():
            for values, read in zip(found, (probe.features, probe.logits), strict=True):
                values.append(read.float().cpu().numpy())
    return Outputs(*(np.concatenate(values) for values in found))
