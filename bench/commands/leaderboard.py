"""``oodbench leaderboard``: the tables of one or more runs."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from oodbench.commands.common import Debug, print_json, print_text, terminal_width
from oodbench.errors import UsageError, one_line

if TYPE_CHECKING:
    from pandas import DataFrame

    from oodbench.results.folder import RunFolder


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
    top: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Show only the best N rows per protocol, and the controls."),
    ] = None,
    detector: Annotated[list[str], typer.Option(metavar="NAME", help="Show only this detector; repeat for several.")] = [],  # noqa: B006
    dataset: Annotated[list[str], typer.Option(metavar="NAME", help="Show only this set; repeat for several.")] = [],  # noqa: B006
    kind: Annotated[list[str], typer.Option(metavar="KIND", help="Show only sets of this kind; repeat for several.")] = [],  # noqa: B006
    protocol: Annotated[list[str], typer.Option(metavar="NAME", help="Show only this protocol; repeat for several.")] = [],  # noqa: B006
    metric: Annotated[str, typer.Option(metavar="NAME", help="Show this figure in tables, such as fpr95.")] = "auroc",
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
        Literal["bars", "cd", "cost", "hist", "roc", "severity"] | None,
        typer.Option(metavar="KIND", help="Draw bars, cd, cost, hist, roc or severity instead of printing tables."),
    ] = None,
    table: Annotated[
        Literal["detection", "protocols"],
        typer.Option(metavar="NAME", help="Show detection, or protocols: all of them in one row, on the same test samples."),
    ] = "detection",
    beside: Annotated[
        str | None,
        typer.Option(
            metavar="published|RUN",
            help="Compare with the figures that papers published, or with another run: measured, theirs and the difference.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the leaderboard of one or more runs."""
    from oodbench.paths import require_run_folder

    other = [Path(beside)] if beside not in (None, "published") else []
    for run in [*runs, *other]:  # before anything heavy is imported
        require_run_folder(run)
    from oodbench.results.folder import RunFolder

    warn = partial(print, file=sys.stderr)
    opened = [RunFolder(path, lambda why: warn(f"oodbench: {one_line(why)}")) for path in (*runs, *other)]
    folders, others = opened[: len(runs)], opened[len(runs) :]
    for folder in opened:
        folder.manifest()  # raises where it is damaged or missing, or another version wrote it
    from oodbench.leaderboard.formats import render
    from oodbench.leaderboard.gather import gather
    from oodbench.leaderboard.plots.stored import StoredScores
    from oodbench.leaderboard.selection import select

    suffix = out.suffix.removeprefix(".") if out is not None and plot is None else ""
    written: str = format or (suffix if suffix in ("md", "csv", "json", "tex", "html") else "table")
    keep = partial(select, detectors=detector, datasets=dataset, kinds=kind, protocols=protocol)
    scores = StoredScores(folders)
    given = {"--plot": plot, "--top": top, "--sort": sort}
    text: Callable[..., str]
    if beside is not None:
        _refuse("--beside", given | {"--label": label or None, "--table": None if table == "detection" else table})
        selected = any((detector, dataset, kind, protocol))
        text = partial(_beside(folders, others, keep, selected), written, metric=metric, columns=columns, intervals=interval)
    elif table == "protocols":
        _refuse(
            "--table protocols", given | {"--metric": None if metric == "auroc" else metric, "--interval": interval or None}
        )
        frame, notes = gather(folders, labels=_labels(runs, label), keep=keep)
        from oodbench.leaderboard.protocol_table import render_protocols

        text = partial(render_protocols, frame, scores, written, notes=notes, columns=columns)
    else:
        intervals = "" if not interval else "all" if written in ("csv", "json") else metric
        frame, notes = gather(folders, labels=_labels(runs, label), keep=keep, intervals=intervals)
        text = partial(render, frame, written, metric=metric, top=top, notes=notes, columns=columns, sort=sort)
        text = partial(text, intervals=interval, scores=scores)
    if plot is not None:
        from oodbench.leaderboard.plots import draw
        from oodbench.paths import write_atomically

        picture = out or Path(f"{plot}.png")
        write_atomically(picture, draw(plot, frame, picture.suffix.removeprefix("."), scores, top))
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


def _refuse(option: str, given: Mapping[str, object]) -> None:
    """Raise UsageError for an option that does nothing beside another."""
    if unused := [name for name, value in given.items() if value is not None]:
        raise UsageError(f"{option} takes no {unused[0]}; leave one of the two out")


def _beside(
    folders: list["RunFolder"], others: list["RunFolder"], keep: Callable[["DataFrame"], "DataFrame"], selected: bool
) -> Callable[..., str]:
    """What writes the comparison of runs with published figures or, if there is one, with another run."""
    from oodbench.leaderboard.beside import beside_published, beside_run, cells_of
    from oodbench.leaderboard.beside_table import render_beside
    from oodbench.leaderboard.published import own_figures, read_papers

    cells = cells_of(folders, keep)
    if others:
        compared = beside_run(cells, cells_of(others, keep), str(others[0].path), selected)
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
