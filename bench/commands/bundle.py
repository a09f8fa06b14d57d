"""``oodbench bundle``: pack a run into one file."""

from pathlib import Path
from typing import Annotated

import typer

from oodbench.commands.common import Debug, print_text


def bundle(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run or a study.")],
    out: Annotated[Path, typer.Option(help="File to write; its name ends in .zip.")],
    debug: Debug = False,
) -> None:
    """Verify a run, and pack it into one file to submit or to publish. The last line of the output is the file."""
    from oodbench.progress import terminal_progress
    from oodbench.results.bundle import write_bundle

    with terminal_progress() as progress:
        write_bundle(run, out, progress)
    print_text(f"{out}\n")
