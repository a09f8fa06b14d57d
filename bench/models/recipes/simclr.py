"""SimCLR: contrastive pretraining, then a linear head (Chen et al., ICML 2020, arXiv 2002.05709)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from oodbench.detectors._parameters import require_finite, require_whole
from oodbench.errors import Unsuitable, UsageError
from oodbench.forward.hooks import hook, hookable
from oodbench.models.device import full_precision, seeded
from oodbench.models.recipes import views
from oodbench.models.recipes.lars import LARS
from oodbench.models.recipes.method import Method
from oodbench.models.recipes.schedule import cosine, rate


class SimCLR(Method):
    """First all but the head, to tell views of one image from those of others (NT-Xent); then the head, on frozen features.

    In the last epochs, which train the head on crops and flips without change of colour, all other parameters and the running
    statistics stay as they are. What is shown as accuracy in the first is the share of views whose nearest other one is of the
    same image.

    optimizer: ``lars`` or ``adam``, of both parts. Biases, normalisation and head have no adapted rate and no weight decay.
    temperature: of NT-Xent.
    projection: outputs of the network of two layers between features and NT-Xent, which is thrown away.
    head_share: share of the epochs that train the head, at least one.
    head_lr: its first rate, from where it goes down half a cosine to 0.
    area: smallest and largest share of an image that a view shows.
    jitter: largest change of brightness, contrast, saturation and hue.
    jittered, grey: shares of the views with that change, and without colour.
    """

    def __init__(
        self,
        *training: Any,
        optimizer: str,
        temperature: float,
        projection: int,
        head_share: float,
        head_lr: float,
        area: Sequence[float],
        jitter: Sequence[float],
        jittered: float,
        grey: float,
    ) -> None:
        super().__init__(*training)
        name, network, seed = self.recipe.name, self.classifier, training[-1]
        if optimizer not in ("lars", "adam"):
            raise UsageError(f"{name}: optimizer = {optimizer!r}; give lars or adam")
        require_finite(name, "above 0", temperature=temperature, head_lr=head_lr)
        require_finite(name, "between 0 and 1", head_share=head_share)
        require_finite(name, "from 0 to 1", jittered=jittered, grey=grey)
        require_whole(name, 1, projection=projection)
        for key, values, count in (("area", area, 2), ("jitter", jitter, 4)):
            if not isinstance(values, list | tuple) or len(values) != count:
                raise UsageError(f"{name}: {key} = {values!r}; give {count} numbers from 0 to 1")
            require_finite(name, "from 0 to 1", **{f"{key}[{place}]": value for place, value in enumerate(values)})
        require_finite(name, "above 0", **{"area[0]": area[0]})
        if network.head_name is None:
            raise Unsuitable(f"{network.name} has no final linear layer, which {name} trains alone; train another network")
        head_epochs = max(1, round(head_share * self.recipe.epochs))
        self.pretraining = self.recipe.epochs - head_epochs
        if self.pretraining < 1:
            raise UsageError(f"{name}: epochs = {self.recipe.epochs}; give at least 2, one of them for the linear head")
        self.temperature, self.head_lr, self.area, self.jitter = temperature, head_lr, area, jitter
        self.jittered, self.grey, self._kind = jittered, grey, optimizer
        self._head, self._frozen = hookable(network, network.head_name), False
        size = network.head.in_features
        with seeded(seed):
            self.projection = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, projection)).to(network.device)

    def parts(self) -> dict[str, nn.Module]:
        return {"projection": self.projection}

    def optimizer(self) -> Optimizer:
        of_head = {id(parameter) for parameter in self._head.parameters()}
        trained = [*self.classifier.module.parameters(), *self.projection.parameters()]
        adapted = [parameter for parameter in trained if id(parameter) not in of_head and parameter.dim() > 1]
        others = [parameter for parameter in trained if id(parameter) in of_head or parameter.dim() <= 1]
        groups: list[dict[str, Any]] = [{"params": adapted}, {"params": others, "weight_decay": 0.0}]
        if self._kind == "adam":
            return torch.optim.Adam(groups, self.recipe.lr, weight_decay=self.recipe.weight_decay)
        groups[1]["adapted"] = False
        return LARS(groups, self.recipe.lr, self.recipe.momentum, self.recipe.weight_decay)

    def rate(self, step: int, steps: int) -> float:
        first = self.pretraining * steps
        if step < first:
            return rate(replace(self.recipe, epochs=self.pretraining), step, steps)
        return cosine(self.head_lr, step - first, self.recipe.epochs * steps - first)

    def begin_epoch(self, number: int) -> None:
        self._frozen = number >= self.pretraining
        self.classifier.module.train(not self._frozen).requires_grad_(not self._frozen)
        self._head.requires_grad_(self._frozen)

    def loss(self, images: Tensor, labels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        floats = images.float() / 255
        if self._frozen:
            return self.cross_entropy(views.cropped(floats, self.area, self.flips, random), labels)
        embedded = self.projection(self.features(torch.cat([self.view(floats, random), self.view(floats, random)])))
        with full_precision(images.device):
            loss, matched = contrast(embedded.float(), self.temperature)
        return loss, matched[: len(images)]

    def view(self, images: Tensor, random: torch.Generator) -> Tensor:
        """Floats (n, C, H, W) in [0, 1] -> the same, each image changed at random."""
        seen = views.cropped(images, self.area, self.flips, random)
        return views.recoloured(seen, self.jitter, self.jittered, self.grey, random)

    def features(self, images: Tensor) -> Tensor:
        """What the head takes: (n, features)."""
        seen: list[Tensor] = []
        remove = hook(self._head, lambda _, inputs, *rest: seen.append(inputs[0]))
        try:
            self.classifier(images)
        finally:
            remove()
        return seen[-1]


def contrast(embedded: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """NT-Xent: embedded (2n, d), where i and i + n are views of one image -> a mean over all views, (), and whether the nearest
    other view of each is of its image, bool (2n,).

    ℓ_i = −log (exp(s_ij / τ) / Σ_{k ≠ i} exp(s_ik / τ)), s the cosine, j the other view.
    """
    unit = F.normalize(embedded, dim=1)
    similarity = (unit @ unit.T / temperature).fill_diagonal_(-torch.inf)  # (2n, 2n)
    other = torch.arange(len(unit), device=unit.device).roll(len(unit) // 2)
    return F.cross_entropy(similarity, other), similarity.argmax(1) == other
