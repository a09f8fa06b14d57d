"""``oodbench leaderboard``: the tables of one or more runs and studies."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from oodbench.commands.common import Debug, print_json, print_text, terminal_width
from oodbench.errors import UsageError, one_line

if TYPE_CHECKING:
    from pandas import DataFrame

    from oodbench.results.folder import RunFolder


def leaderboard(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN|BUNDLE", help="Folders of runs and studies, and bundles.")],
    format: Annotated[
        Literal["table", "md", "csv", "json", "tex", "html"] | None,
        typer.Option(
            help="Default: the suffix of --out, or table. csv and json hold one row per cell; csv puts an apostrophe"
            " before texts that look like formulas.",
            show_default=False,
        ),
    ] = None,
    table: Annotated[
        Literal["detection", "recognition", "protocols", "quality", "active-learning"] | None,
        typer.Option(
            metavar="NAME",
            help="Show detection; recognition: accuracy and calibration of class probabilities; protocols: all protocols"
            " of a detector in one row, on the same test samples; quality; or active-learning. Default: the task of the run.",
            show_default=False,
        ),
    ] = None,
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
            help="Show this figure in tables, such as fpr95 (default: auroc); for recognition ece, nll, brier or aurc (default:"
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
        Literal["bars", "cd", "cost", "hist", "roc", "severity", "reliability", "generalization", "curve", "mapping"] | None,
        typer.Option(
            metavar="KIND",
            help="Draw bars, cd, cost, hist, roc or severity instead of printing tables; for recognition, reliability or"
            " generalization; for active learning, curve; for image quality, mapping.",
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            metavar="published|RUN",
            help="Compare with published figures or with another run: show both figures and their difference.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the leaderboard of one or more runs and studies."""
    from oodbench.paths import is_study, require_run_folder
    from oodbench.progress import terminal_progress

    other = [Path(beside)] if beside not in (None, "published") else []
    for run in [*runs, *other]:  # before anything heavy is imported
        if not is_study(run) and not run.is_file():
            require_run_folder(run)
    from oodbench.leaderboard import plots
    from oodbench.leaderboard.formats import render
    from oodbench.leaderboard.gather import gather
    from oodbench.leaderboard.plots.stored import StoredScores
    from oodbench.leaderboard.selection import select
    from oodbench.results.bundle import open_folders

    warn = partial(print, file=sys.stderr)
    with terminal_progress() as progress:  # for bundles, which are verified
        opened = {run: open_folders(run, lambda why: warn(f"oodbench: {one_line(why)}"), progress) for run in [*runs, *other]}
    for folder in (folder for of in opened.values() for folder in of):
        folder.manifest()  # raises where it is damaged or missing, or another version wrote it
    folders = [folder for run in runs for folder in opened[run]]
    from oodbench.leaderboard.tasks import TABLES, render_task, task_of

    chosen = str(table or task_of(folders))
    suffix = out.suffix.removeprefix(".") if out is not None and plot is None else ""
    written: str = format or (suffix if suffix in ("md", "csv", "json", "tex", "html") else "table")
    names: dict[str, Any] = {"datasets": dataset, "kinds": kind}
    labels = {folder.path: name for run, name in _labels(runs, label).items() for folder in opened[run]}
    keep = partial(select, detectors=detector, protocols=protocol, **names)
    scores = StoredScores(folders)
    text: Callable[..., str]
    given = {"--plot": plot, "--top": top, "--sort": sort, "--interval": interval, "--metric": metric, "--protocol": protocol}
    given |= {"--beside": beside, "--label": label}
    of_recognition = plot in plots.RECOGNITION
    if other and chosen in (*TABLES, "recognition"):
        raise UsageError(f"--table {chosen} takes --beside published alone, not {beside}; leave one of the two out")
    if chosen in TABLES:
        known = {"metric": "--metric", "intervals": "--interval"}
        selecting: dict[str, Any] = {"--detector": detector, "--dataset": dataset, "--kind": kind}
        allowed = [known[name] for name in TABLES[chosen].takes]
        _refuse(f"--table {chosen}", given | selecting, *allowed, "--plot", *(["--beside"] if beside == "published" else []))
        if plot is not None and plot not in plots.TASKS:
            raise UsageError(f"--table {chosen} takes --plot {' or '.join(plots.TASKS)}, not {plot}")
        text = partial(render_task, chosen, folders, written, columns=columns)
        text = partial(text, **{name: of for name, of in {"metric": metric, "intervals": interval}.items() if of})
        if beside is not None:
            from oodbench.leaderboard.comparison.beside_tasks import render_beside

            text = partial(render_beside, chosen, folders, written)
    elif chosen == "recognition" or of_recognition:
        takes = ["--beside"] if beside == "published" and not metric else ["--metric", *(["--plot"] if of_recognition else [])]
        _refuse("--table recognition", given, "--label", *takes)
        from oodbench.leaderboard.recognition import each_once, gather_recognition, render_recognition

        frame, notes = gather_recognition(folders, labels=labels, sources=detector, **names)
        text = partial(render_recognition, frame, written, metric=metric or "accuracy", notes=notes, columns=columns)
        if beside is not None:
            from oodbench.leaderboard.comparison.beside_recognition import beside_recognition, render_beside_recognition
            from oodbench.leaderboard.published import recognition_figures

            figures = recognition_figures()
            text = partial(render_beside_recognition, beside_recognition(each_once(frame), figures), figures, written)
    elif beside is not None:
        _refuse("--beside", given | {"--table": chosen != "detection"}, "--beside", "--interval", "--metric", "--protocol")
        selected = any((detector, dataset, kind, protocol))
        others = [folder for run in other for folder in opened[run]]
        text = partial(
            _beside(folders, others, str(beside), keep, selected), written, metric=metric or "auroc", columns=columns
        )
        text = partial(text, intervals=interval)
    elif chosen == "protocols":
        _refuse("--table protocols", given, "--label", "--protocol")
        from oodbench.leaderboard.protocol_table import render_protocols

        frame, notes = gather(folders, labels=labels, keep=keep)
        text = partial(render_protocols, frame, scores, written, notes=notes, columns=columns)
    else:
        metric = metric or "auroc"
        intervals = "" if not interval else "all" if written in ("csv", "json") else metric
        frame, notes = gather(folders, labels=labels, keep=keep, intervals=intervals)
        text = partial(render, frame, written, metric=metric, top=top, notes=notes, columns=columns, sort=sort)
        text = partial(text, intervals=interval, scores=scores)
    if plot is not None:
        from oodbench.paths import write_atomically

        picture = out or Path(f"{plot}.png")
        written = picture.suffix.removeprefix(".")
        if plot in plots.TASKS:
            from oodbench.leaderboard.plots import tasks

            write_atomically(picture, tasks.draw(plot, written, folders))
        elif of_recognition:
            from oodbench.leaderboard.plots import recognition

            write_atomically(picture, recognition.draw(plot, frame, written, folders))
        else:
            write_atomically(picture, plots.draw(plot, frame, written, scores, top))
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


