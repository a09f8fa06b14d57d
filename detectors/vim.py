"""ViM: virtual-logit matching (Wang, Li, Feng and Zhang, CVPR 2022, arXiv 2203.10807)."""

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors import _last_layer
from oodbench.errors import Unsuitable, UsageError
from oodbench.probe import Probe


class ViM(Detector):
    """α‖Rᵀ(f − u)‖ − logsumexp z: the residual outside the principal subspace as a virtual logit, compared with the energy.

    u = −W⁺b is the origin at which the logits vanish; R (d, d − D) are the eigenvectors after the top D of the uncentred
    covariance of f − u on training images; α = mean max_c z_c / mean ‖Rᵀ(f − u)‖ there.
    D by default: 1000 if d ≥ 2048, 512 if d ≥ 1024, else d // 2, for which the paper gives no value.

    features (N, d), logits (N, classes) -> (N,). Training features are kept until ``finish``: α needs R.
    """

    signals = ("logits", "features")
    origin_: Tensor  # u: (d,)
    residual_: Tensor  # R: (d, d − D)
    alpha_: float

    def __init__(self, dimension: int | None = None) -> None:
        if dimension is not None and dimension < 1:
            raise UsageError(f"vim: dimension = {dimension}; give at least 1")
        self.dimension = dimension
        self._features: list[Tensor] = []
        self._max_logits: list[Tensor] = []
        self._origin: Tensor | None = None

    def observe(self, probe: Probe) -> None:
        if self._origin is None:
            weight, bias = probe.classifier.weight_and_bias
            self._origin = -torch.linalg.pinv(weight.double()) @ bias.double()
        self._features.append(probe.features)
        self._max_logits.append(probe.logits.max(1).values)

    def finish(self) -> None:
        features, max_logits = torch.cat(self._features).double(), torch.cat(self._max_logits)
        origin = torch.as_tensor(self._origin).clone()
        self._features, self._max_logits, self._origin = [], [], None
        width = features.shape[1]
        kept = self.dimension or (1000 if width >= 2048 else 512 if width >= 1024 else width // 2)
        if kept >= width:
            raise Unsuitable(f"a principal subspace of {kept} dimensions leaves none of {width} features; lower dimension")
        centred = features - origin
        vectors = torch.linalg.eigh(centred.T @ centred / len(centred)).eigenvectors  # ascending eigenvalues
        residual = vectors[:, : width - kept].contiguous()
        norm = (centred @ residual).norm(dim=1).mean()
        if norm <= 1e-12 * centred.norm(dim=1).mean():
            raise Unsuitable(f"training features have no variance outside their first {kept} dimensions; lower dimension")
        self.origin_, self.residual_ = origin, residual
        self.alpha_ = float(max_logits.mean() / norm)

    def statistics(self, probe: Probe) -> Tensor:
        residual = (probe.features.double() - self.origin_) @ self.residual_  # (N, d − D)
        return self.alpha_ * residual.norm(dim=1) + _last_layer.energy(probe.logits)
