"""``oodbench train``: train a network."""

from pathlib import Path
from typing import Annotated

import typer

from oodbench.commands.common import (
    Data,
    Debug,
    Device,
    check_device,
    check_names,
    check_seed,
    find_in_working_folder,
    only_results,
)
from oodbench.datasets.name import parse_unchanged


def train(
    model: Annotated[str, typer.Argument(help="Name of a model (see `oodbench list models`).")],
    dataset: Annotated[str, typer.Option(help="Data set with labels and a train split.")],
    out: Annotated[Path, typer.Option(help="File to write the weights to (safetensors).")],
    epochs: Annotated[int, typer.Option(min=1, help="Number of passes over the training images.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 128,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Learning rate of the first step.")] = 0.1,
    size: Annotated[int | None, typer.Option(min=1, help="Resize images to this many pixels.")] = None,
    data: Data = [],  # noqa: B006
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Random seed for initial weights, order and augmentation.")] = 0,
    debug: Debug = False,
) -> None:
    """Train a model. Repeat the command to resume an interrupted training. The last line of the output is the file."""
    find_in_working_folder(model)
    check_names([], [dataset], [model], {})
    parse_unchanged(dataset)
    check_device(device)
    check_seed(seed)
    from oodbench.datasets.load import load_dataset
    from oodbench.models import train as training

    with only_results():
        training.train(
            model,
            load_dataset(dataset, data=data, split="train", size=size),
            out=out,
            epochs=epochs,
            batch_size=batch_size,
            lr=learning_rate,
            device=device,
            seed=seed,
        )
    print(out)
