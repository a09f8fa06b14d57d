"""``oodbench run``: run a suite and print the leaderboard."""

from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from oodbench.commands.common import (
    Data,
    Debug,
    Device,
    Layers,
    Parameters,
    Resize,
    ShorterSide,
    Size,
    WeightsKey,
    add_plugins,
    check_device,
    check_names,
    debugging,
    find_in_working_folder,
    only_results,
    print_text,
    read_layers,
    read_parameters,
    require_named,
    terminal_width,
    write_report,
)
from oodbench.datasets.name import parse
from oodbench.errors import UsageError, reason

LINES = 45  # that the results of a run take, at most, and the path of its folder


def run(
    suite: Annotated[
        str | None, typer.Argument(help="Name of a suite, or a TOML file (default: digits).", show_default=False)
    ] = None,
    in_distribution: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Use no suite: test --dataset against this set, with --model."),
    ] = None,
    model: Annotated[
        list[str],
        typer.Option(
            metavar="NAME", help="Use this model instead of the suite's: a name or module:function. Repeat for several runs."
        ),
    ] = [],  # noqa: B006
    weights: Annotated[
        list[Path],
        typer.Option(help="Weights of the model, safetensors or a state dict; repeat for several checkpoints."),
    ] = [],  # noqa: B006
    weights_key: WeightsKey = None,
    layers: Layers = [],  # noqa: B006
    detector: Annotated[
        list[str], typer.Option(metavar="NAME", help="Run only this detector, or all; repeat for several.")
    ] = [],  # noqa: B006
    metric: Annotated[
        list[str], typer.Option(metavar="NAME", help="In a suite of image quality, run only this metric; may be repeated.")
    ] = [],  # noqa: B006
    strategy: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="In a suite of active learning, run only this strategy; may be repeated."),
    ] = [],  # noqa: B006
    param: Parameters = [],  # noqa: B006
    dataset: Annotated[list[str], typer.Option(metavar="NAME", help="Run only this set; repeat for several.")] = [],  # noqa: B006
    protocol: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="Run only unsupervised, per-shift, transfer or validation; repeat for several."),
    ] = [],  # noqa: B006
    data: Data = [],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder; by default runs/SUITE, or runs/SUITE-study for several runs. An existing run is resumed."
        ),
    ] = None,
    device: Device = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Number of images per batch.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Run forward passes without gradients in bf16 or fp16, and measure the effect."),
    ] = None,
    size: Size = None,
    resize: Resize = None,
    shorter_side: ShorterSide = None,
    workers: Annotated[int, typer.Option(min=0, help="Number of processes that decode large sets.")] = 0,
    cache_images: Annotated[
        bool,
        typer.Option("--cache-images", help="Keep decoded and resized images in the cache folder, for later runs."),
    ] = False,
    seed: Annotated[
        list[int],
        typer.Option(
            min=0, help="Random seed for splits, limits, generated sets and detectors that draw; repeat for several runs."
        ),
    ] = [],  # noqa: B006
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Limit each test set, or database of image quality.", metavar="N"),
    ] = None,
    fit_images: Annotated[
        int | None, typer.Option(min=1, help="Let detectors learn from N training images, drawn by the seed.", metavar="N")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete an existing run in the run folder, and start over.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a cell was skipped.")] = False,
    cell_timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Fail a detector, set or network if one call, such as for a batch, takes longer."),
    ] = None,
    executor: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Compute statistics here (local), in N processes (processes:N), or on a Ray cluster (ray)."
        ),
    ] = "local",
    no_costs: Annotated[bool, typer.Option("--no-costs", help="Measure no standalone costs.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report, and remove an earlier one.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and run nothing.")] = False,
    plugin: Annotated[
        list[str],
        typer.Option(
            metavar="MODULE:CLASS",
            help="Also run this detector, strategy or quality metric, which no package registers. A function adds a data set"
            " or quality database.",
        ),
    ] = [],  # noqa: B006
    trust_model: Annotated[
        bool,
        typer.Option("--trust-model", help="Import the model `module:function` of a suite file outside the working folder."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Run every detector of a suite against every set of it, and print the best rows of the leaderboard, then the costs.

    The report in the run folder shows all results in a browser. oodbench publish writes such a site of several runs.
    Several models, weights or seeds are a study: one run each, and tables of their means. The last line is the run folder.
    Exits with 1 if a cell failed, if all were skipped, or if a run could not start.
    """
    from oodbench.suites.load import UntrustedModel, chosen_study
    from oodbench.suites.tasks import DETECTION, task_of

    if suite is not None and task_of(suite) != DETECTION:
        from oodbench.commands.run_task import run_task

        others: dict[str, Any] = {
            "--in-distribution": in_distribution, "--model": model, "--weights": weights, "--weights-key": weights_key,
            "--layers": layers, "--detector": detector, "--metric": metric, "--strategy": strategy, "--dataset": dataset,
            "--param": read_parameters(param), "--protocol": protocol, "--batch-size": batch_size, "--seed": seed,
            "--precision": precision, "--size": size, "--resize": resize, "--shorter-side": shorter_side,
            "--workers": workers or None, "--cache-images": cache_images, "--fit-images": fit_images,
            "--executor": executor if executor != "local" else None, "--trust-model": trust_model,
        }  # fmt: skip
        options: dict[str, Any] = {"out": out, "data": data, "device": device, "limit": limit, "fresh": fresh}
        run_task(
            suite, others, plugin, **options, cell_timeout=cell_timeout, strict=strict, dry_run=dry_run, no_report=no_report
        )
        return
    for option, value in {"--metric": metric, "--strategy": strategy}.items():
        if value:
            raise UsageError(f"{option} is for suites of other tasks; a suite of detection takes --detector")
    fails = []
    given: dict[str, Any] = {"datasets": dataset, "detectors": detector}
    given |= {"models": model, "weights": list(map(str, weights)), "seeds": seed}
    try:
        study = chosen_study(suite, in_distribution, **given, trust_model=trust_model or bool(model))
    except UntrustedModel as error:
        if not dry_run:
            raise
        fails = [reason(error)]
        study = chosen_study(suite, **given, trust_model=True)  # a plan imports no model
    models = list(dict.fromkeys(one.model for one in study.runs.values() if one.model))
    find_in_working_folder(*plugin, *models)
    added = add_plugins(plugin)
    detectors = (detector or study.first.detectors if added["detectors"] else detector) + added["detectors"]
    study = study.override(
        detectors=detectors,
        parameters=read_parameters(param),
        datasets=dataset,
        protocols=protocol,
        batch_size=batch_size,
        precision=precision,
        size=size,
        resize=resize,
        shorter_side=shorter_side,
        layers=read_layers(layers),
        fit_images=fit_images,
    )
    require_named(added["datasets"], [n for one in study.runs.values() for n in (one.in_distribution, *one.each_set())])
    for one in study.runs.values():
        check_names(one.detectors, [one.in_distribution, *one.each_set()], [one.model] if one.model else [], one.parameters)
    check_device(device)
    from oodbench.engine import executors

    executors.parse(executor)
    from oodbench.engine.study import plan, run_study
    from oodbench.paths import sweep_cache
    from oodbench.progress import terminal_progress
    from oodbench.results.study import StudyFolder, run_folders

    if dry_run:
        with only_results():
            lines = plan(study, data=data, out=out, limit=limit, fails=fails)
        print(*lines, sep="\n")
        return
    sweep_cache()
    width, before = terminal_width(), {}
    with only_results() as output, terminal_progress() as progress:
        progress.tracebacks = debugging()

        def show(folders: Any) -> None:
            if folders[0].study is None:  # whose costs are not measured yet
                before.update(folders[0].costs())
            with progress.paused():
                _print_results(folders, width, output)

        path = run_study(
            study,
            weights_key=weights_key,
            data=data,
            out=out,
            device=device,
            workers=workers,
            cache_images=cache_images,
            limit=limit,
            fresh=fresh,
            progress=progress,
            measure_costs=not no_costs,
            cell_timeout=cell_timeout,
            executor=executor,
            on_results=show,
        )
    folders = run_folders(path)
    if folders[0].costs() != before:
        _print_costs(folders, width)
    write_report(folders, wanted=not no_report)
    print(path)
    asked = [folder for folder in folders if folder.study is None or folder.path.name in study.runs]
    statuses = {status for folder in asked for status in _statuses(folder)}
    absent = folders[0].study is not None and study.runs.keys() & StudyFolder(path).missing().keys()
    if absent or "failed" in statuses or statuses == {"skipped"} or (strict and "skipped" in statuses):
        raise typer.Exit(1)


def _statuses(folder: Any) -> set[str]:
    """How the cells of a run folder went that the last run in it asked for."""
    from oodbench.suite import Suite

    chosen = Suite.model_validate(folder.manifest().suite)
    asked = {(name.dataset, name.severity) for name in (parse(one.name) for one in chosen.tested_sets())}
    return {
        cell.status
        for cell in folder.records()
        if cell.detector in chosen.detectors and (cell.dataset, cell.level) in asked and cell.protocol in chosen.protocols
    }


def _print_results(folders: Any, width: int, output: TextIO) -> None:
    """The best rows, what went wrong, and where the rest is; the costs and the run folder's own line follow."""
    from oodbench.leaderboard.brief import brief
    from oodbench.leaderboard.gather import gather
    from oodbench.leaderboard.plots import draw
    from oodbench.leaderboard.recognition import recognition_frames, summary
    from oodbench.leaderboard.severity import curves
    from oodbench.leaderboard.text import wrapped
    from oodbench.paths import write_atomically
    from oodbench.results.folder import SEVERITY
    from oodbench.results.study import RANKS

    frame, notes = gather(folders)
    where = (folders[0].study or folders[0]).path
    recognition = "\n".join(wrapped(line, width) for line in summary(recognition_frames(folders)).splitlines())
    print_text(brief(frame, notes, width=width, lines=LINES - 4 - len(recognition.splitlines())), output)
    if recognition:
        print_text(f"{recognition}\n", output)
    print(f"All rows, sets and notes: oodbench leaderboard {where}", file=output, flush=True)
    if len(curves(frame).dropna(axis=1, how="all").columns) > 1:
        if not _is_newest(where / SEVERITY, folders):
            write_atomically(where / SEVERITY, draw("severity", frame))
        print(f"Severity curves: {where / SEVERITY}", file=output, flush=True)
    if folders[0].study is None:
        return
    from oodbench.leaderboard.plots.cd import ranked  # which loads matplotlib

    if ranked(frame):
        if not _is_newest(where / RANKS, folders):
            write_atomically(where / RANKS, draw("cd", frame))
        print(f"Average ranks and critical differences: {where / RANKS}", file=output, flush=True)


def _is_newest(picture: Path, folders: Any) -> bool:
    """Whether a picture of the results of these folders is newer than all of them."""
    results = [file.stat().st_mtime_ns for folder in folders for file in folder.pass_files()]
    return picture.is_file() and picture.stat().st_mtime_ns > max(results, default=0)


def _print_costs(folders: Any, width: int) -> None:
    from oodbench.leaderboard.brief import brief_costs
    from oodbench.leaderboard.gather import gather

    print_text(brief_costs(gather(folders)[0], width=width))
