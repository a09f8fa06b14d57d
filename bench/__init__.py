"""oodbench benchmarks out-of-distribution detectors, recognition under corruption, active learning and image quality.

The names below are the public interface; each is imported on first use, so that the command line starts quickly.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Classifier": "oodbench.classifier:Classifier",
    "Detector": "oodbench.detector:Detector",
    "ImageSet": "oodbench.image_set:ImageSet",
    "Source": "oodbench.image_set:Source",
    "Monitor": "oodbench.inference.monitor:Monitor",
    "OodbenchError": "oodbench.errors:OodbenchError",
    "Probe": "oodbench.probe:Probe",
    "compare": "oodbench.leaderboard.comparison.compare:compare",
    "evaluate": "oodbench.metrics:evaluate",
    "load_dataset": "oodbench.datasets.load:load_dataset",
    "load_detector": "oodbench.detector:load_detector",
    "load_fitted": "oodbench.inference.fitted:load_fitted",
    "load_model": "oodbench.models.load:load_model",
    "open_run": "oodbench.api:open_run",
    "open_study": "oodbench.api:open_study",
    "publish": "oodbench.leaderboard.site.publish:publish",
    "read_image": "oodbench.datasets.formats.files:read_image",
    "run": "oodbench.api:run",
    "verify": "oodbench.results.bundle:verify",
}
_SUBPACKAGES = ("datasets", "detectors", "gradients", "leaderboard", "models")

__all__ = [
    "Classifier",
    "Detector",
    "ImageSet",
    "Monitor",
    "OodbenchError",
    "Probe",
    "Source",
    "__version__",
    "compare",
    "datasets",
    "detectors",
    "evaluate",
    "gradients",
    "leaderboard",
    "load_dataset",
    "load_detector",
    "load_fitted",
    "load_model",
    "models",
    "open_run",
    "open_study",
    "publish",
    "read_image",
    "run",
    "verify",
]

if TYPE_CHECKING:
    from oodbench import datasets, detectors, gradients, leaderboard, models
    from oodbench.api import open_run, open_study, run
    from oodbench.classifier import Classifier
    from oodbench.datasets.formats.files import read_image
    from oodbench.datasets.load import load_dataset
    from oodbench.detector import Detector, load_detector
    from oodbench.errors import OodbenchError
    from oodbench.image_set import ImageSet, Source
    from oodbench.inference.fitted import load_fitted
    from oodbench.inference.monitor import Monitor
    from oodbench.leaderboard.comparison.compare import compare
    from oodbench.leaderboard.site.publish import publish
    from oodbench.metrics import evaluate
    from oodbench.models.load import load_model
    from oodbench.probe import Probe
    from oodbench.results.bundle import verify


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module, _, attribute = _PUBLIC[name].partition(":")
        value = getattr(importlib.import_module(module), attribute)
    elif name in _SUBPACKAGES:
        value = importlib.import_module(f"oodbench.{name}")
    else:
        raise AttributeError(f"module 'oodbench' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
