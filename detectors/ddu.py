"""Deep deterministic uncertainty (Mukhoti, Kirsch, van Amersfoort, Torr and Gal, CVPR 2023, arXiv 2102.11582)."""

import math

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._moments import CHUNK, ClassCovariances, labels_of
from oodbench.errors import Unsuitable
from oodbench.probe import Probe
from oodbench.training_set import FitSize

CONDITION = 1e10  # ratio of largest to smallest variance that leaves a float64 score six digits
RESOLUTION = 1e-6  # relative to the norm of the features: a smaller spread is rounding of a float32 network


class DDU(Detector):
    """Minus the log-density of the features under one full Gaussian per class: − log Σ_c N(f; μ_c, Σ_c).

    μ_c and Σ_c (divided by n − 1) are those of the training features of class c, without held-out images. The sum has no
    class priors, as in the authors' code. The paper trains the network with spectral normalisation; on any other network
    this is only a feature-space Gaussian mixture.

    The same jitter is added to the variances of all classes, as in the authors' code: the smallest power of ten that
    works, or none if none is needed. In the authors' code it works if a Cholesky factorisation succeeds, which depends on
    rounding for a singular covariance. Here it works if no variance is then less than 1e-10 of the largest. A class
    without training images has no Gaussian.

    features (N, d) -> (N,), float64, in nats; it may be negative. Keeps (classes, d, d) in float64, once.
    """

    signals = ("logits", "features")

    _covariances: ClassCovariances | None = None
    jitter_: float
    offset_: Tensor  # (d,): the mean of class means, subtracted first so that no digits are lost
    whitening_: list[Tensor]  # W_c with W_cᵀ W_c the inverse of Σ_c: C matrices (d, d)
    centres_: Tensor  # W_c (μ_c − offset): (C, d)
    peaks_: Tensor  # log N(μ_c; μ_c, Σ_c): (C,)

    def memory(self, size: FitSize) -> int:
        waiting = min(CHUNK * size.classes, size.images) * size.itemsize * size.features
        return 8 * (size.classes + 6) * size.features**2 + waiting

    def observe(self, probe: Probe) -> None:
        labels, features, fitted = labels_of(probe), probe.features, ~probe.held_out
        if self._covariances is None:
            self._covariances = ClassCovariances()
        self._covariances.add(features[fitted], labels[fitted])

    def finish(self) -> None:
        gathered, self._covariances = self._covariances or ClassCovariances(), None
        # One class at a time, so that the matrices of all are held once.
        found = [(mean, *torch.linalg.eigh(covariance)) for mean, covariance in gathered.take()]
        means, variances = torch.stack([mean for mean, _, _ in found]), torch.stack([values for _, values, _ in found])
        directions = [vectors for _, _, vectors in found]  # (d, d) each
        del found
        if variances.max() <= (RESOLUTION * means.norm(dim=1).max()) ** 2:
            raise Unsuitable("the features of training images do not vary within any class; give more training images")
        self.jitter_ = smallest_jitter(float(variances.min()), float(variances.max()))
        variances = variances + self.jitter_  # (C, d)
        self.offset_ = means.mean(0)
        self.whitening_ = []
        for of_class in variances:
            self.whitening_.append((directions.pop(0) / of_class.sqrt()).mT.contiguous())
        centres = zip(self.whitening_, means - self.offset_, strict=True)
        self.centres_ = torch.stack([whiten @ mean for whiten, mean in centres])
        self.peaks_ = -(variances.log().sum(1) + variances.shape[1] * math.log(2 * math.pi)) / 2

    def statistics(self, probe: Probe) -> Tensor:
        centred = probe.features.double() - self.offset_
        parts = zip(self.whitening_, self.centres_, self.peaks_, strict=True)
        densities = [peak - (centred @ whiten.T - centre).square().sum(1) / 2 for whiten, centre, peak in parts]
        return -torch.stack(densities, 1).logsumexp(1)


def smallest_jitter(smallest: float, largest: float) -> float:
    """The smallest of 0 and the powers of ten that raises the smallest variance to 1e-10 of the largest."""
    needed = (largest / CONDITION - smallest) / (1 - 1 / CONDITION)
    return 0.0 if needed <= 0 else 10.0 ** math.ceil(math.log10(needed))
