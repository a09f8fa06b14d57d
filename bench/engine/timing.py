"""The cost of a detector by itself: warmed up, timed by the device's events, interleaved with bare forward passes, medians.

Machines drift threefold within minutes, so each repeat is divided by a bare pass right beside it. Where repeats still
differ too much, there are more of them, and the spread of all is part of the result.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from oodbench.classifier import Classifier
from oodbench.detector import Detector
from oodbench.errors import TooSlow, contained
from oodbench.forward.guard import Guard
from oodbench.models.device import peak_memory, synchronise
from oodbench.models.stopwatch import Stopwatch
from oodbench.passes import OnError, raise_it, turn
from oodbench.probe import Probe
from oodbench.results.facts import NOISY

REPEATS = 11
MOST = 3  # times as many repeats, where they differ too much
BATCH_SIZE = 32


class Job(NamedTuple):
    """A fitted detector at one setting. Its head is not timed: a product with a vector at most."""

    detector: Detector
    setting: dict[str, Any]


def standalone_costs(
    jobs: Mapping[str, Job],
    classifier: Classifier | None,
    images: Tensor,
    repeats: int = REPEATS,
    guard: Guard | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_error: OnError = raise_it,
) -> dict[str, dict[str, float | None]]:
    """Cost by job for a batch of images (N, C, H, W), floats on the classifier's device.

    ms_per_image: median milliseconds from images to statistics. overhead: median multiple of the bare forward pass (None
    without a classifier, or if it fails). peak_memory_mb: the largest allocation on the GPU above what was allocated before,
    in MiB; None on the CPU, where it cannot be measured honestly. ms_per_image_spread, overhead_spread: the relative spread
    of the repeats; while one is above ``NOISY``, the detector is measured again, ``MOST`` times as often at most. A detector
    that fails is reported to ``on_error`` and left out.
    """
    work = {name: partial(_statistics, job.detector, [job.setting], classifier, images) for name, job in jobs.items()}
    peaks: dict[str, float | None] = {}
    for name, job in jobs.items():
        try:
            with turn(job.detector, None, guard):
                peak = peak_memory(work[name], images.device)  # the run is also the warm-up
            peaks[name] = peak  # now that what it may have changed was looked for
        except Exception as error:
            on_error(job.detector, error)
    seconds: dict[str, list[float]] = {name: [] for name in peaks}
    ratios: dict[str, list[float]] = {name: [] for name in peaks}
    for repeat in range(MOST * repeats):
        wanted = [name for name in peaks if repeat < repeats or _noisy(seconds[name], ratios[name])]
        if not wanted:
            break
        for name in wanted:
            # In turns before and after, so that a regular disturbance of the machine does not hit the same one each time.
            bare = _bare_seconds(classifier, images) if repeat % 2 == 0 else None
            try:
                seconds[name].append(_time(work[name], images.device))
            except Exception as error:
                del peaks[name]
                on_error(jobs[name].detector, error)
                continue
            bare = bare or _bare_seconds(classifier, images)
            if bare:
                ratios[name].append(seconds[name][-1] / bare)
        on_step()
    return {
        name: {
            "ms_per_image": float(np.median(seconds[name])) / len(images) * 1000,
            "overhead": float(np.median(ratios[name])) if ratios[name] else None,
            "peak_memory_mb": peaks[name],
            "ms_per_image_spread": relative_spread(seconds[name]),
            "overhead_spread": relative_spread(ratios[name]) if ratios[name] else None,
        }
        for name in peaks
    }


def relative_spread(repeats: Sequence[float]) -> float:
    """Interquartile range over median: the middle half of the repeats spans this share of their median."""
    low, median, high = np.percentile(repeats, (25, 50, 75))
    return float((high - low) / median)


def _noisy(*figures: Sequence[float]) -> bool:
    return any(relative_spread(repeats) > NOISY for repeats in figures if repeats)


def seconds_per_image(
    jobs: Mapping[Detector, Sequence[dict[str, Any]]],
    classifier: Classifier | None,
    images: Tensor,
    guard: Guard | None = None,
) -> tuple[float, dict[Detector, float]]:
    """Seconds of a bare forward pass, and of each fitted detector beyond it at all of its settings: a guess before long work.

    Measured on one batch (N, C, H, W). A detector that fails is left out, because the run itself reports it; a network that
    fails counts as 0 seconds.
    """
    _bare_seconds(classifier, images)  # the extra cost of a first pass belongs to no detector
    bare = (_bare_seconds(classifier, images) or 0.0) / len(images)
    found = {}
    for detector, settings in jobs.items():
        try:
            with turn(detector, None, guard):
                seconds = _time(partial(_statistics, detector, settings, classifier, images), images.device) / len(images)
        except Exception:
            continue
        found[detector] = max(0.0, seconds - bare)
    return bare, found


def format_breakdown(seconds: Mapping[str, float], slowest: int = 5) -> str:
    """A sum and its largest parts by name: ``21 min: odin 12 min, purview 5 min, 27 others 4 min``."""
    parts = sorted(seconds.items(), key=lambda part: -part[1])
    shown = [f"{name} {_rounded(value)}" for name, value in parts[:slowest]]
    if rest := parts[slowest:]:
        shown.append(f"{len(rest)} other{'s' * (len(rest) > 1)} {_rounded(sum(value for _, value in rest))}")
    return f"{_rounded(sum(seconds.values()))}: {', '.join(shown)}"


def _rounded(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _bare_seconds(classifier: Classifier | None, images: Tensor) -> float | None:
    """Seconds of a bare forward pass; None without a classifier, or if it fails."""
    if classifier is None:
        return None
    try:
        with torch.inference_mode(), contained():
            return _time(partial(classifier, images), images.device)
    except TooSlow:
        raise
    except Exception:  # a third party's forward may raise anything
        return None


def _statistics(detector: Detector, settings: Sequence[dict[str, Any]], classifier: Classifier | None, images: Tensor) -> None:
    # A copy, because clean twins cost a pass of their own.
    probe = Probe(classifier, images, detector.declared_signals, clean=images.view_as(images))
    with turn(detector, probe), probe.mode(), detector.computing(settings):
        detector.grouped(probe)


def _time(work: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    watch = Stopwatch(device)
    start = watch.mark()
    work()
    return watch.seconds(start, watch.mark())