def _refuse(what: str, given: Mapping[str, object], *takes: str) -> None:
    """Raise UsageError for an option that is given and that ``what`` does not take."""
    for name, value in given.items():
        if value and name not in takes:
            raise UsageError(f"{what} takes no {name}; leave one of the two out")


def _beside(
    folders: list["RunFolder"],
    others: list["RunFolder"],
    name: str,
    keep: Callable[["DataFrame"], "DataFrame"],
    selected: bool,
) -> Callable[..., str]:
    """What writes the comparison of runs with published figures or, if there is one, with another run."""
    from oodbench.leaderboard.comparison.beside import beside_published, beside_run, cells_of
    from oodbench.leaderboard.comparison.beside_table import render_beside
    from oodbench.leaderboard.published import own_figures, read_papers

    cells = cells_of(folders, keep)
    if others:
        compared = beside_run(cells, cells_of(others, keep), name, selected)
    else:
        compared = beside_published(cells, own_figures(), read_papers(), selected)
    return partial(render_beside, compared)


def _labels(runs: list[Path], given: list[str]) -> dict[Path, str]:
    """``runs/a=baseline`` -> {runs/a: "baseline"}."""
    found = {}
    for text in given:
        of = [run for run in runs if text.startswith(f"{run}=")] or [run for run in runs if Path(text.partition("=")[0]) == run]
        if not of or not (name := text.removeprefix(f"{of[0]}").partition("=")[2].strip()):
            raise UsageError(f"--label takes RUN=NAME, where RUN is one of {', '.join(map(str, runs))}, not '{text}'")
        found[of[0]] = name
    return found
