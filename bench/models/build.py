"""Builds a network from a model's name, before any weights file is read.

A name is built-in, registered by a third party, ``timm:NAME``, ``torchvision:NAME``, or ``module:function``, or one of these
after ``denoised:``.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from oodbench import models, registry
from oodbench.classifier import Classifier
from oodbench.errors import OodbenchError, UsageError, around_call, contained, fix_line, reason
from oodbench.models.filters import filter_of

DEFAULT_CLASSES = 10


def brings_weights(name: str) -> bool:
    """Whether the network comes with its own weights: third-party models and ``module:function``."""
    name, _ = models.undenoised(name)
    return name not in models.TABLE and name.partition(":")[0] not in ("timm", "torchvision")


def build(name: str, num_classes: int | None = None, seed: int = 0) -> Classifier:
    """Build the network of this name on the CPU; random initial values are drawn with ``seed``.

    Raises UsageError for an unknown name, and OodbenchError if third-party code fails.
    """
    inner, settings = models.undenoised(name)
    if settings is not None:
        return denoised(build(inner, num_classes, seed), name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        source, colon, inner = name.partition(":")
        if colon and source == "timm":
            classifier = _timm(inner, num_classes or DEFAULT_CLASSES)
        elif colon and source == "torchvision":
            classifier = _torchvision(inner, num_classes or DEFAULT_CLASSES)
        else:
            with around_call.get()(f"building {name}", ends=brings_weights(name)):
                classifier = _call(name, _resolve(name) if colon else registry.load("models", name), num_classes)
    classifier.name = name
    return classifier


def denoised(classifier: Classifier, name: str) -> Classifier:
    """The classifier with the filter of this name, ``denoised:…``, before its own. Raises UsageError for a wrong name."""
    if classifier.filter is not None:
        raise UsageError(f"{name}: the network has a filter of its own; name it without {models.DENOISED}")
    classifier.filter, classifier.name = filter_of(models.undenoised(name)[1] or ""), name
    return classifier


def outline(name: str, num_classes: int | None = None) -> Classifier | None:
    """The network of this name with shapes but no values, which takes no memory; None if only building it tells its shapes.

    Compare it with a file before the network is built: the largest ones take gigabytes.
    """
    if brings_weights(name):
        return None
    try:
        with torch.device("meta"), _WithoutValues():
            return build(name, num_classes)
    except NotImplementedError:  # it computes its shapes with tensors: RegNets of torchvision
        return None


class _WithoutValues(TorchFunctionMode):
    """Leaves out the initialisation of parameters, which on the meta device has no effect but imports the compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fills = getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_")
        if fills or getattr(func, "__module__", "") == nn.init.__name__:
            return next(iter([*args, *(kwargs or {}).values()]))
        return func(*args, **(kwargs or {}))


def _timm(name: str, num_classes: int) -> Classifier:
    """Normalisation and head come from timm's configuration of the network."""
    timm = timm_with(name)
    module: Any = timm.create_model(name, pretrained=False, num_classes=num_classes)
    config, final = module.pretrained_cfg, module.get_classifier()
    head = next((n for n, m in module.named_modules() if m is final and isinstance(m, nn.Linear)), None)
    if isinstance(final, tuple):  # the heads of a distilled network, whose mean are its logits
        head = ""
    return Classifier(module, config["mean"], config["std"], head=head)


def _torchvision(name: str, num_classes: int) -> Classifier:
    """Normalisation is that of torchvision's weights for the network."""
    networks = torchvision_with(name)
    module = networks.get_model(name, weights=None, num_classes=num_classes)
    if hasattr(module, "transform_input"):  # torchvision sets it with its weights, which take inputs in [-1, 1]
        module.transform_input = True
    preset = networks.get_model_weights(name).DEFAULT.transforms()
    return Classifier(module, preset.mean, preset.std)


def timm_with(name: str) -> Any:
    """The package timm. Raises OodbenchError if it is not installed, and UsageError if it does not know this network."""
    try:
        import timm
    except ImportError as error:
        raise OodbenchError(f"model 'timm:{name}' needs timm; run pip install 'oodbench[timm]'") from error
    if not timm.is_model(name):
        raise UsageError(registry.unknown("timm model", name, timm.list_models(), "timm.list_models()"))
    return timm


def torchvision_with(name: str) -> Any:
    """The module ``torchvision.models``. Raises UsageError if it does not know this network."""
    from torchvision import models as networks

    known = networks.list_models(module=networks)
    if name not in known:
        raise UsageError(registry.unknown("torchvision model", name, known, "torchvision.models.list_models()"))
    return networks


def _resolve(name: str) -> Any:
    try:
        return registry.resolve(name)
    except Exception as error:  # an import runs third-party code, which may raise any error
        why = fix_line(error, name) or f"{reason(error)}; give module:function, with the module on the Python path"
        raise OodbenchError(f"model '{name}' cannot be imported: {why}") from error


def _call(name: str, function: Any, num_classes: int | None) -> Classifier:
    """``function()`` or ``function(num_classes)``: a Classifier, or a module that takes images in [0, 1]."""
    if not callable(function):
        raise UsageError(f"model '{name}' is {type(function).__name__}, not a function that returns a Classifier")
    try:
        with contained():
            made = function(*_arguments(function, num_classes))
    except OodbenchError:
        raise
    except Exception as error:
        why = fix_line(error, getattr(function, "__module__", name)) or f"{reason(error)}; fix that function"
        raise OodbenchError(f"model '{name}' failed when it was built: {why}") from error
    if isinstance(made, Classifier):
        return made
    if isinstance(made, nn.Module):
        return Classifier(made)
    raise UsageError(f"model '{name}' returned {type(made).__name__}; return an oodbench.Classifier or a torch.nn.Module")


def _arguments(function: Callable[..., Any], num_classes: int | None) -> tuple[int, ...]:
    """Arguments with the number of classes if the function takes it: always if required, else only if it is known."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next((p for p in inspect.signature(function).parameters.values() if p.kind in positional), None)
    if first is None or (first.default is not first.empty and (num_classes is None or first.name != "num_classes")):
        return ()
    return (num_classes or DEFAULT_CLASSES,)
