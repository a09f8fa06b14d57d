"""Recipes: how papers, or the code of their authors, train the networks that results are published for."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from oodbench.errors import UsageError
from oodbench.registry import unknown


@dataclass(frozen=True)
class Recipe:
    """The values of a training by SGD with momentum, on the cross-entropy unless the network has an objective of its own.

    Attributes:
        name: of the recipe.
        source: where its values come from, and which were chosen.
        epochs: passes over the training images.
        batch_size: images per step, at most.
        lr: learning rate of the first step.
        drops: shares of the epochs, each in (0, 1), after which the rate is multiplied by ``drop``; empty for half a cosine
            from ``lr`` to 0, step by step.
        drop: see ``drops``.
        warmup: number of first epochs over which the rate rises from 0, in a straight line.
        momentum, nesterov: of SGD.
        weight_decay: of all parameters.
        augment: whether images are shifted by up to an eighth of their side, and mirrored where their set allows it.
        size: pixels per side to which images are resized; None for their own size.
    """

    name: str
    source: str
    epochs: int = 100
    batch_size: int = 128
    lr: float = 0.1
    drops: tuple[float, ...] = ()
    drop: float = 0.1
    warmup: int = 0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    augment: bool = True
    size: int | None = None

    def override(self, **given: Any) -> "Recipe":
        """The recipe with these values in place of its own, except None.

        Raises UsageError for a number of epochs, a batch size or a rate that is not above 0.
        """
        changed = replace(self, **{name: value for name, value in given.items() if value is not None})
        for option in ("epochs", "batch_size", "lr"):
            if not (value := getattr(changed, option)) > 0:
                raise UsageError(f"{option.replace('_', ' ')} is {value}; give a number above 0")
        return changed

    def values(self) -> dict[str, Any]:
        """All values as JSON takes them."""
        return asdict(self) | {"drops": list(self.drops)}


DEFAULT = "openood"
RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            DEFAULT,
            "ResNet-18 on CIFAR-10 in OpenOOD's code (github.com/Jingkang50/OpenOOD, configs/pipelines/train/baseline.yml); its"
            " cosine ends at 1e-6 instead of 0",
        ),
        Recipe(
            "resnet-cifar",
            "ResNets on CIFAR-10 in github.com/kuangliu/pytorch-cifar: 93.02 % for ResNet-18 there",
            epochs=200,
            nesterov=False,
        ),
        Recipe(
            "densenet-cifar",
            "DenseNet-BC on CIFAR in the code of Huang et al. 2017 (arXiv 1608.06993, github.com/liuzhuang13/DenseNet): 95.49 %"
            " for DenseNet-BC-100-12 there",
            epochs=300,
            batch_size=64,
            drops=(0.5, 0.75),
            weight_decay=1e-4,
        ),
        Recipe(
            "svhn",
            "DenseNets on SVHN in Huang et al. 2017 (arXiv 1608.06993, section 4.2), whose dropout of .2 is left out. For other"
            " networks it is a choice",
            epochs=40,
            batch_size=64,
            drops=(0.5, 0.75),
            weight_decay=1e-4,
            augment=False,
        ),
        Recipe(
            "curetsr",
            "curetsr-net in the code of Temel et al. 2017 (arXiv 1712.02463, github.com/olivesgatech/CURE-TSR), except that the"
            " last epoch is kept, not the best on test images. For other networks these settings are our choice",
            epochs=80,
            batch_size=256,
            drops=(0.375, 0.75),
            nesterov=False,
            weight_decay=1e-4,
            augment=False,
            size=28,
        ),
        Recipe(
            "duq",
            "duq-resnet18 on CIFAR-10 in van Amersfoort et al. 2020 (arXiv 2003.02037); the authors' code"
            " (github.com/y0ast/deterministic-uncertainty-quantification) ends after 75 of the 100 epochs, and its gradient"
            " penalty weighs .5 instead of .75. For other networks, whose loss is the cross-entropy, it is a choice",
            lr=0.05,
            drops=(0.25, 0.5, 0.75),
            drop=0.2,
            nesterov=False,
        ),
        Recipe(
            "sngp",
            "SNGP on CIFAR-10 in the code of Liu et al. 2020 (arXiv 2006.10108, github.com/google/uncertainty-baselines,"
            " baselines/cifar/sngp.py), for a Wide ResNet-28-10 there. Its rate is for 128 images; its L2 of 3e-4 is a decay of"
            " 6e-4, of convolutions and BatchNorm alone there. For other networks it is a choice",
            epochs=250,
            lr=0.05,
            drops=(0.3, 0.6, 0.8),
            drop=0.2,
            warmup=1,
            weight_decay=6e-4,
        ),
    )
}


def find(name: str) -> Recipe:
    """The recipe of this name. Raises UsageError, with the known ones, if there is none."""
    if name not in RECIPES:
        raise UsageError(unknown("recipe", name, RECIPES, f"known: {', '.join(RECIPES)}"))
    return RECIPES[name]
