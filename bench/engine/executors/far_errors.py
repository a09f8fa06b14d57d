"""Errors of a worker, as plain values: the error's own class may not exist here, and its traceback cannot be sent."""

import traceback
from typing import NamedTuple

from oodbench.errors import OodbenchError, line_of, reason


class FarError(NamedTuple):
    """An error of another process.

    name, text: as in its reason. kind: the nearest class of oodbench, which decides what a record says of it. place: the line
    of third-party code that raised it. lines: its traceback.
    """

    name: str
    text: str
    kind: type[Exception]
    place: str
    lines: str

    @classmethod
    def of(cls, error: Exception, target: str = "") -> "FarError":
        """``target`` as in ``oodbench.errors.line_of``."""
        kind = next((one for one in type(error).__mro__ if one.__module__.startswith("oodbench.")), Exception)
        name, place = type(error).__name__, "" if isinstance(error, SyntaxError) else line_of(error, target)
        text = reason(error) if isinstance(error, OodbenchError) else reason(error).removeprefix(f"{name}: ")
        return cls(name, text, kind, place, "".join(traceback.format_exception(error)))

    def here(self) -> Exception:
        """An error with the same reason and, with ``--debug``, the same traceback."""
        error: Exception = type(self.name, (self.kind,), {"far_place": self.place})(self.text)
        error.add_note(self.lines)
        return error
