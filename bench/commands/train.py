"""``oodbench train``: train a network."""

import sys
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
    read_parameters_of,
)
from oodbench.datasets.name import parse_unchanged
from oodbench.errors import MissingData, UsageError, one_line
from oodbench.models import recipes


def train(
    model: Annotated[str, typer.Argument(help="Name of a model (see `oodbench list models`).")],
    dataset: Annotated[str, typer.Option(help="Data set with labels and a train split.")],
    out: Annotated[Path, typer.Option(help="File to write the weights to (safetensors).")],
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME", help=f"Settings of a paper: {', '.join(recipes.RECIPES)}; the options below override them."
        ),
    ] = recipes.DEFAULT,
    epochs: Annotated[int | None, typer.Option(min=1, help="Number of passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per batch.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Learning rate of the first step.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Resize images to this many pixels.")] = None,
    param: Annotated[
        list[str],
        typer.Option(metavar="R.NAME=VALUE", help="Set a parameter of the recipe's method, such as noise.sigma=0.2."),
    ] = [],  # noqa: B006
    data: Data = [],  # noqa: B006
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Random seed for initial weights, order and augmentation.")] = 0,
    debug: Debug = False,
) -> None:
    """Train a model. Repeat the command to resume an interrupted training. The last line of the output is the file.

    A card beside the file (NAME.card.json) states what made the weights, and their accuracy on the test images.
    """
    find_in_working_folder(model)
    chosen = recipes.find(recipe).override(read_parameters_of(recipe, param))
    check_names([], [dataset], [model], {})
    parse_unchanged(dataset)
    check_device(device)
    check_seed(seed)
    from oodbench.datasets.load import load_dataset
    from oodbench.models import train as training

    with only_results():
        train_set = load_dataset(dataset, data=data, split="train", size=size or chosen.size)
        height, width = train_set.images.shape[2:]
        test_set = None
        try:
            # In the size of the training images; a network may take images that are not square.
            test_set = load_dataset(dataset, data=data, size=width if height == width else None)
        except (UsageError, MissingData) as error:  # the name is known by now
            print(one_line(f"the card will not state an accuracy: {error}"), file=sys.stderr)
        training.train(
            model,
            train_set,
            out=out,
            test_set=test_set,
            recipe=chosen,
            epochs=epochs,
            batch_size=batch_size,
            lr=learning_rate,
            device=device,
            seed=seed,
        )
    print(out)
