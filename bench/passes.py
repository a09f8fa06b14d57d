"""The passes over images, each shared by all detectors: learn from the training set, and compute statistics.

A run, ``Detector.fit`` and ``oodbench fit`` share them. A detector that fails is reported to ``on_error`` and left out. A
run gives a ``guard``: if the network has changed after a pass, the pass is done again, watching each detector, and those that
change the network fail. TooSlow of the network or of a set ends the pass for all.

Memory does not grow with the number of images, except for what a detector keeps and its statistics.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from oodbench.batching import batches, pieces_of, place_of, require_finite_logits, rows_like
from oodbench.classifier import Classifier
from oodbench.errors import BadData, ChangedNetwork, TooSlow, around_call, contained
from oodbench.forward.guard import Guard
from oodbench.heads import Head
from oodbench.image_set import ImageSet
from oodbench.models.device import synchronise
from oodbench.probe import NEED_GRAPH, Probe
from oodbench.progress import Progress
from oodbench.state import fitted_state
from oodbench.training_cache import prepare
from oodbench.training_set import TrainingSet

if TYPE_CHECKING:
    from oodbench.detector import Detector

OnError = Callable[["Detector", Exception], None]
OnBatch = Callable[[float], None]  # work done, in forward passes of one image
Settings = Sequence[dict[str, Any]]
Keep = Callable[["Detector", np.ndarray, np.ndarray], np.ndarray]  # see ``statistics``
Errors = dict["Detector", Exception]
T = TypeVar("T")


def raise_it(detector: "Detector", error: Exception) -> None:
    raise error


@contextmanager
def turn(detector: "Detector", probe: Probe | None, guard: Guard | None = None) -> Iterator[None]:
    """One call of a detector, which may read what it declared. With ``guard``, raises ChangedNetwork if it changes that."""
    failure: Exception | None = None
    try:
        reading = nullcontext() if probe is None else probe.read_by(detector.declared_signals)
        with contained(), around_call.get()(f"one call of {detector.name}"), reading:
            yield
    except Exception as error:
        failure = error
        if probe is not None and isinstance(error, TooSlow):
            probe.forget()  # what others share may be half computed
    try:
        require_unchanged(guard)
    except ChangedNetwork as change:
        if probe is not None:
            probe.forget()
        raise change from failure
    if failure is not None:
        raise failure


def require_unchanged(guard: Guard | None) -> None:
    """Undo what changed since the guard was made. Raises ChangedNetwork if something did."""
    if guard is not None and (changed := guard.restore()):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ChangedNetwork(
            f"it changes what all detectors share ({', '.join(changed[:3])}{more}); let it change a copy (copy.deepcopy), or"
            " restore what it changes"
        )


def _isolated(once: Callable[[Guard | None], T], guard: Guard | None) -> T:
    """What a pass gives, done again with the guard at each detector if it changed the network."""
    found = once(None)
    return once(guard) if guard is not None and guard.restore() else found


def signals_of(detectors: Sequence["Detector"]) -> frozenset[str]:
    """All signals that a probe must provide for these detectors together."""
    return frozenset().union(*(d.declared_signals for d in detectors))


def pass_equivalents(jobs: Mapping["Detector", Settings], classifier: Classifier | None) -> float:
    """Approximate forward passes per image: one shared, plus a step and a pass per setting that needs a gradient."""
    layers = len(classifier.layer_names) if classifier else 0
    steps = sum(
        len(settings) * (layers if "layers" in detector.declared_signals else 1)
        for detector, settings in jobs.items()
        if "input_gradient" in detector.declared_signals
    )
    return 1 + 1.2 * steps


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
    observing: list[Detector] = []
    for detector in detectors:
        try:
            with turn(detector, None, guard):
                detector.check(classifier)
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
    options: dict[str, Any] = {"signals": signals, "workers": workers, "guard": guard, "on_error": on_error}
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
    that calibrate on them; then call ``finish`` of each."""
    before = {detector: fitted_state(detector) for detector in detectors}

    def once(guard: Guard | None) -> Errors:
        for detector in detectors if guard is not None else ():  # what they gathered may come from a changed network
            reset(detector, **before[detector])
        learning = dict.fromkeys(detectors)  # not a list, in which detectors of equal values would be the same
        errors: Errors = {}
        signals = signals_of(list(learning)) - NEED_GRAPH
        device = classifier.device if classifier else torch.device("cpu")

        def show(images: Tensor | ImageSet, labels: Tensor | None, held_out: np.ndarray, to: Iterable["Detector"]) -> None:
            to = dict.fromkeys(to)
            for rows, batch in batches(images, classifier, pieces_of(np.arange(len(images) if to else 0), batch_size), workers):
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
                            del to[detector], learning[detector]
                            errors[detector] = error
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

    for detector, error in _isolated(once, guard).items():
        on_error(detector, error)


def reset(detector: "Detector", **kept: Any) -> None:
    """Make a detector as its constructor leaves it, but for its name and the fitted state that is kept."""
    fresh = vars(type(detector)(**detector.parameters())) | {"name": detector.name} | kept
    vars(detector).clear()
    vars(detector).update(fresh)


class Computed(NamedTuple):
    """What a pass gives: the statistics (n, S, D) of each batch and the seconds of each detector, or the error that it
    failed with."""

    parts: dict["Detector", list[np.ndarray]]
    seconds: dict["Detector", float]
    errors: Errors


