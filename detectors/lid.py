"""Local intrinsic dimensionality (Ma et al., ICLR 2018, arXiv 1801.02613), applied to layers as in Lee et al. (2018)."""

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._moments import squared_distances
from oodbench.detectors._parameters import require_seed, require_whole
from oodbench.detectors._sample import Sample
from oodbench.errors import Unsuitable, UsageError
from oodbench.probe import Probe
from oodbench.training_set import FitSize

REFERENCES = ("fixed", "paired")
RESOLUTION = 1e-6  # relative to the largest norm of a layer: the precision of a float32 network
LEAST = 1e-9  # mean log-ratio if all neighbours are equally far, so that the estimate stays finite


class LID(Detector):
    """How fast the number of neighbours grows with distance, at each layer: faster for images off the data manifold.

    With v_1 ≤ … ≤ v_k the distances, in a layer averaged over space, from an image to its nearest reference images:

        LID = − k / Σ_{j ≤ k} log(v_j / v_k)

    the maximum-likelihood estimate. If learning from a shift is allowed, k is one of 10, 20, … 90, chosen together with the
    weights of a logistic regression over layers, as in Lee et al. Otherwise k = 20 as in Ma et al., and the layers are
    standardised on held-out in-distribution images and summed, which is our choice: both papers learn the weights.

    The papers compare an image with the clean minibatch that it belongs to, so that its score depends on that batch.
    ``reference="paired"`` does so, for sets whose images have clean twins, and always drops the nearest image. By default
    an image is compared with ``references`` fixed minibatches of ``size`` clean training images, none of them held out,
    drawn by ``seed`` (None: the run's), and its LID is the mean over them: over one alone it depends much on the draw. Of
    fewer training images there are fewer minibatches, at least one. A reference image is not its own neighbour: the nearest
    one is left out if its distance is zero at every layer. With fewer than k + 1 images in a minibatch, k is their number
    minus one. Distances below a millionth of the layer's largest norm count as that millionth; if all k are that small, LID
    is 0, the dimension of a point.

    layers [(N, d_l)] -> (N, settings·layers), float64. One distance matrix and one top-k per layer serve every k.
    """

    signals: tuple[str, ...] = ("layers",)  # and the base, if each image is compared with its minibatch
    grid = tuple({"k": k} for k in range(10, 91, 10))
    unsupervised_head = "standardised-sum"
    shift_head = "choose-logistic"

    offset_: list[Tensor]  # (d_l,): the mean, subtracted first so that no digits are lost
    references_: list[Tensor]  # (minibatches, size, d_l), minus the offset
    resolution_: list[float]  # the smallest distance that counts

    def __init__(
        self, k: int = 20, size: int = 100, references: int = 100, seed: int | None = None, reference: str = "fixed"
    ) -> None:
        require_whole("lid", 2, k=k, size=size)
        require_whole("lid", 1, references=references)
        require_seed("lid", seed)
        if reference not in REFERENCES:
            raise UsageError(f"lid: reference = {reference!r}; give one of {', '.join(REFERENCES)}")
        if size <= k:
            raise UsageError(f"lid: size = {size}; give a whole number above k = {k}: an image is not its own neighbour")
        self.k, self.size, self.references, self.seed, self.reference = k, size, references, seed, reference
        if reference == "paired":
            self.signals = ("layers", "base")
            self.whole_batches = True
        self._sample: Sample | None = None  # of the layers (kept, d_l); its order makes the minibatches

    def memory(self, size: FitSize) -> int:
        return (size.itemsize + 16) * min(self.references * self.size, size.images) * sum(size.channels)

    def observe(self, probe: Probe) -> None:
        if self._sample is None:
            self._sample = Sample(self.references * self.size, self.random_seed)
        self._sample.add(probe.layers, ~probe.held_out)

    def finish(self) -> None:
        rows, self._sample = [layer.double() for layer in (self._sample.columns() if self._sample else [])], None
        if not rows or len(rows[0]) < 3:
            raise Unsuitable(f"needs 3 training images to refer to, has {len(rows[0]) if rows else 0}; give more images")
        size = min(self.size, len(rows[0]))
        rows = [layer[: len(layer) // size * size] for layer in rows]
        smallest = torch.finfo(torch.float64).tiny
        self.offset_ = [layer.mean(0) for layer in rows]
        self.references_ = [
            (layer - offset).view(-1, size, layer.shape[1]) for layer, offset in zip(rows, self.offset_, strict=True)
        ]
        self.resolution_ = [max(RESOLUTION * float(layer.norm(dim=1).max()), smallest) for layer in rows]

    def statistics(self, probe: Probe) -> Tensor:
        references = self._paired(probe) if self.reference == "paired" else self.references_
        counts = [min(setting["k"], references[0].shape[1] - 1) for setting in self.settings]
        fitted = zip(probe.layers, self.offset_, references, self.resolution_, strict=True)
        nearest = []  # (N, minibatches, largest k + 1) per layer, ascending
        for layer, offset, reference, resolution in fitted:
            distances = squared_distances(layer.double() - offset, reference.flatten(0, 1)).sqrt()
            by_batch = distances.view(len(distances), *reference.shape[:2])
            nearest.append(by_batch.topk(max(counts) + 1, largest=False).values.clamp_min(resolution))
        at_no_distance = [near[..., :1] <= resolution for near, resolution in zip(nearest, self.resolution_, strict=True)]
        itself = torch.stack(at_no_distance).all(0) | (self.reference == "paired")
        others = [torch.where(itself, near[..., 1:], near[..., :-1]) for near in nearest]
        by_layer = [_dimensions(near, counts, least).mean(1) for near, least in zip(others, self.resolution_, strict=True)]
        return torch.stack(by_layer, 2).flatten(1)

    def _paired(self, probe: Probe) -> list[Tensor]:
        """The clean minibatch (1, images, d_l) at each layer, each image once: negatives may hold an image and its noisy twin.

        Raises Unsuitable if there are no clean twins, or too few reference images.
        """
        which = probe.base.images.flatten(1).unique(dim=0, return_inverse=True)[1]  # (N,): the number of each image
        count = int(which.max()) + 1
        if count < 3:
            raise Unsuitable(f"reference = 'paired' needs 3 clean images per batch, a batch has {count}; use larger batches")
        rows = torch.arange(len(which), device=which.device)
        first = rows.new_full((count,), len(which)).scatter_reduce(0, which, rows, "amin").sort().values
        return [(layer[first].double() - offset)[None] for layer, offset in zip(probe.base.layers, self.offset_, strict=True)]


def _dimensions(distances: Tensor, counts: list[int], least: float) -> Tensor:
    """Ascending distances (…, largest k), at least ``least`` -> LID (…, counts) from the k nearest, for each k of counts."""
    logs = distances.log()
    means = logs.cumsum(-1) / torch.arange(1, logs.shape[-1] + 1, device=logs.device)

    def last(values: Tensor) -> Tensor:
        return torch.stack([values[..., k - 1] for k in counts], -1)  # a list as index would be copied to the device

    dimensions = 1 / (last(logs) - last(means)).clamp_min(LEAST)
    return torch.where(last(distances) <= least, 0.0, dimensions)
