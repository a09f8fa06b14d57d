"""AdaSCALE: adaptive scaling (Regmi 2025, arXiv 2503.08023)."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from oodbench.classifier import Classifier
from oodbench.detector import Detector
from oodbench.detectors import _last_layer
from oodbench.detectors._parameters import require_finite, require_grid
from oodbench.errors import Unsuitable, UsageError
from oodbench.probe import Probe
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet

PERCENTILES = (60.0, 65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0, 99.0)
SAMPLE = 5000  # training images whose instability is known, as in the authors' code
SHARE, STEP = 0.05, 0.5  # of the values of an image that are changed, and by how many standard deviations
MOVED, ACTIVE, WEIGHT = 1, 5, 10  # percent of the features for Q and for C, and the weight of Q


class AdaSCALE(Detector):
    """AdaSCALE-A: energy of W f·exp(r) + b, r = Σf⁺ / Σ top-k f⁺, with fewer features in k for images that are less stable.

    k = d − round(dp/100), with p between ``least`` and ``most``: p = least + (1 − ECDF(Q'))·(most − least). Q' = 10 Q + C
    measures stability: with features f' of a changed image, Q is Σ|f − f'| over the largest 1 % of f, and C is Σ relu(f') over
    the largest 5 %, at least one feature each. The changed image is x + .5·σ·sign(g) at the 5 % of values where |g| is
    smallest, with g = ∂ max_c z_c/∂x in the normalised space of the network, whose standard deviation is σ. For a network that
    normalises inside its module, σ = 1. ECDF is that of Q' on 5,000 training images that are not held out.

    The variant ``l`` is AdaSCALE-L: the energy of z·r².

    least = 60 and most = 85 are chosen on a validation shift if learning from one is allowed: all pairs of ``percentiles``,
    which are those of the author's code.

    features (N, d) of x and the changed x -> (N, settings·2), float64
    """

    signals = ("logits", "features", "input_gradient")
    variants = ("l",)
    shift_head = "choose"
    quick: ClassVar[dict[str, Any]] = {"most": 75.0}  # of 16 features 85 keeps 2, whose sum says little
    stability_: Tensor  # Q' of training images, ascending: (SAMPLE,) at most

    def __init__(self, least: float = 60.0, most: float = 85.0, percentiles: Sequence[float] = PERCENTILES) -> None:
        require_finite("adascale", "between 0 and 100", least=least, most=most)
        require_grid("adascale", "between 0 and 100", percentiles=percentiles)
        if least > most:
            raise UsageError(f"adascale: least = {least!r}; give a percentile of at most {most!r}, which is most")
        if len(percentiles) < 2:
            raise UsageError(f"adascale: percentiles = {percentiles!r}; give at least two, of which pairs are tried")
        self.least, self.most, self.percentiles = least, most, [*map(float, percentiles)]  # JSON values
        self.grid = [{"least": a, "most": b} for a, b in combinations(sorted(self.percentiles), 2)]

    def prepare(self, train_set: TrainingSet, classifier: Classifier | None, progress: Progress) -> None:
        rows = np.random.default_rng(train_set.seed).permutation(train_set.rows)[:SAMPLE]
        if not len(rows):
            raise Unsuitable("saw no training images to fit on; give more training images")
        progress.expect(3 * len(rows))
        found = []
        for probe in train_set.probes(classifier, self.signals, np.sort(rows)):
            with probe.mode():
                found.append(stability(probe))
            progress.advance(3 * len(probe))
        self.stability_ = torch.cat(found).sort().values

    def statistics(self, probe: Probe) -> Tensor:
        features, logits = probe.features.double(), probe.logits
        below = torch.searchsorted(self.stability_, stability(probe), right=True).double() / len(self.stability_)
        active = features.relu()
        sums = active.sort(1, descending=True).values.cumsum(1)  # (N, d)
        columns = []
        for setting in self.settings:
            percentile = setting["least"] + (1 - below) * (setting["most"] - setting["least"])  # (N,)
            kept = (sums.shape[1] - (sums.shape[1] * percentile / 100).round()).long().clamp_min(1)
            top = sums.gather(1, kept[:, None] - 1).clamp_min(torch.finfo(torch.float64).tiny)
            ratio = active.sum(1, keepdim=True) / top  # r: (N, 1)
            columns.append(_last_layer.energy(_last_layer.logits_of(features * ratio.exp(), probe.classifier)))
            columns.append(_last_layer.energy(logits * ratio.square()))
        return torch.stack(columns, 1)


def stability(probe: Probe) -> Tensor:
    """Q' of each image: (N,), float64."""
    before, after = probe.features.double(), probe.with_images(_changed(probe), "adascale").features.double()
    order = before.argsort(dim=1, descending=True, stable=True)  # (N, d)
    moved, active = (order[:, : max(1, int(order.shape[1] * percent / 100))] for percent in (MOVED, ACTIVE))
    return WEIGHT * (before - after).abs().gather(1, moved).sum(1) + after.relu().gather(1, active).sum(1)


def _changed(probe: Probe) -> Tensor:
    """x + .5·σ·sign(g) at the values of an image with the smallest |g|: (N, C, H, W)."""
    spread = 1.0 if probe.classifier.std is None else probe.classifier.std
    gradient = probe.input_gradient(_largest_logit, key="largest logit").double() * spread
    sizes = gradient.abs().flatten(1)
    smallest = sizes.argsort(dim=1, stable=True)[:, : int(SHARE * sizes.shape[1])]
    chosen = torch.zeros_like(sizes).scatter(1, smallest, 1.0).view_as(gradient)
    images = probe.images
    return (images + STEP * spread * gradient.sign() * chosen).to(images.dtype)


def _largest_logit(probe: Probe) -> Tensor:
    return probe.logits.max(1).values
