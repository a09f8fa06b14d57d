"""Fit and score a single detector without a run: ``Detector.fit`` and ``Detector.score``.

Threads that share a network take turns. Measured on two cores with images one by one, this costs less than letting
them run side by side, where they wait for the interpreter.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import RLock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from oodbench import passes, protocols
from oodbench.batching import as_images, pieces_of
from oodbench.classifier import Classifier
from oodbench.errors import BadData, Unsuitable
from oodbench.heads import HEADS
from oodbench.image_set import ImageSet
from oodbench.models.device import full_precision
from oodbench.models.exact import exact
from oodbench.paths import DataRoots
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet

if TYPE_CHECKING:
    from oodbench.detector import Detector

_LOCKS: WeakKeyDictionary[object, AbstractContextManager[Any]] = WeakKeyDictionary()  # by network, or detector without one
if hasattr(os, "register_at_fork"):  # a child would wait for ever for a thread that it does not have
    os.register_at_fork(after_in_child=_LOCKS.clear)


def fit(
    detector: "Detector",
    classifier: Classifier | None,
    images: Tensor | ImageSet | np.ndarray,
    labels: Tensor | None,
    *,
    shift_images: Tensor | ImageSet | np.ndarray | None,
    batch_size: int,
    seed: int,
    data: DataRoots = None,
    progress: Progress | None = None,
) -> None:
    """``Detector.fit``: learn from training images, then calibrate the head, or fit a supervised head if a shift is given.

    ``data`` is the data root or roots, for detectors that load weights.
    """
    images = as_images(images)
    if labels is not None:
        labels = torch.as_tensor(labels).long().cpu()
        if len(labels) != len(images):
            raise BadData(f"{len(images)} images and {len(labels)} labels; give one label per image")
    if shift_images is not None and detector.shift_head is None:
        raise Unsuitable(f"{detector.name or type(detector).__name__} learns nothing from a shift; leave out shift_images")
    if detector.observes or detector.prepares:  # start afresh: an earlier fit may have stopped half-way
        passes.reset(detector)
    held_out = protocols.held_out(len(images), None if labels is None else labels.numpy(), seed)
    train_set = TrainingSet(images, labels, held_out, seed, data)
    with _alone(detector, classifier, images):
        passes.learn([detector], classifier, train_set, batch_size=batch_size, progress=progress)

    def compute(settings: Sequence[dict[str, Any]], source: Tensor | ImageSet, rows: np.ndarray) -> np.ndarray:
        pieces = pieces_of(rows, batch_size)
        with _alone(detector, classifier, source):
            found, _ = passes.statistics({detector: settings}, classifier, source, pieces, clean=source is images)
        return detector.columns_of(found[detector])

    head = HEADS[detector.unsupervised_head]()
    if shift_images is not None:
        assert detector.shift_head is not None
        head = HEADS[detector.shift_head]()
        head.seed = seed
        settings = detector.shift_settings
        shift = as_images(shift_images)
        inside = compute(settings, images, np.flatnonzero(held_out))
        outside = compute(settings, shift, np.arange(len(shift)))
        orders = [protocols.stratified_order(len(side), None, seed) for side in (inside, outside)]
        fit_half, choose_half = ((inside[orders[0][half::2]], outside[orders[1][half::2]]) for half in (0, 1))
        head.fit(fit_half, choose_half, "tnr95")
    else:
        with _alone(detector, classifier, images):
            passes.calibrate({detector: head}, classifier, train_set, batch_size=batch_size)
    detector.head = head


def score(
    detector: "Detector", classifier: Classifier | None, images: Tensor | ImageSet | np.ndarray, *, batch_size: int
) -> np.ndarray:
    """``Detector.score``: one pass at the head's setting. Raises BadData for scores that are not finite."""
    return scores_and_logits(detector, classifier, images, batch_size=batch_size)[0]


def scores_and_logits(
    detector: "Detector", classifier: Classifier | None, images: Tensor | ImageSet | np.ndarray, *, batch_size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """``score``, and the logits of the same pass, float64 (N, classes); None for a detector that only reads images."""
    images = as_images(images)
    if isinstance(images, Tensor) and images.is_inference():  # such tensors cannot take part in a gradient
        with torch.inference_mode(False):
            images = images.clone()
    detector.require_fitted()
    head = detector.head
    setting = detector.grid[head.setting_] if head.chooses else detector.setting
    pieces = pieces_of(np.arange(len(images)), batch_size)
    logits: list[np.ndarray] | None = [] if classifier is not None and detector.reads_network else None
    with _alone(detector, classifier, images):
        found = passes.statistics({detector: [setting]}, classifier, images, pieces, logits=logits)[0][detector]
    with np.errstate(all="ignore"):  # overflow is reported below
        scores = head.score(detector.columns_of(found))
    if bad := int((~np.isfinite(scores)).sum()):
        raise BadData(
            f"{bad} of {len(scores)} scores of {detector.name or type(detector).__name__} are not finite (NaN or infinity),"
            " although its statistics are, so its head is broken; fit it again"
        )
    return scores, None if logits is None else np.concatenate(logits)


def lock_of(detector: "Detector", classifier: Classifier | None) -> AbstractContextManager[Any]:
    """What a thread holds while it fits or scores: one for each network, or for a detector without one."""
    return _LOCKS.setdefault(detector if classifier is None else classifier, RLock())


@contextmanager
def _alone(detector: "Detector", classifier: Classifier | None, images: Tensor | ImageSet) -> Iterator[None]:
    """Keep other threads from the network, whose hooks and signals are the detector's now.

    A caller's inference mode, in which nothing has gradients, and its autocast, which changes scores, do not apply. If the
    network does not accept these images, that is reported in one line instead of the error of a layer.
    """
    device = torch.device("cpu") if classifier is None else classifier.device
    try:
        with lock_of(detector, classifier), torch.inference_mode(False), full_precision(device), exact(device):
            yield
    except (RuntimeError, AttributeError, TypeError):
        if classifier is not None:
            classifier.check(images.read([0]) if isinstance(images, ImageSet) else images[:1])
        raise
