"""Errors that the user can fix: each message is one line that names the problem and the remedy.

The command line prints these without a traceback (unless ``--debug``) and exits with ``exit_code``.
"""

import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

# What a run does around each call that may hang, such as "one call of knn"; it may raise TooSlow unless ``ends=False``.
around_call = ContextVar[Callable[..., AbstractContextManager[None]]]("around_call", default=lambda what, **_: nullcontext())


LIBRARIES = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}  # Python and its packages
LONGEST_REASON = 2000  # characters of an error's text that are kept; our own are shorter
EXEC = ("execv", "execve")  # all of os.exec* call one of these


class OodbenchError(Exception):
    """An error that the user can fix: the message is one line that names the problem and the remedy."""

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class UsageError(OodbenchError):
    """A name, option or file that oodbench does not understand."""

    exit_code = 2


class NoSuchSplit(UsageError):
    """A data set does not have the split that was asked for."""


class MissingData(OodbenchError):
    """A data set or weights file was not found."""


class BadData(OodbenchError):
    """A file is truncated, malicious, or does not have the expected layout."""


class CannotWrite(OodbenchError):
    """A result could not be written: a run ends, because what it would compute next could not be written either."""


class ChangedNetwork(BadData):
    """A detector changed the network that all detectors share; it has no figures in this run."""


class TooSlow(OodbenchError):
    """A call of a detector, data set or network took longer than the run allows."""


class Unsuitable(OodbenchError):
    """This detector cannot work on this model or this set; its cell is skipped, with the message as reason."""


class NotFitted(OodbenchError):
    """A detector was asked for scores before it was fitted on the in-distribution training set."""


@contextmanager
def contained() -> Iterator[None]:
    """Turn what third-party code raises to end the process, such as SystemExit, into an error that fails it alone, and return
    to the working folder, which relative paths are relative to.

    Ctrl-C still ends the process. A process that the code forked ends here: it must not go on beside this one.
    """
    folder, process = _working_folder(), os.getpid()
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RuntimeError(f"raised {_text(repr, error)}, which would end the process") from error
    finally:
        if os.getpid() != process:
            os._exit(1)
        if folder is not None and _working_folder() != folder:
            os.chdir(folder)


@contextmanager
def no_exit() -> Iterator[None]:
    """Within this context ``os._exit`` and ``os.exec*``, which no code notices, raise SystemExit.

    Processes forked from this one may call them.
    """
    # ``os`` has these from the module of the system, ``posix`` or ``nt``, which code can import too.
    process, places = os.getpid(), [(module, name) for module in (os, sys.modules[os.name]) for name in ("_exit", *EXEC)]
    before = [(module, name, getattr(module, name)) for module, name in places]

    def raise_instead(leave: Callable[..., NoReturn], *arguments: Any) -> NoReturn:
        if os.getpid() != process:
            leave(*arguments)
        raise SystemExit(arguments[0])

    for module, name, leave in before:
        setattr(module, name, partial(raise_instead, leave))
    try:
        yield
    finally:
        for module, name, leave in before:
            setattr(module, name, leave)


def _working_folder() -> str | None:
    """The working folder, or None if it was deleted."""
    with suppress(OSError):
        return os.getcwd()
    return None


def _text(show: Callable[[object], str], error: BaseException) -> str:
    """``str`` or ``repr`` of an error of third-party code, whose own method may fail."""
    try:
        return "".join(show(error))
    except KeyboardInterrupt:
        raise
    except BaseException as failure:
        return f"{type(error).__name__} (its {show.__name__}() raises {type(failure).__name__})"


def one_line(text: str) -> str:
    """The text on one line, safe to print: names from outside may hold line breaks or terminal control characters."""
    shown = (c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in " ".join(text.splitlines()))
    return "".join(shown)


def traceback_lines(error: Exception) -> list[str]:
    """The traceback of an error, safe to print; none where nothing failed, but is missing or does not suit."""
    if isinstance(error, MissingData | Unsuitable):
        return []
    return [one_line(line) for line in "".join(traceback.format_exception(error)).splitlines()]


def counted(count: int, noun: str) -> str:
    """``1 image``, ``1,200 images``."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def reason(error: BaseException) -> str:
    """One line for a table or a terminal: oodbench's messages unchanged, other errors prefixed with their type."""
    text = _text(str, error)
    text = one_line(" ".join(text[:LONGEST_REASON].split())) + "…" * (len(text) > LONGEST_REASON) or "no message"
    return text if isinstance(error, OodbenchError) else f"{type(error).__name__}: {text}"


def reason_in(error: BaseException, target: str = "") -> str:
    """The reason for an error of third-party code, with the line of that code where it was raised.

    ``target``: its ``module:object``, or its module, to know its lines in an installed package. What oodbench or a library
    raised by itself has no line.
    """
    if isinstance(error, OodbenchError):
        return reason(error)
    place = line_of(error, target)
    named = isinstance(error, SyntaxError)  # which says so itself
    return reason(error) + (f" ({place})" if place and not named else "")


def once(what: str, why: str) -> str:
    """``what: why``, without ``what`` where the reason begins with it. That may be ``csv on photos`` for a reason of csv."""
    if why.startswith((f"{what} ", f"{what}: ")):
        return why
    first = what.partition(" on ")[0]
    return f"{what}: {why.removeprefix(f'{first}: ')}"


def fix_line(error: BaseException, target: str) -> str:
    """``reason_in`` with the remedy if the error was raised in the third-party code; empty if that was not reached."""
    return f"{reason_in(error, target)}; fix that line" if line_of(error, target) else ""


def line_of(error: BaseException, target: str = "") -> str:
    """``net.py, line 3``: the last line of the code of ``target``, or of what it calls outside the installed packages."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{_short_path(error.filename)}, line {error.lineno}"
    if (place := getattr(error, "far_place", None)) is not None:  # of another process, which knew
        return str(place)
    root, place = target.partition(":")[0].partition(".")[0], ""
    root = "" if root == "oodbench" else root
    for frame, line in traceback.walk_tb(error.__traceback__):
        package, file = str(frame.f_globals.get("__name__")).partition(".")[0], frame.f_code.co_filename
        installed = package == "oodbench" or file.startswith("<") or any(map(Path(file).is_relative_to, LIBRARIES))
        if package == root or not installed:
            place = f"{_short_path(file)}, line {line}"
    return place or (line_of(error.__cause__, target) if error.__cause__ else "")


def _short_path(file: str) -> str:
    """The path below the folder of the import path that has the file, without the names of private folders; else its name."""
    folders = [folder for folder in map(os.path.abspath, sys.path) if Path(file).is_relative_to(folder)]
    return str(Path(file).relative_to(max(folders, key=len))) if folders else Path(file).name
