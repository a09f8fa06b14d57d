"""Attacks of Foolbox and of the Adversarial Robustness Toolbox (ART), by class name, if those packages are installed.

For example ``foolbox:LinfPGD`` (Rauber et al., JOSS 2020) and ``art:DeepFool`` (Nicolae et al. 2018, arXiv 1807.01069).
Settings go to the class, except ``eps`` of a Foolbox attack, which goes to the call: a distance in pixel units of [0, 1], in
the norm of that attack.
"""

import copy
import importlib
import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oodbench import registry
from oodbench.classifier import Classifier
from oodbench.errors import OodbenchError, UsageError, contained, reason
from oodbench.models.device import seeded

# package: (module of the attacks, their base class, distribution)
PACKAGES = {
    "foolbox": ("foolbox.attacks", "foolbox.attacks.base:Attack", "foolbox"),
    "art": ("art.attacks.evasion", "art.attacks:EvasionAttack", "adversarial-robustness-toolbox"),
}


def takes(name: str) -> bool:
    """Whether a name is ``PACKAGE:CLASS`` of a supported package, installed or not."""
    package, colon, attack = name.partition(":")
    return package in PACKAGES and bool(colon and attack)


def require(name: str) -> None:
    """Raise UsageError if the package is not installed or has no such attack."""
    _class(name)


def settings_of(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given settings; the class knows its own defaults. Raises UsageError for an unknown setting."""
    known = list(inspect.signature(_class(name)).parameters) + ["eps"] * name.startswith("foolbox:")
    for setting in given:
        if setting not in known:
            raise UsageError(registry.unknown("setting", setting, known, f"it has: {', '.join(known)}", of=name))
    return dict(given)


def version(name: str) -> str:
    """Return the package and its version, such as ``foolbox 3.3.4``."""
    distribution = PACKAGES[name.partition(":")[0]][2]
    return f"{distribution} {metadata.version(distribution)}"


def run(name: str, classifier: Classifier, images: Tensor, labels: Tensor, *, seed: int, settings: Mapping[str, Any]) -> Tensor:
    """Attack one batch. Returns images (N, C, H, W) in [0, 1], on the device of the input.

    Raises OodbenchError with the reason if the attack fails.
    """
    attack, package = _class(name), name.partition(":")[0]
    try:
        with contained(), _seeded(seed):
            found = {"foolbox": _foolbox, "art": _art}[package](attack, classifier, images, labels, dict(settings))
    except OodbenchError:
        raise
    except Exception as error:
        given = ", ".join(f"{key} = {value}" for key, value in settings.items()) or "no settings"
        raise OodbenchError(f"{name} with {given} fails: {reason(error)}; see the documentation of {version(name)}") from error
    if found.shape != images.shape:
        raise OodbenchError(f"{name} returns {tuple(found.shape)} for images {tuple(images.shape)}; choose another attack")
    return found.detach().to(images.device, images.dtype).clamp(0, 1)


def _foolbox(attack: type, classifier: Classifier, images: Tensor, labels: Tensor, settings: dict[str, Any]) -> Tensor:
    import foolbox
    from foolbox.attacks.base import FixedEpsilonAttack

    eps = settings.pop("eps", None)
    if eps is None and issubclass(attack, FixedEpsilonAttack):
        raise UsageError(
            f"foolbox:{attack.__name__} needs the setting eps: a distance in pixel units, in the norm of the attack"
        )
    model = foolbox.PyTorchModel(classifier, bounds=(0, 1), device=images.device)
    criterion = foolbox.criteria.Misclassification(labels)
    _, within_eps, _ = attack(**settings)(model, images, criterion, epsilons=eps)
    return within_eps


def _art(attack: type, classifier: Classifier, images: Tensor, labels: Tensor, settings: dict[str, Any]) -> Tensor:
    from art.estimators.classification import PyTorchClassifier

    with torch.no_grad():
        classes = classifier(images[:1]).shape[1]
    # ART knows two devices, CUDA's current one and the CPU, and moves the network there.
    known_device = images.is_cuda or images.device.type == "cpu"
    with torch.cuda.device(images.device) if images.is_cuda else nullcontext():
        network = PyTorchClassifier(
            model=classifier if known_device else copy.deepcopy(classifier).cpu(),
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=tuple(images.shape[1:]),
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="gpu" if images.is_cuda else "cpu",
        )
    known = inspect.signature(attack).parameters
    quiet = {"verbose": False, "batch_size": len(images)}
    settings = {key: value for key, value in quiet.items() if key in known} | settings
    given = images.float().cpu().numpy()  # ART works in float32
    return torch.from_numpy(np.asarray(attack(network, **settings).generate(x=given, y=labels.cpu().numpy())))


def _class(name: str) -> type:
    package, _, wanted = name.partition(":")
    home, root, distribution = PACKAGES[package]
    module = _import(name, home, package, distribution)
    root_module, _, root_class = root.partition(":")
    base = getattr(importlib.import_module(root_module), root_class)
    known = {
        key: value
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
    }
    if wanted not in known:
        raise UsageError(
            registry.unknown("attack", wanted, known, f"{len(known)} of them in {home}, {version(name)}", of=package)
        )
    return known[wanted]


def _import(name: str, module: str, package: str, distribution: str) -> ModuleType:
    try:
        with contained():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[
            0
        ] == package:  # a missing module of the package itself, or another distribution of its name
            raise UsageError(f"'{name}' needs {distribution}: pip install 'oodbench[{package}]'") from error
        raise UsageError(f"'{name}': {distribution} cannot be imported: {reason(error)}; install it again") from error
    except Exception as error:
        raise UsageError(f"'{name}': {distribution} cannot be imported: {reason(error)}; install it again") from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, from which these attacks draw, and restore them afterwards."""
    before, before_numpy = random.getstate(), np.random.get_state()
    with seeded(seed):
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(before_numpy)
