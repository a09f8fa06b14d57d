"""Shared by detectors with a network of their own: labels, outputs of the frozen network, minibatches, copies."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from oodbench.batching import require_finite_logits
from oodbench.classifier import Classifier
from oodbench.errors import BadData, OodbenchError, Unsuitable
from oodbench.models import weights
from oodbench.models.build import brings_weights, build, outline
from oodbench.models.device import seeded
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet

REPORTS = 10  # maximum number of stages that one training reports
OTHERS = "the fitted networks have another architecture than this classifier; fit it again"


class Outputs(NamedTuple):
    """Outputs of the frozen network for the n training images that are not held out."""

    features: Tensor  # (n, d), in the network's dtype
    logits: Tensor  # (n, classes), in the network's dtype, at least float32
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
    """One pass of the frozen network over the training images that are not held out. Raises like ``labels_of``,
    and BadData for logits that are not finite."""
    labels_of(train_set, classifier.head.out_features, classifier)  # before the pass
    progress.stage(f"{detector}: features of {len(train_set.rows):,} training images")
    progress.expect(len(train_set.rows))
    features, logits, start = None, None, 0
    for probe in train_set.probes(classifier, ("logits", "features")):
        rows = slice(start, start := start + len(probe))
        of_batch, found = probe.features, probe.logits
        require_finite_logits(found, train_set.images, train_set.rows[rows], classifier.name)
        if features is None or logits is None:  # each is held once, because their number is known
            features = of_batch.new_empty(len(train_set.rows), of_batch.shape[1])
            wide = torch.promote_types(of_batch.dtype, torch.float32)
            logits = of_batch.new_empty(len(train_set.rows), found.shape[1], dtype=wide)
        features[rows], logits[rows] = of_batch, found
        progress.advance(len(probe))
    assert features is not None
    assert logits is not None
    labels = labels_of(train_set, logits.shape[1], classifier)[torch.from_numpy(train_set.rows)]
    return Outputs(features, logits, labels.to(logits.device))


def minibatches(count: int, batch_size: int, random: torch.Generator) -> Iterator[Tensor]:
    """``count`` rows in a random order, in batches of nearly equal size."""
    yield from torch.randperm(count, generator=random).tensor_split(-(-count // batch_size))


def report(progress: Progress, detector: str, epoch: int, epochs: int, loss: float) -> None:
    """Report training progress at most ``REPORTS`` times; ``epoch`` counts from 0. Raises OodbenchError if it diverged."""
    if not loss < float("inf"):
        raise OodbenchError(f"{detector}: training diverged in epoch {epoch + 1} (loss {loss}); lower lr")
    if (epoch + 1) % -(-epochs // REPORTS) == 0 or epoch + 1 == epochs:
        progress.stage(f"{detector}: epoch {epoch + 1} of {epochs}, loss {loss:.3g}")


def require_initialisable(classifier: Classifier, otherwise: str = "") -> None:
    """Raise Unsuitable for a network that cannot get new random weights; ``otherwise`` is what else the user can do.

    Each module of it has ``reset_parameters``, or the whole network can be built again by its name.
    """
    fixed = _fixed_parameters(classifier.module)
    if fixed and brings_weights(classifier.name):
        path = fixed[0].rpartition(".")[0]
        raise Unsuitable(
            f"cannot give {classifier.name} new random weights: {type(classifier.module.get_submodule(path)).__name__} has no"
            f" reset_parameters for '{fixed[0]}', and only networks of oodbench, timm: and torchvision: are built again; add"
            f" that method{otherwise}"
        )


def _fixed_parameters(module: nn.Module) -> list[str]:
    """Names of parameters that no ``reset_parameters`` initialises, such as a class token."""
    return [
        f"{path}.{name}".lstrip(".")
        for path, part in module.named_modules()
        if not hasattr(part, "reset_parameters")
        for name, _ in part.named_parameters(recurse=False)
    ]


def reinitialised(classifier: Classifier, seed: int) -> Classifier:
    """A float32 copy with every layer newly initialised, or if some cannot be, with the weights of a network built anew.

    Weights are drawn on the CPU, because another device draws others from the same seed.
    """
    member = copy.deepcopy(classifier).to("cpu")
    member.module.float()
    if _fixed_parameters(member.module):
        state, like = member.module.state_dict(), outline(member.name) or build(member.name)
        fresh = build(member.name, weights.other_classes(state, like.module), seed)
        member.module.load_state_dict(fresh.module.state_dict())
        return member.to(classifier.device)
    with seeded(seed):
        for part in member.module.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
    return member.to(classifier.device)


def place_like(network: Classifier, classifier: Classifier) -> None:
    """Move a network to the device of the classifier, and to its dtype."""
    if (network.device, network.dtype) != (classifier.device, classifier.dtype):
        network.to(classifier.device).module.to(classifier.dtype)


def filled(networks: Iterable[Classifier], weights: Sequence[Tensor]) -> list[Classifier]:
    """The networks with this state. Raises BadData if it belongs to others.

    Each network is filled before the next is made, so that no more are made than there are weights for.
    """
    made, start = [], 0
    for network in networks:
        places = list(network.module.state_dict().values())
        own = weights[start : start + len(places)]
        start += len(places)
        if [p.shape for p in places] != [w.shape for w in own]:
            raise BadData(OTHERS)
        with torch.no_grad():
            for place, weight in zip(places, own, strict=True):
                place.copy_(weight)
        made.append(network)
    if start != len(weights):
        raise BadData(OTHERS)
    return made
