"""The contract of methods of training, and the two plain ones: the cross-entropy, and the objective of a network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from oodbench import registry
from oodbench.classifier import Classifier
from oodbench.errors import Unsuitable, UsageError
from oodbench.models.objective import OwnObjective
from oodbench.models.recipes import METHODS, Recipe
from oodbench.models.recipes.schedule import rate


class Method:
    """What each step of a training minimises, on which images, and by which optimizer: the cross-entropy, by SGD.

    Subclasses take their hyper-parameters as keywords, whose values are those of the recipe.

    Args:
        classifier: the network, in training mode while it is trained.
        recipe: its values.
        flips: whether a mirrored image keeps its class.
        seed: of initial weights.
    """

    def __init__(self, classifier: Classifier, recipe: Recipe, flips: bool, seed: int) -> None:
        self.classifier, self.recipe, self.flips = classifier, recipe, flips

    def parts(self) -> dict[str, nn.Module]:
        """What is trained beside the network, by name; it is kept in the checkpoint."""
        return {}

    def optimizer(self) -> Optimizer:
        recipe = self.recipe
        return torch.optim.SGD(
            self.classifier.module.parameters(),
            recipe.lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov and recipe.momentum > 0,
        )

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step (from 0), with this many steps per epoch."""
        return rate(self.recipe, step, steps)

    def begin_epoch(self, number: int) -> None:
        """Called before the first step of each epoch (from 0), with the network in training mode."""

    def loss(self, images: Tensor, labels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """The loss, a mean over uint8 images (n, C, H, W) with labels (n,), and which of them are answered right, bool (n,).

        ``random`` is on the CPU for every device. Called under autocast where precision is mixed.
        """
        return self.cross_entropy(images.float() / 255, labels)

    def after_step(self, images: Tensor, labels: Tensor) -> None:
        """Called after each step of the optimizer, with what ``loss`` took, without gradients and without autocast."""

    def end_epoch(self) -> None:
        """Called after the last step of each epoch, without gradients."""

    def cross_entropy(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As ``loss``, for floats in [0, 1]."""
        logits = self.logits(images)
        return F.cross_entropy(logits, labels), logits.argmax(1) == labels

    def logits(self, images: Tensor) -> Tensor:
        """Floats (n, C, H, W) in [0, 1] -> (n, classes). Raises Unsuitable for a network that gives something else."""
        logits = self.classifier(images)
        if not isinstance(logits, Tensor):
            name = self.classifier.name
            raise Unsuitable(f"{name} gives {type(logits).__name__} in training, not logits; train another")
        return logits


class OfNetwork(Method):
    """Minimises what the network itself states."""

    def begin_epoch(self, number: int) -> None:
        self._network.begin_epoch()

    def loss(self, images: Tensor, labels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        loss, logits = self._network.loss(self._normalised(images), labels)
        return loss, logits.argmax(1) == labels

    def after_step(self, images: Tensor, labels: Tensor) -> None:
        self._network.after_step(self._normalised(images), labels)

    def end_epoch(self) -> None:
        self._network.end_epoch()

    @property
    def _network(self) -> OwnObjective:
        assert isinstance(self.classifier.module, OwnObjective)
        return self.classifier.module

    def _normalised(self, images: Tensor) -> Tensor:
        return self.classifier.normalised(images.float() / 255)


def method_of(classifier: Classifier, recipe: Recipe, flips: bool, seed: int) -> Method:
    """The method of a recipe for a network. Raises UsageError for one that does not fit, or for its parameters."""
    module = classifier.module
    if not recipe.method:
        kind = OfNetwork if isinstance(module, OwnObjective) else Method
        return kind(classifier, recipe, flips, seed)
    if isinstance(module, OwnObjective):
        raise UsageError(
            f"{classifier.name} has an objective of its own, which {recipe.name} would replace; use --recipe {module.recipe},"
            " or train another network"
        )
    made: Method = registry.resolve(METHODS[recipe.method])(classifier, recipe, flips, seed, **recipe.parameters)
    return made
