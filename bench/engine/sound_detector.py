"""Loads the detectors of a suite, checked for what every record of one needs."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from oodbench.detector import Detector, load_detector
from oodbench.errors import BadData, UsageError, reason
from oodbench.heads import HEADS
from oodbench.probe import SIGNALS
from oodbench.registry import unknown


def sound_detector(name: str, parameters: dict[str, Any]) -> Detector:
    """The detector, checked for what every record of it needs. Raises UsageError for values that it does not take."""
    try:
        detector = load_detector(name, **parameters)
    except (TypeError, ValueError) as error:
        if parameters:
            raise UsageError(f"{name} does not take {parameters}: {reason(error)}") from error
        raise
    for role, head in (("unsupervised_head", detector.unsupervised_head), ("shift_head", detector.shift_head)):
        if head is not None and head not in HEADS:
            raise BadData(unknown("head", head, HEADS, f"known: {', '.join(HEADS)}"))
        if head is not None and HEADS[head].learns_from_shift != (role == "shift_head"):
            fitting = [h for h, kind in HEADS.items() if kind.learns_from_shift == (role == "shift_head")]
            raise BadData(f"'{head}' cannot be its {role}; name one of {', '.join(fitting)}")
    _check_variants(detector)
    check_signals(detector)
    try:
        json.dumps([detector.parameters(), detector.non_default()], allow_nan=False)
    except (AttributeError, TypeError, ValueError) as error:
        raise BadData(
            f"its constructor's arguments must be plain attributes of the same name, and JSON values: {error}"
        ) from error
    _check_grid(detector)
    return detector


def _check_variants(detector: Detector) -> None:
    variants = detector.variants
    sound = not isinstance(variants, str) and all(isinstance(v, str) and v and ":" not in v for v in variants)
    if not sound or len(set(variants)) < len(variants):
        raise BadData(f"variants = {variants!r}; give a tuple of different names without a colon")


def check_signals(detector: Detector) -> None:
    """Raise BadData for signals that are not a tuple of known names."""
    signals = () if detector.signals is None else detector.signals
    if isinstance(signals, str) or not isinstance(signals, Collection):
        raise BadData(f"signals = {signals!r}; give a tuple of names, such as ('logits',)")
    for signal in signals:
        if signal not in SIGNALS:
            raise BadData(unknown("signal", str(signal), SIGNALS, f"known: {', '.join(sorted(SIGNALS))}"))


def _check_grid(detector: Detector) -> None:
    """Raise BadData for a grid whose settings are not constructor arguments, the same ones in each, and JSON values."""
    grid, known = detector.grid, detector.parameters()
    if not isinstance(grid, Sequence) or not all(isinstance(setting, Mapping) for setting in grid):
        raise BadData(f"grid = {grid!r}; give a tuple of dicts of constructor arguments")
    for setting in grid:
        for argument in setting:
            if argument not in known:
                raise BadData(unknown("argument", str(argument), known, f"it has: {', '.join(known) or 'none'}", of="its grid"))
        if setting.keys() != grid[0].keys():
            raise BadData(f"{setting} in its grid has other arguments than {grid[0]}; vary the same ones in each")
    try:
        json.dumps(list(grid), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadData(f"its grid must hold JSON values: {error}") from error
    if not grid and detector.shift_head is not None and HEADS[detector.shift_head].chooses:
        raise BadData(f"its shift_head '{detector.shift_head}' chooses from a grid, and it has none; set grid")
