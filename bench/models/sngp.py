"""SNGP: spectral-normalised neural Gaussian process (Liu et al., NeurIPS 2020, arXiv 2006.10108).

Convolutions of bounded norm keep distances between images, and a Gaussian process by random features in place of the last
layer knows how far an image is from the training images. Values are those of the authors' code for CIFAR-10
(github.com/google/uncertainty-baselines, baselines/cifar/sngp.py, and github.com/google/edward2), whose network is a Wide
ResNet-28-10.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from oodbench.classifier import Classifier
from oodbench.models.objective import OwnObjective, on_body
from oodbench.models.resnet import resnet18

SIDE = 32  # pixels of the maps of a first convolution, on whose maps norms are measured; they are no larger on smaller maps
NORM_EPS = 1e-3  # of Keras's layer normalisation
SPREAD = 0.05  # standard deviation of the projection and of the frequencies, Keras's default, which the authors keep


class SpectralConv2d(nn.Conv2d):
    """A convolution whose operator norm is at most about ``bound``: its output is scaled down where the norm is above.

    The norm, of the convolution as a map between images (Farnia et al. 2019, arXiv 1811.07457), is followed by one step of the
    power method in each forward pass in training. Gradients take the scale for a constant, as in the authors' code for JAX.
    """

    bound: float
    u: Tensor  # output-shaped, (1, outputs, H', W'), of norm 1
    v: Tensor  # input-shaped, (1, inputs, H, W), of norm 1

    def forward(self, input: Tensor) -> Tensor:
        # The output is scaled, not the weight: the rules for gradients look for the weight itself.
        return super().forward(input) * self.scale().to(input.dtype)

    @torch.no_grad()
    def scale(self) -> Tensor:
        """min(1, bound / norm): (). In training, after a step of the power method."""
        with torch.autocast(self.weight.device.type, enabled=False):
            if self.training:
                geometry = self.stride, self.padding, self.dilation, self.groups
                back = conv2d_input(self.v.shape, self.weight, self.u, *geometry)
                self.v.copy_(back / back.norm().clamp_min(1e-12))
                there = self._linear(self.v)
                self.u.copy_(there / there.norm().clamp_min(1e-12))
            norm = (self.u * self._linear(self.v)).sum()
            return self.bound / norm.clamp_min(self.bound)

    def _linear(self, maps: Tensor) -> Tensor:
        return F.conv2d(maps, self.weight, None, self.stride, self.padding, self.dilation, self.groups)


def bound_norms(module: nn.Module, bound: float, side: int = SIDE) -> None:
    """Make each convolution of a network for images (3, side, side) a ``SpectralConv2d``, in place.

    Raises ValueError for a convolution that is not a linear map: one with a bias, or with padding that is not zeros.
    """
    shapes: dict[nn.Conv2d, tuple[torch.Size, torch.Size]] = {}

    def seen(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        if conv.bias is not None or conv.padding_mode != "zeros":
            raise ValueError(f"{conv} has a bias, or padding other than zeros; leave both out")
        shapes[conv] = inputs[0].shape, output.shape

    hooks = [conv.register_forward_hook(seen) for conv in module.modules() if isinstance(conv, nn.Conv2d)]
    with torch.no_grad():
        module.eval()(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    for conv, (inputs, outputs) in shapes.items():
        conv.__class__ = SpectralConv2d
        cast(SpectralConv2d, conv).bound = bound
        for name, shape in (("u", outputs), ("v", inputs)):
            conv.register_buffer(name, F.normalize(torch.randn(shape).flatten(), dim=0).view(shape))


class GaussianProcessNetwork(OwnObjective):
    """Normalised images (N, C, H, W) -> logits (N, num_classes).

    Logits z = φ βᵀ, φ = cos(Ω h + b) random features of h, the body's features by a fixed random projection and layer
    normalisation. Trained on their cross-entropy. In eval mode, each image's logits are those of the mean field:
    z / √(1 + ``mean_field`` · var), var = ridge φ P⁻¹ φᵀ, P = ridge I + Σ φᵀφ over the training images of the last epoch.

    As the authors normalise h, their length scale (2) has no effect, and there is none here.

    body: gives features (N, width).
    """

    recipe = "sngp"

    def __init__(
        self,
        body: nn.Module,
        width: int,
        num_classes: int,
        projected: int = 128,
        random_features: int = 1024,
        ridge: float = 1.0,
        mean_field: float = 25.0,
    ) -> None:
        super().__init__()
        self.body = body
        self.ridge, self.mean_field = ridge, mean_field
        self.projection: Tensor
        self.frequencies: Tensor
        self.phases: Tensor
        self.root: Tensor
        self.register_buffer("projection", torch.randn(projected, width) * SPREAD)
        self.norm = nn.LayerNorm(projected, eps=NORM_EPS)
        self.register_buffer("frequencies", orthogonal_features(random_features, projected) * SPREAD)
        self.register_buffer("phases", torch.rand(random_features) * 2 * math.pi)
        self.register_buffer("root", torch.eye(random_features) / ridge**0.5)  # R of P⁻¹ = R Rᵀ, of no image yet
        self.weight = nn.Parameter(torch.empty(num_classes, random_features))  # β
        nn.init.xavier_uniform_(self.weight)
        self._precision: Tensor | None = None  # P, float64 (random features, random features), within an epoch

    def forward(self, images: Tensor) -> Tensor:
        features = self.random_features(images)
        logits = F.linear(features, self.weight)
        if self.training:
            return logits
        return logits / (1 + self.mean_field * self.variance(features)).sqrt()[:, None]

    def random_features(self, images: Tensor) -> Tensor:
        """φ: (N, random features)."""
        embedded = self.body(images).to(self.weight.dtype)
        with torch.autocast(images.device.type, enabled=False):  # an angle in half precision has few digits
            projected = self.norm(F.linear(embedded, self.projection))
            return torch.cos(F.linear(projected, self.frequencies, self.phases))

    def variance(self, features: Tensor) -> Tensor:
        """ridge φ P⁻¹ φᵀ of each image, at least 0: (N, random features) -> (N,)."""
        return self.ridge * (features @ self.root).square().sum(1)

    def begin_epoch(self) -> None:
        size, device = len(self.root), self.root.device
        self._precision = self.ridge * torch.eye(size, dtype=torch.float64, device=device)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.random_features(images)
        logits = F.linear(features, self.weight)
        if self._precision is not None:
            wide = features.detach().double()
            self._precision += wide.T @ wide
        return F.cross_entropy(logits, labels), logits

    def end_epoch(self) -> None:
        assert self._precision is not None
        factor = torch.linalg.cholesky(self._precision)  # P = L Lᵀ, so P⁻¹ = L⁻ᵀ L⁻¹
        one = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        self.root.copy_(torch.linalg.solve_triangular(factor, one, upper=False).T)
        self._precision = None


def orthogonal_features(count: int, width: int) -> Tensor:
    """Frequencies (count, width), orthogonal in groups of ``width``, as long as those of Gaussian frequencies.

    Orthogonal random features (Yu et al., NeurIPS 2016, arXiv 1610.09072).
    """
    groups = [nn.init.orthogonal_(torch.empty(width, width)) for _ in range(-(-count // width))]
    return torch.cat(groups)[:count] * torch.randn(count, width).norm(dim=1, keepdim=True)


def with_gaussian_process(body: Classifier, num_classes: int, bound: float = 6.0, **settings: Any) -> Classifier:
    """An SNGP network on another, whose final linear layer is removed. ``settings`` as of ``GaussianProcessNetwork``."""
    width, module = body.head.in_features, body.module
    assert body.head_name is not None
    module.set_submodule(body.head_name, nn.Identity())
    bound_norms(module, bound)
    return on_body(GaussianProcessNetwork(module, width, num_classes, **settings), body)


def sngp_resnet18(num_classes: int = 10) -> Classifier:
    """11,179,328 parameters with 10 classes, besides fixed random weights."""
    return with_gaussian_process(resnet18(1), num_classes)
