"""``oodbench list``: the detectors, data sets, models and suites that there are."""

import json
import sys
from typing import Annotated, Any, Literal

import typer

from oodbench.commands.common import Debug, debugging


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


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """Columns that have something in them, aligned."""
    from tabulate import tabulate

    columns = [name for name in (rows[0] if rows else {}) if name != "class" and any(row[name] for row in rows)]
    print(tabulate([[row[name] for name in columns] for row in rows], [name.replace("_", " ") for name in columns], "simple"))
