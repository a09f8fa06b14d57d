"""``oodbench list``: what is available of each family, and the suites."""

import json
import sys
from typing import Annotated, Any, Literal

import typer

from oodbench.commands.common import Debug, debugging, only_results, print_json, print_text, terminal_width
from oodbench.errors import UsageError

GAP = 2  # blanks between columns
PAPERS = ("detectors", "strategies", "quality-metrics")  # families whose sources are papers
SUMMARY, OTHERS = 40, 24  # characters that a summary has at least, and other columns at most, where they compete


def list_names(
    family: Annotated[
        Literal["detectors", "datasets", "models", "strategies", "quality-metrics", "quality-databases", "suites"],
        typer.Argument(),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of JSON objects.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Import each one, and show what fails.")] = False,
    show: Annotated[
        str | None, typer.Option(metavar="NAME", help="Print the TOML of this suite, to save and change; a name, or a file.")
    ] = None,
    debug: Debug = False,
) -> None:
    """List what is available, built in and from other packages. Imports none of it, except with --check."""
    if show is not None:
        if as_json or check:
            raise UsageError(f"--show prints a suite as TOML; leave out {'--json' if as_json else '--check'}")
        _show_suite(show, family)
        return
    if family == "suites":
        from oodbench.suites.load import suite_names

        rows: list[dict[str, Any]] = [{"name": name, **_suite(name)} for name in suite_names()]
    else:
        from oodbench import registry

        kind = family.replace("-", "_")
        found = list(registry.records(kind).values())
        rows = []
        if check:
            with only_results():
                found = [registry.check(record) for record in found]
        else:
            found += registry.patterns(kind).values()
        for record in found:
            row = {"name": record.name, "summary": record.summary}
            if family in PAPERS:
                row |= {"parameters": record.parameters, "learns_from": record.learns_from}
            row |= {"paper" if family in PAPERS else "source": record.source, "class": record.target}
            row |= {"distribution": record.distribution, "version": record.version, "error": record.error}
            rows.append(row)
            if debugging() and record.traceback:
                print(record.traceback, file=sys.stderr)
    if as_json:
        print_json(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        _print_rows(rows, family)
    if check and any(row.get("error") for row in rows):
        raise typer.Exit(1)


def _suite(name: str) -> dict[str, str]:
    """The title and the task of a suite. Raises UsageError for an unknown one, and for a wrong key."""
    from oodbench.suites.load import load_study
    from oodbench.suites.tasks import DETECTION, load_task_suite, task_of

    task = task_of(name)
    load = load_study if task == DETECTION else load_task_suite
    suite = load(name, trust_model=True)  # a name imports nothing
    return {"summary": suite.title, "task": task}


def _show_suite(name: str, family: str) -> None:
    """Print a suite as the text of a suite file. Raises UsageError for another family or an unknown suite."""
    from oodbench.suites.load import suite_names, suite_text

    if family != "suites":
        suite = name if name in suite_names() else "NAME"
        raise UsageError(f"--show prints a suite, not one of {family}; write oodbench list suites --show {suite}")
    _suite(name)
    print_text(suite_text(name).rstrip() + "\n")


def _print_rows(rows: list[dict[str, Any]], family: str) -> None:
    """Columns that have something in them, aligned: whole lines for a pipe, lines that fit for a terminal."""
    from oodbench.leaderboard import escape

    rows = [row | {"summary": row["summary"] or row.get("class", "")} for row in rows]  # another package has no summary
    columns = [name for name in (rows[0] if rows else {}) if name != "class" and any(row[name] for row in rows)]
    whole = {name: [name.replace("_", " "), *(escape.plain(row[name] or "") for row in rows)] for name in columns}
    table = fit(whole, terminal_width()) if sys.stdout.isatty() else whole
    widths = [max(map(len, texts)) for texts in table.values()]
    for place, line in enumerate(zip(*table.values(), strict=True)):
        print_text((" " * GAP).join(map(str.ljust, line, widths)).rstrip() + "\n")
        if place == 0:
            print((" " * GAP).join("-" * width for width in widths))
    if table != whole:
        print(f"Cut to the width of the terminal; whole: oodbench list {family} --json")


def fit(table: dict[str, list[str]], width: int) -> dict[str, list[str]]:
    """Columns in ``width`` characters: the last ones left out until the summary has room, the longest ones shortened.

    Names and errors stay; lists of parameters and sources may be cut.
    """
    from oodbench.leaderboard import escape

    widths = {name: max(map(len, texts)) for name, texts in table.items()}
    optional = [name for name in widths if name not in ("name", "summary", "error")]

    def needed() -> int:
        return sum(widths.values()) + GAP * (len(widths) - 1)

    if needed() <= width:
        return table
    for name in optional:
        widths[name] = min(widths[name], OTHERS)
    while optional and needed() - widths.get("summary", 0) + SUMMARY > width:
        del widths[optional.pop()]
    for name in ("summary", "error"):
        if name in widths:
            widths[name] = max(min(widths[name], OTHERS), widths[name] - max(0, needed() - width))
    return {name: [escape.shortened(text, room) for text in table[name]] for name, room in widths.items()}
