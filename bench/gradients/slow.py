"""Per-sample gradients the slow ways: one image at a time, and ``torch.func`` for what no rule covers."""

import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from oodbench.errors import Unsuitable, reason
from oodbench.gradients.parts import CHUNK_BYTES, Explicit


def one_by_one(
    module: nn.Module, parameters: Mapping[str, Tensor], images: Tensor, cotangents: Tensor
) -> Iterator[dict[str, Tensor]]:
    """The reference: for each image (1, …) alone, the gradients of ⟨cotangent, output⟩ by plain autograd, by name."""
    with torch.enable_grad():
        own = {name: parameter.detach().clone().requires_grad_() for name, parameter in parameters.items()}
        for image, cotangent in zip(images.split(1), cotangents.split(1), strict=True):
            output = functional_call(module, own, (image,))
            found = torch.autograd.grad(output, list(own.values()), cotangent, allow_unused=True)
            yield {
                name: torch.zeros_like(own[name]) if gradient is None else gradient
                for name, gradient in zip(own, found, strict=True)
            }


def by_torch_func(
    module: nn.Module, parameters: Mapping[str, Tensor], images: Tensor, cotangents: Tensor
) -> Iterator[tuple[slice, dict[str, Explicit]]]:
    """(rows, gradients by name) of a few images at a time, as many as memory is well used by.

    Raises Unsuitable where ``torch.func`` cannot follow the network's forward pass.
    """
    own = {name: parameter.detach() for name, parameter in parameters.items()}

    def loss(own: dict[str, Tensor], image: Tensor, cotangent: Tensor) -> Tensor:
        return (functional_call(module, own, (image[None],))[0] * cotangent).sum()

    size = sum(parameter.numel() * parameter.element_size() for parameter in own.values())
    rows = max(1, 4 * CHUNK_BYTES // max(1, size))
    for start in range(0, len(images), rows):
        few = slice(start, start + rows)
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")  # it is said already that this is slow
                found = vmap(grad(loss), in_dims=(None, 0, 0))(own, images[few], cotangents[few])
        except RuntimeError as error:
            raise Unsuitable(
                f"{type(module).__name__} has parameters that no rule of oodbench.gradients covers, and torch.func"
                f" cannot follow its forward pass ({reason(error)}); leave out detectors on parameter gradients"
            ) from error
        yield few, {name: Explicit(gradient.detach()) for name, gradient in found.items()}
