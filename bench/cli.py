"""The command line: the application and its error handling. Each command is one file in ``oodbench.commands``."""

import codecs
import ctypes
import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, BinaryIO

import typer

from oodbench import __version__
from oodbench.commands import bundle, check, compare, data, fit, init, leaderboard, new, publish, run, score, train, verify
from oodbench.commands import list as list_command
from oodbench.commands.common import debugging
from oodbench.errors import OodbenchError, UsageError, reason
from oodbench.leaderboard import escape

INTERRUPTED = 130  # exit code
ENDING = ("SIGTERM", "SIGHUP")  # from a batch system or container, and from a terminal that closes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
REPEATED = 2  # seconds in which the same signal counts once: ``timeout`` and batch systems may send it twice

app = typer.Typer(
    help="Benchmark out-of-distribution detectors, recognition under corruption, active learning and metrics of image quality.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


app.command()(run.run)
app.command()(init.init)
app.command("list")(list_command.list_names)
app.command()(leaderboard.leaderboard)
app.command()(verify.verify)
app.command()(bundle.bundle)
app.command()(compare.compare)
app.command()(publish.publish)
app.command()(train.train)
app.command()(fit.fit)
app.command()(score.score)
app.command()(check.check)
app.add_typer(data.commands, name="data")
app.add_typer(new.commands, name="new")


class _Output(io.TextIOWrapper):
    """Standard output, whose errors are told apart from those of other files."""

    def write(self, text: str) -> int:
        with self._explained():
            return super().write(text)

    def flush(self) -> None:
        with self._explained():
            super().flush()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            why = "it is closed" if error.errno == errno.EBADF else error.strerror
            raise OodbenchError(f"cannot write to standard output: {why}; redirect it to another file") from error


class _Errors(io.TextIOWrapper):
    """Standard error. What it cannot take is lost: there is nowhere to report it, and a long run should not end for it."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def _prepare_streams() -> None:
    """Put streams in place that all is printed through: what they cannot encode is escaped, and what they refuse explained."""
    codecs.register_error("similar", escape.similar)
    buffer: BinaryIO
    for name, kind in (("stderr", _Errors), ("stdout", _Output)):
        stream = getattr(sys, name)
        if stream is None:  # closed, as by ``>&-``: a file that refuses all writes takes its place, or for errors loses them
            empty = os.open(os.devnull, os.O_RDONLY if kind is _Output else os.O_WRONLY)
            buffer = open(_apart(empty) if kind is _Output else empty, "wb", closefd=False)  # noqa: SIM115  # it stays open
            setattr(sys, name, kind(buffer, "utf-8", "similar"))
        elif stream is getattr(sys, f"__{name}__"):
            buffering = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            buffer = stream.buffer
            if kind is _Output:
                stream.flush()
                size = 0 if stream.write_through else -1
                buffer = open(_apart(stream.fileno()), "wb", size, closefd=False)  # noqa: SIM115  # it stays open
            setattr(sys, name, kind(buffer, stream.encoding, "similar", **buffering))
        elif isinstance(stream, io.TextIOWrapper):  # a caller's
            stream.reconfigure(errors="similar")


def _apart(descriptor: int) -> int:
    """Return a copy of standard output's descriptor, for results. The descriptor itself then leads to standard error.

    So what C code and child processes of plug-ins print, even when this process ends, never gets among the results.
    """
    copy = os.dup(descriptor)
    with suppress(OSError):  # there is no standard error
        os.dup2(2, descriptor)
    return copy


def _finish_output() -> None:
    """Write what is buffered, or drop it: Python would try again when it exits, and report a second error."""
    try:
        sys.stdout.flush()
    except (OSError, OodbenchError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
    finally:
        if isinstance(sys.stdout, _Output):
            sys.stdout = sys.stderr  # for what plug-ins print when the process exits


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Let the signals in ``ENDING`` interrupt the command as Ctrl-C does. The list then holds those that came.

    A signal that is ignored, as under nohup, stays so, and a forked process ends as by default.
    """
    came: list[int] = []
    process, last = os.getpid(), -float("inf")

    def interrupt(number: int, frame: object) -> None:
        nonlocal last
        if os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif time.monotonic() - last > REPEATED:
            last = time.monotonic()
            came.append(number)
            if hasattr(signal, "SIGCHLD"):
                signal.signal(signal.SIGCHLD, lambda *_: None)  # PyTorch's handler would raise for workers that end too
            raise KeyboardInterrupt

    known = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
    ours = [number for number in known if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []  # only the main thread may handle signals
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield came
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed for what is allocated next, unless the environment says how it should do.

    By default it returns the large arrays of a forward pass to the system. Getting them again, page by page, takes up to a
    third of the time of a pass on the CPU.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def main() -> None:
    """The console script: print one line for errors that the user can fix, and a traceback only with ``--debug``."""
    _prepare_streams()
    _keep_freed_memory()
    try:
        with _interruptible() as came:
            try:
                app()
            finally:
                _finish_output()
    except SystemExit as error:
        if error.code == INTERRUPTED:  # typer turns Ctrl-C into this code
            by = f"ended by {signal.Signals(came[0]).name}" if came else "interrupted"
            print(f"oodbench: {by}; repeat the command to resume", file=sys.stderr)
            sys.exit(128 + came[0] if came else INTERRUPTED)
        raise
    except BrokenPipeError:  # the reader has enough, as ``head`` does; Python's documentation advises code 1, without a word
        sys.exit(1)
    except Exception as error:
        if debugging():
            raise
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            error = UsageError(f"{error.filename}: {error.strerror}; choose a shorter name")
        hint = "" if isinstance(error, OodbenchError) else " (use --debug for a traceback)"
        print(f"oodbench: {reason(error)}{hint}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, OodbenchError) else 1)


if __name__ == "__main__":
    main()
