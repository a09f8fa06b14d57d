"""``oodbench check NAME``: checks whether a plug-in, built-in or third-party, fulfils the contract of its family.

The checks of each family are in a module of their own, with a ``subject`` and ``CHECKS``.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, Literal, TypeVar

from oodbench import paths, registry
from oodbench.conformance.outcomes import Failed, Outcome, Skipped
from oodbench.datasets.name import BY_PATH, base_of
from oodbench.errors import UsageError, contained, reason
from oodbench.paths import DataRoots

Family = Literal["detectors", "datasets", "strategies", "quality_metrics", "quality_databases"]
FAMILIES: dict[Family, str] = {  # what one of each is called
    "detectors": "detector",
    "datasets": "data set",
    "strategies": "strategy",
    "quality_metrics": "quality metric",
    "quality_databases": "quality database",
}
FIRST: tuple[Family, ...] = ("detectors", "datasets")  # whose names mean them, though another family has the same
MODULES: dict[Family, str] = {  # imported when a name is checked
    "detectors": "oodbench.conformance.detectors",
    "datasets": "oodbench.conformance.datasets",
    "strategies": "oodbench.conformance.strategies",
    "quality_metrics": "oodbench.conformance.quality",
    "quality_databases": "oodbench.conformance.databases",
}

Subject = TypeVar("Subject")


def check(
    name: str,
    family: Family | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    data: DataRoots = None,
    on_error: Callable[[str, Exception], None] = lambda check, error: None,
) -> Iterator[Outcome]:
    """The outcome of each check of a plug-in, one after another.

    Args:
        name: of a detector, a strategy or a quality metric, or of a set or database as their loaders take it.
        family: one of ``FAMILIES``; by default the one that has this name.
        parameters: hyper-parameters, in place of the defaults, and for a detector of those that shorten training.
        data: the data root, or several.
        on_error: called with the name of each check that fails, and its error.

    Raises UsageError for a name that is in no family or in several, and for parameters of what has none.
    """
    family = family or family_of(name)
    data, given = paths.data_roots(data), parameters or {}
    module = import_module(MODULES[family])
    if family in ("datasets", "quality_databases"):
        if given:
            raise UsageError(f"{name} is a {FAMILIES[family]}, which has no parameters; leave out --param")
        yield from run(module.CHECKS, module.Subject(name, data), on_error)
        return
    with paths.separate_cache(data):
        subject = module.subject(name, given, *([data] if family == "quality_metrics" else []))
        yield from run(module.CHECKS, subject, on_error)


def run(
    checks: Mapping[str, Callable[[Subject], str]],
    subject: Subject,
    on_error: Callable[[str, Exception], None] = lambda check, error: None,
) -> Iterator[Outcome]:
    """The finding of each check. What one changed of torch and the like is undone, so that the next does not depend on it."""
    from oodbench.forward.guard import Guard

    guard = Guard(None)
    for name, does in checks.items():
        try:
            with contained():
                found = does(subject)
            yield Outcome(name, "pass", found)
        except Skipped as error:
            yield Outcome(name, "skip", str(error))
        except Exception as error:  # third-party code may raise any error
            on_error(name, error)
            yield Outcome(name, "fail", str(error) if isinstance(error, Failed) else reason(error))
        finally:
            guard.restore()


def family_of(name: str) -> Family:
    """The family of a name; detectors and data sets come before the families of other tasks.

    Raises UsageError for a name that is in none or in several of equal rank.
    """
    bases = {"datasets": base_of(name), "quality_databases": name.partition(":")[0]}
    known = {family: {*registry.records(family), *(BY_PATH if family == "datasets" else ())} for family in FAMILIES}
    found = [family for family in FAMILIES if bases.get(family, name) in known[family]]
    if not found:
        listing = f"oodbench list {'|'.join(family.replace('_', '-') for family in FAMILIES)}"
        raise UsageError(registry.unknown("name", name, dict.fromkeys(one for of in known.values() for one in of), listing))
    found = [family for family in found if family in FIRST] or found
    if len(found) > 1:
        said = " and ".join(f"a {FAMILIES[family]}" for family in found)
        options = " or ".join(f"--family {family.replace('_', '-')}" for family in found)
        raise UsageError(f"'{name}' is {said}; choose with {options}")
    return found[0]
