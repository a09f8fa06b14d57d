"""How a check goes: it returns what it saw, or raises one of these."""

from typing import Literal, NamedTuple


class Failed(Exception):
    """A check does not hold; the message says what was seen."""


class Skipped(Exception):
    """There is nothing to check; the message says why."""


class Outcome(NamedTuple):
    """How one check went."""

    check: str
    outcome: Literal["pass", "fail", "skip"]
    reason: str


def require(holds: bool, otherwise: str) -> None:
    """Raise Failed with this message unless it holds."""
    if not holds:
        raise Failed(otherwise)
