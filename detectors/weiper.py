"""WeiPer: weight perturbations of class projections (Granz, Heurich and Landgraf, NeurIPS 2024, arXiv 2405.17164)."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.classifier import Classifier
from oodbench.detector import Detector
from oodbench.detectors._parameters import require_finite, require_seed, require_whole
from oodbench.detectors._sample import Sample
from oodbench.errors import Unsuitable
from oodbench.probe import Probe
from oodbench.training_set import FitSize

OFFSETS = (0.01, 0.025)  # added to densities of f and of W̃f, as in the authors' code
GAP = 1e-6  # relative to the range of training values: the last bin ends above the largest of them
NARROWEST = 1e-8  # range of values that are all equal
LARGEST_BYTES = 4 * 2**30  # limit for W̃
BLOCK = 2**14  # perturbed logits of an image computed at once: limits memory to N·BLOCK of them


class WeiPer(Detector):
    """WeiPer+KLD: KL(f) + λ₁ KL(W̃f) − λ₂ MSP(W̃), how the values of features and of perturbed logits are distributed.

    W̃ are ``repeats`` copies of the last layer, each row w_c + δ‖w_c‖·e with e a random direction, drawn by ``seed`` (None:
    the run's). MSP(W̃) is the mean over copies of the largest softmax probability. KL(v) compares the histogram of the values v
    of one image with the mean histogram of training images: ``bins`` bins between the smallest and the largest training value;
    the image's is smoothed by a running mean over s₁ bins for f and s₂ for W̃f; .01 and .025 are added before both are
    normalised; and the divergence is symmetric, KL(p‖q) + KL(q‖p).

    δ = 1.8, λ₁ = 2.5, λ₂ = .1, s₁ = 4, s₂ = 15 and 100 copies are those of the authors' code. Ranges and mean histograms are
    those of ``size`` training images, drawn by the seed, or of all of a smaller training set.

    features (N, d) -> (N,), float64. Keeps W̃ in memory, (repeats·classes, d) in float64.
    """

    signals = ("features",)
    ranges_: list[float]  # smallest and largest f, smallest and largest W̃f
    densities_: Tensor  # mean histograms of f and W̃f: (2, bins)

    def __init__(
        self,
        distance: float = 1.8,
        perturbed_weight: float = 2.5,
        confidence_weight: float = 0.1,
        smoothing: int = 4,
        perturbed_smoothing: int = 15,
        repeats: int = 100,
        bins: int = 100,
        size: int = 1000,
        seed: int | None = None,
    ) -> None:
        require_finite("weiper", "above 0", distance=distance)
        require_finite("weiper", "of at least 0", perturbed_weight=perturbed_weight, confidence_weight=confidence_weight)
        require_whole("weiper", 2, 10_000, bins=bins)
        require_whole("weiper", 1, 10_000, smoothing=smoothing, perturbed_smoothing=perturbed_smoothing, repeats=repeats)
        require_whole("weiper", 1, size=size)
        require_seed("weiper", seed)
        self.distance, self.perturbed_weight, self.confidence_weight = distance, perturbed_weight, confidence_weight
        self.smoothing, self.perturbed_smoothing = smoothing, perturbed_smoothing
        self.repeats, self.bins, self.size, self.seed = repeats, bins, size, seed
        self._sample: Sample | None = None
        self._weight: Tensor | None = None  # W̃: (repeats, classes, d)
        self._bias: Tensor | None = None  # (classes,)

    def memory(self, size: FitSize) -> int:
        return 8 * self.repeats * size.classes * size.features

    def observe(self, probe: Probe) -> None:
        self._perturb(probe.classifier)
        if self._sample is None:
            self._sample = Sample(self.size, self.random_seed)
        self._sample.add([probe.features], torch.ones_like(probe.held_out))

    def finish(self) -> None:
        sample, self._sample = self._sample, None
        if sample is None or not len(sample):
            raise Unsuitable("saw no training images to fit on; give more training images")
        features = sample.columns()[0].double()
        extremes = [torch.stack(part.aminmax()) for part in self._logits(features)]
        perturbed = torch.stack(extremes)  # (blocks, 2)
        self.ranges_ = [*map(float, features.aminmax()), float(perturbed[:, 0].min()), float(perturbed[:, 1].max())]
        own, of_logits, _ = self._densities(features)
        self.densities_ = torch.stack([own.mean(0), of_logits.mean(0)])

    def statistics(self, probe: Probe) -> Tensor:
        self._perturb(probe.classifier)
        own, of_logits, confidence = self._densities(probe.features.double())
        divergence = _divergence(self.densities_[0], own, self.smoothing, OFFSETS[0])
        perturbed = _divergence(self.densities_[1], of_logits, self.perturbed_smoothing, OFFSETS[1])
        return divergence + self.perturbed_weight * perturbed - self.confidence_weight * confidence

    def _perturb(self, classifier: Classifier) -> None:
        """Draw W̃, once."""
        if self._weight is not None:
            return
        weight, bias = (part.double() for part in classifier.weight_and_bias)
        if (size := 8 * self.repeats * weight.numel()) > LARGEST_BYTES:
            raise Unsuitable(f"keeps {self.repeats} copies of the last layer, {size / 2**30:.0f} GiB; lower repeats")
        random, length = np.random.default_rng((self.random_seed, 1)), self.distance * weight.norm(dim=1)[:, None]
        perturbed = weight.repeat(self.repeats, 1, 1)
        for copy in perturbed:  # one by one, so that memory holds W̃ once
            copy += length * F.normalize(torch.from_numpy(random.standard_normal(weight.shape)).to(weight.device))
        self._weight, self._bias = perturbed, bias

    def _logits(self, features: Tensor) -> Iterator[Tensor]:
        """W̃f + b of features (N, d), by blocks of copies: (N, some, classes)."""
        assert self._weight is not None
        assert self._bias is not None
        for copies in self._weight.split(max(1, BLOCK // len(self._bias))):
            yield (features @ copies.flatten(0, 1).T).unflatten(1, copies.shape[:2]) + self._bias

    def _densities(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Histograms of f and of W̃f, (N, bins) each, and the mean largest softmax probability (N,)."""
        own = self._histogram(features, *self.ranges_[:2]) / features.shape[1]
        counts, confidence = torch.zeros_like(own), torch.zeros_like(own[:, 0])
        for logits in self._logits(features):
            counts += self._histogram(logits.flatten(1), *self.ranges_[2:])
            confidence += logits.softmax(2).max(2).values.sum(1)
        assert self._bias is not None
        return own, counts / (self.repeats * len(self._bias)), confidence / self.repeats

    def _histogram(self, values: Tensor, low: float, high: float) -> Tensor:
        """How many values (N, m) lie in each bin: (N, bins). Values outside the range lie in none."""
        width = max((high - low) * (1 + GAP), NARROWEST)
        place = ((values - low) * (self.bins / width)).floor().clamp(-1, self.bins)
        place = place.nan_to_num(-1).long() + 1  # the softmax of such logits makes the score NaN, and their image is named
        counts = values.new_zeros(values.shape[0], self.bins + 2)  # not len(), which torch.export takes for a constant
        return counts.scatter_add(1, place, torch.ones_like(values))[:, 1:-1]


def _divergence(mean: Tensor, densities: Tensor, smoothing: int, offset: float) -> Tensor:
    """KL(p‖q) + KL(q‖p) of the mean histogram (bins,) and each smoothed one of densities (N, bins): (N,)."""
    left = (smoothing - 1) // 2
    padded = F.pad(densities[:, None], (left, smoothing - 1 - left), mode="replicate")
    q = F.avg_pool1d(padded, smoothing, stride=1)[:, 0] + offset
    p, q = (mean + offset) / (mean + offset).sum(), q / q.sum(1, keepdim=True)
    return ((p - q) * (p.log() - q.log())).sum(1)
