"""The command line. It imports torch and pandas only where a network runs or a table is made, so that it answers at once."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from oodbench import __version__, cli_check, cli_data, cli_inference
from oodbench.cli_common import (
    Data,
    Debug,
    Device,
    Parameters,
    add_plugins,
    app,
    check_device,
    check_names,
    debugging,
    find_in_working_folder,
    read_parameters,
)
from oodbench.errors import OodbenchError, UsageError, reason

INTERRUPTED = 130  # exit code


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help="A suite's name, or a TOML file.")] = "digits",
    model: Annotated[str | None, typer.Option(help="Instead of the suite's model.")] = None,
    weights: Annotated[Path | None, typer.Option(help="The model's weights, safetensors or a state dict.")] = None,
    detector: Annotated[list[str], typer.Option(help="Only these; repeat for several.")] = [],  # noqa: B006
    param: Parameters = [],  # noqa: B006
    dataset: Annotated[list[str], typer.Option(help="Only these sets; repeat for several.")] = [],  # noqa: B006
    protocol: Annotated[list[str], typer.Option(help="unsupervised, per-shift, transfer; repeat for several.")] = [],  # noqa: B006
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/SUITE. A run there is resumed.")] = None,
    device: Device = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a batch.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode large sets.")] = 0,
    seed: Annotated[int | None, typer.Option(min=0, help="Of splits, limits and generated sets.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images of each test set.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run that lies there, and start over.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where a cell was skipped.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")] = False,
    plugin: Annotated[
        list[str], typer.Option(metavar="MODULE:CLASS", help="A detector that no package registers; also run it.")
    ] = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Run every detector of a suite against every set of it, and print the leaderboard.

    The last line is the run folder. Exits with 1 where a cell failed.
    """
    from oodbench.suite import load_suite

    find_in_working_folder(*plugin, model or "")
    chosen = load_suite(suite)
    detectors = (detector or chosen.detectors if plugin else detector) + add_plugins(plugin)
    chosen = chosen.customised(
        model=model,
        detectors=detectors,
        parameters=read_parameters(param),
        datasets=dataset,
        protocols=protocol,
        seed=seed,
        batch_size=batch_size,
    )
    sets = [chosen.in_distribution, *chosen.each_set()]
    check_names(chosen.detectors, sets, [chosen.model] if chosen.model else [], chosen.parameters)
    check_device(device)
    from oodbench import engine
    from oodbench.progress import terminal_progress

    if dry_run:
        for line in engine.plan(chosen, data=data, out=out, limit=limit):
            print(line)
        return
    with terminal_progress() as progress:
        folder = engine.run(
            chosen,
            weights=weights,
            data=data,
            out=out,
            device=device,
            workers=workers,
            limit=limit,
            fresh=fresh,
            progress=progress,
        )
    _print_results(folder)
    print(folder.path)
    asked = {one.name for one in chosen.tested_sets()}
    statuses = {
        cell.status
        for cell in folder.cells()
        if cell.detector in chosen.detectors and cell.set_name in asked and cell.protocol in chosen.protocols
    }
    if "failed" in statuses or (strict and "skipped" in statuses):
        raise typer.Exit(1)


@app.command("list")
def list_names(
    family: Annotated[Literal["detectors", "datasets", "models", "suites"], typer.Argument()],
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Import each, and show what fails.")] = False,
    debug: Debug = False,
) -> None:
    """What there is, ours and other packages'. Imports none of it, unless asked to check."""
    if family == "suites":
        from oodbench.suite import load_suite, suite_names

        rows: list[dict[str, Any]] = [{"name": name, "summary": load_suite(name).title} for name in suite_names()]
    else:
        from oodbench import registry

        found = registry.records(family).values()
        rows = []
        for record in (registry.check(r) for r in found) if check else found:
            row = {"name": record.name, "summary": record.summary}
            if family == "detectors":
                row |= {"parameters": record.parameters, "learns_from": record.learns_from}
            row |= {"paper" if family == "detectors" else "source": record.source, "class": record.target}
            row |= {"distribution": record.distribution, "version": record.version, "error": record.error}
            rows.append(row)
            if debugging() and record.traceback:
                print(record.traceback, file=sys.stderr)
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        _print_rows(rows)
    if check and any(row.get("error") for row in rows):
        raise typer.Exit(1)


