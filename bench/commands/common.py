"""What the commands share: common options, and checks of names before torch is imported."""

import inspect
import json
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from oodbench.datasets.name import BY_PATH, FOLDER, IMAGE_LIST, base_of
from oodbench.errors import OodbenchError, UsageError, contained, no_exit, reason
from oodbench.models import undenoised

WIDTH = 160  # characters a line of a pipe or a file
_debug = False


def _set_debug(value: bool) -> None:
    global _debug
    _debug = _debug or value


def debugging() -> bool:
    """Whether ``--debug`` was given."""
    return _debug


Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", callback=_set_debug)]
Data = Annotated[
    list[Path],
    typer.Option(
        metavar="DIR", help="Data root; repeat for several, searched in order (default: $OODBENCH_DATA, or the cache folder)."
    ),
]
Device = Annotated[str, typer.Option(help="Device to compute on: auto, cpu, or an accelerator (cuda, cuda:1, mps, xpu, …).")]
Size = Annotated[int | None, typer.Option(min=1, metavar="N", help="Resize all images to N pixels per side.")]
Resize = Annotated[str | None, typer.Option(metavar="FILTER", help="Resize with bilinear, bicubic or lanczos.")]
ShorterSide = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Resize the shorter side to N pixels, and crop the middle to --size per side."),
]
Parameters = Annotated[
    list[str], typer.Option("--param", metavar="D.NAME=VALUE", help="Set a hyper-parameter of a detector, such as knn.k=10.")
]
WeightsKey = Annotated[
    str | None, typer.Option(metavar="KEY", help="Read this part of a weights file that holds several, such as state_dict_ema.")
]
Layers = Annotated[
    list[str],
    typer.Option(metavar="A,B,…", help="Let layered detectors read these modules of the network, by dotted names, in order."),
]
Plugins = Annotated[
    list[str],
    typer.Option(
        "--plugin", metavar="MODULE:CLASS", help="Add a detector, or a data set (a function), that no package registers."
    ),
]


def find_in_working_folder(*targets: str) -> None:
    """Put the working folder on the import path for ``module:object``, last so that it hides no installed package."""
    if any(":" in target for target in targets):
        sys.path.append(str(Path.cwd()))


def add_plugins(targets: list[str], classes: str = "detectors", functions: str = "datasets") -> dict[str, list[str]]:
    """Register ``module:Class`` and ``module:function`` for this process; names by the family that each of these is."""
    from oodbench import registry

    found: dict[str, list[str]] = {classes: [], functions: []}
    with only_results():
        for target in targets:
            family = functions if _is_function(target) else classes
            found[family].append(registry.add_plugin(target, family))
    return found


def _is_function(target: str) -> bool:
    from oodbench import registry

    try:
        return inspect.isroutine(registry.resolve(target))
    except Exception:
        return False  # ``add_plugin`` says why


def require_named(added: list[str], named: Collection[str], family: str = "datasets") -> None:
    """Raise UsageError where --plugin adds a data set or database that a run does not name."""
    from oodbench import registry

    for name in added:
        if name not in map(base_of, named):
            what = registry.singular(family)
            raise UsageError(f"--plugin adds the {what} {name}, which this run does not use; add --dataset {name}")


def check_names(detectors: list[str], datasets: list[str], models: list[str], parameters: dict[str, dict[str, Any]]) -> None:
    """Report misspelt names before torch is imported; hyper-parameters of other packages are only known afterwards."""
    from oodbench import registry

    for name in detectors:
        record = registry.find("detectors", name)
        if record.distribution == "oodbench":
            registry.check_parameters(name, parameters.get(name, {}), record.parameters.split())
    for name in datasets:
        base = base_of(name)
        if base in BY_PATH:
            continue
        if base not in registry.records("datasets") and os.path.exists(name):  # unlike pathlib's, for a name of any length
            own, what = (FOLDER, "folder of images") if os.path.isdir(name) else (IMAGE_LIST, "list of images")
            raise UsageError(f"unknown dataset '{name}'; write {own}:{name} for a {what} (oodbench list datasets)")
        registry.find("datasets", base)
    for name in models:
        if ":" not in (inner := undenoised(name)[0]):
            registry.find("models", inner)


