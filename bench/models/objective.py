"""What a network minimises in training, if it is not the cross-entropy alone."""

import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.classifier import Classifier


class OwnObjective(nn.Module):
    """Base of a module that decides itself what a step of its training minimises, and what comes before and after a step.

    ``recipe`` names the recipe of the paper, with which ``oodbench train`` should train it.

    Its methods take normalised images (N, C, H, W), as ``forward`` does, and labels (N,).
    """

    recipe: str

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, a mean over the images, and their logits (N, classes). May be called under autocast."""
        logits = self(images)
        return F.cross_entropy(logits, labels), logits

    def begin_epoch(self) -> None:
        """Called before the first step of each epoch."""

    def end_epoch(self) -> None:
        """Called after the last step of each epoch, without gradients."""

    def after_step(self, images: Tensor, labels: Tensor) -> None:
        """Called after each step of the optimizer with the images of the step, without gradients and without autocast."""


def on_body(module: nn.Module, body: Classifier) -> Classifier:
    """A classifier of a module that holds the module of another as ``body``: same normalisation, same layers, no final linear
    layer, because that of the body does not give the logits."""
    made = Classifier(module, head="", layers=[f"body.{name}" for name in body.layer_names])
    made.mean, made.std = body.mean, body.std  # not by value, which a network without values does not have
    return made
