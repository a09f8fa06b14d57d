"""``oodbench list``: the available detectors, data sets, models and suites."""

import json
import sys
from typing import Annotated, Any, Literal

import typer

from oodbench.commands.common import Debug, debugging, print_text, terminal_width

GAP = 2  # blanks between columns
SHORTEST = 8  # characters of a column


def list_names(
    family: Annotated[Literal["detectors", "datasets", "models", "suites"], typer.Argument()],
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of JSON objects.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Import each one, and show what fails.")] = False,
    debug: Debug = False,
) -> None:
    """List what is available, built in and from other packages. Imports none of it, except with --check."""
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
        _print_rows(rows, family)
    if check and any(row.get("error") for row in rows):
        raise typer.Exit(1)


def _print_rows(rows: list[dict[str, Any]], family: str) -> None:
    """Columns that have something in them, aligned: whole lines for a pipe, lines that fit for a terminal."""
    from tabulate import tabulate

    columns = [name for name in (rows[0] if rows else {}) if name != "class" and any(row[name] for row in rows)]
    table = [[str(row[name] or "") for name in columns] for row in rows]
    heads = [name.replace("_", " ") for name in columns]
    fitted = fit(table, heads, terminal_width()) if sys.stdout.isatty() else table
    print_text(tabulate(fitted, heads, "simple", disable_numparse=True) + "\n")
    if fitted != table:
        print_text(f"Shortened to the terminal's width. Whole: oodbench list {family} --json\n")


def fit(table: list[list[str]], heads: list[str], width: int) -> list[list[str]]:
    """The table with its longest columns shortened until a line has ``width`` characters; the first stays whole."""
    from oodbench.leaderboard import escape

    widths = [max(map(len, column)) for column in zip(heads, *table, strict=True)]
    while sum(widths) + GAP * (len(widths) - 1) > width:
        longest = max(range(1, len(widths)), key=lambda place: widths[place] - len(heads[place]), default=0)
        if not longest or widths[longest] <= max(len(heads[longest]), SHORTEST):
            break
        widths[longest] -= 1
    return [[row[0], *(escape.shortened(text, n) for text, n in zip(row[1:], widths[1:], strict=True))] for row in table]
