"""Forward passes with dropout, where each image has masks of its own."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.classifier import Classifier
from oodbench.errors import Unsuitable
from oodbench.forward.hooks import hook
from oodbench.models.device import autocast
from oodbench.random_numbers import content_keys, hashed, mix, uniform

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def stochastic(
    classifier: Classifier,
    images: Tensor,
    passes: int,
    p: float,
    seed: int,
    features: Callable[[], Tensor],
    precision: torch.dtype | None,
) -> tuple[Tensor, tuple[Tensor, Exception] | None]:
    """Logits of ``Probe.stochastic``, float64 (passes, N, classes), and a condition on them with the error if it fails.

    features: gives what the head reads. precision: as of ``Probe``.
    """
    keys = hashed(content_keys(images, seed), passes).unbind(1)  # one (N,) per pass
    dropouts = [m for m in classifier.module.modules() if isinstance(m, DROPOUTS) and m.p > 0]

    def dropped(images: Tensor, keys: Tensor) -> tuple[Tensor, bool]:
        with autocast(images.device, precision):
            return with_dropout(classifier, images, keys, dropouts)

    first, reached = dropped(images, keys[0]) if dropouts else (None, False)
    if first is None or not reached:  # dropout in an unused branch does not count
        given = features().double()
        weight, bias = (part.double() for part in classifier.weight_and_bias)
        masks = (dropout_mask(each, 0, given.shape[1:], p) for each in keys)
        return torch.stack([F.linear(given * mask, weight, bias) for mask in masks]), None
    # Compare the last image: the first of a batch may get the masks that it gets alone. Repeat a lone image.
    last, key = images[-1:], keys[0][-1:]
    alone, _ = dropped(last, key)
    among = first if len(images) > 1 else dropped(last.repeat(2, 1, 1, 1), key.repeat(2))[0]
    among = among[-1:]
    slack = torch.finfo(precision or images.dtype).eps ** 0.5 * first.nan_to_num().abs().max()
    same = (alone == among) | (alone.isnan() & among.isnan()) | ((alone - among).abs() <= slack)
    mixed = Unsuitable(
        f"{classifier.name}: with dropout, an image's logits depend on the rest of its batch, because the input of a dropout"
        " does not have the batch first; build the network with batch_first=True"
    )
    others = (dropped(images, each)[0] for each in keys[1:])
    return torch.stack([first, *others]), (same, mixed)


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
