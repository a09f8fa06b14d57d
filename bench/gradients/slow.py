"""Slow per-sample gradients for parameters without a rule: by ``torch.func``, or one backward pass per image."""

import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from oodbench.errors import Unsuitable, reason
from oodbench.gradients.factors import CHUNK_BYTES, Explicit

Gradients = dict[str, Tensor]


def of_one_image(module: nn.Module, parameters: Mapping[str, Tensor], image: Tensor, cotangent: Tensor) -> Gradients:
    """The reference: gradients of ⟨cotangent, output⟩ for one image (1, …), by plain autograd, shaped like parameters."""
    frozen = [parameter for parameter in parameters.values() if not parameter.requires_grad]
    found: tuple[Tensor | None, ...] = (None,) * len(parameters)
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            output = module(image)
        if parameters and output.requires_grad:
            found = torch.autograd.grad(output, list(parameters.values()), cotangent, allow_unused=True)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    pairs = zip(parameters.items(), found, strict=True)
    return {name: torch.zeros_like(p) if gradient is None else gradient for (name, p), gradient in pairs}


def slowly(
    module: nn.Module, parameters: Mapping[str, Tensor], images: Tensor, cotangents: Tensor
) -> Iterator[tuple[slice, dict[str, Explicit]]]:
    """(rows, gradients by name) of a few images at a time.

    By ``torch.func``; if it cannot follow the network's forward pass, by one backward pass per image. Raises Unsuitable
    if that fails too.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
    few = max(1, 4 * CHUNK_BYTES // max(1, size))
    together = True
    for start in range(0, len(images), few):
        rows = slice(start, start + few)
        found: Gradients = {}
        if together:
            try:
                found = _by_torch_func(module, parameters, images[rows], cotangents[rows])
            except Exception:  # torch.func refuses, in many ways, what autograd accepts
                together = False
        if not together:
            found = _by_loop(module, parameters, images[rows], cotangents[rows])
        yield rows, {name: Explicit(gradient) for name, gradient in found.items()}


def _by_torch_func(module: nn.Module, parameters: Mapping[str, Tensor], images: Tensor, cotangents: Tensor) -> Gradients:
    """(n, *shape) by name."""

    # Every place of a parameter, each once: the way in which functional_call ties weights leaves a module that is used in
    # two places with another tensor than before.
    names = {id(parameter): name for name, parameter in parameters.items()}
    places = {
        f"{path}.{name}".lstrip("."): names[id(parameter)]
        for path, part in module.named_modules()
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False)
        if id(parameter) in names
    }

    def loss(own: Gradients, image: Tensor, cotangent: Tensor) -> Tensor:
        put = {place: own[name] for place, name in places.items()}
        return (functional_call(module, put, (image[None],), tie_weights=False)[0] * cotangent).sum()

    own = {name: parameter.detach() for name, parameter in parameters.items()}
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # slowness is already reported
        found = vmap(grad(loss), in_dims=(None, 0, 0))(own, images, cotangents)
    return {name: gradient.detach() for name, gradient in found.items()}


def _by_loop(module: nn.Module, parameters: Mapping[str, Tensor], images: Tensor, cotangents: Tensor) -> Gradients:
    """(n, *shape) by name."""
    try:
        apart = zip(images.split(1), cotangents.split(1), strict=True)
        each = [of_one_image(module, parameters, image, cotangent) for image, cotangent in apart]
    except Exception as error:
        raise Unsuitable(
            f"cannot compute parameter gradients of {getattr(module, 'name', type(module).__name__)} ({reason(error)});"
            " leave out detectors on parameter gradients"
        ) from error
    return {name: torch.stack([gradients[name] for gradients in each]) for name in parameters}
