"""``oodbench leaderboard``: the tables of one or more runs."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from oodbench.commands.common import Debug, print_json, print_text, terminal_width
from oodbench.errors import UsageError, one_line


def leaderboard(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    format: Annotated[
        Literal["table", "md", "csv", "json", "tex", "html"] | None,
        typer.Option(
            help="By default the one that --out ends in, else table. csv and json hold one row per cell; csv puts an apostrophe"
            " before texts that look like formulas.",
            show_default=False,
        ),
    ] = None,
    table: Annotated[
        Literal["detection", "recognition"],
        typer.Option(help="Show how well detectors detect, or how good class probabilities are: accuracy and calibration."),
    ] = "detection",
    top: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Show only the best N rows per protocol, and the controls."),
    ] = None,
    detector: Annotated[list[str], typer.Option(metavar="NAME", help="Show only this detector; repeat for several.")] = [],  # noqa: B006
    dataset: Annotated[list[str], typer.Option(metavar="NAME", help="Show only this set; repeat for several.")] = [],  # noqa: B006
    kind: Annotated[list[str], typer.Option(metavar="KIND", help="Show only sets of this kind; repeat for several.")] = [],  # noqa: B006
    protocol: Annotated[list[str], typer.Option(metavar="NAME", help="Show only this protocol; repeat for several.")] = [],  # noqa: B006
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Show this figure in tables, such as fpr95 (default: auroc); of recognition ece, nll, brier or aurc (default:"
            " accuracy).",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="Show only these columns; repeat for several. Tables have sets, means, costs and severity; csv and json have"
            " the names of their columns.",
        ),
    ] = [],  # noqa: B006
    sort: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Sort rows by mean, detector, ms_per_image, overhead, a kind or a set."),
    ] = None,
    interval: Annotated[
        bool,
        typer.Option("--interval", help="Show 95 % intervals, computed from the scores where the figure is not AUROC."),
    ] = False,
    label: Annotated[
        list[str], typer.Option(metavar="RUN=NAME", help="Give a run a name, and tables of its own; repeat for several.")
    ] = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option(help="Write to this file; with --plot a .png, .svg or .pdf file, by default KIND.png.")
    ] = None,
    plot: Annotated[
        Literal["bars", "cost", "hist", "roc", "severity", "reliability", "generalization"] | None,
        typer.Option(
            metavar="KIND",
            help="Draw bars, cost, hist, roc or severity instead of printing tables; of recognition, reliability or"
            " generalization.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the leaderboard of one or more runs."""
    from oodbench.paths import require_run_folder

    for run in runs:  # before anything heavy is imported
        require_run_folder(run)
    from oodbench.results.folder import RunFolder

    folders = [RunFolder(path, lambda why: print(f"oodbench: {one_line(why)}", file=sys.stderr)) for path in runs]
    for folder in folders:
        folder.manifest()  # raises where it is damaged or missing, or another version wrote it
    suffix = out.suffix.removeprefix(".") if out is not None and plot is None else ""
    written: str = format or (suffix if suffix in ("md", "csv", "json", "tex", "html") else "table")
    names: dict[str, Any] = {"datasets": dataset, "kinds": kind}
    text: Callable[..., str]
    from oodbench.leaderboard.plots import RECOGNITION

    of_recognition = plot in RECOGNITION
    if table == "recognition" or of_recognition:
        _refuse_for_recognition(top=top, protocol=protocol, sort=sort, interval=interval, plot=plot and not of_recognition)
        from oodbench.leaderboard.recognition import gather_recognition, render_recognition

        frame, notes = gather_recognition(folders, labels=_labels(runs, label), sources=detector, **names)
        text = partial(render_recognition, frame, written, metric=metric or "accuracy", notes=notes, columns=columns)
    else:
        from oodbench.leaderboard.formats import render
        from oodbench.leaderboard.gather import gather
        from oodbench.leaderboard.selection import select

        metric = metric or "auroc"
        keep = partial(select, detectors=detector, protocols=protocol, **names)
        intervals = "" if not interval else "all" if written in ("csv", "json") else metric
        frame, notes = gather(folders, labels=_labels(runs, label), keep=keep, intervals=intervals)
        shown: dict[str, Any] = {"top": top, "columns": columns, "sort": sort, "intervals": interval}
        text = partial(render, frame, written, metric=metric, notes=notes, **shown)
    if plot is not None:
        from oodbench.leaderboard.plots import draw
        from oodbench.leaderboard.plots.stored import StoredScores
        from oodbench.paths import write_atomically

        picture = out or Path(f"{plot}.png")
        written = picture.suffix.removeprefix(".")
        if of_recognition:
            from oodbench.leaderboard.plots import recognition

            write_atomically(picture, recognition.draw(plot, frame, written, folders))
        else:
            write_atomically(picture, draw(plot, frame, written, StoredScores(folders), top))
        print(picture)
    elif out is not None:
        from oodbench.paths import write_atomically

        write_atomically(out, text().encode())
    elif written == "json":
        print_json(text().rstrip())
    elif written == "csv":
        print(text(), end="")
    else:
        print_text(text(width=terminal_width()))


def _refuse_for_recognition(**options: Any) -> None:
    """Raise UsageError for an option that recognition does not have."""
    for name, value in options.items():
        if value:
            raise UsageError(f"--table recognition has no --{name}; leave it out")


def _labels(runs: list[Path], given: list[str]) -> dict[Path, str]:
    """``runs/a=baseline`` -> {runs/a: "baseline"}."""
    found = {}
    for text in given:
        of = [run for run in runs if text.startswith(f"{run}=")] or [run for run in runs if Path(text.partition("=")[0]) == run]
        if not of or not (name := text.removeprefix(f"{of[0]}").partition("=")[2].strip()):
            raise UsageError(f"--label takes RUN=NAME, where RUN is one of {', '.join(map(str, runs))}, not '{text}'")
        found[of[0]] = name
    return found
