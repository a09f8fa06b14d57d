"""The command line: the application and its error handling. Each command is one file in ``oodbench.commands``."""

import codecs
import errno
import io
import os
import sys
from typing import Annotated

import typer

from oodbench import __version__
from oodbench.commands import check, data, fit, leaderboard, run, score, train
from oodbench.commands import list as list_command
from oodbench.commands.common import debugging
from oodbench.errors import OodbenchError, UsageError, reason
from oodbench.leaderboard import escape

INTERRUPTED = 130  # exit code

app = typer.Typer(
    help="Benchmark out-of-distribution detectors: how well does a detector know that a network does not know?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


app.command()(run.run)
app.command("list")(list_command.list_names)
app.command()(leaderboard.leaderboard)
app.command()(train.train)
app.command()(fit.fit)
app.command()(score.score)
app.command()(check.check)
app.add_typer(data.commands, name="data")


def main() -> None:
    """The console script: print one line for errors that the user can fix, and a traceback only with ``--debug``."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by ``>&-``
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # it stays open
    codecs.register_error("similar", escape.similar)
    for stream in (sys.stdout, sys.stderr):  # all that is printed goes through these
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="similar")
    try:
        app()
    except SystemExit as error:
        if error.code == INTERRUPTED:  # typer turns Ctrl-C into this code
            print("oodbench: interrupted; repeat the command to resume", file=sys.stderr)
        raise
    except BrokenPipeError:  # the reader of standard output has closed it; avoid a second error when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
