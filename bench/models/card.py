"""The card of a network that was trained here: a JSON file beside its weights says what made them, and how good they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oodbench import code_hash
from oodbench.classifier import Classifier
from oodbench.datasets.name import recorded
from oodbench.errors import BadData, UsageError
from oodbench.image_set import ImageSet
from oodbench.models.recipes import METHODS, Recipe
from oodbench.paths import read_small, write_atomically
from oodbench.results.facts import finite_json
from oodbench.results.provenance import provenance

SCHEMA_VERSION = 1


def path_of(weights: Path) -> Path:
    """``net.safetensors`` -> ``net.card.json``."""
    return weights.with_suffix(".card.json")


def refuse_other(weights: Path, model: str, recipe: Recipe, seed: int, train_set: ImageSet) -> None:
    """Raise UsageError where a card says that the weights file was made otherwise, BadData for a card that cannot be read."""
    path = path_of(weights)
    if not (weights.exists() and path.exists()):
        return
    try:
        found = json.loads(read_small(path))
        before = {"model": found["model"], "seed": found["seed"], "images": found["train"]["fingerprint"]}
        added = {name: getattr(Recipe, name) for name in ("drop", "final_lr", "warmup", "method")} | {"parameters": {}}
        before |= added | found["recipe"]  # older cards lack these, always the same
    except (BadData, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadData(f"{path} is not a card of oodbench; delete it, or name another file with --out") from error
    now = {"model": model, "seed": seed, "images": train_set.fingerprint, **recipe.values()}
    if other := [f"{name} {before.get(name)} instead of {value}" for name, value in now.items() if before.get(name) != value]:
        raise UsageError(f"{weights} holds weights of a training with {other[0]}; name another file with --out, or delete it")


def of_weights(weights: Path, classifier: Classifier) -> dict[str, Any] | None:
    """The card beside the weights file of a classifier; None if there is none, or if it is that of other weights.

    Raises BadData for a file that is not a card.
    """
    path = path_of(weights)
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = finite_json(read_small(path))
        own = found["weights"]["hash"] == classifier.unfiltered_hash
    except (BadData, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadData(f"{path} is not a card of oodbench; delete it, or train the weights again") from error
    return found if own else None


def training_of(card: Mapping[str, Any]) -> str:
    """The method that a network was trained with, one of ``METHODS``; empty for plain cross-entropy or an unknown method."""
    recipe = card.get("recipe")
    method = recipe.get("method") if isinstance(recipe, dict) else None
    return method if isinstance(method, str) and method in METHODS else ""


def write(
    weights: Path,
    classifier: Classifier,
    recipe: Recipe,
    seed: int,
    train_set: ImageSet,
    test_set: ImageSet | None,
    accuracy: float | None,
) -> None:
    """Write the card of a weights file. ``accuracy`` is that on ``test_set``. Raises CannotWrite."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "model": classifier.name,
        "weights": {"file": weights.name, "hash": classifier.weights_hash},
        "train": _facts(train_set),
        "test": test_set and _facts(test_set) | {"accuracy": accuracy},
        "recipe": recipe.values(),
        "seed": seed,
        "code": {
            "network": code_hash.of_network(classifier),
            "training": code_hash.of_module("oodbench.models.train"),
            **({"method": code_hash.of_module(METHODS[recipe.method].partition(":")[0])} if recipe.method else {}),
        },
        "software": provenance(str(classifier.device)),
    }
    write_atomically(path_of(weights), json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode())


def _facts(images: ImageSet) -> dict[str, Any]:
    return {
        "set": recorded(images.name),
        "split": images.split,
        "images": len(images),
        "official_size": images.official_size,
        "pixels": list(images.images.shape[2:]),
        "classes": list(images.classes),
        "mirrored": images.flips,
        "fingerprint": images.fingerprint,
    }