@app.command()
def leaderboard(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders.")],
    format: Annotated[
        Literal["table", "md", "csv", "json", "tex"], typer.Option(help="csv and json hold a row a cell.")
    ] = "table",
    out: Annotated[Path | None, typer.Option(help="A file instead of standard output.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the severity curves: a .png, .svg or .pdf.")] = None,
    debug: Debug = False,
) -> None:
    """The leaderboard of one or more runs."""
    if missing := [path for path in runs if not (path / "run.json").is_file()]:
        raise UsageError(f"{missing[0]} is no run folder (it has no run.json); name one that `oodbench run` wrote")
    from oodbench import state
    from oodbench.leaderboard.gather import gather
    from oodbench.leaderboard.table import render
    from oodbench.results import RunFolder

    frame, notes = gather([RunFolder(path) for path in runs])
    if plot is not None:
        from oodbench.leaderboard.severity_plot import draw

        state.write_atomically(plot, draw(frame, plot.suffix.removeprefix(".")))
    if out is not None:
        state.write_atomically(out, render(frame, format, notes=notes).encode())
    elif format in ("csv", "json"):
        print(render(frame, format), end="")
    else:
        _print_text(render(frame, format, width=_terminal_width(), notes=notes))


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A name of `oodbench list models`.")],
    dataset: Annotated[str, typer.Option(help="A set with labels and a train split.")],
    out: Annotated[Path, typer.Option(help="Where the weights go, safetensors.")],
    epochs: Annotated[int, typer.Option(min=1)] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 128,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 0.1,
    size: Annotated[int | None, typer.Option(min=1, help="Resize images to this many pixels.")] = None,
    data: Data = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    debug: Debug = False,
) -> None:
    """Train a model; a killed training goes on where it stopped. The last line is the file."""
    find_in_working_folder(model)
    check_names([], [dataset], [model], {})
    check_device(device)
    from oodbench.datasets.load import load_dataset
    from oodbench.models import train as training

    training.train(
        model,
        load_dataset(dataset, data=data, split="train", size=size),
        out=out,
        epochs=epochs,
        batch_size=batch_size,
        lr=learning_rate,
        device=device,
        seed=seed,
    )
    print(out)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """Columns that have something in them, aligned."""
    from tabulate import tabulate

    columns = [name for name in (rows[0] if rows else {}) if name != "class" and any(row[name] for row in rows)]
    print(tabulate([[row[name] for name in columns] for row in rows], [name.replace("_", " ") for name in columns], "simple"))


def _print_results(folder: Any) -> None:
    """The leaderboard, and where the picture of the severity curves lies, if levels were run."""
    from oodbench.leaderboard import severity
    from oodbench.leaderboard.gather import gather
    from oodbench.leaderboard.severity_plot import draw
    from oodbench.leaderboard.table import render

    frame, notes = gather([folder])
    _print_text(render(frame, "table", width=_terminal_width(), notes=notes) + "\n")
    if len(severity.curves(frame).dropna(axis=1, how="all").columns) > 1:
        print(f"severity curves: {folder.write_severity(draw(frame, 'png'))}")


def _terminal_width() -> int:
    import shutil

    return shutil.get_terminal_size((160, 50)).columns


def _print_text(text: str) -> None:
    from oodbench.leaderboard import escape

    print(escape.encodable(text, sys.stdout.encoding or "utf-8"), end="")


app.command()(cli_inference.fit)
app.command()(cli_inference.score)
app.command()(cli_check.check)
app.add_typer(cli_data.commands, name="data")


def main() -> None:
    """The console script: one line for what the user can mend, a traceback only with ``--debug``."""
    try:
        app()
    except SystemExit as error:
        if error.code == INTERRUPTED:  # what typer makes of Ctrl-C
            print("oodbench: interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise
    except BrokenPipeError:  # whoever read standard output has enough; Python would complain once more when it closes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debugging():
            raise
        hint = "" if isinstance(error, OodbenchError) else " (--debug shows where)"
        print(f"oodbench: {reason(error)}{hint}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, OodbenchError) else 1)


if __name__ == "__main__":
    main()
