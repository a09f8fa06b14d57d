"""What the product writes: a run folder, a fitted file and the files of its cache."""

import os
from pathlib import Path

import oodbench
from oodbench.inference import thresholds
from oodbench.results.folder import RunFolder

DETECTORS = ["msp", "mahalanobis-fe", "duq", "purview"]
OPTIONS = {
    "detectors": DETECTORS,
    "datasets": ["digits-heldout", "photos", "digits+noise@3", "digits+fgsm"],
    "limit": 40,
    "parameters": {"duq": {"epochs": 3}},
}


def run(folder: Path) -> RunFolder:
    """A small run through every stage: training, fitting, attacking, all protocols, costs."""
    results = oodbench.run("digits", out=folder / "run", **OPTIONS)
    return RunFolder(results.path)


def everything(folder: Path) -> None:
    """The run in ``run``, a fitted file ``fitted.safetensors``, and what both left in ``cache``."""
    os.environ["OODBENCH_CACHE"] = str(folder / "cache")
    run(folder)
    fitted = thresholds.fit("mahalanobis-fe", model="resnet8-digits", dataset="digits")
    fitted.save(folder / "fitted.safetensors")


def figures(folder: RunFolder) -> dict:
    """All but time and provenance, by set, row and protocol."""
    changing = {"wall_seconds", "provenance"}
    return {" ".join((r.set_name, *r.place)): r.model_dump(mode="json", exclude=changing) for r in folder.records()}
