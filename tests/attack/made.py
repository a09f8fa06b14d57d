"""What the product writes: a run folder, a fitted file and the files of its cache."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from trial import forked

import oodbench
from oodbench.inference import thresholds
from oodbench.models import weights
from oodbench.results.folder import RunFolder

DETECTORS = ["msp", "mahalanobis-fe", "duq", "purview"]
OPTIONS = {
    "detectors": DETECTORS,
    "datasets": ["digits-heldout", "photos", "digits+noise@3", "digits+fgsm"],
    "limit": 40,
    "parameters": {"duq": {"epochs": 3}},
}


def run(folder: Path, **options: Any) -> RunFolder:
    """A small run through every stage: training, fitting, attacking, all protocols, costs."""
    return digits(folder, **OPTIONS, **options)


def digits(folder: Path, **options: Any) -> RunFolder:
    """A run of one stage, in ``run``."""
    results = oodbench.run("digits", out=folder / "run", **options)
    return RunFolder(results.path)


def fitted(folder: Path) -> None:
    """The fitted file alone."""
    os.environ["OODBENCH_CACHE"] = str(folder / "cache")
    made = forked(partial(_fit, folder), seconds=600, megabytes=8192)
    if made.fault:
        raise RuntimeError(made.fault)


def everything(folder: Path) -> oodbench.Classifier:
    """The run in ``run``, a fitted file ``fitted.safetensors``, what both left in ``cache``, and the network, which is
    returned, in ``net.safetensors``."""
    os.environ["OODBENCH_CACHE"] = str(folder / "cache")
    made = forked(partial(_write, folder), seconds=600, megabytes=8192)  # its threads would not survive the forks to come
    if made.fault:
        raise RuntimeError(made.fault)
    network = oodbench.load_model("resnet8-digits")
    weights.write(folder / "net.safetensors", network.module)
    return network


def _write(folder: Path) -> None:
    run(folder)
    _fit(folder)


def _fit(folder: Path) -> None:
    found = thresholds.fit("mahalanobis-fe", model="resnet8-digits", dataset="digits")
    found.save(folder / "fitted.safetensors")


def figures(folder: RunFolder) -> dict:
    """All but time and provenance, by set, row and protocol."""
    changing = {"wall_seconds", "provenance"}
    return {" ".join((r.set_name, *r.place)): r.model_dump(mode="json", exclude=changing) for r in folder.records()}
