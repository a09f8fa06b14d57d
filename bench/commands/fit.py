"""``oodbench fit``: store a fitted detector with its threshold."""

from pathlib import Path
from typing import Annotated

import typer

from oodbench.commands.common import (
    Data,
    Debug,
    Device,
    Layers,
    Parameters,
    Plugins,
    Resize,
    ShorterSide,
    Size,
    WeightsKey,
    add_plugins,
    check_device,
    check_names,
    check_seed,
    find_in_working_folder,
    only_results,
    read_layers,
    read_parameters_of,
)
from oodbench.errors import UsageError


def fit(
    detector: Annotated[str, typer.Argument(help="Name of a detector (see `oodbench list detectors`).")],
    dataset: Annotated[str, typer.Option(help="In-distribution set with a train split.")],
    out: Annotated[Path, typer.Option(help="File to write (safetensors).")],
    model: Annotated[str | None, typer.Option(help="Network; leave out for a detector that only reads images.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights file of the model (safetensors or a state dict).")] = None,
    weights_key: WeightsKey = None,
    layers: Layers = [],  # noqa: B006
    false_alarms: Annotated[float, typer.Option(help="Largest share of new in-distribution images to flag.")] = 0.05,
    held_out: Annotated[
        str, typer.Option(help="Split used to set the threshold; `train` holds out a tenth of the training images.")
    ] = "test",
    param: Parameters = [],  # noqa: B006
    size: Size = None,
    resize: Resize = None,
    shorter_side: ShorterSide = None,
    data: Data = [],  # noqa: B006
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Random seed for held-out splits and training.")] = 0,
    plugin: Plugins = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Fit a detector and store it with a threshold that flags, on average, at most a given share of new images.

    The last line of the output is the file, ready for `oodbench score`.
    """
    find_in_working_folder(*plugin, model or "")
    add_plugins(plugin)
    parameters = read_parameters_of(detector, param)
    check_names([detector], [dataset], [model] if model else [], {detector: parameters})
    check_device(device)
    check_seed(seed)
    if not 0 < false_alarms < 1:
        raise UsageError(f"--false-alarms is {false_alarms:g}; give a share between 0 and 1, such as 0.05")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; give a file name")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: folder {out.parent} does not exist; create it, or choose another")
    from oodbench.inference import thresholds
    from oodbench.models.device import resolve_device
    from oodbench.progress import terminal_progress
    from oodbench.results.facts import mark
    from oodbench.results.network import stored

    with only_results(), terminal_progress() as progress:
        fitted = thresholds.fit(
            detector,
            model=model,
            dataset=dataset,
            weights=weights,
            weights_key=weights_key,
            layers=read_layers(layers),
            false_alarms=false_alarms,
            parameters=parameters,
            held_out_split=held_out,
            size=size,
            resize=resize,
            shorter_side=shorter_side,
            data=data,
            device=str(resolve_device(device)),
            seed=seed,
            progress=progress,
        )
        fitted.save(out)
    alarms, cost = fitted.about.false_alarms, fitted.cost
    unsure, of_pass = mark(cost, "ms_per_image"), mark(cost, "overhead")
    times = f", {of_pass}{cost['overhead']:.2f} times a forward pass" if cost["overhead"] is not None else ""
    times += " (~: the repeats differ too much)" if unsure or of_pass else ""
    tried = stored(fitted.about.provenance)
    accuracy = f"network       {said}\n" if tried is not None and (said := tried.sentence()) else ""
    print(
        f"threshold     {fitted.threshold:.6g}, from {alarms.drawn_from:,} held-out images\n"
        f"false alarms  at most {false_alarms:.2%} requested; {alarms.measured:.2%} measured on {alarms.measured_on:,} other"
        f" held-out images (95 % interval {alarms.measured_low:.2%} to {alarms.measured_high:.2%})\n"
        f"cost          {unsure}{cost['ms_per_image']:.3g} ms per image{times}\n"
        f"{accuracy}{out}"
    )
