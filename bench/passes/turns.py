"""One call of a detector, and what a pass does if a detector changes the network that all share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from oodbench.errors import ChangedNetwork, TooSlow, around_call, contained
from oodbench.forward.guard import Guard
from oodbench.probe import Probe

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


def isolated(once: Callable[[Guard | None], T], guard: Guard | None) -> T:
    """What a pass gives, done again with the guard at each detector if it changed the network."""
    found = once(None)
    return once(guard) if guard is not None and guard.restore() else found


def signals_of(detectors: Sequence["Detector"]) -> frozenset[str]:
    """All signals that a probe must provide for these detectors together."""
    return frozenset().union(*(d.declared_signals for d in detectors))
