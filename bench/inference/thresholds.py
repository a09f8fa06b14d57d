"""Fits a detector, and sets the threshold above which an image is flagged.

The detector is fitted on the training split. The threshold comes from images that were used neither for the fit nor for
training the network, by default a random half of the ``test`` split; the other half measures how often it errs. A
network is more confident on its training images, so a threshold set on them would later flag too many images.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oodbench import metrics, protocols, standalone
from oodbench.batching import batches
from oodbench.classifier import Classifier
from oodbench.datasets.name import canonical, parse_unchanged
from oodbench.detector import Detector, load_detector
from oodbench.engine import timing
from oodbench.errors import BadData, UsageError, reason
from oodbench.image_set import ImageSet
from oodbench.inference.fitted import About, FalseAlarms, Fitted, Input, Model, Training, sha256_of
from oodbench.progress import Progress
from oodbench.results.provenance import provenance

CONFIDENCE = 0.95
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
    resize: str = "bilinear",
    data: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
) -> Fitted:
    """Fit a detector on the training split of a set, with a threshold that flags at most ``false_alarms`` of new images.

    Args:
        model: None for a detector that only reads images.
        held_out_split: the split used to set the threshold; ``train`` keeps a random tenth of the training images out of
            the fit, for sets without another split.
        size, resize: as in ``load_dataset``.
        weights, weights_key: as in ``load_model``.

    Raises UsageError for a set with a corruption or attack, and if there are too few held-out images for such a small rate.
    """
    from oodbench.models.load import load_model

    progress, dataset = progress or Progress(), canonical(dataset)
    if not 0 < false_alarms < 1:
        raise UsageError(f"false alarms = {false_alarms:g}; give a share between 0 and 1, such as 0.05")
    parse_unchanged(dataset)
    progress.stage(f"loading {dataset}")
    train, held_out = _sets(dataset, held_out_split, size=size, resize=resize, data=data, seed=seed)
    height, width = train.images.shape[2:]
    thresholding, measuring = _halves(held_out, seed)
    rank_of(len(thresholding), false_alarms)  # before anything is trained
    made = _made(detector, parameters or {})
    classifier, about_model = None, None
    if model is not None:
        progress.stage(f"loading {model}")
        path = _weights_file(model, weights, data)
        classifier = load_model(
            model, weights, weights_key=weights_key, data=data, device=device, require_weights=True, progress=False
        )
        classifier.check(train.read(range(min(2, len(train)))) / 255)
        about_model = Model(
            name=model,
            weights=str(path.absolute()) if path else None,
            weights_key=weights_key,
            weights_sha256=sha256_of(path) if path else None,
            weights_hash=classifier.weights_hash,
        )
    elif made.reads_network:
        raise UsageError(f"{detector} needs a network; name one with --model")
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
    threshold = threshold_of(scores[thresholding], false_alarms)
    measured = _measured(scores[measuring], threshold, false_alarms, len(thresholding))
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
            input=Input(size=(height, width), resize=resize),
            model=about_model,
            training=Training(
                dataset=dataset,
                split="train",
                images=len(train),
                fingerprint=train.fingerprint,
                held_out_split=held_out_split,
                held_out_fingerprint=held_out.fingerprint,
                seed=seed,
            ),
            cost=_cost(made, classifier, held_out),
            provenance=provenance(str(classifier.device if classifier else "cpu")),
        ),
    )


def threshold_of(scores: np.ndarray, share: float) -> float:
    """The smallest of the scores (n,) that a new exchangeable image exceeds with a probability of at most ``share``.

    It is the k-th largest, k = ⌊share · (n + 1)⌋. The new score exceeds the k-th largest of the others only if it is among
    the k largest of all n + 1, which has probability k / (n + 1), or less with ties: the rank of split conformal
    prediction (Vovk et al. 2005). This is the mean over draws of held-out images; the rate for the threshold of one draw
    is above or below it. Raises UsageError if k is 0.
    """
    return float(np.sort(scores)[len(scores) - rank_of(len(scores), share)])


def rank_of(count: int, share: float) -> int:
    """Rank (1 = largest) of the threshold among ``count`` held-out scores. Raises UsageError if the rate is too small."""
    rank = int(np.floor(share * (count + 1) + 1e-9))  # .29 · 100 is a little less than 29
    if rank < 1:
        raise UsageError(
            f"{count:,} held-out images are too few for a false-alarm rate of {share:g}; ask for at least"
            f" {np.ceil(1e6 / (count + 1)) / 1e6:g}, or hold out at least {2 * (int(np.ceil(1 / share - 1e-9)) - 1):,} images"
        )
    return rank


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


def _measured(scores: np.ndarray, threshold: float, asked: float, drawn_from: int) -> FalseAlarms:
    from scipy.stats import binomtest

    flagged = int((scores > threshold).sum())
    interval = binomtest(flagged, len(scores)).proportion_ci(CONFIDENCE)
    return FalseAlarms(
        asked=asked,
        drawn_from=drawn_from,
        measured=flagged / len(scores),
        measured_low=float(interval.low),
        measured_high=float(interval.high),
        measured_on=len(scores),
        exceeds=bool(interval.low > asked),
    )


def _cost(detector: Detector, classifier: Classifier | None, images: ImageSet) -> dict[str, float | None]:
    """Standalone cost, as in the leaderboard."""
    head = detector.head
    setting = detector.grid[head.setting_] if head.chooses else detector.setting
    rows = np.resize(np.arange(len(images)), timing.BATCH_SIZE)
    (_, batch), *_ = batches(images, classifier, [rows])
    return timing.standalone_costs({"it": timing.Job(detector, setting)}, classifier, batch)["it"]


def _weights_file(model: str, weights: str | Path | None, data: str | Path | None) -> Path | None:
    """The weights file that ``load_model`` reads, if it is one that the user put there."""
    from oodbench.models.weights import places

    return Path(weights) if weights is not None else next((p for p in places(model, data) if p.exists()), None)
