"""Gram matrices (Sastry and Oore, ICML 2020, arXiv 1912.12510)."""

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._bank import Bank
from oodbench.detectors._parameters import require_whole
from oodbench.errors import Unsuitable
from oodbench.probe import Probe
from oodbench.training_set import FitSize

OFFSET = 1e-6  # as in the authors' code, added to a bound before dividing by it
LEAST = 1e-12  # smallest divisor
MOST_POWERS = 100  # the authors take 10
LEAST_OUTSIDE = 2**20  # values outside the bounds that are kept without looking whether they still are
NOTHING = 1e-6  # a smaller E[δ] is rounding of float32


class Gram(Detector):
    """How far channel correlations are outside the range seen on training images of the predicted class.

    With F (channels, pixels) the map of a layer and Fʳ its elementwise power, r = 1 … ``powers``, the feature correlations
    are the row sums of the Gram matrix, rescaled by a signed root:

        g_ri = sign(s) |s|^{1/r},  s = Σ_j (Fʳ Fʳᵀ)_ij

    With bounds m, M, the smallest and largest g on training images *predicted* as the image's class ŷ, deviations are

        δ_l = Σ_{r, i} relu(m − g) / |m + 1e-6| + relu(g − M) / |M + 1e-6|

    and the score is Σ_l δ_l / E[δ_l] / max_c p_c. E is the mean over held-out training images, which are not used for the
    bounds; the authors use a part of the test set. If no held-out image is outside the bounds of a layer, E would be 0 and
    that layer would outweigh all others; then E = 1 is used, because δ is already in units of its bounds. A class that is
    never predicted on training images gets the bounds of all classes together, because the paper does not define them.

    The authors' code takes powers 1 to 10 and reads the output of every convolution, BatchNorm and ReLU; here 5 powers are
    taken and the layers of the classifier are read, which is faster. For a ResNet-20 on near-OOD sets of CIFAR-10, their layers
    and powers together raise AUROC from .68 to .71; the powers alone change nothing.

    maps [(N, channels, …)], logits (N, classes) -> (N,), float64, at least 0, and 0 for images within all bounds
    """

    signals = ("logits", "maps")
    calibrates = True

    low_: Tensor  # m: (classes, columns), the columns of all layers, each powers·channels
    high_: Tensor  # M: (classes, columns)
    widths_: list[int]  # columns of each layer
    expected_: Tensor  # E[δ], 1 if it is 0: (layers,)

    _low: Tensor | None = None
    _high: Tensor | None = None

    def __init__(self, powers: int = 5) -> None:
        require_whole("gram", 1, MOST_POWERS, powers=powers)
        self.powers = powers
        self._widths: list[int] = []
        self._held_out = 0
        # Values of held-out images outside the bounds, as rows of class, column and g. Bounds only widen, so that values inside
        # them add nothing to E, and are dropped whenever their number has doubled.
        self._outside, self._most = Bank(), LEAST_OUTSIDE

    def memory(self, size: FitSize) -> int:
        # Bounds, twice while they are completed, and the values of at most one image per class.
        return 8 * (4 + 3) * size.classes * self.powers * sum(size.channels)

    def observe(self, probe: Probe) -> None:
        rows, classes = [row_sums(layer, self.powers) for layer in probe.maps], probe.prediction
        values = torch.cat(rows, 1)
        if self._low is None or self._high is None:
            self._widths = [row.shape[1] for row in rows]
            self._low = values.new_full((probe.logits.shape[1], values.shape[1]), torch.inf)
            self._high = -self._low
        fitted = ~probe.held_out
        places = classes[fitted][:, None].expand(-1, values.shape[1])
        self._low.scatter_reduce_(0, places, values[fitted], "amin")
        self._high.scatter_reduce_(0, places, values[fitted], "amax")
        values, classes = values[probe.held_out], classes[probe.held_out]
        image, column = torch.nonzero((values < self._low[classes]) | (values > self._high[classes]), as_tuple=True)
        self._outside.add(torch.stack([classes[image].double(), column.double(), values[image, column]], 1))
        self._held_out += len(values)
        if len(self._outside) > self._most:
            self._outside = self._still_outside()
            self._most = max(LEAST_OUTSIDE, 2 * len(self._outside))

    def _still_outside(self) -> Bank:
        assert self._low is not None
        assert self._high is not None
        kept = Bank()
        for block in self._outside.blocks():
            places = block[:, 0].long(), block[:, 1].long()
            kept.add(block[(block[:, 2] < self._low[places]) | (block[:, 2] > self._high[places])])
        return kept

    def finish(self) -> None:
        if self._low is None or self._high is None or not torch.isfinite(self._low).any():
            raise Unsuitable("saw no training images to fit on; give more training images")
        if not self._held_out:
            raise Unsuitable("needs held-out training images, but there are none; give more training images")
        unseen = torch.isinf(self._low)
        self.low_ = torch.where(unseen, self._low.min(0).values, self._low)
        self.high_ = torch.where(unseen, self._high.max(0).values, self._high)
        self.widths_ = self._widths
        outside = torch.cat([self.low_.new_empty(0, 3), *self._still_outside().blocks()])
        classes, columns, values = outside[:, 0].long(), outside[:, 1].long(), outside[:, 2]
        deviations = _deviations(values, self.low_[classes, columns], self.high_[classes, columns])
        ends = torch.tensor(self.widths_).cumsum(0).to(columns.device)
        layers = torch.bucketize(columns, ends, right=True)
        of_layer = torch.stack([deviations[layers == layer].sum() for layer in range(len(self.widths_))])
        expected = of_layer / self._held_out
        self.expected_ = torch.where(expected < NOTHING, 1.0, expected)
        self._low = self._high = None
        self._outside, self._most, self._held_out = Bank(), LEAST_OUTSIDE, 0

    def statistics(self, probe: Probe) -> Tensor:
        values = torch.cat([row_sums(layer, self.powers) for layer in probe.maps], 1)
        deviations = _deviations(values, self.low_[probe.prediction], self.high_[probe.prediction])
        by_layer = torch.stack([part.sum(1) for part in deviations.split(self.widths_, 1)], 1)  # (N, layers)
        return (by_layer / self.expected_).sum(1) / probe.softmax.max(1).values


def row_sums(maps: Tensor, powers: int) -> Tensor:
    """Maps (N, channels, …) -> the g of every power (N, powers·channels), float64, power by power.

    Computed without the Gram matrix: its row sum is Fʳ_i · Σ_j Fʳ_j. Since g(aF) = a² g(F), the powers are taken of
    F / max |F|, so that none overflows.
    """
    flat = maps.double().reshape(len(maps), maps.shape[1], -1)  # (N, channels, pixels)
    largest = flat.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    flat = flat / largest  # not in place: the maps belong to the caller
    power, found = flat.clone(), []
    for exponent in range(1, powers + 1):
        if exponent > 1:
            power *= flat
        sums = torch.bmm(power, power.sum(1).unsqueeze(2)).squeeze(2)  # (N, channels)
        found.append(sums.sign() * sums.abs().pow(1 / exponent))
    return torch.cat(found, 1) * largest.squeeze(2).square()


def _deviations(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far values are outside their bounds, in units of the violated bound; all three have the same shape."""
    below = (low - values).clamp_min(0) / (low + OFFSET).abs().clamp_min(LEAST)
    return below + (values - high).clamp_min(0) / (high + OFFSET).abs().clamp_min(LEAST)
