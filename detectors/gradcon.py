"""GradCon: the gradients of an autoencoder (Kwon, Prabhushankar, Temel and AlRegib, ECCV 2020, arXiv 2007.09507)."""

import hashlib
import math
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench import protocols
from oodbench.classifier import Classifier
from oodbench.detector import Detector
from oodbench.detectors._autoencoders import Autoencoder, VariationalAutoencoder, resized
from oodbench.detectors._parameters import require_finite, require_whole
from oodbench.errors import BadData, OodbenchError, Unsuitable, reason
from oodbench.gradients import norms_and_products
from oodbench.models.checkpoint import Checkpoint
from oodbench.paths import cache_root
from oodbench.probe import Probe
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet

LEARNING_RATE = 1e-3  # of Adam
CHECKPOINT_SECONDS = 30.0  # a killed training loses at most this much, plus one epoch
STAGES = 20  # number of progress reports over all epochs


class GradCon(Detector):
    """Reconstruction error of a convolutional autoencoder minus the alignment of its gradients with those of training.

    With L the reconstruction loss of one image (mean squared error), φ_i the weights of the four transposed convolutions
    of the decoder and ḡ_i the reference gradients:

        recon = L,  grad = −¼ Σ_i cos(∂L/∂φ_i, ḡ_i),  score = recon + β·grad,  β = .12

    images (N, C, H, W) -> (N, 3) float64, columns score, recon, grad; β is not used in training. A zero gradient has
    cosine 0. Images are resized to 28x28 and go through the autoencoder in the classifier's dtype, at least float32.

    Training minimises J = L + α·grad over batches of 64, Adam 1e-3, α = .03: the gradient of the batch loss L is itself
    differentiated. ḡ_i is the running mean of ∂J/∂φ_i over all iterations; the first iteration has no gradient term. A
    random tenth of the images to train on is used for validation; the network of the epoch with the lowest validation J is
    kept, with ḡ at that epoch. Images held out for thresholds and heads are not used.

    Memory: the training images at 28x28, in float32. Only images are read: of the classifier, only the device matters.
    """

    signals = ("images",)
    variants: ClassVar[tuple[str, ...]] = ("recon", "grad")
    quick: ClassVar[dict[str, Any]] = {"epochs": 2}
    network: ClassVar[type[Autoencoder]] = Autoencoder
    batch_size: ClassVar[int] = 64

    weights_: list[Tensor]  # of the network, in parameter order
    reference_: list[Tensor]  # ḡ: of the decoder's weights, first to last
    _kept: tuple[list[Tensor], Autoencoder] | None = None  # weights_ and the network built from them

    def __init__(self, epochs: int = 1000, alpha: float = 0.03, beta: float = 0.12) -> None:
        require_whole("gradcon", 1, epochs=epochs)
        require_finite("gradcon", "of at least 0", alpha=alpha, beta=beta)
        self.epochs, self.alpha, self.beta = epochs, alpha, beta

    def prepare(self, train_set: TrainingSet, classifier: Classifier | None, progress: Progress) -> None:
        """Train the autoencoder. A training that was killed resumes from its checkpoint in the cache folder, if it is intact.

        Raises Unsuitable for fewer than two images to train on, and OodbenchError if training diverges.
        """
        images, validation = _training_images(train_set, classifier)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train_set.seed)
            module = self.network(images.shape[1])
        module.to(images.device)
        optimizer = torch.optim.Adam(module.parameters(), LEARNING_RATE)
        reference, best = Reference(), Best()
        checkpoint = self._checkpoint(images, validation, train_set.seed, module, optimizer, reference, best)
        stored, title, first = time.monotonic(), self.name or type(self).__name__, 0
        if checkpoint.path.exists():
            try:
                first = checkpoint.restore(images.device)
            except BadData as error:
                progress.say(f"{title}: {reason(error).partition(';')[0]}; training from the start")
        progress.expect((self.epochs - first) * len(images))
        measured = ""
        for epoch in range(first, self.epochs):
            if epoch == first or epoch % math.ceil(self.epochs / STAGES) == 0:
                progress.stage(f"{title}: epoch {epoch + 1} of {self.epochs}{measured}")
            generator = _generator(train_set.seed, epoch)
            total = torch.zeros((), device=images.device)
            for rows in torch.randperm(len(images), generator=generator).split(self.batch_size):
                batch = images[rows.to(images.device)]
                total += step(module, batch, reference, self.alpha, optimizer, generator) * len(rows)
                progress.advance(len(rows))
            measured = f", loss {float(total) / len(images):.4g}"
            best.offer(self._validated(module, validation, reference), module, reference)
            if epoch + 1 < self.epochs and time.monotonic() - stored > CHECKPOINT_SECONDS:
                try:
                    checkpoint.store(epoch + 1)
                except OodbenchError as error:
                    progress.say(f"{title}: training continues, but cannot be resumed later: {reason(error)}")
                stored = time.monotonic()
        checkpoint.remove()
        if not best.weights:
            raise OodbenchError(f"training {title} diverged: no epoch has a finite loss; give another seed")
        self.weights_, self.reference_ = best.weights, best.reference

    def statistics(self, probe: Probe) -> Tensor:
        images = resized(probe.images.to(torch.promote_types(probe.images.dtype, torch.float32)))
        module = self._trained(images)
        alignment = cosines(module, images, [part.to(images) for part in self.reference_]).double().mean(1)
        recon = module.reconstruction_loss(module(images).double(), images.double())
        return torch.stack([recon - self.beta * alignment, recon, *self._latent(module, images), -alignment], 1)

    def _latent(self, module: Autoencoder, images: Tensor) -> list[Tensor]:
        """Columns (N,) between recon and grad."""
        return []

    def _trained(self, images: Tensor) -> Autoencoder:
        """The network with its trained weights, on the device and in the dtype of these images.

        Raises BadData for images with other channels than it was trained on.
        """
        channels = self.weights_[0].shape[1]
        if images.shape[1] != channels:
            raise BadData(
                f"images have {images.shape[1]} channels, but {self.name or type(self).__name__} was trained on"
                f" {channels}; give images with {channels} channels"
            )
        with torch.inference_mode(False):  # gradients go through these weights
            if self._kept is None or self._kept[0] is not self.weights_:
                with torch.device("meta"):  # skips initial values, and so draws nothing from the global generator
                    module = self.network(channels)
                names = [name for name, _ in module.named_parameters()]
                module.load_state_dict(dict(zip(names, self.weights_, strict=True)), assign=True)
                self._kept = self.weights_, module.requires_grad_(False)
            return self._kept[1].to(images)

    def _validated(self, module: Autoencoder, images: Tensor, reference: "Reference") -> float:
        """J on these images, in batches, with the current ḡ."""
        total = torch.zeros((), device=images.device)
        for batch in images.split(self.batch_size):
            total += objective(module, batch, reference, self.alpha, differentiable=False).detach() * len(batch)
        return float(total) / len(images)

    def _checkpoint(self, images: Tensor, validation: Tensor, seed: int, *parts: Any) -> Checkpoint:
        digest = hashlib.sha256(images.cpu().numpy().tobytes())
        digest.update(validation.cpu().numpy().tobytes())
        settings = {
            "network": self.network.__name__,
            "images": digest.hexdigest()[:16],
            "epochs": self.epochs,
            "alpha": self.alpha,
            "batch size": self.batch_size,
            "seed": seed,
        }
        key = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
        path = cache_root() / "prepared" / f"gradcon-{key}.checkpoint"
        return Checkpoint(path, dict(zip(("module", "optimizer", "reference", "best"), parts, strict=True)), settings)


