"""The passes over images, each shared by all detectors: observe the training set, and compute statistics.

Memory does not grow with the number of images, but for what a detector keeps and its statistics.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oodbench import protocols
from oodbench.classifier import Classifier
from oodbench.decoding import decoded_batches
from oodbench.detector import Detector, as_images
from oodbench.errors import BadData, Unsuitable
from oodbench.heads import HEADS
from oodbench.image_set import Images, ImageSet
from oodbench.prepared import prepare
from oodbench.probe import NEED_GRAPH, Probe
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet

RESIDENT_BYTES = 2**30  # sets up to this size live on the device as uint8

OnError = Callable[[Detector, Exception], None]
OnBatch = Callable[[float], None]  # how much work is done, in forward passes of one image
Settings = Sequence[dict[str, Any]]


def raise_it(detector: Detector, error: Exception) -> None:
    raise error


def pieces_of(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Rows cut into batches."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def batches(
    images: Tensor | ImageSet, classifier: Classifier | None, pieces: Sequence[np.ndarray], workers: int = 0
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """(rows, images) for each piece: floats (n, C, H, W) in [0, 1] on the classifier's device and in its dtype."""
    device = classifier.device if classifier else torch.device("cpu")
    dtype = classifier.dtype if classifier else torch.float32
    stored = images if isinstance(images, Tensor) else images.images
    if isinstance(stored, Tensor):
        if stored.numel() * stored.element_size() <= RESIDENT_BYTES:
            stored = stored.to(device)
        source: Iterator[Tensor] = (stored[torch.from_numpy(piece).to(stored.device)] for piece in pieces)
    else:
        source = decoded_batches(stored, pieces, workers, pin_memory=device.type == "cuda")
    for piece, batch in zip(pieces, source, strict=True):
        yield piece, _floats(batch, device, dtype)


