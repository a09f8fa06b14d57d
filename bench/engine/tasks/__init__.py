"""Runs a suite of another task than detection: one run, or with several seeds a study of one run each."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from oodbench.errors import MissingData, UsageError, one_line, reason
from oodbench.paths import DataRoots, is_study
from oodbench.progress import Part, Progress
from oodbench.results.folder import RunFolder
from oodbench.results.study import StudyFolder
from oodbench.suites.tasks import ActiveLearningSuite, TaskSuite

RUNNERS = {"quality": "oodbench.engine.tasks.quality", "active-learning": "oodbench.engine.tasks.active_learning"}
TAKES = {  # what runs of a task take besides ``out``, ``data``, ``limit``, ``fresh``, ``progress`` and ``cell_timeout``
    "quality": (),
    "active-learning": ("device",),
}


def runs_of(suite: TaskSuite) -> dict[str, TaskSuite]:
    """The runs of a suite, by the name of its folder in a study; a single one has an empty name."""
    seeds = suite.seeds if isinstance(suite, ActiveLearningSuite) else []
    if not seeds:
        return {"": suite}
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"suite {suite.name}: seeds names a seed twice; name each once")
    each = {f"seed-{seed}": suite.model_copy(update={"seed": seed, "seeds": []}) for seed in seeds}
    return each if len(each) > 1 else {"": next(iter(each.values()))}


def plan(suite: TaskSuite, *, out: str | Path | None, data: DataRoots, limit: int | None) -> list[str]:
    """What ``run_task`` would do, line by line: the first run in full, the others by name."""
    runs = runs_of(suite)
    first, *others = runs
    target = folder_of(suite, out)
    lines = [f"{suite.name}: {suite.title}" if suite.title else suite.name, f"folder    {target / first}"]
    lines += import_module(RUNNERS[suite.task]).plan(runs[first], data=data, limit=limit)
    return [one_line(line) for line in (*lines, *(f"also      {target / label}" for label in others))]


def folder_of(suite: TaskSuite, out: str | Path | None) -> Path:
    """``out``, or ``runs/NAME``, and for a study of several runs ``runs/NAME-study``."""
    return Path(out or Path("runs") / (suite.name if list(runs_of(suite)) == [""] else f"{suite.name}-study"))


def run_task(suite: TaskSuite, *, out: str | Path | None = None, progress: Progress | None = None, **options: Any) -> Path:
    """Run a suite and return its folder: that of the run, or of the study. Options are those of the task's runner.

    Raises what the runner raises, and MissingData where no run could start.
    """
    progress, runs, target = progress or Progress(), runs_of(suite), folder_of(suite, out)
    runner: Callable[..., RunFolder] = import_module(RUNNERS[suite.task]).run
    if list(runs) == [""]:
        if is_study(target):
            raise UsageError(f"{target} holds a study of several runs; choose another folder with --out")
        return runner(runs[""], out=target, progress=progress, **options).path
    folder, absent = StudyFolder(target), dict[str, MissingData]()
    with folder.kept_with_runs():
        folder.begin(suite.name, suite.title, ["seeds"], runs, progress.say)
        progress.expect(len(runs))
        for label, one in runs.items():
            part = Part(progress, label)
            try:
                runner(one, out=target / label, progress=part, **options)
            except MissingData as error:
                absent[label] = error
                progress.fail(label, error)
                folder.note(label, reason(error))
            else:
                folder.note(label, "")
            part.end()
        if len(absent) == len(runs):
            raise next(iter(absent.values()))
    return target