class GradConVAE(GradCon):
    """GradCon on a variational autoencoder.

    L is the mean binary cross-entropy of the pixels at z = μ. The KL divergence of the code, whose gradient does not reach
    the decoder, is the column latent:

        score = recon + β·grad,  latent = KL(N(μ, σ²) ‖ N(0, 1)) per value of an image

    images (N, C, H, W) -> (N, 4) float64, columns score, recon, latent, grad. Training minimises binary cross-entropy + KL
    + α·grad over batches of 128 with one draw of z per image. The first two are per value of an image instead of summed,
    because α = .03 would otherwise have no effect beside them. Leaving the KL out of the score, and using per-value terms,
    are choices made here: the authors' program has only the plain autoencoder.
    """

    variants: ClassVar[tuple[str, ...]] = ("recon", "latent", "grad")
    network: ClassVar[type[Autoencoder]] = VariationalAutoencoder
    batch_size: ClassVar[int] = 128

    def _latent(self, module: Autoencoder, images: Tensor) -> list[Tensor]:
        assert isinstance(module, VariationalAutoencoder)
        return [module.latent_loss(images).double()]


class Reference:
    """ḡ: the running mean of gradients, one tensor per weight."""

    def __init__(self) -> None:
        self.count = 0
        self.means: list[Tensor] = []

    def add(self, gradients: list[Tensor]) -> None:
        self.count += 1
        means = self.means or [torch.zeros_like(gradient) for gradient in gradients]
        self.means = [mean + (gradient - mean) / self.count for mean, gradient in zip(means, gradients, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.means = state["count"], state["means"]


class Best:
    """The weights of the epoch with the lowest validation loss, and ḡ at that epoch."""

    def __init__(self) -> None:
        self.loss = math.inf
        self.weights: list[Tensor] = []
        self.reference: list[Tensor] = []

    def offer(self, loss: float, module: Autoencoder, reference: Reference) -> None:
        if loss < self.loss:  # false for NaN
            self.loss, self.reference = loss, reference.means
            self.weights = [part.detach().clone() for part in module.parameters()]

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loss, self.weights, self.reference = state["loss"], state["weights"], state["reference"]


def objective(
    module: Autoencoder,
    images: Tensor,
    reference: Reference,
    alpha: float,
    generator: torch.Generator | None = None,
    *,
    differentiable: bool = True,
) -> Tensor:
    """J = L − α·¼ Σ_i cos(∂L/∂φ_i, ḡ_i) of one batch, a scalar; only L if there is no ḡ yet."""
    loss = module.loss(images, generator)
    if reference.count == 0:
        return loss
    gradients = torch.autograd.grad(loss, list(module.decoder_weights().values()), create_graph=differentiable)
    aligned = [
        F.cosine_similarity(gradient.flatten(), mean.flatten(), dim=0)
        for gradient, mean in zip(gradients, reference.means, strict=True)
    ]
    return loss - alpha * torch.stack(aligned).mean()


def step(
    module: Autoencoder,
    images: Tensor,
    reference: Reference,
    alpha: float,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One training step; adds ∂J/∂φ to ``reference``. Returns J, a scalar without graph."""
    value = objective(module, images, reference, alpha, generator)
    optimizer.zero_grad()
    value.backward()
    reference.add([weight.grad for weight in module.decoder_weights().values() if weight.grad is not None])
    optimizer.step()
    return value.detach()


def cosines(module: Autoencoder, images: Tensor, reference: list[Tensor]) -> Tensor:
    """cos(∂L/∂φ_i, ḡ_i) of the loss L of each image separately: (N, 4), 0 if either is zero."""
    directions = dict(zip(module.decoder_weights(), reference, strict=True))
    squares, products = norms_and_products(module, images, directions, module.reconstruction_loss, parameters=directions)
    columns = []
    for name, direction in directions.items():
        norms = squares[name].sqrt() * direction.norm()
        columns.append(torch.where(norms > 0, products[name] / norms.where(norms > 0, 1), 0))
    return torch.stack(columns, 1)


def _training_images(train_set: TrainingSet, classifier: Classifier | None) -> tuple[Tensor, Tensor]:
    """Training and validation images at 28x28, float32: a random tenth of the images that are not held out validates."""
    if len(train_set.rows) < 2:
        raise Unsuitable(f"needs at least 2 images to train on, has {len(train_set.rows)}; give more training images")
    batches = train_set.batches(train_set.rows, 512, classifier)
    images = torch.cat([resized(batch.float()) for _, batch in batches])
    validates = torch.from_numpy(protocols.held_out(len(images), None, train_set.seed)).to(images.device)
    return images[~validates], images[validates]


def _generator(seed: int, epoch: int) -> torch.Generator:
    """The random generator of one epoch, independent of earlier ones; on the CPU for every device."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
