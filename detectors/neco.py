"""NECO: neural collapse based detector (Ben Ammar, Belkhir, Popescu, Manzanera and Franchi, ICLR 2024, arXiv 2310.06823)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from oodbench.detector import Detector
from oodbench.detectors._moments import ClassMoments, memory_of_moments
from oodbench.detectors._parameters import require_grid, require_whole
from oodbench.errors import Unsuitable, UsageError
from oodbench.probe import Probe
from oodbench.training_set import FitSize

RESOLUTION = 1e-6  # relative to the largest mean: a smaller spread is rounding of a float32 network
DIMENSIONS = (4, 8, 16, 32, 64, 100, 128, 256, 512)


class NECO(Detector):
    """−‖Pᵀh‖/‖h‖: how much of the standardised features h lies outside the D principal directions P of training features.

    Each feature is standardised by its mean and standard deviation on training images; one that is constant there is only
    centred. For transformers, the score is multiplied by the largest logit, as in the paper: ``max_logit`` is True, False or,
    by default, whether the network has attention and layer norms.

    D = 100 is that of the authors' code, for networks of at least 512 features. For those with fewer than 200, our choice is
    C − 1, the dimension that C classes span in neural collapse, but at most half of the features, because in all directions
    together the ratio is 1. D is chosen on a validation shift if learning from one is allowed; ``dimensions`` are our choice,
    without those that leave no direction out.

    features (N, d), logits (N, classes) -> (N, settings), float64
    """

    signals = ("logits", "features")
    shift_head = "choose"
    mean_: Tensor  # (d,)
    vectors_: Tensor  # directions of h by descending variance, one per column: (d, d)
    scale_: Tensor  # 1 / standard deviation, 1 for a constant feature: (d,)
    by_logit_: bool

    def __init__(
        self, dimension: int | None = None, max_logit: bool | None = None, dimensions: Sequence[int] = DIMENSIONS
    ) -> None:
        if dimension is not None:
            require_whole("neco", 1, dimension=dimension)
        if not (max_logit is None or isinstance(max_logit, bool)):
            raise UsageError(f"neco: max_logit = {max_logit!r}; give true or false, or leave it out")
        require_grid("neco", 1, dimensions=dimensions)
        self.dimension, self.max_logit, self.dimensions = dimension, max_logit, sorted(dimensions)  # the last may be left out
        self.grid = [{"dimension": d} for d in self.dimensions]
        self._moments = ClassMoments(1)
        self._by_logit = False

    def memory(self, size: FitSize) -> int:
        return memory_of_moments(size.features, 1)

    def observe(self, probe: Probe) -> None:
        self._moments.add(probe.features, torch.zeros_like(probe.prediction))
        self._by_logit = is_transformer(probe.classifier.module) if self.max_logit is None else self.max_logit

    def finish(self) -> None:
        _, _, mean, covariance = self._moments.moments()
        self._moments = ClassMoments(1)
        width, spread = len(mean), covariance.diagonal().clamp_min(0).sqrt()
        if (self.dimension or 1) >= width:
            raise Unsuitable(f"{self.dimension or 1} directions leave none of {width} features out; lower dimension")
        constant = spread <= RESOLUTION * mean.abs().max().clamp_min(spread.max())
        self.mean_, self.scale_, self.by_logit_ = mean, torch.where(constant, 1.0, 1 / spread), self._by_logit
        correlation = covariance * self.scale_ * self.scale_[:, None]
        self.vectors_ = torch.linalg.eigh(correlation).eigenvectors.flip(1).contiguous()
        self.grid = [{"dimension": d} for d in self.dimensions if d < width] or [self.setting]

    def statistics(self, probe: Probe) -> Tensor:
        standard = (probe.features.double() - self.mean_) * self.scale_
        along = standard @ self.vectors_  # (N, d)
        norm = standard.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        factor = probe.logits.max(1).values if self.by_logit_ else 1.0
        width = len(self.mean_)
        simplex = max(1, min(probe.logits.shape[1] - 1, width // 2))
        default = self.dimension or (100 if width >= 200 else simplex)
        dimensions = [d if d and d < width else default for d in (setting["dimension"] for setting in self.settings)]
        return torch.stack([-along[:, :d].norm(dim=1) / norm * factor for d in dimensions], 1)


def is_transformer(network: nn.Module) -> bool:
    """Whether a network has attention and layer norms."""
    parts = list(network.modules())
    attends = any("attention" in type(part).__name__.lower() for part in parts)
    return attends and any(isinstance(part, nn.LayerNorm) for part in parts)
