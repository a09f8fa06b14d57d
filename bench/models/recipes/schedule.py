"""The learning rate of each step."""

import math
from collections.abc import Sequence

from oodbench.models.recipes import Recipe


def rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate of a recipe in a step (from 0), with this many steps per epoch."""
    share = min(1, step / (recipe.warmup * steps)) if recipe.warmup else 1
    if recipe.drops:
        return share * dropped(recipe.lr, step // steps, recipe.epochs, recipe.drops, recipe.drop)
    return share * cosine(recipe.lr, step, recipe.epochs * steps, recipe.final_lr)


def cosine(lr: float, step: int, steps: int, final: float = 0.0) -> float:
    """From ``lr`` at step 0 down half a cosine to ``final`` at ``steps`` (Loshchilov & Hutter, ICLR 2017, arXiv 1608.03983)."""
    return final + (lr - final) * (1 + math.cos(math.pi * step / steps)) / 2


def dropped(lr: float, epoch: int, epochs: int, drops: Sequence[float], drop: float) -> float:
    """``lr`` times ``drop`` for each share of the epochs in ``drops`` that is over before this epoch (from 0)."""
    return lr * drop ** sum(epoch >= round(share * epochs) for share in drops)
