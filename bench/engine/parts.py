"""``NAME/*`` in a suite: all parts of a set that are there."""

from collections.abc import Callable
from pathlib import Path

from oodbench import registry
from oodbench.datasets.name import base_of
from oodbench.errors import UsageError
from oodbench.paths import DataRoots, data_roots
from oodbench.suite import Suite, TestSet

ALL_PARTS = "*"


def with_parts(suite: Suite, data: DataRoots) -> Suite:
    """The suite with the parts that are there in place of ``NAME/*``, except those that it lists otherwise.

    Raises UsageError for a set that does not list its parts, and where nothing is left to test.
    """
    known = {one.name for several in suite.sets for one in several.each()}
    sets: list[TestSet] = []
    for one in suite.sets:
        base = base_of(one.name)
        if one.name != f"{base}/{ALL_PARTS}":
            sets.append(one)
            continue
        names = (f"{base}/{part}" for part in _parts(base, data))
        sets += [one.model_copy(update={"name": name}) for name in names if name not in known]
    if not sets:
        raise UsageError(f"suite {suite.name}: no part of {', '.join(known)} is there; add some, or name another data root")
    return suite if sets == suite.sets else suite.model_copy(update={"sets": sets})


def _parts(base: str, data: DataRoots) -> list[str]:
    listed: Callable[[Path], list[str]] | None = getattr(registry.load("datasets", base), "parts", None)
    if listed is None:
        raise UsageError(f"{base}/{ALL_PARTS}: {base} does not list its parts; name one, such as {base}/PART")
    return list(dict.fromkeys(part for root in data_roots(data) for part in listed(root)))
