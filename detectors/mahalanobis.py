"""Mahalanobis distances at the layers of a network (Lee, Lee, Lee and Shin, NeurIPS 2018, arXiv 1807.03888).

The four variants of the paper's Table 1: V reads penultimate features, P adds a step on the input, FE combines all layers
(feature ensemble), P+FE does both.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._moments import ClassMoments, labels_of, memory_of_moments, squared_distances, whitening
from oodbench.detectors._parameters import require_finite, require_grid
from oodbench.probe import Probe
from oodbench.training_set import FitSize

EPSILONS = (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.005, 0.01)


class Mahalanobis(Detector):
    """Base of the variants: the distance to the nearest class at each layer it reads.

    At layer l with features f (N, d), averaged over space, class means μ_c on the training images and one precision P,
    the pseudo-inverse of the empirical covariance of class-centred features:

        score_l = min_c ½ (f − μ_c)ᵀ P (f − μ_c)

    With a step, x̃ = x − ε·sign(∇_x score_l(x)), towards the nearest mean *at that layer*, with ε in pixel units of [0, 1]
    and no clipping; score_l is computed at x̃. All ε share one backward pass per layer.

    layers [(N, d_l)] -> (N, settings·layers), float64. P is stored as W with P = WᵀW: distances are Euclidean after W.
    """

    layered: ClassVar[bool] = False  # all layers, or only the penultimate features
    spares_held_out: ClassVar[bool] = True  # fitted without the held-out tenth, so that heads can be fitted on it

    _moments: list[ClassMoments] | None = None
    offset_: list[Tensor]  # (d_l,): the mean, subtracted first so that no digits are lost
    whitening_: list[Tensor]  # W: (rank, d_l)
    centres_: list[Tensor]  # W (μ_c − offset): (C, rank)

    def penultimate(self, probe: Probe) -> Tensor:
        """The features (N, d) that the variants without layers read."""
        return probe.features

    def memory(self, size: FitSize) -> int:
        widths = size.channels if self.layered else [size.features]
        return sum(memory_of_moments(width, size.classes) for width in widths)

    def observe(self, probe: Probe) -> None:
        labels, layers = labels_of(probe), probe.layers if self.layered else [self.penultimate(probe)]
        if self._moments is None:
            self._moments = [ClassMoments(probe.logits.shape[1]) for _ in layers]
        fitted = ~probe.held_out if self.spares_held_out else slice(None)
        for moments, features in zip(self._moments, layers, strict=True):
            moments.add(features[fitted], labels[fitted])

    def finish(self) -> None:
        gathered, self._moments = self._moments or [], None
        offset, whiten, centres = [], [], []
        for moments in gathered:
            means, tied, mean, _ = moments.moments()
            offset.append(mean)
            whiten.append(whitening(tied))
            centres.append((means - mean) @ whiten[-1].T)
        self.offset_, self.whitening_, self.centres_ = offset, whiten, centres

    def distance(self, probe: Probe, layer: int) -> Tensor:
        """min_c ½ (f − μ_c)ᵀ P (f − μ_c) at one layer: (N,)."""
        features = (probe.layer(layer) if self.layered else self.penultimate(probe)).double()
        white = (features - self.offset_[layer]) @ self.whitening_[layer].T
        return squared_distances(white, self.centres_[layer]).min(1).values / 2

    def statistics(self, probe: Probe) -> Tensor:
        columns = []
        for setting in self.settings:
            for layer in range(len(self.whitening_)):
                distance = partial(self.distance, layer=layer)
                key = ("mahalanobis", id(self), layer)
                until = layer if self.layered else None
                stepped = probe.perturbed(setting.get("epsilon", 0.0), distance, key, until)
                columns.append(distance(stepped))
        return torch.stack(columns, 1)


class MahalanobisV(Mahalanobis):
    """V: the distance at the penultimate features, without a step. -> (N, 1)"""

    spares_held_out = False
    signals = ("logits", "features")


class Stepping(Mahalanobis):
    """Base of the variants with a step: ε is ``epsilon``, or one of ``epsilons`` (default: the paper's) learnt from a shift."""

    def __init__(self, epsilon: float = 0.0014, epsilons: Sequence[float] = EPSILONS) -> None:
        require_finite("mahalanobis", "of at least 0", epsilon=epsilon)
        require_grid("mahalanobis", "of at least 0", epsilons=epsilons)
        self.epsilon, self.epsilons = epsilon, [*map(float, epsilons)]  # JSON values
        self.grid = [{"epsilon": e} for e in self.epsilons]


class MahalanobisP(Stepping):
    """P: the distance at the penultimate features after a step on the input. -> (N, settings)

    ε is chosen on a validation shift if learning from one is allowed. The paper always learns it, from such a shift or from
    attacked images; without either, ε is ODIN's .0014, which is our choice.
    """

    signals = ("logits", "features", "input_gradient")
    shift_head = "choose"


class MahalanobisFE(Mahalanobis):
    """FE: the distances at all layers, without a step. -> (N, layers)

    A logistic regression weights them if learning from a shift is allowed. The paper always learns the weights, from such a
    shift or from attacked images; without either, the distances are standardised on held-out in-distribution images and
    summed, which is our choice.
    """

    layered = True
    signals = ("logits", "layers")
    unsupervised_head = "standardised-sum"
    shift_head = "logistic"


class MahalanobisPFE(Stepping):
    """P+FE: the distances at all layers, each after its own step on the input. -> (N, settings·layers)

    ε and the weights are learnt from a validation shift if allowed. The paper always learns them, from such a shift or from
    attacked images; without either, ε is that of P and the layers are summed as in FE.
    """

    layered = True
    signals = ("logits", "layers", "input_gradient")
    unsupervised_head = "standardised-sum"
    shift_head = "choose-logistic"
