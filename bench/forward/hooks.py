"""Forward hooks on the network that all detectors share."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from oodbench.classifier import Classifier
from oodbench.errors import Unsuitable


def hookable(classifier: Classifier, name: str) -> nn.Module:
    """The module of a name. Raises Unsuitable for TorchScript, which runs without hooks."""
    module = dict(classifier.module.named_modules())[name]  # TorchScript has no get_submodule
    if isinstance(module, torch.jit.ScriptModule):
        raise Unsuitable(f"{classifier.name}: '{name}' is TorchScript, whose layers cannot be read; give the Python module")
    return module


def hook(module: nn.Module, seen: Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]) -> Callable[[], None]:
    """Call ``seen(module, inputs, kwargs, output)`` after each call of the module by this thread; returns what removes it.

    Other threads may use the same network at the same time: their calls are theirs alone.
    """
    own = threading.get_ident()

    # Another thread that calls the module while the hook is removed may leave out kwargs.
    def here(module: nn.Module, *call: Any) -> Any:
        return seen(module, *call) if threading.get_ident() == own else None

    return module.register_forward_hook(here, with_kwargs=True).remove
