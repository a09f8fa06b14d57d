"""The sparse autoencoder of UNIQUE: a sigmoid layer and a linear decoder, for whitened patches of 8x8 pixels."""

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oodbench import state
from oodbench.datasets.formats.mat_file import read_arrays
from oodbench.errors import BadData, UsageError, reason
from oodbench.progress import Progress
from oodbench.quality_metrics._images import ycbcr

SIDE = 8
SIZE = 3 * SIDE**2  # values of a patch
WHITENING = 0.1  # ε of ZCA
SPARSITY, DECAY, PENALTY = 0.035, 3e-3, 5.0  # ρ, λ and β
MOST_UNITS = 4096
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SparseAutoencoder:
    """x (192,) -> sigmoid(W x + b) (units,) -> V a + c (192,), all float64.

    Attributes:
        weight: W, (units, 192).
        bias: b, (units,).
        decoder_weight: V, (192, units), or None where a file has only the encoder.
    """

    weight: Tensor
    bias: Tensor
    decoder_weight: Tensor | None = None
    decoder_bias: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if shapes do not fit each other or a value is not finite."""
        units = max(1, len(self.bias))
        wanted: dict[str, tuple[int, ...]] = {"weight": (units, SIZE), "bias": (units,)}
        if self.decoder_weight is not None or self.decoder_bias is not None:
            wanted |= {"decoder_weight": (SIZE, units), "decoder_bias": (SIZE,)}
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is None or tuple(value.shape) != shape or not value.isfinite().all():
                found = "missing" if value is None else f"{tuple(value.shape)} {value.dtype}"
                raise ValueError(f"{name} is {found}, not {shape} finite numbers")

    def encode(self, patches: Tensor) -> Tensor:
        """(192, m) -> (units, m)."""
        return torch.sigmoid(self.weight @ patches + self.bias[:, None])

    def to(self, device: torch.device) -> "SparseAutoencoder":
        moved: dict[str, Any] = {name: None if value is None else value.to(device) for name, value in vars(self).items()}
        return SparseAutoencoder(**moved)

    def save(self, path: str | Path) -> None:
        """Write all weights to one safetensors file; ``read`` reads it."""
        state.save(Path(path), {"schema_version": SCHEMA_VERSION, "kind": "unique"}, vars(self))


def read(path: Path) -> SparseAutoencoder:
    """The autoencoder of a file: one that ``save`` wrote, or the authors' MATLAB file with W, b and optTheta.

    Raises BadData for any other file.
    """
    try:
        if path.suffix == ".mat":
            return _from_matlab(path)
        header, found = state.load(path)
        if header.get("kind") != "unique" or header.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"its header is {header}")
        return SparseAutoencoder(**found)
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise BadData(f"{path} does not hold a dictionary of UNIQUE ({reason(error)}); download or train it again") from error


def _from_matlab(path: Path) -> SparseAutoencoder:
    """optTheta holds W, V, b and c one after the other, each column by column."""
    most = 8 * MOST_UNITS * SIZE
    found = read_arrays(path, {"W": most, "b": 8 * MOST_UNITS, "optTheta": 3 * most})
    encoder = [torch.from_numpy(found[name].astype(np.float64)) for name in ("W", "b")]
    weight, bias = encoder[0], encoder[1].flatten()
    if "optTheta" not in found:
        return SparseAutoencoder(weight, bias)
    units, theta = len(bias), torch.from_numpy(found["optTheta"].astype(np.float64)).flatten()
    if len(theta) != 2 * units * SIZE + units + SIZE:
        raise ValueError(f"optTheta has {len(theta):,} values, which does not fit {units} units")
    decoder = theta[units * SIZE : 2 * units * SIZE].reshape(units, SIZE).T.contiguous()
    return SparseAutoencoder(weight, bias, decoder, theta[-SIZE:])


def channels(images: Tensor) -> Tensor:
    """uint8 RGB (N, 3, H, W) -> Y, green and Cr from 0 to 1, float64 of the same shape."""
    found = ycbcr(images)
    found[:, 1] = images[:, 1]
    return found / 255


def patches_of(image: Tensor) -> Tensor:
    """(3, H, W) -> its whole 8x8 patches, side by side: (192, m). A patch is read channel by channel, column by column."""
    rows, columns = image.shape[1] // SIDE, image.shape[2] // SIDE
    blocks = image[:, : rows * SIDE, : columns * SIDE].reshape(3, rows, SIDE, columns, SIDE)
    return blocks.permute(0, 4, 2, 1, 3).reshape(SIZE, rows * columns)


def whitened(patches: Tensor) -> Tensor:
    """(192, m), minus their mean patch and whitened by ZCA with their own covariance."""
    centred = patches - patches.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(centred @ centred.T / patches.shape[1])
    return vectors * (values.clamp(min=0) + WHITENING).rsqrt() @ vectors.T @ centred


def train(
    images: Iterable[Tensor],
    units: int = 400,
    *,
    patches: int = 100,
    iterations: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> SparseAutoencoder:
    """Learn a dictionary from any images, each uint8 RGB (3, H, W) in its own size, as the authors do from 1,000 of ImageNet.

    Random 8x8 patches of all images are whitened, and L-BFGS minimises

        Σ‖x̂ − x‖²/(2m) + β Σ_units KL(ρ ‖ mean activation) + λ/2 (‖W‖² + ‖V‖²),  ρ = .035, λ = .003, β = 5.

    Args:
        units: size of the dictionary: 400 for UNIQUE; 81, 121, 169, 400 and 625 for MS-UNIQUE.
        patches: number of random patches of each image.
        iterations: largest number of iterations of L-BFGS.
        seed: random seed of the patches and the initial weights.

    Memory: about 13 kB per patch with 400 units. Raises UsageError for no images or too many units, and BadData for an image
    smaller than a patch.
    """
    from scipy.optimize import minimize

    if not 1 <= units <= MOST_UNITS:
        raise UsageError(f"unique: units = {units!r}; give a whole number from 1 to {MOST_UNITS}")
    progress = progress or Progress()
    random = torch.Generator().manual_seed(seed)
    data = whitened(_random_patches(images, patches, random))
    bound = math.sqrt(6 / (units + SIZE + 1))
    start = torch.cat(
        [bound * (2 * torch.rand(2 * units * SIZE, generator=random, dtype=torch.float64) - 1), torch.zeros(units + SIZE)]
    )
    progress.stage(f"unique: {units} units from {data.shape[1]:,} patches")
    progress.expect(iterations)

    def cost(theta: np.ndarray) -> tuple[float, np.ndarray]:
        values = torch.from_numpy(theta.copy()).requires_grad_()
        found = objective(_split(values, units), data)
        (gradient,) = torch.autograd.grad(found, values)
        return found.item(), gradient.numpy()

    options: dict[str, Any] = {"maxiter": iterations, "maxfun": 2 * iterations + 20}
    found = minimize(cost, start.numpy(), jac=True, method="L-BFGS-B", options=options, callback=lambda _: progress.advance(1))
    return _split(torch.from_numpy(found.x), units)


def objective(model: SparseAutoencoder, data: Tensor) -> Tensor:
    """What ``train`` minimises, for whitened patches (192, m)."""
    assert model.decoder_weight is not None
    assert model.decoder_bias is not None
    code = model.encode(data)
    error = ((model.decoder_weight @ code + model.decoder_bias[:, None] - data) ** 2).sum() / (2 * data.shape[1])
    active = code.mean(1)
    divergence = SPARSITY * (SPARSITY / active).log() + (1 - SPARSITY) * ((1 - SPARSITY) / (1 - active)).log()
    return error + PENALTY * divergence.sum() + DECAY / 2 * ((model.weight**2).sum() + (model.decoder_weight**2).sum())


def _split(theta: Tensor, units: int) -> SparseAutoencoder:
    weight, decoder, bias, decoder_bias = theta.split([units * SIZE, units * SIZE, units, SIZE])
    return SparseAutoencoder(weight.reshape(units, SIZE), bias, decoder.reshape(SIZE, units), decoder_bias)


def _random_patches(images: Iterable[Tensor], count: int, random: torch.Generator) -> Tensor:
    """(192, count of each image)."""
    found = []
    for row, image in enumerate(images):
        height, width = image.shape[-2:]
        if min(height, width) < SIDE:
            raise BadData(f"unique: image {row} has {height}x{width} pixels, and a patch has 8x8; leave it out")
        values = channels(image[None])[0]
        tops, lefts = (torch.randint(side - SIDE + 1, (count,), generator=random).tolist() for side in (height, width))
        found += [patches_of(values[:, t : t + SIDE, s : s + SIDE]) for t, s in zip(tops, lefts, strict=True)]
    if not found:
        raise UsageError("unique: there are no images to learn from; give at least one")
    return torch.cat(found, 1)