def check_seed(seed: int) -> None:
    """Raise UsageError for a seed that is larger than any whole number of a tensor."""
    from oodbench.suite import MOST_SEED

    if seed > MOST_SEED:
        raise UsageError(f"--seed takes a whole number of at most {MOST_SEED}, not {seed}")


def check_device(name: str) -> None:
    """Raise UsageError for an unknown device name. A device that is not here is reported later, as a plan needs none."""
    if name not in ("auto", "cpu"):  # only PyTorch knows the others
        from oodbench.models.device import parse_device

        parse_device(name)


def read_parameters(given: list[str]) -> dict[str, dict[str, Any]]:
    """``knn.k=10`` -> {"knn": {"k": 10}}; a value that is not JSON is kept as text."""
    found: dict[str, dict[str, Any]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        detector, dot, parameter = name.rpartition(".")
        if not (equals and dot and detector and parameter):
            raise UsageError(f"--param takes DETECTOR.NAME=VALUE, not '{text}'")
        try:
            found.setdefault(detector, {})[parameter] = json.loads(value)
        except (ValueError, RecursionError):
            found.setdefault(detector, {})[parameter] = value
    return found


def read_parameters_of(detector: str, given: list[str]) -> dict[str, Any]:
    """Hyper-parameters of the command's one detector. Raises UsageError if another detector is named."""
    found = read_parameters(given)
    if others := sorted(found.keys() - {detector}):
        raise UsageError(f"--param {others[0]}.…: this command uses {detector}; write {detector}.NAME=VALUE")
    return found.get(detector, {})


def read_layers(given: list[str]) -> list[str] | None:
    """``a,b`` and repeated options -> one list; None if the option was not given. Raises UsageError for an empty name."""
    layers = [name.strip() for text in given for name in text.split(",")]
    if "" in layers:
        raise UsageError(f"--layers takes names with commas between them, not '{','.join(given)}'")
    if len(set(layers)) < len(layers):
        raise UsageError(f"--layers names a layer twice: {','.join(layers)}; name each once")
    return layers or None


@contextmanager
def only_results() -> Iterator[TextIO]:
    """Give standard output, for results only: within this context, what plug-ins print goes to standard error.

    Nor can they end the process: whatever does so raises an error. What C code and child processes print goes to standard
    error throughout (``oodbench.cli``).
    """
    output = sys.stdout
    with contained(), no_exit(), redirect_stdout(sys.stderr):
        yield output


def terminal_width() -> int:
    """Columns of standard output's terminal, or ``$COLUMNS``; ``WIDTH`` for other files.

    Not ``shutil.get_terminal_size``: it asks ``sys.__stdout__``, whose descriptor leads to standard error here.
    """
    with suppress(ValueError):  # no number
        if (columns := int(os.environ.get("COLUMNS", 0))) > 0:
            return columns
    with suppress(OSError):  # no terminal
        return os.get_terminal_size(sys.stdout.fileno()).columns or WIDTH
    return WIDTH


def print_text(text: str, output: TextIO | None = None) -> None:
    """Print a table on standard output, flushed: its symbols all as they are, or all in ASCII."""
    from oodbench.leaderboard import escape

    output = output or sys.stdout
    print(escape.encodable(text, output.encoding or "utf-8"), end="", file=output, flush=True)


def print_json(text: str, output: TextIO | None = None) -> None:
    """Print JSON on standard output, flushed; what it cannot encode is escaped."""
    from oodbench.leaderboard import escape

    output = output or sys.stdout
    print(escape.encodable_json(text, output.encoding or "utf-8"), file=output, flush=True)


def write_report(folders: Any, wanted: bool) -> None:
    """Write the report and print its path, or remove an earlier one, which would show other figures."""
    from oodbench.leaderboard.site.report import report
    from oodbench.progress import terminal_progress
    from oodbench.results.site import REPORT, remove_site

    try:
        if wanted:
            with terminal_progress() as progress:
                page = report(folders, progress)
            print(f"Report: {page}")
        else:
            remove_site((folders[0].study or folders[0]).path / REPORT)
    except OodbenchError as error:
        print(f"oodbench: no report is written: {reason(error)}", file=sys.stderr)