def statistics(
    jobs: Mapping["Detector", Settings],
    classifier: Classifier | None,
    images: Tensor | ImageSet,
    pieces: Sequence[np.ndarray],
    *,
    on_error: OnError = raise_it,
    **options: Any,
) -> tuple[dict["Detector", np.ndarray], dict["Detector", float]]:
    """One pass over the rows of ``pieces`` (one batch each) for all detectors, each at its settings.

    Returns float64 statistics (total rows, S, D) by detector, and seconds by detector: its own work and an equal share of
    the forward pass. A detector that fails is reported to ``on_error`` and left out, as is one whose statistics are not
    finite. Further arguments are of ``computed``.
    """
    return joined(computed(jobs, classifier, images, pieces, **options), images, pieces, on_error)


def computed(
    jobs: Mapping["Detector", Settings],
    classifier: Classifier | None,
    images: Tensor | ImageSet,
    pieces: Sequence[np.ndarray],
    *,
    clean: bool = False,
    signals: frozenset[str] | None = None,
    workers: int = 0,
    on_batch: OnBatch = lambda n: None,
    guard: Guard | None = None,
    logits: list[np.ndarray] | None = None,
    riders: Collection["Detector"] = (),
    keep: Keep = lambda detector, values, rows: values,
) -> Computed:
    """The pass of ``statistics``, batch by batch.

    ``clean`` images are their own clean twins. ``signals`` may contain more than these detectors need, to keep the
    arithmetic of a larger group. The network's logits, float64 (n, classes) of each batch, are appended to ``logits``, which
    a pass with a ``guard`` does not take. ``riders`` among the jobs ride along: the forward pass is not theirs to share, and
    no work is counted for them. ``keep(detector, values, rows)`` gives what is kept of the values (n, S, D) of a batch.
    """
    signals = signals_of(list(jobs)) if signals is None else signals
    twins = images.clean if isinstance(images, ImageSet) else None
    clean = clean or (isinstance(images, ImageSet) and twins is images.images)

    def once(guard: Guard | None) -> Computed:
        parts: dict[Detector, list[np.ndarray]] = {detector: [] for detector in jobs}
        seconds = dict.fromkeys(jobs, 0.0)
        errors: Errors = {}
        device = classifier.device if classifier else torch.device("cpu")
        work = pass_equivalents({d: settings for d, settings in jobs.items() if d not in riders}, classifier)
        for piece, batch in batches(images, classifier, pieces, workers):
            base = batch if clean else None if twins is None else partial(rows_like, twins, piece, batch)
            probe = Probe(classifier, batch, signals, clean=base)
            with probe.mode():
                start = time.perf_counter()
                if not signals <= {"images"} and classifier is not None:
                    probe.forward()
                synchronise(device)
                if guard is not None:
                    guard.ignore_changes()
                shared = (time.perf_counter() - start) / max(1, sum(detector not in riders for detector in parts))
                for detector in list(parts):
                    start = time.perf_counter()
                    try:
                        with turn(detector, probe, guard), detector.computing(jobs[detector]):
                            parts[detector].append(keep(detector, detector.grouped_statistics(probe), piece))
                    except Exception as error:
                        del parts[detector]
                        errors[detector] = error
                        continue
                    seconds[detector] += time.perf_counter() - start + shared
                if logits is not None and parts:
                    logits.append(probe.logits.cpu().numpy())
            if not parts:
                break
            on_batch(len(piece) * work)
        return Computed(parts, seconds, errors)

    return _isolated(once, guard)


def joined(
    found: Computed, images: Tensor | ImageSet, pieces: Sequence[np.ndarray], on_error: OnError
) -> tuple[dict["Detector", np.ndarray], dict["Detector", float]]:
    """What ``statistics`` returns, of the batches of all ``pieces``. Errors are reported to ``on_error``."""
    values, errors = {}, dict(found.errors)
    for detector, parts in found.parts.items():
        try:
            values[detector] = _joined(parts, images, np.concatenate(pieces))
        except BadData as error:
            errors[detector] = error
    for detector, why in errors.items():
        on_error(detector, why)
    return values, {detector: found.seconds[detector] for detector in values}


def _unreadable(probe: Probe, images: Tensor | ImageSet, rows: np.ndarray) -> BadData | None:
    """The error if logits are not finite: a detector fitted on them may look sound."""
    try:
        require_finite_logits(probe.logits, images, rows, probe.classifier.name)
    except BadData as error:
        return error
    except TooSlow:
        raise
    except Exception:  # reported by the detectors that read the network
        return None
    return None


def _joined(parts: Sequence[np.ndarray], images: Tensor | ImageSet, rows: np.ndarray) -> np.ndarray:
    """Statistics (N, S, D) of all batches, of rows (N,). Raises BadData if their shapes differ or values are not finite."""
    widths = {part.shape[2] for part in parts}
    if len(widths) > 1:
        raise BadData(f"statistics(probe) gave {' and '.join(map(str, sorted(widths)))} columns on different batches")
    values = np.concatenate(parts)
    bad = ~np.isfinite(values).all((1, 2))
    if bad.any():
        raise BadData(
            f"{bad.sum()} of {len(values)} images have scores that are not finite (NaN or infinity),"
            f" the first in {place_of(images, int(rows[bad].min()))}"
        )
    return values
