"""``oodbench run``: run a suite and print the leaderboard."""

from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from oodbench.commands.common import (
    Data,
    Debug,
    Device,
    Parameters,
    WeightsKey,
    add_plugins,
    check_device,
    check_names,
    debugging,
    find_in_working_folder,
    only_results,
    print_text,
    read_parameters,
    terminal_width,
)
from oodbench.datasets.name import parse
from oodbench.errors import reason

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
        str | None, typer.Option(metavar="NAME", help="Use this model instead of the suite's; a name, or module:function.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of the model: safetensors or a state dict.")] = None,
    weights_key: WeightsKey = None,
    detector: Annotated[
        list[str], typer.Option(metavar="NAME", help="Run only this detector, or all; repeat for several.")
    ] = [],  # noqa: B006
    param: Parameters = [],  # noqa: B006
    dataset: Annotated[list[str], typer.Option(metavar="NAME", help="Run only this set; repeat for several.")] = [],  # noqa: B006
    protocol: Annotated[
        list[str], typer.Option(metavar="NAME", help="Run only unsupervised, per-shift or transfer; repeat for several.")
    ] = [],  # noqa: B006
    data: Data = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/SUITE. An existing run is resumed.")] = None,
    device: Device = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Number of images per batch.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Resize all images to this many pixels per side.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Number of processes that decode large sets.")] = 0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random seed for splits, limits, generated sets and detectors that draw.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Limit each test set to N images.", metavar="N")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete an existing run in the run folder, and start over.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a cell was skipped.")] = False,
    cell_timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Fail a detector, set or network if one call, such as for a batch, takes longer."),
    ] = None,
    no_costs: Annotated[bool, typer.Option("--no-costs", help="Measure no standalone costs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and run nothing.")] = False,
    plugin: Annotated[
        list[str], typer.Option(metavar="MODULE:CLASS", help="Also run this detector, which no package registers.")
    ] = [],  # noqa: B006
    trust_model: Annotated[
        bool,
        typer.Option("--trust-model", help="Import the model `module:function` of a suite file outside the working folder."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Run every detector of a suite against every set of it, and print the best rows of the leaderboard, then the costs.

    The last line is the run folder. Exits with 1 if a cell failed, if all were skipped, or if the run could not start.
    """
    from oodbench.suite import UntrustedModel, chosen_suite

    fails = []
    given: dict[str, Any] = {"model": model, "datasets": dataset, "detectors": detector}
    try:
        chosen = chosen_suite(suite, in_distribution, **given, trust_model=trust_model or model is not None)
    except UntrustedModel as error:
        if not dry_run:
            raise
        fails = [reason(error)]
        chosen = chosen_suite(suite, trust_model=True)  # a plan imports no model
    find_in_working_folder(*plugin, model or chosen.model or "")
    detectors = (detector or chosen.detectors if plugin else detector) + add_plugins(plugin)
    chosen = chosen.override(
        model=model,
        detectors=detectors,
        parameters=read_parameters(param),
        datasets=dataset,
        protocols=protocol,
        seed=seed,
        batch_size=batch_size,
        size=size,
    )
    sets = [chosen.in_distribution, *chosen.each_set()]
    check_names(chosen.detectors, sets, [chosen.model] if chosen.model else [], chosen.parameters)
    check_device(device)
    from oodbench.engine.run import plan
    from oodbench.engine.run import run as run_suite
    from oodbench.paths import sweep_cache
    from oodbench.progress import terminal_progress

    if dry_run:
        with only_results():
            lines = plan(chosen, weights=weights, data=data, out=out, limit=limit, fails=fails)
        print(*lines, sep="\n")
        return
    sweep_cache()
    width, before = terminal_width(), {}
    with only_results() as output, terminal_progress() as progress:
        progress.tracebacks = debugging()

        def show(folder: Any) -> None:
            before.update(folder.costs())
            with progress.paused():
                _print_results(folder, width, output)

        folder = run_suite(
            chosen,
            weights=weights,
            weights_key=weights_key,
            data=data,
            out=out,
            device=device,
            workers=workers,
            limit=limit,
            fresh=fresh,
            progress=progress,
            measure_costs=not no_costs,
            cell_timeout=cell_timeout,
            on_results=show,
        )
    if folder.costs() != before:
        _print_costs(folder, width)
    print(folder.path)
    asked = {(name.dataset, name.severity) for name in (parse(one.name) for one in chosen.tested_sets())}
    statuses = {
        cell.status
        for cell in folder.records()
        if cell.detector in chosen.detectors and (cell.dataset, cell.level) in asked and cell.protocol in chosen.protocols
    }
    if "failed" in statuses or statuses == {"skipped"} or (strict and "skipped" in statuses):
        raise typer.Exit(1)


def _print_results(folder: Any, width: int, output: TextIO) -> None:
    """The best rows, what went wrong, and where the rest is; the costs and the run folder's own line follow."""
    from oodbench.leaderboard.brief import brief
    from oodbench.leaderboard.gather import gather
    from oodbench.leaderboard.plots import draw
    from oodbench.leaderboard.recognition import recognition_frame, summary
    from oodbench.leaderboard.severity import curves
    from oodbench.leaderboard.text import wrapped

    frame, notes = gather([folder])
    recognition = wrapped(summary(recognition_frame(folder)), width)
    print_text(brief(frame, notes, width=width, lines=LINES - 3 - len(recognition.splitlines())), output)
    if recognition:
        print_text(f"{recognition}\n", output)
    print(f"All rows, sets and notes: oodbench leaderboard {folder.path}", file=output, flush=True)
    if len(curves(frame).dropna(axis=1, how="all").columns) > 1:
        print(f"Severity curves: {folder.write_severity(draw('severity', frame))}", file=output, flush=True)


def _print_costs(folder: Any, width: int) -> None:
    from oodbench.leaderboard.brief import brief_costs
    from oodbench.leaderboard.gather import gather

    print_text(brief_costs(gather([folder])[0], width=width))
