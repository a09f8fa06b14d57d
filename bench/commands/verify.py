"""``oodbench verify``: whether the figures of a run follow from its scores."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from oodbench.commands.common import (
    Data,
    Debug,
    Device,
    Plugins,
    add_plugins,
    check_device,
    check_seed,
    find_in_working_folder,
    only_results,
    print_json,
    print_text,
)
from oodbench.errors import UsageError, counted


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="Folder of a run or a study, or a bundle.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    replay: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Also score N random images of each side of each set again, and compare the scores."
        ),
    ] = None,
    detector: Annotated[list[str], typer.Option(metavar="NAME", help="Replay only this detector; repeat for several.")] = [],  # noqa: B006
    dataset: Annotated[list[str], typer.Option(metavar="NAME", help="Replay only this set; repeat for several.")] = [],  # noqa: B006
    weights: Annotated[Path | None, typer.Option(help="Weights file of the network to replay with.")] = None,
    plugin: Plugins = [],  # noqa: B006
    trust_model: Annotated[
        bool, typer.Option("--trust-model", help="Trust the run: import the module:function that it names as its model.")
    ] = False,
    data: Data = [],  # noqa: B006
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the images to replay (default: a new one).")] = None,
    debug: Debug = False,
) -> None:
    """Compute every figure of a run again from its stored scores, and name what disagrees. Exits with 1 if something does.

    With --replay, some images are scored again too, which needs the data and the network.
    """
    options = {"--detector": detector, "--dataset": dataset, "--weights": weights, "--plugin": plugin, "--seed": seed}
    if replay is None and (given := [name for name, value in options.items() if value]):
        raise UsageError(f"{given[0]} is for --replay; add --replay N, or leave it out")
    check_device(device)
    check_seed(seed or 0)
    find_in_working_folder(*plugin, *([":"] if trust_model else []))
    from oodbench.progress import terminal_progress
    from oodbench.results.bundle import verify as verify_run

    with terminal_progress() as progress:
        found = verify_run(run, progress)
    lines, ok = [*found.problems], found.ok
    agree = "all agree with their scores" if found.figures else "nothing to verify yet"
    outcome = agree if found.ok else counted(len(found.problems), "problem")
    unread = f", {counted(found.unread, 'file')} that cannot be read" if found.unread else ""
    lines.append(f"{found.path}: {counted(found.records, 'record')}, {found.figures:,} with figures{unread}: {outcome}")
    about: dict[str, Any] = {"path": str(found.path), "ok": ok, "records": found.records, "figures": found.figures}
    about["unread"] = found.unread
    about["problems"] = found.problems
    if replay is not None and found.ok:
        from oodbench.engine.replay import replay as replay_run

        add_plugins(plugin)
        with only_results(), terminal_progress() as progress:
            again = replay_run(
                run,
                replay,
                detectors=detector,
                datasets=dataset,
                weights=weights,
                trust_model=trust_model,
                data=data,
                device=device,
                seed=seed,
                progress=progress,
            )
        ok = again.ok
        lines += again.lines()
        about |= {"ok": ok, "replay": again.about()}
    if as_json:
        print_json(json.dumps(about, indent=1, ensure_ascii=False))
    else:
        print_text("\n".join(lines) + "\n")
    if not ok:
        raise typer.Exit(1)
