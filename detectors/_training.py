"""Shared by detectors that train a network: labels, outputs of the frozen network, and minibatches."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from oodbench.classifier import Classifier
from oodbench.errors import BadData, OodbenchError, Unsuitable
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet

REPORTS = 10  # maximum number of stages that one training reports


class Outputs(NamedTuple):
    """Outputs of the frozen network for the n training images that are not held out."""

    features: Tensor  # (n, d), in the network's dtype
    logits: Tensor  # float64 (n, classes)
    labels: Tensor  # int64 (n,), on the network's device


def require_network(classifier: Classifier | None) -> Classifier:
    """The classifier. Raises Unsuitable if the suite has none."""
    if classifier is None:
        raise Unsuitable("needs a classifier, and this suite has none")
    return classifier


def labels_of(train_set: TrainingSet, classes: int, classifier: Classifier) -> Tensor:
    """The training labels, int64 (N,). Raises Unsuitable if there are none, BadData if the network has too few classes."""
    labels = train_set.labels
    if labels is None:
        raise Unsuitable("needs the labels of the training images; give labels, or a training set that has them")
    if not len(train_set.rows):
        raise Unsuitable("saw no training images to fit on; give more training images")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise BadData(
            f"training labels range from {int(labels.min())} to {int(labels.max())}, but {classifier.name} has {classes}"
            " classes; train a network on this set"
        )
    return labels.long()


def outputs_of(detector: str, train_set: TrainingSet, classifier: Classifier, progress: Progress) -> Outputs:
    """One pass of the frozen network over the training images that are not held out. Raises like ``labels_of``."""
    labels_of(train_set, classifier.head.out_features, classifier)  # before the pass
    progress.stage(f"{detector}: features of {len(train_set.rows):,} training images")
    progress.expect(len(train_set.rows))
    features, logits = [], []
    for probe in train_set.probes(classifier, ("logits", "features")):
        features.append(probe.features)
        logits.append(probe.logits)
        progress.advance(len(probe))
    all_logits = torch.cat(logits)
    labels = labels_of(train_set, all_logits.shape[1], classifier)[torch.from_numpy(train_set.rows)]
    return Outputs(torch.cat(features), all_logits, labels.to(all_logits.device))


def minibatches(count: int, batch_size: int, random: torch.Generator) -> Iterator[Tensor]:
    """``count`` rows in a random order, in batches of nearly equal size."""
    yield from torch.randperm(count, generator=random).tensor_split(-(-count // batch_size))


def report(progress: Progress, detector: str, epoch: int, epochs: int, loss: float) -> None:
    """Report training progress at most ``REPORTS`` times; ``epoch`` counts from 0. Raises OodbenchError if it diverged."""
    if not loss < float("inf"):
        raise OodbenchError(f"{detector}: training diverged in epoch {epoch + 1} (loss {loss}); lower lr")
    if (epoch + 1) % -(-epochs // REPORTS) == 0 or epoch + 1 == epochs:
        progress.stage(f"{detector}: epoch {epoch + 1} of {epochs}, loss {loss:.3g}")
