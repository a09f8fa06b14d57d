"""``oodbench bundle``: pack a run into one file."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from oodbench.commands.common import Debug, print_text
from oodbench.errors import one_line


def bundle(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run or a study.")],
    out: Annotated[Path, typer.Option(help="File to write; its name ends in .zip.")],
    debug: Debug = False,
) -> None:
    """Verify a run, and pack it into one file to submit or to publish. The last line of the output is the file.

    A line on stderr says what the run, and so the bundle, lacks, such as cells that failed.
    """
    from oodbench.progress import terminal_progress
    from oodbench.results.bundle import gaps, write_bundle

    with terminal_progress() as progress:
        write_bundle(run, out, progress)
    for line in gaps(run):
        print(one_line(f"the bundle is not complete: {line}"), file=sys.stderr)
    print_text(f"{out}\n")
