"""``oodbench leaderboard``: the tables of one or more runs."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from oodbench.commands.common import Debug, print_json, print_text, terminal_width
from oodbench.errors import one_line


def leaderboard(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    format: Annotated[
        Literal["table", "md", "csv", "json", "tex"],
        typer.Option(help="csv and json hold one row per cell; csv puts an apostrophe before texts that look like formulas."),
    ] = "table",
    top: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Show only the best N rows per protocol, and the controls."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write to this file; with --plot a .png, .svg or .pdf file, by default KIND.png.")
    ] = None,
    plot: Annotated[
        Literal["bars", "cost", "hist", "roc", "severity"] | None,
        typer.Option(metavar="KIND", help="Draw bars, cost, hist, roc or severity instead of printing tables."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the leaderboard of one or more runs."""
    from oodbench.results.folder import RunFolder

    folders = [RunFolder(path, lambda why: print(f"oodbench: {one_line(why)}", file=sys.stderr)) for path in runs]
    for folder in folders:
        folder.require()
    for folder in folders:
        folder.manifest()  # raises where it is damaged or missing, or another version wrote it
    from oodbench.leaderboard.formats import render
    from oodbench.leaderboard.gather import gather

    frame, notes = gather(folders)
    if plot is not None:
        from oodbench.leaderboard.plots import draw
        from oodbench.leaderboard.plots.stored import StoredScores
        from oodbench.paths import write_atomically

        picture = out or Path(f"{plot}.png")
        write_atomically(picture, draw(plot, frame, picture.suffix.removeprefix("."), StoredScores(folders), top))
        print(picture)
    elif out is not None:
        from oodbench.paths import write_atomically

        write_atomically(out, render(frame, format, top=top, notes=notes).encode())
    elif format == "json":
        print_json(render(frame, format).rstrip())
    elif format == "csv":
        print(render(frame, format), end="")
    else:
        print_text(render(frame, format, width=terminal_width(), top=top, notes=notes))
