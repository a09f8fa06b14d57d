"""Relative Mahalanobis distance (Ren, Fort, Liu, Roy, Padhy and Lakshminarayanan 2021, arXiv 2106.09022)."""

from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._moments import ClassMoments, labels_of, memory_of_moments, squared_distances, whitening
from oodbench.probe import Probe
from oodbench.training_set import FitSize


class RelativeMahalanobis(Detector):
    """min_c (f − μ_c)ᵀ P (f − μ_c) − (f − μ₀)ᵀ P₀ (f − μ₀): distance from every class minus distance from all data.

    μ_c class means, P the pseudo-inverse of the tied covariance; μ₀, P₀ the same for all training features together.

    features (N, d) -> (N,), float64; may be negative.
    """

    signals = ("logits", "features")
    _moments: ClassMoments | None = None
    mean_: Tensor  # μ₀: (d,)
    whitening_: Tensor  # W with P = WᵀW: (rank, d)
    centres_: Tensor  # W (μ_c − μ₀): (C, rank)
    whitening0_: Tensor  # W₀ with P₀ = W₀ᵀW₀: (rank, d)

    def penultimate(self, probe: Probe) -> Tensor:
        """The features (N, d) that distances are taken of."""
        return probe.features

    def memory(self, size: FitSize) -> int:
        return memory_of_moments(size.features, size.classes)

    def observe(self, probe: Probe) -> None:
        labels = labels_of(probe)
        if self._moments is None:
            self._moments = ClassMoments(probe.logits.shape[1])
        self._moments.add(self.penultimate(probe), labels)

    def finish(self) -> None:
        assert self._moments is not None
        means, tied, self.mean_, covariance = self._moments.moments()
        self._moments = None
        self.whitening_, self.whitening0_ = whitening(tied), whitening(covariance)
        self.centres_ = (means - self.mean_) @ self.whitening_.T

    def statistics(self, probe: Probe) -> Tensor:
        centred = self.penultimate(probe).double() - self.mean_
        to_class = squared_distances(centred @ self.whitening_.T, self.centres_).min(1).values
        return to_class - (centred @ self.whitening0_.T).square().sum(1)
