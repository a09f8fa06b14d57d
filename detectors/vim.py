"""ViM: virtual-logit matching (Wang, Li, Feng and Zhang, CVPR 2022, arXiv 2203.10807)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors import _last_layer
from oodbench.detectors._moments import memory_of_moments
from oodbench.detectors._parameters import require_grid, require_seed, require_whole
from oodbench.detectors._sample import Sample
from oodbench.errors import Unsuitable
from oodbench.probe import Probe
from oodbench.training_set import FitSize

DIMENSIONS = (8, 16, 32, 64, 128, 256, 512, 1000)
BLOCK = 1024  # features whose residuals are computed at once


class ViM(Detector):
    """α‖Rᵀ(f − u)‖ − logsumexp z: the residual outside the principal subspace as a virtual logit, compared with the energy.

    u = −W⁺b is the origin at which the logits vanish; R (d, d − D) are the eigenvectors after the top D of the uncentred
    covariance of f − u on training images; α = mean max_c z_c / mean ‖Rᵀ(f − u)‖ there.

    By default D is 1000 if d ≥ 2048 and 512 if d ≥ 768, as in the authors' code, whose networks all have at least 768
    features; for narrower ones d // 2 is our choice. D is chosen on a validation shift if learning from one is allowed:
    ``dimensions`` are OpenOOD's 256 and 1000 and, our choice, powers of two, without those that leave no residual.

    α needs R, which is known only after all training images. So the features of ``size`` of them, drawn by ``seed`` (None: the
    run's), or of all of a smaller training set, are kept until ``finish``, and α is computed on these. The authors' code
    fits everything on 200,000 images of ImageNet.

    features (N, d), logits (N, classes) -> (N, settings)
    """

    signals = ("logits", "features")
    shift_head = "choose"
    origin_: Tensor  # u: (d,)
    vectors_: Tensor  # eigenvectors by ascending eigenvalue: (d, d); R are the first d − D
    dimensions_: list[int]  # D by default, then those of the grid
    alphas_: list[float]  # α of each

    def __init__(
        self,
        dimension: int | None = None,
        dimensions: Sequence[int] = DIMENSIONS,
        size: int = 50_000,
        seed: int | None = None,
    ) -> None:
        if dimension is not None:
            require_whole("vim", 1, dimension=dimension)
        require_whole("vim", 1, size=size)
        require_grid("vim", 1, dimensions=dimensions)
        require_seed("vim", seed)
        self.dimension, self.dimensions, self.size, self.seed = dimension, sorted(dimensions), size, seed
        self.grid = [{"dimension": d} for d in self.dimensions]  # the last may be left out
        self._sample: Sample | None = None
        self._origin: Tensor | None = None
        self._scatter: Tensor | None = None  # Σ (f − u)(f − u)ᵀ: (d, d)
        self._count = 0

    def memory(self, size: FitSize) -> int:
        kept = 2 * size.itemsize * min(self.size, size.images) * size.features  # and a copy, in order
        return memory_of_moments(size.features, 1) + kept + 8 * 3 * size.classes * size.features

    def observe(self, probe: Probe) -> None:
        features = probe.features
        if self._sample is None or self._origin is None or self._scatter is None:
            weight, bias = probe.classifier.weight_and_bias
            self._origin = -torch.linalg.pinv(weight.double()) @ bias.double()
            self._scatter = self._origin.new_zeros(features.shape[1], features.shape[1])
            self._sample = Sample(self.size, self.random_seed)
        centred = features.double() - self._origin
        self._scatter = torch.addmm(self._scatter, centred.T, centred)
        self._count += len(features)
        self._sample.add([features, probe.logits.max(1).values], torch.ones_like(probe.held_out))

    def finish(self) -> None:
        sample, origin, scatter, count = self._sample, self._origin, self._scatter, self._count
        self._sample, self._origin, self._scatter, self._count = None, None, None, 0
        if sample is None or origin is None or scatter is None:
            raise Unsuitable("saw no training images to fit on; give more training images")
        origin, width = origin.clone(), len(origin)
        default = self.dimension or (1000 if width >= 2048 else 512 if width >= 768 else width // 2)
        if default >= width:
            raise Unsuitable(f"a principal subspace of {default} dimensions leaves none of {width} features; lower dimension")
        vectors = torch.linalg.eigh(scatter / count).eigenvectors  # ascending eigenvalues
        features, max_logits = sample.columns()
        lengths = origin.new_zeros(width)  # Σ ‖Rᵀ(f − u)‖ for every number of columns of R, from 1 to d
        for block in features.split(BLOCK):
            lengths += ((block.double() - origin) @ vectors).square().cumsum(1).sqrt().sum(0)
        norms = {d: float(lengths[width - d - 1]) / len(features) for d in (default, *self.dimensions) if d < width}
        least = 1e-12 * float(lengths[-1]) / len(features)
        if norms[default] <= least:
            raise Unsuitable(f"training features have no variance outside their first {default} dimensions; lower dimension")
        alphas = {d: float(max_logits.mean()) / norm for d, norm in norms.items() if norm > least}
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
