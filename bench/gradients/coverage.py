"""Which parameters of a network the rules get right: tried once a network, against autograd, image by image."""

import warnings
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from oodbench.gradients.record import Recorder
from oodbench.gradients.slow import one_by_one

SAMPLES = 3  # few, and rarely a network's number of tokens or frames: a dimension taken for the batch shows
TOLERANCE = 1e-2  # a wrong rule is wrong by far more; float32 rounding turns a ReLU now and then

_known: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], frozenset[str]]] = WeakKeyDictionary()


def uncovered(module: nn.Module, parameters: Mapping[str, Tensor], images: Tensor) -> frozenset[str]:
    """Names of parameters that must go another way, for images of this shape. Says so once, in a warning.

    A rule assumes that a function's first dimension is the batch, or begins with it. Where a network breaks that (tokens
    first, windows first), norms come out wrong, so each parameter's norms are compared for three random images with
    those of one backward pass an image.
    """
    key = images.shape[1:], images.dtype, tuple(parameters)
    known = _known.setdefault(module, {})
    if key not in known:
        known[key] = _tried(module, parameters, images)
        if known[key]:
            warnings.warn(
                f"no rule covers {names_of(known[key])} of {_name(module)}: their per-sample gradients come from"
                " torch.func, which is exact and slow",
                stacklevel=4,
            )
    return known[key]


def _tried(module: nn.Module, parameters: Mapping[str, Tensor], images: Tensor) -> frozenset[str]:
    random = torch.Generator().manual_seed(0)
    few = torch.rand(SAMPLES, *images.shape[1:], generator=random).to(images)
    recorder = Recorder(parameters, SAMPLES)
    with torch.enable_grad(), recorder:
        outputs = module(few)
    cotangents = torch.randn(outputs.shape, generator=random).to(outputs)
    found = {name: few.new_zeros(SAMPLES) for name in parameters}
    recorder.backward(outputs, cotangents, lambda name, part: found.__setitem__(name, part.squared_norms()))
    wrong = set(recorder.uncovered)
    trusted = {name: parameter for name, parameter in parameters.items() if name not in wrong}
    norms: dict[str, list[Tensor]] = {name: [] for name in trusted}
    for gradients in one_by_one(module, trusted, few, cotangents):
        for name, gradient in gradients.items():
            norms[name].append(gradient.square().sum())
    expected = {name: torch.stack(values) for name, values in norms.items()}
    # What is next to nothing beside the largest is rounding.
    least = 1e-9 * max((float(values.max()) for values in expected.values()), default=0.0)
    wrong.update(
        name for name, values in expected.items() if not torch.allclose(found[name], values, rtol=TOLERANCE, atol=least)
    )
    return frozenset(wrong)


def names_of(names: frozenset[str]) -> str:
    """The first three of many, for a message."""
    some = sorted(names)
    return ", ".join(some[:3]) + (f" and {len(some) - 3} more" if len(some) > 3 else "")


def _name(module: nn.Module) -> str:
    return str(getattr(module, "name", type(module).__name__))
