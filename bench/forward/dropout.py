"""Forward passes with dropout, where each image has masks of its own."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from oodbench.classifier import Classifier
from oodbench.forward.hooks import hook
from oodbench.random_numbers import mix, uniform

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def with_dropout(classifier: Classifier, images: Tensor, keys: Tensor, dropouts: Iterable[nn.Module]) -> tuple[Tensor, bool]:
    """Logits with dropout, float64 (N, classes), and whether the pass went through a dropout."""
    reached = list[nn.Module]()
    with ExitStack() as hooks, torch.no_grad():
        for module in dropouts:
            hooks.callback(hook(module, _dropping(keys, reached)))
        logits = classifier(images).double()
    return logits, bool(reached)


def dropout_mask(keys: Tensor, place: int, shape: Sequence[int], p: float) -> Tensor:
    """The masks of the dropout at a place of the forward pass, a row per key: 0 with probability p, else 1 / (1 − p).

    keys (N,) -> float64 (N, *shape)
    """
    kept = (uniform(mix(keys + place), shape) >= p).double()
    return kept / (1 - p) if p < 1 else kept


def _dropping(keys: Tensor, reached: list[nn.Module]) -> Callable[..., Tensor]:
    """A forward hook on a dropout module that drops units or channels by the key (N,) of each image; adds it to ``reached``."""

    def drop(module: Any, inputs: Any, kwargs: Any, output: Tensor) -> Tensor:
        reached.append(module)
        units = output.shape[1:] if isinstance(module, nn.Dropout) else (output.shape[1], *[1] * (output.dim() - 2))
        rows = -(-len(output) // max(1, len(keys)))  # per image: more than one if another dimension is folded into the first
        mask = dropout_mask(keys, len(reached), (rows, *units), module.p).flatten(0, 1)
        return output * mask[: len(output)].to(output)

    return drop
