"""DUQ: deterministic uncertainty quantification (van Amersfoort, Smith, Teh and Gal, ICML 2020, arXiv 2003.02037).

A network whose outputs are kernels K_c = exp(−s_c) of the distance between an embedding of the image and the centroid of
each class: s_c = mean_m (W_c z − e_c)²_m / 2σ², z the features. The detector ``duq`` has the same kernels on a frozen network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.classifier import Classifier
from oodbench.models.objective import OwnObjective, on_body
from oodbench.models.resnet import resnet18

FIRST_COUNT, FIRST_SPREAD = 13.0, 0.05  # of the centroids, before the first image
LEAST = 1e-12  # of s in the loss: log (1 − K) has no value at K = 1
WIDTH = 512  # of the features and of their embeddings, as in the authors' code for CIFAR-10


class KernelNetwork(OwnObjective):
    """Normalised images (N, C, H, W) -> log K_c = −s_c, (N, num_classes), as logits: the nearest centroid has the largest.

    Trained as a whole on binary cross-entropy between K_c and the label, mean over images and classes, plus
    λ (‖∇_x Σ_c K_c‖₂ − 1)², mean over images, x the normalised image. After each step, centroids move towards the embeddings
    of the step's images in the updated network, in eval mode as in the authors' code
    (github.com/y0ast/deterministic-uncertainty-quantification, whose λ is .5 where the paper has .75).

    body: gives features (N, width).
    """

    recipe = "duq"

    def __init__(
        self,
        body: nn.Module,
        width: int,
        num_classes: int,
        length_scale: float = 0.1,
        penalty: float = 0.75,
        gamma: float = 0.999,
    ) -> None:
        super().__init__()
        self.body = body
        self.length_scale, self.penalty, self.gamma = length_scale, penalty, gamma
        weight, total = initial(num_classes, width, width)
        self.weight = nn.Parameter(weight.flatten(0, 1))  # W: (classes · M, width); F.linear has a rule for its gradients
        self.total: Tensor
        self.count: Tensor
        self.register_buffer("total", total)  # moving sums of embeddings: (classes, M)
        self.register_buffer("count", torch.full((num_classes, 1), FIRST_COUNT))  # moving numbers of images

    def forward(self, images: Tensor) -> Tensor:
        return -self.exponents(images)

    def exponents(self, images: Tensor) -> Tensor:
        """s: (N, num_classes)."""
        return exponents_of(offsets_of(self.body(images), self.weight, self.total / self.count), self.length_scale)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, enabled=False):  # half precision loses gradients of gradients
            images = images.detach().requires_grad_()
            exponents = self.exponents(images)
            targets = F.one_hot(labels, exponents.shape[1]).to(exponents)
            (gradients,) = torch.autograd.grad(torch.exp(-exponents).sum(), images, create_graph=True)
            loss = cross_entropy(exponents, targets) + self.penalty * distance_from_one(gradients)
        return loss, -exponents

    def after_step(self, images: Tensor, labels: Tensor) -> None:
        was_training = self.training
        self.eval()
        features = self.body(images)
        self.train(was_training)
        targets = F.one_hot(labels, len(self.total)).to(features)
        sums = class_sums(features, targets, self.weight.unflatten(0, (len(self.total), -1)))
        self.total.mul_(self.gamma).add_(sums, alpha=1 - self.gamma)
        self.count.mul_(self.gamma).add_(targets.sum(0)[:, None], alpha=1 - self.gamma)


def initial(classes: int, size: int, width: int, random: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Initial W (classes, size, width), and initial sums of embeddings (classes, size), ``FIRST_COUNT`` times the centroids."""
    # He's initial weights (2015); PyTorch counts classes·d inputs for the authors' tensor (M, classes, d).
    embedding = torch.randn(classes, size, width, generator=random) * (2 / (classes * width)) ** 0.5
    return embedding, torch.randn(classes, size, generator=random) * FIRST_SPREAD * FIRST_COUNT


def offsets_of(features: Tensor, weight: Tensor, centroids: Tensor) -> Tensor:
    """W_c z − e_c: features (N, d), weight (classes · M, d), centroids (classes, M) -> (N, classes, M)."""
    return F.linear(features, weight).unflatten(1, centroids.shape) - centroids


def exponents_of(offsets: Tensor, length_scale: float) -> Tensor:
    """s_c = mean_m offset² / 2σ²: (N, classes, M) -> (N, classes)."""
    return offsets.square().mean(2) / (2 * length_scale**2)


def cross_entropy(exponents: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of K = exp(−s) against one-hot targets, both (N, classes): a mean.

    Computed from s, because log K and log (1 − K) have no gradient for a K that rounds to 0 or 1.
    """
    exponents = exponents.clamp_min(LEAST)
    return (targets * exponents - (1 - targets) * torch.log(-torch.expm1(-exponents))).mean()


def distance_from_one(gradients: Tensor) -> Tensor:
    """(‖∇‖₂ − 1)², mean over the gradients (N, …) of N images: the two-sided penalty."""
    return (gradients.flatten(1).norm(dim=1) - 1).square().mean()


def class_sums(features: Tensor, targets: Tensor, embedding: Tensor) -> Tensor:
    """Σ W_c z over the images of each class: features (N, d), one-hot (N, classes), W (classes, M, d) -> (classes, M)."""
    return torch.einsum("cmd,cd->cm", embedding, targets.T @ features)


def with_kernels(body: Classifier, width: int, num_classes: int, **settings: float) -> Classifier:
    """A DUQ network on a network that gives ``width`` values in place of logits. ``settings`` as of ``KernelNetwork``.

    It has no final linear layer: no linear layer gives its logits.
    """
    return on_body(KernelNetwork(body.module, width, num_classes, **settings), body)


def duq_resnet18(num_classes: int = 10) -> Classifier:
    """14,052,928 parameters with 10 classes."""
    return with_kernels(resnet18(WIDTH), WIDTH, num_classes)
