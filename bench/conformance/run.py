"""``oodbench check NAME``: checks whether a detector or data set, built-in or third-party, fulfils its contract.

The checks of detectors are in ``detectors``, those of data sets in ``datasets``.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from oodbench import paths, registry
from oodbench.conformance.outcomes import Failed, Outcome, Skipped
from oodbench.datasets.name import BY_PATH, base_of
from oodbench.errors import UsageError, contained, reason
from oodbench.paths import DataRoots

Family = Literal["detectors", "datasets"]
FAMILIES: tuple[Family, ...] = ("detectors", "datasets")

Subject = TypeVar("Subject")


def check(
    name: str,
    family: Family | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    data: DataRoots = None,
    on_error: Callable[[str, Exception], None] = lambda check, error: None,
) -> Iterator[Outcome]:
    """The outcome of each check of a detector or data set, one after another.

    Args:
        name: of a detector, or of a data set as in ``load_dataset``.
        family: ``detectors`` or ``datasets``; by default the one that has this name.
        parameters: hyper-parameters of a detector, in place of its defaults and of those that shorten training.
        data: the data root, or several.
        on_error: called with the name of each check that fails, and its error.

    Raises UsageError for a name that is in neither family or in both.
    """
    family = family or family_of(name)
    data = paths.data_roots(data)
    if family == "detectors":
        from oodbench.conformance import detectors

        with paths.separate_cache(data):
            subject = detectors.subject(name, parameters or {})
            yield from run(detectors.CHECKS, subject, on_error)
    else:
        from oodbench.conformance import datasets

        if parameters:
            raise UsageError(f"{name} is a data set, which has no parameters; leave out --param")
        yield from run(datasets.CHECKS, datasets.Subject(name, data), on_error)


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
    """The family of a name: detectors or data sets. Raises UsageError for a name that is in neither or in both."""
    base = base_of(name)
    known: dict[Family, set[str]] = {family: set(registry.records(family)) for family in FAMILIES}
    found: list[Family] = [f for f in FAMILIES if (name if f == "detectors" else base) in known[f]]
    if base in BY_PATH and not found:
        return "datasets"
    if len(found) == 2:
        raise UsageError(f"'{name}' is a detector and a data set; choose with --family detectors or --family datasets")
    if not found:
        both = known["detectors"] | known["datasets"]
        raise UsageError(
            registry.unknown("detector or data set", name, both, "oodbench list detectors, oodbench list datasets")
        )
    return found[0]
