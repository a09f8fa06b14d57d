"""What detectors learn before they score: their own networks, the training images, and what calibrates their heads."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from oodbench.batching import batches, pieces_of, require_finite_logits
from oodbench.classifier import Classifier
from oodbench.errors import BadData, TooSlow
from oodbench.forward.guard import Guard
from oodbench.heads import Head
from oodbench.image_set import ImageSet
from oodbench.models.device import is_out_of_memory
from oodbench.passes.memory import batch_limit
from oodbench.passes.scoring import statistics
from oodbench.passes.turns import Errors, OnBatch, OnError, isolated, raise_it, signals_of, turn
from oodbench.probe import NEED_GRAPH, Probe
from oodbench.progress import Progress
from oodbench.state import fitted_state
from oodbench.training_cache import prepare
from oodbench.training_set import FitMemory, TrainingSet

if TYPE_CHECKING:
    from oodbench.detector import Detector


def learn(
    detectors: Iterable["Detector"],
    classifier: Classifier | None,
    train_set: TrainingSet,
    *,
    batch_size: int,
    workers: int = 0,
    progress: Progress | None = None,
    guard: Guard | None = None,
    on_error: OnError = raise_it,
) -> None:
    """Check each detector, prepare those that train a network, and show the training images to all others in one pass."""
    progress = progress or Progress()
    checked, observing = [], []
    memory = FitMemory(detectors := list(detectors), classifier, train_set, progress)
    for detector in detectors:
        try:
            with turn(detector, None, guard):
                detector.check(classifier)
                memory.require(detector)
        except Exception as error:
            on_error(detector, error)
        else:
            checked.append(detector)
    memory.report()
    for detector in checked:
        try:
            with turn(detector, None, guard):
                if "seed" in detector.parameters():
                    detector.run_seed_ = train_set.seed
                if detector.prepares:
                    prepare(detector, classifier, train_set, progress)
        except Exception as error:
            on_error(detector, error)
        else:
            observing += [detector] if detector.observes else []
    if observing:
        progress.stage(f"fitting on {len(train_set):,} training images")
        observe(
            observing,
            classifier,
            train_set,
            batch_size,
            workers=workers,
            on_batch=progress.advance,
            guard=guard,
            on_error=on_error,
        )


def calibrate(
    heads: Mapping["Detector", Head],
    classifier: Classifier | None,
    train_set: TrainingSet,
    *,
    batch_size: int,
    signals: frozenset[str] | None = None,
    precision: torch.dtype | None = None,
    workers: int = 0,
    guard: Guard | None = None,
    on_error: OnError = raise_it,
) -> None:
    """Calibrate the heads that need it on the validation images, or else the held-out training images, in one pass."""
    settings = {detector: [detector.setting] for detector, head in heads.items() if head.calibrates}
    if not settings:
        return
    images, rows = train_set.images, np.flatnonzero(train_set.held_out)
    if train_set.validation is not None:
        images, rows = train_set.validation, np.arange(len(train_set.validation))
    pieces = pieces_of(rows, batch_size)
    options: dict[str, Any] = {"signals": signals, "precision": precision, "workers": workers}
    options |= {"guard": guard, "on_error": on_error}
    found, _ = statistics(settings, classifier, images, pieces, clean=True, **options)
    for detector, values in found.items():
        try:
            heads[detector].calibrate(detector.columns_of(values))
        except Exception as error:
            on_error(detector, error)


def observe(
    detectors: Sequence["Detector"],
    classifier: Classifier | None,
    train_set: TrainingSet,
    batch_size: int,
    *,
    workers: int = 0,
    on_batch: OnBatch = lambda n: None,
    guard: Guard | None = None,
    on_error: OnError = raise_it,
) -> None:
    """One pass over the training images for all detectors that learn from them, and over the validation images for those
    that calibrate on them; then call ``finish`` of each.

    If memory is short for a detector, which may have learnt from a part of the batch, the pass begins again with half as many
    images at once, or without the detector if memory is short for one image.
    """
    before = {detector: fitted_state(detector) for detector in detectors}
    limit, begun = batch_limit(), False
    too_large: Errors = {}

    def once(guard: Guard | None) -> Errors:
        nonlocal begun
        for detector in detectors if begun else ():  # what they gathered may come from a changed network, or from half a batch
            reset(detector, **before[detector])
        begun = True
        # Not a list, in which detectors of equal values would be the same.
        learning = dict.fromkeys(detector for detector in detectors if detector not in too_large)
        errors: Errors = {}
        signals = signals_of(list(learning)) - NEED_GRAPH
        device = classifier.device if classifier else torch.device("cpu")

        def show(images: Tensor | ImageSet, labels: Tensor | None, held_out: np.ndarray, to: Iterable["Detector"]) -> None:
            to = dict.fromkeys(to)

            def observe_batch(rows: np.ndarray, batch: Tensor) -> None:
                chosen = torch.from_numpy(rows)
                probe = Probe(
                    classifier,
                    batch,
                    signals,
                    labels=None if labels is None else labels[chosen].to(device, non_blocking=True),
                    held_out=torch.from_numpy(held_out[rows]).to(device, non_blocking=True),
                    clean=batch,
                )
                with probe.mode():
                    unreadable = _unreadable(probe, images, rows) if classifier and not signals <= {"images"} else None
                    if guard is not None:
                        guard.ignore_changes()
                    for detector in list(to):
                        try:
                            if unreadable is not None and detector.reads_network:
                                raise unreadable
                            with turn(detector, probe, guard):
                                detector.observe(probe)
                        except Exception as error:
                            if is_out_of_memory(error):
                                raise _TooLarge(detector, len(batch), batch.device, error) from error
                            del to[detector], learning[detector]
                            errors[detector] = error

            for rows, batch in batches(images, classifier, pieces_of(np.arange(len(images) if to else 0), batch_size), workers):
                limit.each(rows, batch, observe_batch)
                if not to:
                    break
                on_batch(len(rows))

        show(train_set.images, train_set.labels, train_set.held_out, learning)
        if (unseen := train_set.validation) is not None:
            calibrating = [detector for detector in learning if detector.calibrates]
            show(unseen, unseen.labels, np.ones(len(unseen), dtype=bool), calibrating)
        for detector in learning:
            try:
                with torch.no_grad(), turn(detector, None, guard):
                    detector.finish()
            except Exception as error:
                errors[detector] = error
        return errors

    def until_it_fits(guard: Guard | None) -> Errors:
        while True:
            try:
                return once(guard)
            except _TooLarge as error:
                size, device = error.size, error.device
                if size == 1:
                    too_large[error.detector] = error.cause
                    limit.most = most
            if size > 1:
                limit.halve(size, device)

    most = limit.most
    for detector, error in (isolated(until_it_fits, guard) | too_large).items():
        on_error(detector, error)


class _TooLarge(Exception):
    """Memory is short for what a detector does with so many images."""

    def __init__(self, detector: "Detector", size: int, device: torch.device, cause: Exception) -> None:
        super().__init__(detector, size)
        self.detector, self.size, self.device, self.cause = detector, size, device, cause


def reset(detector: "Detector", **kept: Any) -> None:
    """Make a detector as its constructor leaves it, but for its name and the fitted state that is kept."""
    fresh = vars(type(detector)(**detector.parameters())) | {"name": detector.name} | kept
    vars(detector).clear()
    vars(detector).update(fresh)


def _unreadable(probe: Probe, images: Tensor | ImageSet, rows: np.ndarray) -> BadData | None:
    """The error if logits are not finite: a detector fitted on them may look sound."""
    try:
        require_finite_logits(probe.logits, images, rows, probe.classifier.name)
    except BadData as error:
        return error
    except TooSlow:
        raise
    except Exception as error:  # reported by the detectors that read the network
        if is_out_of_memory(error) and len(rows) > 1:
            raise
        return None
    return None
