"""``oodbench verify``: whether the figures of a run follow from its scores."""

import json
from pathlib import Path
from typing import Annotated

import typer

from oodbench.commands.common import Debug, print_json, print_text
from oodbench.errors import counted


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="Folder of a run or a study, or a bundle.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Compute every figure of a run again from its stored scores, and name what disagrees. Exits with 1 if something does."""
    from oodbench.progress import terminal_progress
    from oodbench.results.bundle import verify as verify_run

    with terminal_progress() as progress:
        found = verify_run(run, progress)
    if as_json:
        about = {"path": str(found.path), "ok": found.ok, "records": found.records, "figures": found.figures}
        print_json(json.dumps(about | {"problems": found.problems}, indent=1, ensure_ascii=False))
    else:
        outcome = "all agree with their scores" if found.ok else counted(len(found.problems), "problem")
        records = f"{counted(found.records, 'record')}, {found.figures:,} with figures"
        print_text("\n".join([*found.problems, f"{found.path}: {records}: {outcome}\n"]))
    if not found.ok:
        raise typer.Exit(1)
