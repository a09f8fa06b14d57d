"""The card of a network that was trained here: a JSON file beside its weights says what made them, and how good they are."""

import json
from pathlib import Path
from typing import Any

from oodbench import code_hash
from oodbench.classifier import Classifier
from oodbench.datasets.name import recorded
from oodbench.image_set import ImageSet
from oodbench.models.recipes import Recipe
from oodbench.paths import write_atomically
from oodbench.results.provenance import provenance

SCHEMA_VERSION = 1


def path_of(weights: Path) -> Path:
    """``net.safetensors`` -> ``net.card.json``."""
    return weights.with_suffix(".card.json")


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
        "code": {"network": code_hash.of_network(classifier), "training": code_hash.of_module("oodbench.models.train")},
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
