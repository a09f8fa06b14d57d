"""One pass over images for the statistics of all detectors."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from oodbench.batching import batches, place_of, rows_like
from oodbench.classifier import Classifier
from oodbench.errors import BadData, OodbenchError
from oodbench.forward.guard import Guard
from oodbench.image_set import ImageSet
from oodbench.models.device import is_out_of_memory
from oodbench.models.stopwatch import Stopwatch
from oodbench.passes.gathered import Batch, Found, Gathered
from oodbench.passes.memory import batch_limit
from oodbench.passes.turns import Errors, Keep, OnBatch, OnError, Settings, isolated, raise_it, signals_of, turn
from oodbench.probe import NEED_GRAPH, Probe

if TYPE_CHECKING:
    from oodbench.detector import Detector


def pass_equivalents(jobs: Mapping["Detector", Settings], classifier: Classifier | None) -> float:
    """Approximate forward passes per image: one shared, plus a step and a pass per setting that needs a gradient."""
    layers = len(classifier.layer_names) if classifier else 0
    steps = sum(
        len(settings) * (layers if "layers" in detector.declared_signals else 1)
        for detector, settings in jobs.items()
        if "input_gradient" in detector.declared_signals
    )
    return 1 + 1.2 * steps


class Computed(NamedTuple):
    """What a pass gives: the statistics (n, S, D) of some batches each and the seconds of each detector, or the error
    that it failed with."""

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
    precision: torch.dtype | None = None,
    keep: Keep = lambda detector, values, rows: values,
) -> Computed:
    """The pass of ``statistics``, as parts of some batches each.

    ``clean`` images are their own clean twins. ``signals`` may contain more than these detectors need, to keep the
    arithmetic of a larger group. The network's logits, float64 (n, classes) of each batch, are appended to ``logits``, which
    a pass with a ``guard`` does not take. ``riders`` among the jobs ride along: the forward pass is not theirs to share, and
    no work is counted for them. With ``precision``, detectors that need no gradient read a forward pass of their own in it.
    ``keep(detector, values, rows)`` gives what is kept of values (n, S, D).

    On an accelerator, nothing in a batch waits for the device: statistics stay there, up to ``BLOCK_BYTES``.
    """
    signals = signals_of(list(jobs)) if signals is None else signals
    twins = images.clean if isinstance(images, ImageSet) else None
    clean = clean or (isinstance(images, ImageSet) and twins is images.images)

    def once(guard: Guard | None) -> Computed:
        limit = batch_limit()
        device = classifier.device if classifier else torch.device("cpu")
        watch, gathered = Stopwatch(device), Gathered(jobs, device, keep, logits)
        work = pass_equivalents({d: settings for d, settings in jobs.items() if d not in riders}, classifier)

        def score(whole: int, rows: np.ndarray, batch: Tensor) -> None:
            """Add the statistics of a batch, or of a part of its ``whole`` images.

            Raises that memory is short for more than one image, and then adds nothing.
            """
            base = batch if clean else None if twins is None else partial(rows_like, twins, rows, batch)
            checks: list[tuple[Tensor, Exception]] = []
            full = Probe(classifier, batch, signals, clean=base, defer=checks.append)
            options: dict[str, Any] = {"clean": base, "defer": checks.append, "precision": precision}
            fast = full if precision is None else Probe(classifier, batch, signals - NEED_GRAPH, **options)
            probes = {detector: full if detector.declared_signals & NEED_GRAPH else fast for detector in gathered.parts}
            found: dict[Detector, Found] = {}
            failed: Errors = {}
            with (full if full in probes.values() else fast).mode():
                begun = watch.mark()
                if not signals <= {"images"} and classifier is not None:
                    for probe in dict.fromkeys(probes.values()):
                        probe.forward()
                if guard is not None:
                    guard.ignore_changes()
                passed = last = watch.mark()
                for detector, probe in probes.items():
                    checks.clear()
                    try:
                        if detector.whole_batches and len(rows) < whole:
                            raise _cut()
                        with turn(detector, probe, guard), detector.computing(jobs[detector]):
                            values = detector.grouped(probe)
                    except Exception as error:
                        if is_out_of_memory(error):
                            if detector.whole_batches:
                                error = _cut()
                            elif len(rows) > 1:
                                raise
                            else:
                                limit.restore()
                        failed[detector] = error
                    start, last = last, watch.mark()
                    if detector not in failed:
                        found[detector] = Found(values, start, last, tuple(checks))
                own = fast.logits if logits is not None and found else None
            sharers = max(1, sum(detector not in riders for detector in gathered.parts))
            for detector, why in failed.items():
                gathered.fail(detector, why)
            gathered.add(Batch(rows, found, (begun, passed), sharers, own))

        for piece, images_of_piece in batches(images, classifier, pieces, workers):
            limit.each(piece, images_of_piece, partial(score, len(piece)))
            gathered.copy()
            if not gathered.parts:
                break
            on_batch(len(piece) * work)
        gathered.copy(all_of_it=True)
        return Computed(gathered.parts, gathered.seconds, gathered.errors)

    return isolated(once, guard)


def _cut() -> OodbenchError:
    return OodbenchError("its score depends on its whole batch, and memory is too short for one; choose a smaller batch size")


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
