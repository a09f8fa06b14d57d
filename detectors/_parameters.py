"""Checks of hyper-parameters, which may come from the command line: integers, finite numbers, ranges."""

import sys
from typing import Any, Literal

from oodbench.errors import UsageError

Range = Literal["above 0", "of at least 0", "from 0 to 1", "between 0 and 1", "between 0 and 100"]
MOST_SEED = 2**32 - 1  # accepted by every generator of numpy and torch


def require_whole(detector: str, least: int, most: int | None = None, /, **values: object) -> None:
    """Raise UsageError for a hyper-parameter that is not a whole number of at least ``least``, and of at most ``most``.

    A value that decides how much memory a score takes needs ``most``: fitted files, which may be hostile, hold it too.
    """
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
            span = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise UsageError(f"{detector}: {name} = {value!r}; give a whole number {span}")


def require_finite(detector: str, within: Range, **values: Any) -> None:
    """Raise UsageError for a hyper-parameter that is not a finite number in this range; ``between`` excludes the ends."""
    for name, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and abs(value) <= sys.float_info.max and _lies(value, within)):
            raise UsageError(f"{detector}: {name} = {value!r}; give a finite number {within}")


def require_grid(detector: str, within: Range | int, **values: Any) -> None:
    """Raise UsageError for a hyper-parameter that is not a non-empty list of different numbers in this range.

    With an integer for ``within``: of different whole numbers of at least that.
    """
    for name, value in values.items():
        if not isinstance(value, list | tuple) or not value or len(set(map(str, value))) < len(value):
            kind = f"different whole numbers of at least {within}" if isinstance(within, int) else f"different numbers {within}"
            raise UsageError(f"{detector}: {name} = {value!r}; give a list of {kind}")
        for place, one in enumerate(value):
            if isinstance(within, int):
                require_whole(detector, within, **{f"{name}[{place}]": one})
            else:
                require_finite(detector, within, **{f"{name}[{place}]": one})


def require_seed(detector: str, seed: object) -> None:
    """Raise UsageError for a seed that is neither None nor a whole number from 0 to 2³² − 1."""
    if seed is None:
        return
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MOST_SEED:
        raise UsageError(f"{detector}: seed = {seed!r}; give a whole number from 0 to {MOST_SEED}")


def _lies(value: float, within: Range) -> bool:
    if within == "above 0":
        return value > 0
    if within == "of at least 0":
        return value >= 0
    if within == "from 0 to 1":
        return 0 <= value <= 1
    return 0 < value < (100 if within == "between 0 and 100" else 1)