def _floats(batch: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Images as they are stored -> floats in [0, 1]."""
    batch = batch.to(device, non_blocking=True)
    return batch.to(dtype) / 255 if batch.dtype == torch.uint8 else batch.to(dtype)


def _rows_like(images: Tensor | Images, rows: np.ndarray, batch: Tensor) -> Tensor:
    """These rows of stored images, as the batch is: on its device and in its dtype."""
    stored = images[torch.from_numpy(rows)] if isinstance(images, Tensor) else images[rows.tolist()]
    return _floats(stored, batch.device, batch.dtype)


def signals_of(detectors: Sequence[Detector]) -> frozenset[str]:
    """What a probe must be ready to give to these detectors together."""
    return frozenset().union(*(d.declared_signals for d in detectors))


def effort(jobs: Mapping[Detector, Settings], classifier: Classifier | None) -> float:
    """About how many forward passes an image costs: one shared, and a step and a pass a setting that takes a gradient."""
    layers = len(classifier.layer_names) if classifier else 0
    steps = sum(
        len(settings) * (layers if "layers" in detector.declared_signals else 1)
        for detector, settings in jobs.items()
        if "input_gradient" in detector.declared_signals
    )
    return 1 + 1.2 * steps


def observe(
    detectors: Sequence[Detector],
    classifier: Classifier | None,
    images: Tensor | ImageSet,
    labels: Tensor | None,
    held_out: np.ndarray,
    batch_size: int,
    *,
    workers: int = 0,
    on_batch: OnBatch = lambda n: None,
    on_error: OnError = raise_it,
) -> None:
    """One pass over the training images for all detectors that learn from them, then ``finish`` of each."""
    learning = list(detectors)
    signals = signals_of(learning) - NEED_GRAPH
    device = classifier.device if classifier else torch.device("cpu")
    for rows, batch in batches(images, classifier, pieces_of(np.arange(len(images)), batch_size), workers):
        chosen = torch.from_numpy(rows)
        probe = Probe(
            classifier,
            batch,
            signals,
            labels=None if labels is None else labels[chosen].to(device),
            held_out=torch.from_numpy(held_out[rows]).to(device),
            clean=batch,
        )
        with probe.mode():
            for detector in list(learning):
                try:
                    detector.observe(probe)
                except Exception as error:
                    learning.remove(detector)
                    on_error(detector, error)
        on_batch(len(rows))
    for detector in learning:
        try:
            with torch.no_grad():
                detector.finish()
        except Exception as error:
            on_error(detector, error)


def statistics(
    jobs: Mapping[Detector, Settings],
    classifier: Classifier | None,
    images: Tensor | ImageSet,
    pieces: Sequence[np.ndarray],
    *,
    clean: bool = False,
    signals: frozenset[str] | None = None,
    workers: int = 0,
    on_batch: OnBatch = lambda n: None,
    on_error: OnError = raise_it,
) -> tuple[dict[Detector, np.ndarray], dict[Detector, float]]:
    """One pass over the rows of ``pieces``, a batch each, for all detectors, each at its settings.

    Returns float64 statistics (rows in all, S, D) by detector, and seconds by detector: its own work and an equal share
    of the forward pass. A detector that fails goes to ``on_error`` and is left out; so does one whose statistics are
    not finite. ``clean`` images are their own clean twins. ``signals`` may ask for more than these detectors need, to
    keep the arithmetic of a larger group.
    """
    parts: dict[Detector, list[np.ndarray]] = {detector: [] for detector in jobs}
    seconds = dict.fromkeys(jobs, 0.0)
    signals = signals_of(list(jobs)) if signals is None else signals
    device = classifier.device if classifier else torch.device("cpu")
    work = effort(jobs, classifier)
    twins = images.clean if isinstance(images, ImageSet) else None
    clean = clean or (isinstance(images, ImageSet) and twins is images.images)
    for piece, batch in batches(images, classifier, pieces, workers):
        base = batch if clean else None if twins is None else partial(_rows_like, twins, piece, batch)
        probe = Probe(classifier, batch, signals, clean=base)
        with probe.mode():
            start = time.perf_counter()
            if not signals <= {"images"} and classifier is not None:
                probe.forward()
            synchronise(device)
            shared = (time.perf_counter() - start) / max(1, len(parts))
            for detector in list(parts):
                start = time.perf_counter()
                try:
                    with detector.computing(jobs[detector]):
                        parts[detector].append(detector.grouped_statistics(probe))
                except Exception as error:
                    del parts[detector]
                    on_error(detector, error)
                    continue
                seconds[detector] += time.perf_counter() - start + shared
        on_batch(len(piece) * work)
    found = {}
    for detector, part in parts.items():
        try:
            found[detector] = _joined(part)
        except BadData as error:
            on_error(detector, error)
    return found, {detector: seconds[detector] for detector in found}


def probabilities(
    detectors: Sequence[Detector],
    classifier: Classifier | None,
    images: ImageSet,
    batch_size: int,
    *,
    signals: frozenset[str],
    workers: int = 0,
    on_batch: OnBatch = lambda n: None,
    on_error: OnError = raise_it,
) -> tuple[dict[Detector, np.ndarray], np.ndarray | None]:
    """One pass over in-distribution images: float64 class probabilities (N, classes) by detector, where it gives some, and
    the network's softmax."""
    parts: dict[Detector, list[np.ndarray]] = {detector: [] for detector in detectors}
    network: list[np.ndarray] = []
    for piece, batch in batches(images, classifier, pieces_of(np.arange(len(images)), batch_size), workers):
        probe = Probe(classifier, batch, signals, clean=batch)
        with probe.mode():
            if classifier is not None:
                network.append(probe.softmax.cpu().numpy())
            for detector in list(parts):
                try:
                    given = detector.probabilities(probe)
                    if given is not None:
                        parts[detector].append(given.detach().double().cpu().numpy())
                except Exception as error:
                    del parts[detector]
                    on_error(detector, error)
        on_batch(len(piece))
    found = {detector: np.concatenate(part) for detector, part in parts.items() if part}
    return found, np.concatenate(network) if network else None


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Statistics of all batches (N, S, D). Raises BadData where they do not fit together or are not finite."""
    widths = {part.shape[2] for part in parts}
    if len(widths) > 1:
        raise BadData(f"statistics(probe) gave {' and '.join(map(str, sorted(widths)))} columns on different batches")
    values = np.concatenate(parts)
    bad = ~np.isfinite(values).all((1, 2))
    if bad.any():
        raise BadData(
            f"{bad.sum()} of {len(values)} images have scores that are not finite (NaN or infinity),"
            f" the first in row {int(np.flatnonzero(bad)[0])}"
        )
    return values


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock read next tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fit(
    detector: Detector,
    classifier: Classifier | None,
    images: Tensor | ImageSet | np.ndarray,
    labels: Tensor | None,
    *,
    shift_images: Tensor | ImageSet | np.ndarray | None,
    batch_size: int,
    seed: int,
) -> None:
    """``Detector.fit``: prepare, observe, calibrate, and fit a supervised head where a shift is given."""
    images = as_images(images)
    if labels is not None:
        labels = torch.as_tensor(labels).long().cpu()
        if len(labels) != len(images):
            raise BadData(f"{len(images)} images and {len(labels)} labels; give one label an image")
    if shift_images is not None and detector.shift_head is None:
        raise Unsuitable(f"{detector.name or type(detector).__name__} learns nothing from a shift; leave out shift_images")
    if detector.observes or detector.prepares:  # from anew: an earlier fit may have broken off half-way
        fresh = vars(type(detector)(**detector.parameters())) | {"name": detector.name}
        vars(detector).clear()
        vars(detector).update(fresh)
    detector.check(classifier)
    held_out = protocols.held_out(len(images), None if labels is None else labels.numpy(), seed)
    if detector.prepares:
        with _explained(classifier, images):
            prepare(detector, classifier, TrainingSet(images, labels, held_out, seed), Progress())
    if detector.observes:
        with _explained(classifier, images):
            observe([detector], classifier, images, labels, held_out, batch_size)

    def compute(settings: Settings, source: Tensor | ImageSet, rows: np.ndarray) -> np.ndarray:
        pieces = pieces_of(rows, batch_size)
        with _explained(classifier, source):
            found, _ = statistics({detector: settings}, classifier, source, pieces, clean=source is images)
        return detector.columns_of(found[detector])

    head = HEADS[detector.unsupervised_head]()
    if shift_images is not None:
        assert detector.shift_head is not None
        head = HEADS[detector.shift_head]()
        settings = detector.shift_settings
        shift = as_images(shift_images)
        inside = compute(settings, images, np.flatnonzero(held_out))
        outside = compute(settings, shift, np.arange(len(shift)))
        orders = [protocols.stratified_order(len(side), None, seed) for side in (inside, outside)]
        fit_half, choose_half = ((inside[orders[0][half::2]], outside[orders[1][half::2]]) for half in (0, 1))
        head.fit(fit_half, choose_half, "tnr95")
    elif head.calibrates:
        head.calibrate(compute([detector.setting], images, np.flatnonzero(held_out)))
    detector.head = head


def score(
    detector: Detector, classifier: Classifier | None, images: Tensor | ImageSet | np.ndarray, *, batch_size: int
) -> np.ndarray:
    """``Detector.score``: one pass at the head's setting. Raises BadData for scores that are not finite."""
    images = as_images(images)
    detector.require_fitted()
    head = detector.head
    setting = detector.grid[head.setting_] if head.chooses else detector.setting
    pieces = pieces_of(np.arange(len(images)), batch_size)
    with _explained(classifier, images):
        found = statistics({detector: [setting]}, classifier, images, pieces)[0][detector]
    with np.errstate(all="ignore"):  # what overflows is said below
        scores = head.score(detector.columns_of(found))
    if bad := int((~np.isfinite(scores)).sum()):
        raise BadData(
            f"{bad} of {len(scores)} scores of {detector.name or type(detector).__name__} are not finite (NaN or infinity),"
            " though its statistics are: its head is broken; fit it again"
        )
    return scores


@contextmanager
def _explained(classifier: Classifier | None, images: Tensor | ImageSet) -> Iterator[None]:
    """Where the network does not take these images, say that in one line instead of what its layers say."""
    try:
        yield
    except (RuntimeError, AttributeError, TypeError):
        if classifier is not None:
            classifier.check(images.read([0]) if isinstance(images, ImageSet) else images[:1])
        raise
