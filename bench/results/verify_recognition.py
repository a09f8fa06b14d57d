"""Verifies records of recognition: what their arrays must be, and whether their figures follow from these."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from oodbench import calibration
from oodbench.results.recompute import unequal
from oodbench.results.records import IN_DISTRIBUTION, NETWORK_SOURCES, RecognitionRecord, scaled

ROLE = "probabilities"
ROUNDING = 3e-4  # what sums of probabilities that ``calibration`` takes may make of these bounds
ONE_TEMPERATURE = 1e-3  # relative difference of temperatures that other detectors beside them may explain
GAP = 0.01  # of logits, that is far above what other detectors beside them change


def contradictions(record: RecognitionRecord, settings: Mapping[str, Any]) -> Iterator[str]:
    """Where a record contradicts the settings of its run, or itself."""
    sources = (record.unscaled, scaled(record.unscaled))
    if record.source not in sources or record.detector in NETWORK_SOURCES:
        yield f"its detector is {record.detector or 'none'}, but its source is {record.source}"
    inside = record.set_name == record.in_distribution
    if inside != (record.kind == IN_DISTRIBUTION):
        yield f"its kind is {record.kind}, but {record.set_name} is {'' if inside else 'not '}the in-distribution set"
    name = "in-distribution images"
    if inside and name in settings and record.fingerprint != settings[name]:
        yield f"its fingerprint is {record.fingerprint}, but that of the run's {name} is {settings[name]}"
    low, high = calibration.TEMPERATURES
    temperature, has_one = record.temperature, record.is_scaled and record.status == "ok"
    if has_one != (temperature is not None) or (temperature is not None and not low <= temperature <= high):
        yield f"its temperature is {temperature}"
    expected = "" if not has_one else "validation" if settings.get("validation") else "training"
    if settings and record.calibrated_on != expected:
        yield f"it was calibrated on {record.calibrated_on or 'nothing'}, but the run calibrates it on {expected or 'nothing'}"


def wrong(record: RecognitionRecord, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """What is wrong with the arrays by role, and with the figures, of a record that has some."""
    if arrays.keys() != {ROLE}:
        return [f"stores {', '.join(sorted(arrays)) or 'nothing'} in place of {ROLE}"]
    images = arrays[ROLE]
    if images.dtype != np.float64 or images.ndim != 2 or images.shape[1] != len(calibration.COLUMNS) or not len(images):
        return [f"{ROLE} is not what oodbench stores ({images.dtype} {images.shape})"]
    confidence, right, own, squared_error = images.T
    sound = (own >= 0) & (own <= confidence) & (confidence <= 1 + ROUNDING) & (right == (right != 0))
    sound &= (right == 0) | (own == confidence)
    # (1 − own)² of the label itself, and of the other classes at most what is left to them, in one class.
    sound &= (squared_error >= (1 - own) ** 2 - ROUNDING) & (squared_error <= 2 * (1 - own) ** 2 + ROUNDING)
    if not sound.all():
        return [f"row {int((~sound).argmax())} of its {ROLE} cannot come from class probabilities"]
    counts = {count for key, (count, _) in record.sizes.items() if key.startswith(f"{record.set_name} (")}
    if counts and counts != {len(images)}:
        said = ", ".join(map(str, sorted(counts)))
        return [f"has {len(images)} images of {record.set_name}, but its sizes say {said}"]
    found = {"n": len(images), "figures": calibration.recognition_figures(images)}
    return list(unequal({"n": record.n, "figures": record.figures}, found, ROLE))


def of_one_set(records: Sequence[RecognitionRecord], arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Where the records of one set contradict each other: scaling changes no answer, and gaps of logits by its temperature."""
    stored = {one.source: arrays[one.arrays[ROLE]] for one in records if one.arrays.get(ROLE) in arrays}
    for record in records:
        before, after = stored.get(record.unscaled), stored.get(record.source)
        if not record.is_scaled or before is None or after is None or before.shape != after.shape or before.ndim != 2:
            continue
        about = f"{record.source} on {record.set_name} (recognition)"
        if not np.array_equal(before[:, 1], after[:, 1]):
            yield f"{about}: it is correct on other images than {record.unscaled}"
        elif record.temperature is not None:
            found = _temperature(before, after)
            if found is not None and not math.isclose(found, record.temperature, rel_tol=ONE_TEMPERATURE):
                yield f"{about}: its temperature is {record.temperature:g}, but its probabilities are scaled by {found:g}"


def _temperature(before: np.ndarray, after: np.ndarray) -> float | None:
    """The T of softmax(logits / T), from what is stored of each image (N, 4) before and after scaling; None if it is not known.

    Where an answer is wrong, log(confidence / probability of the label) is a difference of logits, and scaling divides it by T.
    """
    known = (np.minimum(before[:, 2], after[:, 2]) > calibration.LEAST) & (before[:, 2] < before[:, 0])
    gaps, tempered = (np.log(of[known, 0] / of[known, 2]) for of in (before, after))
    far = gaps > GAP
    return float(gaps[far].sum() / tempered[far].sum()) if tempered[far].sum() > 0 else None


def of_one_run(records: Sequence[RecognitionRecord]) -> Iterator[str]:
    """Where records of several sets contradict each other: a source has one temperature."""
    for source in dict.fromkeys(one.source for one in records):
        temperatures = sorted({one.temperature for one in records if one.source == source and one.temperature is not None})
        if temperatures and not math.isclose(temperatures[0], temperatures[-1], rel_tol=ONE_TEMPERATURE):
            several = ", ".join(f"{one:g}" for one in temperatures)
            yield f"{source} has several temperatures ({several}); run it again on all sets"
