"""What goes wrong on the user's side: each error is one line that names the thing and the remedy.

The command line prints these without a traceback (unless ``--debug``) and exits with ``exit_code``.
"""


class OodbenchError(Exception):
    """Something the user can mend: the message is one line that names the thing and the remedy."""

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class UsageError(OodbenchError):
    """A name, option or file that oodbench does not understand."""

    exit_code = 2


class MissingData(OodbenchError):
    """A data set or weights file is not where it was looked for."""


class BadData(OodbenchError):
    """A file is truncated, hostile, or not what its layout says."""


class Unsuitable(OodbenchError):
    """This detector cannot work on this model or this set; its cell is skipped with the message."""


class NotFitted(OodbenchError):
    """A detector was asked for scores before it saw the in-distribution training set."""


def one_line(text: str) -> str:
    """One line that says what it holds: names come from outside, and may hold line breaks or what a terminal obeys."""
    shown = (c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in " ".join(text.splitlines()))
    return "".join(shown)


def reason(error: BaseException) -> str:
    """One line for a table or a terminal: our own messages as they are, others with their type."""
    text = one_line(" ".join(str(error).split())) or "no message"
    return text if isinstance(error, OodbenchError) else f"{type(error).__name__}: {text}"
