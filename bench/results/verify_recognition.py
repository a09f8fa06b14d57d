"""Verifies records of recognition: what their arrays must be, and whether their figures follow from these."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from oodbench import calibration
from oodbench.results.recompute import unequal
from oodbench.results.records import IN_DISTRIBUTION, NETWORK, NETWORK_SOURCES, SCALED, RecognitionRecord

ROLE = "probabilities"
ROUNDING = 3e-4  # what sums of probabilities that ``calibration`` takes may make of these bounds
ONE_TEMPERATURE = 1e-3  # relative difference of temperatures that other detectors beside them may explain


def contradictions(record: RecognitionRecord, settings: Mapping[str, Any]) -> Iterator[str]:
    """Where a record contradicts the settings of its run, or itself."""
    if record.detector != ("" if record.source in NETWORK_SOURCES else record.source):
        yield f"its detector is {record.detector or 'none'}, but its source is {record.source}"
    inside = record.set_name == record.in_distribution
    if inside != (record.kind == IN_DISTRIBUTION):
        yield f"its kind is {record.kind}, but {record.set_name} is {'' if inside else 'not '}the in-distribution set"
    name = "in-distribution images"
    if inside and name in settings and record.fingerprint != settings[name]:
        yield f"its fingerprint is {record.fingerprint}, but that of the run's {name} is {settings[name]}"
    low, high = calibration.TEMPERATURES
    scaled = record.source == SCALED and record.status == "ok"
    if scaled != (record.temperature is not None) or not low <= (record.temperature or low) <= high:
        yield f"its temperature is {record.temperature}"
    expected = "" if not scaled else "validation" if settings.get("validation") else "training"
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
    """Where the records of one set contradict each other: a temperature changes no answer."""
    stored = {one.source: arrays[one.arrays[ROLE]] for one in records if one.arrays.get(ROLE) in arrays}
    if not {*NETWORK_SOURCES} <= stored.keys() or any(of.ndim != 2 for of in stored.values()):
        return
    if not np.array_equal(stored[NETWORK][:, 1], stored[SCALED][:, 1]):
        yield f"{SCALED} on {records[0].set_name} (recognition): it is correct on other images than the network"


def of_one_run(records: Sequence[RecognitionRecord]) -> Iterator[str]:
    """Where records of several sets contradict each other: a network has one temperature."""
    temperatures = sorted({one.temperature for one in records if one.temperature is not None})
    if temperatures and not math.isclose(temperatures[0], temperatures[-1], rel_tol=ONE_TEMPERATURE):
        yield f"{SCALED} has several temperatures ({', '.join(f'{one:g}' for one in temperatures)}); run it again on all sets"
