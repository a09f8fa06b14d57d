"""``oodbench compare``: what moved from one run to another."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from oodbench.commands.common import Debug, print_json, print_text, terminal_width


def compare(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="The earlier run or study: a folder or a bundle.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="The run or study to compare with it.")],
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="AUROC", help="How much a figure may fall, such as 0.01.")
    ] = 0.0,
    whole: Annotated[bool, typer.Option("--all", help="Show every cell, not only those that moved.")] = False,
    format: Annotated[
        Literal["table", "md", "csv", "json", "tex", "html"], typer.Option(help="csv and json hold one row per cell.")
    ] = "table",
    out: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
    debug: Debug = False,
) -> None:
    """Compare two runs: which figures moved beyond noise, what is new or gone, and what costs moved.

    Exits with 1 if a figure fell by more than the tolerance and beyond noise, or if a cell lost its figure.
    """
    from oodbench.leaderboard.comparison.compare import compare as compare_runs
    from oodbench.leaderboard.comparison.compare_table import render_comparison
    from oodbench.progress import terminal_progress

    with terminal_progress() as progress:
        found = compare_runs(first, second, tolerance=tolerance, progress=progress)
    width = terminal_width() if format == "table" and out is None else None
    text = render_comparison(found, format, whole=whole, width=width)
    if out is not None:
        from oodbench.paths import write_atomically

        write_atomically(out, text.encode())
        print_text(f"{out}\n")
    elif format == "json":
        print_json(text)
    else:
        print_text(text)
    if not found.ok:
        raise typer.Exit(1)
