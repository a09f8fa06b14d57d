"""Runs the runs of a study, one after another, each in a folder of its own."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from oodbench.datasets import load
from oodbench.datasets.name import parse
from oodbench.datasets.transform import Transform
from oodbench.engine import run as engine
from oodbench.engine.plan import default_folder as folder_of_run
from oodbench.engine.plan import plan as plan_of_run
from oodbench.errors import MissingData, OodbenchError, UsageError, counted, reason
from oodbench.models import imports_code
from oodbench.models.load import check_weights, load_model
from oodbench.paths import DataRoots, is_study
from oodbench.progress import Part, Progress
from oodbench.results.folder import RunFolder, Say
from oodbench.results.study import StudyFolder, run_folders
from oodbench.suite import Suite
from oodbench.suites.load import Study

UNFINISHED = "not finished, so means are over fewer runs; run the study again"
Show = Callable[[list[RunFolder]], None]


def run_study(
    study: Study,
    *,
    out: str | Path | None = None,
    data: DataRoots = None,
    weights_key: str | None = None,
    measure_costs: bool = True,
    progress: Progress | None = None,
    on_results: Show = lambda folders: None,
    **options: Any,
) -> Path:
    """Run a study and return its folder, or the run folder of a study of one. Further arguments are of ``engine.run.run``.

    ``on_results`` is called with the folders of all runs that have begun, before the costs of a single run are measured, else
    at the end. Costs are measured in the first run of each network. A run without its weights or its in-distribution set is
    reported and left out, and the others are run.

    Raises what ``engine.run.run`` raises, UsageError for two checkpoints with one content, and MissingData where no run could
    start.
    """
    progress = progress or Progress()
    study = _with_stand_ins(study, data, progress.say)
    target = Path(out or default_folder(study))
    shared: dict[str, Any] = {"data": data, "weights_key": weights_key, "progress": progress, **options}
    if list(study.runs) == [""]:
        if is_study(target):
            raise UsageError(
                f"{target} holds a study of several runs; to add to it, give several values, such as --seed 0 --seed 1, or"
                " choose another folder with --out"
            )
        run = engine.run(
            study.first, out=target, measure_costs=measure_costs, on_results=lambda folder: on_results([folder]), **shared
        )
        return run.path
    _refuse_copies(study, data, weights_key, progress)
    _refuse_classes(study, data)
    folder = StudyFolder(target)
    with folder.kept_with_runs():
        folder.begin(study.name, study.title, study.axes, study.runs, progress.say)
        measured, absent = set[str | None](), dict[str, MissingData]()
        progress.expect(len(study.runs))
        for number, (label, suite) in enumerate(study.runs.items(), 1):
            progress.say(f"run {number} of {len(study.runs)}: {label}")
            folder.note(label, UNFINISHED)
            part = Part(progress, label)
            try:
                engine.run(
                    suite,
                    out=target / label,
                    measure_costs=measure_costs and suite.model not in measured,
                    like_this=len(study.runs) if number == 1 else 1,
                    **shared | {"progress": part},
                )
            except MissingData as error:
                absent[label] = error
                progress.fail(label, error)
                folder.note(label, reason(error))
            else:
                measured.add(suite.model)
                folder.note(label, "")
            part.end()
        if len(absent) == len(study.runs):
            raise MissingData(f"none of {counted(len(absent), 'run')} could start: {reason(next(iter(absent.values())))}")
    on_results(run_folders(target))
    return target


def _with_stand_ins(study: Study, data: DataRoots, say: Say) -> Study:
    """The study with the set that a suite names ``otherwise`` in place of each whose files are missing, which is reported."""
    found: dict[str, bool] = {}

    def is_missing(name: str) -> bool:
        if name not in found:
            try:
                load.original(parse(name), data, "test", Transform(), 0, Progress())
            except MissingData:
                found[name] = True
            except OodbenchError:
                found[name] = False  # a damaged set is reported by its run
            else:
                found[name] = False
        return found[name]

    runs, replaced = {}, dict[str, str]()
    for label, suite in study.runs.items():
        sets = []
        for one in (one for several in suite.sets for one in several.each()):
            if one.otherwise is not None and is_missing(one.name):
                replaced[parse(one.name).dataset] = parse(one.otherwise).dataset
                one = one.model_copy(update={"name": one.otherwise})
            sets.append(one)
        runs[label] = suite.model_copy(update={"sets": sets}) if any(one.otherwise for one in sets) else suite
    for name, other in replaced.items():
        say(f"{name} is missing: {other} stands in for it")
    return study._replace(runs=runs)


def _refuse_classes(study: Study, data: DataRoots) -> None:
    """Raise UsageError for a class that an in-distribution set does not have, before anything long. Missing sets are reported
    by their runs."""
    for name in dict.fromkeys(suite.in_distribution for suite in study.runs.values()):
        if parse(name).wanted_class:
            with suppress(MissingData):
                load.original(parse(name), data, "test", Transform(), 0, Progress())


def default_folder(study: Study) -> Path:
    """``runs/NAME``, and for a study of several runs ``runs/NAME-study``."""
    single = folder_of_run(study.first)
    return single if list(study.runs) == [""] else single.with_name(f"{single.name}-study")


def plan(study: Study, *, out: str | Path | None = None, data: DataRoots = None, **options: Any) -> list[str]:
    """What ``run_study`` would do, line by line: the first run in full, the others by name. Arguments as of ``engine.plan``."""
    target = Path(out or default_folder(study))
    lines: list[str] = []
    study = _with_stand_ins(study, data, lines.append)
    if list(study.runs) == [""]:
        return [*lines, *plan_of_run(study.first, out=target, data=data, **options)]
    first, *others = study.runs
    lines += [f"study     {target}, {counted(len(study.runs), 'run')}; this is {first}"]
    lines += plan_of_run(study.first, out=target / first, data=data, **options)
    return [*lines, *(f"also      {label}{_missing(study.runs[label], data)}" for label in others)]


def _missing(suite: Suite, data: DataRoots) -> str:
    """What the line of a run in a plan says if its weights are missing; else empty."""
    try:
        if suite.model is not None and not imports_code(suite.model):
            check_weights(suite.model, suite.weights, data)
    except MissingData as error:
        return f", fails: {reason(error)}"
    return ""


def _refuse_copies(study: Study, data: DataRoots, weights_key: str | None, progress: Progress) -> None:
    """Load each checkpoint once, before anything long. Raises UsageError where two files of one model have one content."""
    files: dict[tuple[str, str], Suite] = {}
    for suite in study.runs.values():
        if suite.model is not None and suite.weights is not None:
            files.setdefault((suite.model, suite.weights), suite)
    if len(files) < 2:
        return
    progress.stage("reading the weights")
    found: dict[tuple[str, str], str] = {}
    for model, weights in files:
        try:
            check_weights(model, weights, data)
        except MissingData:
            continue  # said when its run begins
        hash = load_model(model, weights, weights_key=weights_key, data=data).weights_hash
        if other := found.get((model, hash)):
            raise UsageError(
                f"{other} and {weights} hold the same weights, so they are not two checkpoints; leave out one of them"
            )
        found[model, hash] = weights
