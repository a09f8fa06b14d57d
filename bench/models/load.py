"""``load_model``: from a name and optional weights to a Classifier."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oodbench.classifier import Classifier
from oodbench.errors import UsageError
from oodbench.models import undenoised
from oodbench.models import weights as files
from oodbench.models.build import DEFAULT_CLASSES, brings_weights, build, denoised, outline
from oodbench.models.device import resolve_device
from oodbench.models.pretrained import cached, transform_of
from oodbench.paths import DataRoots, data_roots
from oodbench.registry import unknown

__all__ = ["load_model", "resolve_device"]


def load_model(
    name: str,
    weights: str | Path | None = None,
    *,
    data: DataRoots = None,
    num_classes: int | None = None,
    device: str = "cpu",
    require_weights: bool = False,
    weights_key: str | None = None,
    layers: Sequence[str] | None = None,
) -> Classifier:
    """Load a classifier by name; it takes images (N, C, H, W), floats in [0, 1], and returns logits (N, classes).

    Args:
        name: a built-in or third-party model (``oodbench list models``), ``timm:NAME``, ``torchvision:NAME``, or
            ``module:function``, which returns a Classifier or a module with its own weights; or ``denoised:`` before any of
            these, which filters the images.
        weights: a safetensors file, a PyTorch state dict or a checkpoint that holds one, from the working folder or from
            ``models`` in a data root; or for networks of torchvision and timm the name of weights that their cache holds, such
            as ``DEFAULT`` or ``IMAGENET1K_V1``. By default ``models/NAME.safetensors`` in a data root (a colon in a name
            becomes a dash, or ``timm:`` and ``torchvision:`` are left out), the authors' file there, or the file that comes
            with oodbench.
        data: the data root, or several that are searched in order; by default ``$OODBENCH_DATA``, else the cache folder.
        num_classes: for a network without a weights file; otherwise it is taken from the file. 10 by default.
        device: ``auto``, ``cpu``, or an accelerator, as PyTorch names it: ``cuda``, ``cuda:1``, ``mps``, ``xpu``, ….
        require_weights: whether a network without weights is an error. Otherwise it warns, and the weights are random,
            the same each time. The ``*-cifar10`` models always need their weights.
        weights_key: which part of a checkpoint to read, such as ``state_dict_ema``; needed where several parts fit.
        layers: dotted names of the modules that layered detectors read, first to last, in place of the network's own.

    Raises UsageError for an unknown name, device, key or layer, MissingData for missing weights, and BadData for a weights file
    that is malicious, truncated or from another network.
    """
    inner, settings = undenoised(name)
    if settings is not None:
        given: dict[str, Any] = {"data": data, "num_classes": num_classes, "weights_key": weights_key, "layers": layers}
        return denoised(load_model(inner, weights, device=device, require_weights=require_weights, **given), name)
    target = resolve_device(device)
    path = weights_path(name, weights, data)
    if path is None and weights_key is not None:
        raise UsageError(f"weights key {weights_key}: {name} is built without a weights file; give --weights too")
    if path is not None:
        found = files.read(path)
        network = outline(name, num_classes) or build(name, num_classes)
        state = files.part_for(found, network.module, name, path, weights_key)
        if (classes := files.other_classes(state, network.module)) is not None:
            num_classes, network = classes, outline(name, classes) or network
        if network.device.type == "meta":
            files.require_fit(state, network.module, name, path)
        classifier = build(name, num_classes)
        files.put(state, classifier.module, name, path)
        return _finished(classifier, name, num_classes, path, layers).to(target)
    classifier = _finished(build(name, num_classes), name, num_classes, None, layers)
    if name in files.PUBLISHED or (require_weights and not brings_weights(name)):
        raise files.missing(name, data)
    elif not brings_weights(name):
        warnings.warn(
            f"{name} has no weights ({files.places(name, data)[0]} does not exist): using random weights", stacklevel=2
        )
    return classifier.to(target)


def _finished(
    classifier: Classifier, name: str, num_classes: int | None, path: Path | None, layers: Sequence[str] | None
) -> Classifier:
    """With the transform that is stated for its weights, and with these layers. Raises UsageError for an unknown layer."""
    classifier.transform = classifier.transform or transform_of(name, num_classes or DEFAULT_CLASSES, path)
    if layers is not None:
        known = [module for module, _ in classifier.module.named_modules() if module]
        for layer in layers:
            if layer not in known:
                raise UsageError(unknown("layer", layer, known, f"see {name}'s named_modules()", of=name))
        classifier.layer_names = tuple(layers)
    return classifier


def check_weights(name: str, weights: str | Path | None, data: DataRoots) -> None:
    """Raise what ``load_model(..., require_weights=True)`` raises for missing weights, and load nothing."""
    if (path := weights_path(name, weights, data)) is not None:
        files.require_there(path)
    elif not brings_weights(name):
        raise files.missing(undenoised(name)[0], data)


def weights_path(name: str, weights: str | Path | None, data: DataRoots) -> Path | None:
    """The weights file: the given one, or the first that exists of those that ``load_model`` looks for; None if none does.

    A given file that does not exist is searched in the folder ``models`` of each data root, and then a name of weights in the
    cache of timm or torchvision. Raises UsageError and MissingData as ``pretrained.cached``.
    """
    name, _ = undenoised(name)
    if weights is None:
        return next((p for p in files.places(name, data) if p.exists()), None)
    path = Path(weights)
    below = () if path.exists() or path.is_absolute() else (root / "models" / path for root in data_roots(data))
    if (found := next((p for p in below if p.exists()), None)) is not None:
        return found
    return path if path.exists() else cached(name, str(weights)) or path
