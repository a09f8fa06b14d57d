"""Loads the network of a suite, and tries it on in-distribution images with labels before anything else relies on it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from oodbench import protocols
from oodbench.batching import batches, pieces_of
from oodbench.classifier import Classifier
from oodbench.errors import BadData, TooSlow, contained
from oodbench.image_set import ImageSet
from oodbench.metrics import binomial_interval
from oodbench.models import card
from oodbench.passes.memory import batch_limit
from oodbench.paths import DataRoots
from oodbench.progress import Progress
from oodbench.results.network import Accuracy, NetworkAccuracy
from oodbench.suite import Suite

MOST_IMAGES = 2000  # of which the 95 % interval of an accuracy is at most ± 2.2 %
LEVEL = 0.05  # of the test against chance


class Network(NamedTuple):
    """The network of a suite, on its device; without a classifier for a suite that has none."""

    classifier: Classifier | None = None
    weights_hash: str = ""
    device: torch.device = torch.device("cpu")
    name: str = ""  # in records and tables
    card: dict[str, Any] | BadData | None = None  # of the weights, or why it cannot be read


NO_NETWORK = Network()


def load_network(
    suite: Suite, weights: str | Path | None, device: torch.device, data: DataRoots, weights_key: str | None = None
) -> Network:
    """Load the network. Raises MissingData for absent weights, BadData for weights that do not fit."""
    from oodbench.models.load import load_model, weights_path

    if suite.model is None:
        return NO_NETWORK
    given: dict[str, Any] = {"weights_key": weights_key, "layers": suite.layers, "data": data}
    classifier = load_model(suite.model, weights, device=str(device), require_weights=True, **given)
    path = weights_path(suite.model, weights, data)
    found: dict[str, Any] | BadData | None
    try:
        found = None if path is None else card.of_weights(path, classifier)
    except BadData as error:
        found = error
    return Network(classifier, classifier.weights_hash, device, _name(suite, found), found)


def _name(suite: Suite, found: dict[str, Any] | BadData | None) -> str:
    """``resnet18``, or ``resnet18 (augmix)``: networks that were trained by different methods are not repeats.

    The card of the weights says so; the suite's name of the network counts for weights without a card.
    """
    training = card.training_of(found) if isinstance(found, dict) else suite.network
    return f"{suite.model} ({training})" if training else suite.model or ""


def try_network(
    classifier: Classifier,
    images: ImageSet,
    train: ImageSet | None,
    *,
    name: str,
    batch_size: int,
    seed: int,
    progress: Progress,
    workers: int = 0,
) -> NetworkAccuracy | None:
    """Accuracy on at most ``MOST_IMAGES`` of these images, drawn by a seeded stratified shuffle, in one pass of its own.

    ``name`` is what messages call the network.
    Classes are those that the set names. A set without names may show some of them only: then they are those of the network,
    or as many as the largest label of ``images`` and ``train`` needs, if that is more. Logits that are not finite are wrong
    answers. None for images without labels, and for a network that fails, which the detectors report.
    Raises TooSlow, and what reading the images raises.
    """
    if images.labels is None:
        return None
    labels = [one.labels for one in (images, train) if one is not None and one.labels is not None]
    needed = int(torch.cat(labels).max()) + 1
    drawn = protocols.limited(images, MOST_IMAGES, seed)
    truth = protocols.labels_of(drawn)
    assert truth is not None
    progress.stage(f"{images.name}: accuracy of {name} on {len(drawn):,} images")
    gives, right = 0, 0

    def count(rows: np.ndarray, batch: torch.Tensor) -> None:
        nonlocal gives, right
        with torch.no_grad(), contained():  # no inference mode: what a network keeps may later need gradients
            logits = classifier(batch)
        gives, answers = logits.shape[1], logits.argmax(1)
        answers[~torch.isfinite(logits).all(1)] = -1
        if truth.max() < gives:
            right += int((answers.cpu().numpy() == truth[rows]).sum())

    limit = batch_limit()
    for piece, images_of_piece in batches(drawn, classifier, pieces_of(np.arange(len(drawn)), batch_size), workers):
        try:
            limit.each(piece, images_of_piece, count)
        except TooSlow:
            raise
        except Exception:  # a third party's forward may raise anything
            return None
        if truth.max() >= gives:
            break
    return NetworkAccuracy(
        network=name,
        dataset=f"{images.name} ({images.split})",
        gives=gives,
        classes=len(images.classes) or max(gives, needed),
        images=len(drawn),
        drawn_from=len(images),
        accuracy=None if truth.max() >= gives else _accuracy(right, truth),
    )


def _accuracy(right: int, truth: np.ndarray) -> Accuracy:
    """Of this many right answers, where the labels are ``truth`` (n,)."""
    low, high = binomial_interval(right, len(truth))
    largest = np.unique(truth, return_counts=True)[1].max() / len(truth)
    return Accuracy(
        right=right / len(truth), low=low, high=high, largest_class=largest, chance=_is_chance(right, len(truth), largest)
    )


def _is_chance(right: int, images: int, largest: float) -> bool:
    """Whether as many right answers are likely if each has the probability ``largest``.

    False where even right answers alone would be: of few images, or of a single class.
    """
    from scipy.stats import binomtest

    exceeds, could_exceed = (
        binomtest(count, images, largest, alternative="greater").pvalue < LEVEL for count in (right, images)
    )
    return could_exceed and not exceeds
