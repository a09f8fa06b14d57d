"""ViM: virtual-logit matching (Wang, Li, Feng and Zhang, CVPR 2022, arXiv 2203.10807)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors import _last_layer
from oodbench.detectors._parameters import require_grid, require_whole
from oodbench.errors import Unsuitable
from oodbench.probe import Probe

DIMENSIONS = (8, 16, 32, 64, 128, 256, 512, 1000)


class ViM(Detector):
    """α‖Rᵀ(f − u)‖ − logsumexp z: the residual outside the principal subspace as a virtual logit, compared with the energy.

    u = −W⁺b is the origin at which the logits vanish; R (d, d − D) are the eigenvectors after the top D of the uncentred
    covariance of f − u on training images; α = mean max_c z_c / mean ‖Rᵀ(f − u)‖ there.

    By default D is 1000 if d ≥ 2048 and 512 if d ≥ 768, as in the authors' code, whose networks all have at least 768
    features; for narrower ones d // 2 is our choice. D is chosen on a validation shift if learning from one is allowed:
    ``dimensions`` are OpenOOD's 256 and 1000 and, our choice, powers of two, without those that leave no residual.

    features (N, d), logits (N, classes) -> (N, settings). Training features are kept until ``finish``: α needs R.
    """

    signals = ("logits", "features")
    shift_head = "choose"
    origin_: Tensor  # u: (d,)
    vectors_: Tensor  # eigenvectors by ascending eigenvalue: (d, d); R are the first d − D
    dimensions_: list[int]  # D by default, then those of the grid
    alphas_: list[float]  # α of each

    def __init__(self, dimension: int | None = None, dimensions: Sequence[int] = DIMENSIONS) -> None:
        if dimension is not None:
            require_whole("vim", 1, dimension=dimension)
        require_grid("vim", 1, dimensions=dimensions)
        self.dimension, self.dimensions = dimension, sorted(dimensions)  # the last may be left out
        self.grid = [{"dimension": d} for d in self.dimensions]
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
        default = self.dimension or (1000 if width >= 2048 else 512 if width >= 768 else width // 2)
        if default >= width:
            raise Unsuitable(f"a principal subspace of {default} dimensions leaves none of {width} features; lower dimension")
        centred = features - origin
        vectors = torch.linalg.eigh(centred.T @ centred / len(centred)).eigenvectors  # ascending eigenvalues
        norms = {d: _residual_norm(centred, vectors, d).mean() for d in (default, *self.dimensions) if d < width}
        least = 1e-12 * centred.norm(dim=1).mean()
        if norms[default] <= least:
            raise Unsuitable(f"training features have no variance outside their first {default} dimensions; lower dimension")
        alphas = {d: float(max_logits.mean() / norm) for d, norm in norms.items() if norm > least}
        self.origin_, self.vectors_, self.dimensions_, self.alphas_ = origin, vectors, [*alphas], [*alphas.values()]
        self.grid = [{"dimension": d} for d in self.dimensions if d in alphas] or [self.setting]

    def statistics(self, probe: Probe) -> Tensor:
        alphas, columns = dict(zip(self.dimensions_, self.alphas_, strict=True)), []
        centred, energy = probe.features.double() - self.origin_, _last_layer.energy(probe.logits)
        for setting in self.settings:
            dimension = setting["dimension"] or self.dimensions_[0]
            columns.append(alphas[dimension] * _residual_norm(centred, self.vectors_, dimension) + energy)
        return torch.stack(columns, 1)


def _residual_norm(centred: Tensor, vectors: Tensor, dimension: int) -> Tensor:
    """‖Rᵀ(f − u)‖ of f − u (N, d): (N,)."""
    residual = vectors[:, : len(vectors) - dimension].contiguous()  # R: (d, d − D)
    return (centred @ residual).norm(dim=1)
