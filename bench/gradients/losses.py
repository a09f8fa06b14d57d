"""The backpropagated losses: they map outputs (N, …) and images (N, C, H, W) to one value per image (N,)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, dtype, long

from oodbench.errors import BadData, UsageError
from oodbench.registry import unknown

Loss = Callable[[Tensor, Tensor], Tensor]


def constant(value: Tensor | float, like: Tensor, kind: dtype | None = None) -> Tensor:
    """The value on the device of ``like``, and in its dtype or another; a number without waiting for the device."""
    if isinstance(value, Tensor):
        return value.to(like.device, kind or like.dtype, non_blocking=True)
    return like.new_full((), value, dtype=kind)


def confounding(label: Tensor | float) -> Loss:
    """Binary cross-entropy of logits (N, classes), summed over classes, against one label vector for all: (classes,).

    A *confounding* label is one that no training image had, such as all ones (Lee et al., IEEE Access 2023,
    arXiv 2304.02834). It is a sum, because a mean would only divide every squared norm by the squared number of classes.
    """

    def loss(logits: Tensor, images: Tensor) -> Tensor:
        target = constant(label, logits).expand_as(logits)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).sum(1)

    return loss


def cross_entropy(target: int | Tensor | None = None) -> Loss:
    """Cross-entropy of logits (N, classes) to one class, to one class per image (N,), or, without one, to each prediction."""

    def loss(logits: Tensor, images: Tensor) -> Tensor:
        classes = logits.argmax(1) if target is None else constant(target, logits, long).expand(len(logits))
        return F.cross_entropy(logits, classes, reduction="none")

    return loss


def mse(value: float | Tensor) -> Loss:
    """Squared error of outputs (N, …) against a constant, mean over the outputs of an image."""

    def loss(outputs: Tensor, images: Tensor) -> Tensor:
        return (outputs - constant(value, outputs)).square().flatten(1).mean(1)

    return loss


def reconstruction(outputs: Tensor, images: Tensor) -> Tensor:
    """Squared error of an autoencoder's outputs against its images, mean over pixels and channels."""
    return (outputs - images).square().flatten(1).mean(1)


def per_image(values: Tensor, images: int) -> Tensor:
    """What a loss gave, unchanged. Raises BadData unless it is one value per image, whose gradients are each image's own."""
    if not isinstance(values, Tensor) or values.shape != (images,):
        given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise BadData(f"the loss gave {given}, not one value per image ({images},); leave out mean or sum over the batch")
    return values


NAMED: dict[str, Loss] = {
    "ones": confounding(1.0),
    "cross-entropy": cross_entropy(),
    "reconstruction": reconstruction,
}


def loss_of(loss: str | Loss | Tensor) -> Loss:
    """A loss by name, a label vector (classes,) as a confounding label, or a function unchanged.

    Raises UsageError for an unknown name.
    """
    if isinstance(loss, Tensor):
        return confounding(loss)
    if isinstance(loss, str):
        if loss not in NAMED:
            raise UsageError(unknown("loss", loss, NAMED, ", ".join(NAMED)))
        return NAMED[loss]
    return loss
