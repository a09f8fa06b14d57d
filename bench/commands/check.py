"""``oodbench check``: conformance of any plug-in, built-in or third-party."""

import json
import sys
from collections import Counter
from typing import Annotated, Any, Literal

import typer

from oodbench.commands.common import (
    Data,
    Debug,
    Parameters,
    add_plugins,
    check_names,
    debugging,
    find_in_working_folder,
    only_results,
    read_parameters_of,
)
from oodbench.errors import OodbenchError, UsageError, counted, one_line, traceback_lines


def check(
    name: Annotated[
        str | None, typer.Argument(help="Name of a plug-in, such as a detector or data set (default: the one of --plugin).")
    ] = None,
    family: Annotated[
        Literal["detectors", "datasets", "strategies", "quality-metrics", "quality-databases"] | None,
        typer.Option(
            help="Choose where several share the name; also what --plugin adds (default: a detector; a function: data set)."
        ),
    ] = None,
    param: Parameters = [],  # noqa: B006
    plugin: Annotated[
        str | None, typer.Option(metavar="MODULE:CLASS", help="Check a class or function that no installed package registers.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as a JSON list.")] = False,
    data: Data = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Check whether a plug-in fulfils its contract. Exits with 1 if a check fails, or if files that it needs are missing."""
    kind: Any = family.replace("-", "_") if family else None
    if plugin:
        find_in_working_folder(plugin)
        ((kind, (added,)),) = (of for of in add_plugins([plugin], kind or "detectors", kind or "datasets").items() if of[1])
        name = name or added
    if not name:
        raise UsageError("nothing to check; name a plug-in, such as a detector, or give --plugin MODULE:CLASS")
    from oodbench import conformance

    kind = kind or conformance.family_of(name)
    parameters = read_parameters_of(name, param)
    if kind == "detectors":
        check_names([name], [], [], {name: parameters})
    outcomes: list[conformance.Outcome] = []
    repeated = Counter[str]()  # by reason, skips that say what an earlier one said
    with only_results() as output:
        for outcome in conformance.check(name, kind, parameters=parameters, data=data, on_error=_show_traceback):
            again = outcome.outcome == "skip" and outcome.reason in {one.reason for one in outcomes}
            outcomes.append(outcome)
            repeated.update([outcome.reason] if again else [])
            if not as_json and not again:
                print(f"{outcome.outcome}  {outcome.check:22} {one_line(outcome.reason)}", file=output, flush=True)
    if as_json:
        print(
            json.dumps(
                [{"name": name, "family": kind.replace("_", "-"), **outcome._asdict()} for outcome in outcomes], indent=1
            )
        )
    else:
        for reason, count in repeated.items():
            print(f"skip  {counted(count, 'more check'):22} {one_line(reason)}")
        counts = [sum(outcome.outcome == kind for outcome in outcomes) for kind in ("pass", "fail", "skip")]
        print("{}: {} passed, {} failed, {} skipped".format(one_line(name), counted(counts[0], "check"), *counts[1:]))
    if any(outcome.outcome == "fail" for outcome in outcomes):
        raise typer.Exit(1)
    if unread := [outcome for outcome in outcomes if outcome.check in ("loads", "values") and outcome.outcome == "skip"]:
        raise OodbenchError(f"{name} was not checked: {unread[0].reason}")


def _show_traceback(check: str, error: Exception) -> None:
    if debugging():
        print(f"{check}:", *traceback_lines(error), sep="\n", file=sys.stderr)
