"""Networks that detectors train, kept in the cache folder, so that the same training runs only once.

``<cache>/prepared/NAME-<hash>.safetensors`` holds the fitted state that ``Detector.prepare`` left. The hash covers
everything that determines it: class, its code, hyper-parameters, the network's weights, structure, code and device,
training images with labels and whether they may be flipped, held-out rows, seed, version.
"""

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from oodbench import __version__, code_hash, state
from oodbench.classifier import Classifier
from oodbench.errors import BadData, OodbenchError, reason
from oodbench.image_set import ImageSet
from oodbench.models.device import seeded
from oodbench.paths import cache_root
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet

if TYPE_CHECKING:
    from oodbench.detector import Detector

SCHEMA_VERSION = 1


def prepare(detector: "Detector", classifier: Classifier | None, train_set: TrainingSet, progress: Progress) -> None:
    """Give the detector the fitted state that ``detector.prepare`` leaves: from the cache, or trained now and cached.

    Training uses torch's generators, seeded with ``train_set.seed``; their state is restored afterwards. Either way the
    detector ends with its fitted state only, so that anything else it depends on is noticed the first time.

    Raises the errors of ``prepare``, and BadData if it leaves no fitted state.
    """
    name = detector.name or type(detector).__name__
    key = key_of(detector, classifier, train_set)
    path = cache_root() / "prepared" / f"{re.sub(r'[^A-Za-z0-9._+-]', '_', name)[:80]}-{key[:16]}.safetensors"
    device = classifier.device if classifier else torch.device("cpu")
    if detector.caches and path.exists():
        try:
            _restore(detector, path, key, device)
        except BadData as error:
            progress.say(f"{name}: {reason(error)}; deleted, training again")
            with suppress(OSError):
                path.unlink()
        else:
            progress.stage(f"{name}: already trained ({path})")
            return
    progress.stage(f"{name}: training on {len(train_set.rows):,} images")
    before = dict(vars(detector))
    with seeded(train_set.seed), torch.inference_mode(False), torch.enable_grad():
        detector.prepare(train_set.copy(), classifier, progress)
    trained = state.fitted_state(detector)
    if not trained:
        raise BadData(f"{name}: prepare left no fitted state; keep trained values in attributes that end in _")
    if not detector.caches:
        return
    data = state.to_bytes({"schema_version": SCHEMA_VERSION, "key": key}, trained, path.name)
    try:
        state.write_atomically(path, data)
    except OodbenchError as error:
        progress.say(f"{name}: the training result is not cached: {reason(error)}")
        return
    vars(detector).clear()
    vars(detector).update(before)
    _restore(detector, path, key, device)


def key_of(detector: "Detector", classifier: Classifier | None, train_set: TrainingSet) -> str:
    """SHA-256 of everything that determines the result of ``prepare``."""
    kind = type(detector)
    decides = {
        "detector": f"{kind.__module__}:{kind.__qualname__}",
        "code": code_hash.of_class(kind),
        "parameters": detector.parameters(),
        "weights": classifier.weights_hash if classifier else None,
        "network": code_hash.of_network(classifier) if classifier else None,
        "device": classifier.device.type if classifier else "cpu",
        "images": _content(train_set.images),
        "flips": train_set.images.flips if isinstance(train_set.images, ImageSet) else None,
        "labels": None if train_set.labels is None else _content(train_set.labels),
        "held out": hashlib.sha256(np.packbits(train_set.held_out).tobytes()).hexdigest(),
        "seed": train_set.seed,
        "oodbench": __version__,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _content(images: Tensor | ImageSet) -> str:
    """Hash of dtype, shape and values."""
    if isinstance(images, ImageSet):
        return images.fingerprint
    digest = hashlib.sha256(f"{images.dtype} {tuple(images.shape)}".encode())
    for block in images.split(1024):
        digest.update(np.ascontiguousarray(block.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


def _restore(detector: "Detector", path: Path, key: str, device: torch.device) -> None:
    header, found = state.load(path, device)
    if header != {"schema_version": SCHEMA_VERSION, "key": key}:
        raise BadData(f"{path} does not match its name")
    state.restore(detector, found, path)
