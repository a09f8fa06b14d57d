"""Forward passes in which the output of one layer is changed."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from oodbench.classifier import Classifier
from oodbench.errors import Unsuitable
from oodbench.forward.channels import channels_first
from oodbench.forward.hooks import hook, hookable
from oodbench.models.device import full_precision


def with_edit(classifier: Classifier, images: Tensor, name: str, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits, float64 (N, classes), where ``edit`` changes what the first call of layer ``name`` gives: (N, channels, …).

    Raises Unsuitable if the forward pass does not go through the layer, or if its channels are unknown.
    """
    reached: list[nn.Module] = []

    def change(module: nn.Module, inputs: Any, kwargs: Any, output: Any) -> Tensor | None:
        if reached:
            return None
        reached.append(module)
        if not isinstance(output, Tensor):
            raise Unsuitable(f"{classifier.name}: layer '{name}' gives {type(output).__name__}, not a tensor")
        channels = channels_first(name, classifier.module, output, len(images))
        with full_precision(output.device):
            changed = edit(channels.to(images.dtype)).to(output.dtype)
        return changed if channels is output else changed.movedim(1, -1)

    with ExitStack() as hooks, torch.no_grad():
        hooks.callback(hook(hookable(classifier, name), change))
        logits = classifier(images).double()
    if not reached:
        raise Unsuitable(f"{classifier.name}: its forward pass does not go through {name}")
    return logits
