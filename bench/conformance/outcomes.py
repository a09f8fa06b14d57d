"""Outcomes of a check: it returns its finding, or raises one of these."""

from typing import Literal, NamedTuple


class Failed(Exception):
    """A check failed; the message gives the finding."""


class Skipped(Exception):
    """There is nothing to check; the message gives the reason."""


class Outcome(NamedTuple):
    """The outcome of one check."""

    check: str
    outcome: Literal["pass", "fail", "skip"]
    reason: str


def require(holds: bool, otherwise: str) -> None:
    """Raise Failed with this message unless the condition holds."""
    if not holds:
        raise Failed(otherwise)
