"""``oodbench publish``: a static site from the results of runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from oodbench.commands.common import Debug, print_text
from oodbench.errors import one_line


def publish(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN|BUNDLE", help="Folders of runs and studies, and bundles.")],
    out: Annotated[Path, typer.Option(help="Folder of the site. An earlier site in it is replaced.")],
    title: Annotated[str | None, typer.Option(help="Heading of the site.", show_default=False)] = None,
    interval: Annotated[
        bool, typer.Option("--interval", help="Compute 95 % intervals of FPR95 and AUPR too, which may take minutes.")
    ] = False,
    no_bundles: Annotated[bool, typer.Option("--no-bundles", help="Do not offer the runs for download.")] = False,
    data: Annotated[
        list[Path],
        typer.Option(metavar="DIR", help="Data root: show images of sets whose licence allows it; repeat for several."),
    ] = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Verify runs, and write a static site of them. The last line of the output is its first page."""
    from oodbench.leaderboard.site.publish import publish as write_site
    from oodbench.progress import terminal_progress

    with terminal_progress() as progress:
        page = write_site(
            runs,
            out,
            title=title,
            intervals=interval,
            bundles=not no_bundles,
            data=data or None,
            progress=progress,
            without_costs=lambda why: print(f"oodbench: {one_line(why)}", file=sys.stderr),
        )
    print_text(f"{page}\n")
