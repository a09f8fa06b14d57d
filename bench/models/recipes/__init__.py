"""Recipes: how papers, or the code of their authors, train the networks that results are published for."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from oodbench.errors import UsageError
from oodbench.registry import check_parameters, unknown

METHODS = {  # what a recipe does beyond SGD on the cross-entropy, by name
    "augmix": "oodbench.models.recipes.augmix:AugMix",
    "adversarial": "oodbench.models.recipes.adversarial:Adversarial",
    "noise": "oodbench.models.recipes.noise:Noise",
    "simclr": "oodbench.models.recipes.simclr:SimCLR",
}


@dataclass(frozen=True)
class Recipe:
    """The values of a training by SGD with momentum, on the cross-entropy unless the network has an objective of its own, or
    the recipe a method.

    Attributes:
        name: of the recipe.
        source: where its values come from, and which were chosen.
        epochs: passes over the training images.
        batch_size: images per step, at most.
        lr: learning rate of the first step.
        drops: shares of the epochs, each in (0, 1), after which the rate is multiplied by ``drop``; empty for half a cosine
            from ``lr`` to ``final_lr``, step by step.
        drop: see ``drops``.
        final_lr: see ``drops``.
        warmup: number of first epochs over which the rate rises from 0, in a straight line.
        momentum, nesterov: of SGD.
        weight_decay: of all parameters.
        augment: whether images are shifted by up to an eighth of their side, and mirrored where their set allows it.
        size: pixels per side to which images are resized; None for their own size.
        method: what the recipe does beyond that, one of ``METHODS``, or empty.
        parameters: hyper-parameters of the method, all of them.
    """

    name: str
    source: str
    epochs: int = 100
    batch_size: int = 128
    lr: float = 0.1
    drops: tuple[float, ...] = ()
    drop: float = 0.1
    final_lr: float = 0.0
    warmup: int = 0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    augment: bool = True
    size: int | None = None
    method: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def override(self, parameters: Mapping[str, Any] | None = None, **given: Any) -> "Recipe":
        """The recipe with these values in place of its own, except None. ``parameters`` are some of its method's.

        Raises UsageError for a number of epochs, a batch size or a rate that is not above 0, and for an unknown parameter.
        """
        check_parameters(self.name, parameters or {}, self.parameters)
        given["parameters"] = {**self.parameters, **(parameters or {})}
        changed = replace(self, **{name: value for name, value in given.items() if value is not None})
        for option in ("epochs", "batch_size", "lr"):
            if not (value := getattr(changed, option)) > 0:
                raise UsageError(f"{option.replace('_', ' ')} is {value}; give a number above 0")
        return changed

    def values(self) -> dict[str, Any]:
        """All values as JSON takes them."""
        parameters = {name: list(value) if isinstance(value, tuple) else value for name, value in self.parameters.items()}
        return asdict(self) | {"drops": list(self.drops), "parameters": parameters}


DEFAULT = "openood"
_STANDARD = Recipe(
    "standard",
    "ResNets on CIFAR-10 in github.com/kuangliu/pytorch-cifar: 93.02 % for ResNet-18 there, whose images are normalised by the"
    " means and deviations of CIFAR-10",
    epochs=200,
    nesterov=False,
)
_SIMCLR = Recipe(
    "simclr",
    "ResNet-18 on CIFAR-10 in the code of Chen et al. 2020 (arXiv 2002.05709, github.com/google-research/simclr): LARS with a"
    " rate of 1.0 per 256 images for 1,000 epochs, then 100 epochs of the linear head by SGD with .1 per 256 images. The"
    " projection is that of the paper, two linear layers",
    epochs=1100,
    batch_size=512,
    lr=2.0,
    warmup=10,
    nesterov=False,
    weight_decay=1e-4,
    augment=False,
    method="simclr",
    parameters={
        "optimizer": "lars",
        "temperature": 0.5,
        "projection": 128,
        "head_share": 1 / 11,
        "head_lr": 0.2,
        "area": [0.08, 1.0],
        "jitter": [0.4, 0.4, 0.4, 0.1],
        "jittered": 0.8,
        "grey": 0.2,
    },
)
RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            DEFAULT,
            "ResNet-18 on CIFAR-10 in OpenOOD's code (github.com/Jingkang50/OpenOOD, configs/pipelines/train/baseline.yml); its"
            " cosine ends at 1e-6 instead of 0",
        ),
        _STANDARD,
        replace(_STANDARD, name="resnet-cifar"),
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
        Recipe(
            "augmix",
            "Hendrycks et al. 2020 (arXiv 1912.02781, github.com/google-research/augmix), for CIFAR-10 there, whose images are"
            " normalised by .5",
            final_lr=1e-6,
            method="augmix",
            parameters={"width": 3, "depth": 3, "severity": 3.0, "consistency": 12.0},
        ),
        Recipe(
            "adversarial",
            "Madry et al. 2018 (arXiv 1706.06083) in github.com/MadryLab/cifar10_challenge: 80,000 steps of 128 images, which"
            " are 205 epochs of CIFAR-10, for a wide ResNet there. The attack has 10 steps, as in its configuration (the paper"
            " has 7)",
            epochs=205,
            drops=(0.5, 0.75),
            nesterov=False,
            weight_decay=2e-4,
            method="adversarial",
            parameters={"eps": 8 / 255, "step": 2 / 255, "steps": 10},
        ),
        replace(
            _STANDARD,
            name="noise",
            source="Rusak et al. 2020 (arXiv 2001.06057, github.com/bethgelab/game-of-noise): half of each batch is clean, the"
            " rest has Gaussian noise. Its sigma of .5, or one of .08, .12, .18, .26 and .38, is for ImageNet; .1 for CIFAR and"
            " the other values, those of standard, are our choice",
            method="noise",
            parameters={"sigma": 0.1, "clean": 0.5},
        ),
        _SIMCLR,
        replace(
            _SIMCLR,
            name="simclr-adam",
            source="SimCLR as the recipe simclr, by Adam for 500 epochs and 100 of the linear head, a common cheaper setting;"
            " the rate of the head is our choice",
            epochs=600,
            lr=1e-3,
            warmup=0,
            weight_decay=1e-6,
            parameters={**_SIMCLR.parameters, "optimizer": "adam", "head_share": 1 / 6, "head_lr": 1e-3},
        ),
    )
}


def find(name: str) -> Recipe:
    """The recipe of this name. Raises UsageError, with the known ones, if there is none."""
    if name not in RECIPES:
        raise UsageError(unknown("recipe", name, RECIPES, f"known: {', '.join(RECIPES)}"))
    return RECIPES[name]
