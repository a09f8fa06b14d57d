"""``oodbench run`` on a suite of another task than detection."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from oodbench.commands.common import (
    add_plugins,
    check_device,
    find_in_working_folder,
    only_results,
    print_text,
    require_named,
    terminal_width,
    write_report,
)
from oodbench.errors import UsageError
from oodbench.paths import DataRoots
from oodbench.suites.tasks import load_task_suite

PLUGINS = {  # by task: the families of classes and of functions, and the option that names classes
    "quality": ("quality_metrics", "quality_databases", "--metric"),
    "active-learning": ("strategies", "datasets", "--strategy"),
}


def run_task(
    name: str,
    given: Mapping[str, Any],
    plugins: list[str],
    *,
    out: Path | None,
    data: DataRoots,
    device: str,
    limit: int | None,
    fresh: bool,
    cell_timeout: float | None,
    strict: bool,
    dry_run: bool,
    no_report: bool,
) -> None:
    """Run a suite, print its tables and, in the last line, the folder. ``given``: other options, by name.

    ``plugins``: classes, which run beside what the suite names, and functions.

    Exits with 1 if a record failed, if all were skipped, or with ``strict`` if one was.
    """
    suite = load_task_suite(name, trust_model=bool(given["--model"] or given["--trust-model"]))
    classes, functions, option = PLUGINS[suite.task]
    find_in_working_folder(*plugins, *given["--model"], getattr(suite, "model", ""))
    added = add_plugins(plugins, classes, functions)
    if added[classes]:
        own = given[option] or getattr(suite, suite.options[option])
        given = {**given, option: list(dict.fromkeys([*own, *added[classes]]))}
    suite = suite.override({**given, "--trust-model": None} if hasattr(suite, "model") else given)
    require_named(added[functions], suite.sets, functions)
    check_device(device)
    from oodbench.engine.tasks import TAKES, plan, runs_of
    from oodbench.engine.tasks import run_task as run

    if device != "auto" and "device" not in TAKES[suite.task]:
        raise UsageError(f"a suite of the task {suite.task} takes no --device; it runs on the CPU")
    if dry_run:
        with only_results():
            lines = plan(suite, out=out, data=data, limit=limit)
        print(*lines, sep="\n")
        return
    from oodbench.leaderboard.tasks import render_task
    from oodbench.paths import sweep_cache
    from oodbench.progress import terminal_progress
    from oodbench.results.study import run_folders

    sweep_cache()
    options: dict[str, Any] = {"device": device} if "device" in TAKES[suite.task] else {}
    with only_results(), terminal_progress() as progress:
        path = run(suite, out=out, data=data, limit=limit, fresh=fresh, cell_timeout=cell_timeout, progress=progress, **options)
    folders = run_folders(path)
    print_text(render_task(suite.task, folders, width=terminal_width()))
    print(f"All figures: oodbench leaderboard {path} --format csv")
    write_report(folders, wanted=not no_report)
    print(path)
    statuses = {record.status for folder in folders for file in folder.pass_files() for record in folder.records_of(file)}
    begun = len(folders) == len(runs_of(suite))
    if not begun or "failed" in statuses or statuses == {"skipped"} or (strict and "skipped" in statuses):
        raise typer.Exit(1)
