"""Fits a detector, and sets the threshold above which an image is flagged.

The detector is fitted on the training split. The threshold comes from images that were used neither for the fit nor for
training the network, by default a random half of the ``test`` split; the other half measures how often it errs. A
network is more confident on its training images, so a threshold set on them would later flag too many images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oodbench import metrics, protocols, standalone
from oodbench.batching import batches
from oodbench.classifier import Classifier
from oodbench.datasets.name import canonical, parse_unchanged, recorded
from oodbench.datasets.transform import Transform
from oodbench.detector import Detector, load_detector
from oodbench.engine import timing
from oodbench.engine.network import try_network
from oodbench.errors import BadData, UsageError, reason
from oodbench.image_set import ImageSet
from oodbench.inference.false_alarms import HeldOut, rank_of
from oodbench.inference.fitted import About, Fitted, Input, Model, Training, sha256_of
from oodbench.models.exact import exact
from oodbench.paths import DataRoots
from oodbench.progress import Progress
from oodbench.results.network import NetworkAccuracy, as_provenance
from oodbench.results.provenance import provenance

BATCH_SIZE = 128


def fit(
    detector: str,
    *,
    model: str | None,
    dataset: str,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    false_alarms: float = 0.05,
    parameters: Mapping[str, Any] | None = None,
    held_out_split: str = "test",
    size: int | None = None,
    resize: str | None = None,
    shorter_side: int | None = None,
    data: DataRoots = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
    layers: Sequence[str] | None = None,
) -> Fitted:
    """Fit a detector on the training split of a set, with a threshold that flags at most ``false_alarms`` of new images.

    Args:
        model: None for a detector that only reads images.
        held_out_split: the split used to set the threshold; ``train`` keeps a random tenth of the training images out of
            the fit, for sets without another split.
        size, resize, shorter_side: as in ``load_dataset``.
        weights, weights_key, layers: as in ``load_model``.

    Raises UsageError for a set with a corruption or attack, and if there are too few held-out images for such a small rate.
    """
    from oodbench.models.load import load_model

    progress, dataset = progress or Progress(), canonical(dataset)
    if not 0 < false_alarms < 1:
        raise UsageError(f"false alarms = {false_alarms:g}; give a share between 0 and 1, such as 0.05")
    parse_unchanged(dataset)
    made = _made(detector, parameters or {})
    classifier, about_model = None, None
    tried: NetworkAccuracy | None = None
    if model is not None:
        progress.stage(f"loading {model}")
        given: dict[str, Any] = {"weights_key": weights_key, "layers": layers, "data": data}
        classifier = load_model(model, weights, device=device, require_weights=True, **given)
    elif made.reads_network:
        raise UsageError(f"{detector} needs a network; name one with --model")
    progress.stage(f"loading {dataset}")
    stated = classifier.transform if classifier is not None else None
    transform = (stated or Transform()).replaced(size, resize, shorter_side)
    train, held_out = _sets(dataset, held_out_split, **asdict(transform), data=data, seed=seed)
    height, width = train.images.shape[2:]
    thresholding, measuring = _halves(held_out, seed)
    rank_of(len(thresholding), false_alarms)  # before anything is trained
    if classifier is not None and model is not None:
        path = _weights_file(model, weights, data)
        classifier.check(train.read(range(min(2, len(train)))) / 255)
        about_model = Model(
            name=model,
            weights=str(path.absolute()) if path else None,
            weights_key=weights_key,
            weights_sha256=sha256_of(path) if path else None,
            weights_hash=classifier.weights_hash,
            layers=list(classifier.layer_names),
        )
        tried = try_network(classifier, held_out, train, name=model, batch_size=BATCH_SIZE, seed=seed, progress=progress)
        for line in tried.warnings() if tried is not None else ():
            progress.say(line)
    progress.stage(f"fitting {detector} on {len(train):,} images")
    standalone.fit(
        made, classifier, train, train.labels, shift_images=None, batch_size=BATCH_SIZE, seed=seed, data=data, progress=progress
    )
    progress.stage(f"scoring {len(held_out):,} held-out images")
    scores = made.score(classifier, held_out)
    if metrics.alike(scores):
        raise BadData(
            f"all scores of {detector} are {scores[0]:g}, up to rounding, so they separate nothing; choose another detector"
        )
    kept = HeldOut(thresholding=scores[thresholding].tolist(), measuring=scores[measuring].tolist())
    threshold, measured = kept.at_rate(false_alarms)
    if measured.exceeds:
        progress.say(
            f"{detector} flags more than the {false_alarms:.2%} requested: {measured.measured:.2%} of {measured.measured_on:,}"
            f" other held-out images (95 % interval from {measured.measured_low:.2%}); hold out more images, or lower the rate"
        )
    progress.stage("measuring its cost")
    return Fitted(
        made,
        classifier,
        About(
            threshold=threshold,
            false_alarms=measured,
            input=Input(size=(height, width), resize=transform.resize, shorter_side=transform.shorter_side),
            model=about_model,
            training=Training(
                dataset=recorded(dataset),
                split="train",
                images=len(train),
                fingerprint=train.fingerprint,
                held_out_split=held_out_split,
                held_out_fingerprint=held_out.fingerprint,
                seed=seed,
            ),
            cost=_cost(made, classifier, held_out),
            provenance=provenance(str(classifier.device if classifier else "cpu")) | as_provenance(tried),
            held_out=kept,
        ),
    )


def _made(detector: str, parameters: Mapping[str, Any]) -> Detector:
    """Raises UsageError for parameter values that the detector rejects."""
    try:
        return load_detector(detector, **parameters)
    except (TypeError, ValueError) as error:
        if parameters:
            raise UsageError(f"{detector} does not take {dict(parameters)}: {reason(error)}") from error
        raise


def _sets(dataset: str, held_out_split: str, **options: Any) -> tuple[ImageSet, ImageSet]:
    """Training images, and held-out images of the same size."""
    from oodbench.datasets.load import load_dataset

    train = load_dataset(dataset, split="train", **options)
    if held_out_split == "train":
        mask = torch.from_numpy(protocols.held_out(len(train), _labels(train), options["seed"]))
        return train.select(torch.nonzero(~mask).flatten()), train.select(torch.nonzero(mask).flatten())
    height, width = train.images.shape[2:]
    held_out = load_dataset(dataset, split=held_out_split, **options)
    if tuple(held_out.images.shape[2:]) != (height, width):
        raise UsageError(
            f"{dataset}: its splits are {height}×{width} and {'×'.join(map(str, held_out.images.shape[2:]))} pixels;"
            " resize both with --size"
        )
    if protocols.shares_images(train, held_out):
        raise BadData(f"{dataset}: its train and {held_out_split} splits have the same images; give another --held-out split")
    protocols.require_same_classes(train, held_out)
    return train, held_out


def _labels(images: ImageSet) -> np.ndarray | None:
    return None if images.labels is None else images.labels.numpy()


def _halves(images: ImageSet, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two random, stratified halves."""
    order = protocols.stratified_order(len(images), _labels(images), seed)
    return order[::2], order[1::2]


def _cost(detector: Detector, classifier: Classifier | None, images: ImageSet) -> dict[str, float | None]:
    """Standalone cost, as in the leaderboard."""
    head = detector.head
    setting = detector.grid[head.setting_] if head.chooses else detector.setting
    rows = np.resize(np.arange(len(images)), timing.BATCH_SIZE)
    (_, batch), *_ = batches(images, classifier, [rows])
    with exact(batch.device):
        return timing.standalone_costs({"it": timing.Job(detector, setting)}, classifier, batch)["it"]


def _weights_file(model: str, weights: str | Path | None, data: DataRoots) -> Path | None:
    """The weights file that ``load_model`` reads, if it is one that the user put there."""
    from oodbench.models.load import weights_path
    from oodbench.models.weights import SHIPPED

    path = weights_path(model, weights, data)
    return None if path in SHIPPED.values() else path
