"""DUQ: deterministic uncertainty quantification (van Amersfoort, Smith, Teh and Gal, ICML 2020, arXiv 2003.02037)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.classifier import Classifier
from oodbench.detector import Detector
from oodbench.detectors import _training
from oodbench.detectors._parameters import require_finite, require_whole
from oodbench.models.duq import (
    FIRST_COUNT,
    LEAST,
    class_sums,
    cross_entropy,
    distance_from_one,
    exponents_of,
    initial,
    offsets_of,
)
from oodbench.probe import Probe
from oodbench.progress import Progress
from oodbench.training_set import FitSize, TrainingSet

MOMENTUM = 0.9
DROPS, DROP = (0.25, 0.5, 0.75), 0.2  # after these shares of the epochs the learning rate is multiplied by DROP


class DUQ(Detector):
    """A head of radial basis functions on the features: distance of the image from every class centroid.

    K_c = exp(−s_c), s_c = mean_m (W_c f − e_c)²_m / 2σ², W_c (M, d) an embedding for each class, e_c (M,) its centroid.
    Score: 1 − max_c K_c.

    The paper trains the whole network in this way, as the model ``duq-resnet18`` is trained; for that model, the detector
    ``maxlogit`` has the order of the paper's score. **Here the network is frozen and only the head learns**, on its
    features f, divided by their root mean square on training images that are not held out. The loss is binary
    cross-entropy of (K_c) against the label, mean over classes, plus λ (‖∇_f Σ_c K_c‖₂ − 1)², λ = ``penalty``. In the
    paper, the gradient is with respect to the image, but the head cannot change the part of the frozen network. Centroids
    are moving averages with decay γ of the embeddings of their class's images, updated after each step of SGD with
    momentum .9, whose learning rate falls to a fifth after a quarter, a half and three quarters of the epochs. Embeddings
    are as wide as the features, as in both experiments of the paper (256 and 512), unless ``embedding_size`` is given.
    The authors' public code uses λ = .5 and ends after 75 of the 100 epochs.

    features (N, d) -> (N,), float64, in [0, 1]
    """

    signals = ("logits", "features")
    quick: ClassVar[dict[str, Any]] = {"epochs": 50}

    scale_: float  # root mean square of the training features
    embedding_: Tensor  # W: (classes, M, d)
    centroids_: Tensor  # e: (classes, M)

    def __init__(
        self,
        embedding_size: int | None = None,
        length_scale: float = 0.1,
        penalty: float = 0.75,
        gamma: float = 0.999,
        epochs: int = 100,
        lr: float = 0.05,
        weight_decay: float = 5e-4,
        batch_size: int = 128,
    ) -> None:
        require_whole("duq", 1, epochs=epochs, batch_size=batch_size)
        if embedding_size is not None:
            require_whole("duq", 1, embedding_size=embedding_size)
        require_finite("duq", "above 0", length_scale=length_scale, lr=lr)
        require_finite("duq", "of at least 0", penalty=penalty, weight_decay=weight_decay)
        require_finite("duq", "from 0 to 1", gamma=gamma)
        self.embedding_size, self.length_scale, self.penalty, self.gamma = embedding_size, length_scale, penalty, gamma
        self.epochs, self.lr, self.weight_decay, self.batch_size = epochs, lr, weight_decay, batch_size

    def check(self, classifier: Classifier | None) -> None:
        _training.require_network(classifier).head  # noqa: B018  # says what is missing, if it is missing

    def memory(self, size: FitSize) -> int:
        outputs = 2 * size.images * size.itemsize * size.features + size.images * max(4, size.itemsize) * size.classes
        return outputs + 4 * 4 * size.classes * size.features * (self.embedding_size or size.features)

    def prepare(self, train_set: TrainingSet, classifier: Classifier | None, progress: Progress) -> None:
        network = _training.require_network(classifier)
        features, logits, labels = _training.outputs_of("duq", train_set, network, progress)
        self.scale_ = float(features.square().mean().sqrt()) or 1.0
        classes, width = logits.shape[1], features.shape[1]
        size = width if self.embedding_size is None else self.embedding_size
        random = torch.Generator().manual_seed(train_set.seed)
        embedding, total = (value.to(features) for value in initial(classes, size, width, random))
        embedding.requires_grad_()
        count = torch.full((classes, 1), FIRST_COUNT).to(features)
        optimizer = torch.optim.SGD([embedding], self.lr, MOMENTUM, weight_decay=self.weight_decay)
        for epoch in range(self.epochs):
            optimizer.param_groups[0]["lr"] = self.lr * DROP ** sum(epoch >= share * self.epochs for share in DROPS)
            loss_sum = 0.0
            for rows in _training.minibatches(len(labels), self.batch_size, random):
                rows = rows.to(labels.device)
                batch, targets = features[rows] / self.scale_, F.one_hot(labels[rows], classes).to(features)
                with torch.enable_grad():
                    loss = self._loss(batch, targets, embedding, total / count)
                    optimizer.zero_grad()
                    loss.backward()
                optimizer.step()
                with torch.no_grad():
                    total = self.gamma * total + (1 - self.gamma) * class_sums(batch, targets, embedding)
                    count = self.gamma * count + (1 - self.gamma) * targets.sum(0)[:, None]
                loss_sum += float(loss.detach()) * len(rows)
            _training.report(progress, "duq", epoch, self.epochs, loss_sum / len(labels))
        self.embedding_, self.centroids_ = embedding.detach(), total / count

    def _loss(self, features: Tensor, targets: Tensor, embedding: Tensor, centroids: Tensor) -> Tensor:
        """Binary cross-entropy and gradient penalty of features (n, d) against one-hot targets (n, classes): a number."""
        offsets = offsets_of(features, embedding.flatten(0, 1), centroids)
        exponents = exponents_of(offsets, self.length_scale)
        gradients = kernel_gradients(offsets, exponents.clamp_min(LEAST), embedding, self.length_scale)
        return cross_entropy(exponents, targets) + self.penalty * distance_from_one(gradients)

    def exponents(self, probe: Probe) -> Tensor:
        """s_c = −log K_c: float64 (N, classes)."""

        def compute() -> Tensor:
            features = probe.features.double() / self.scale_
            offsets = offsets_of(features, self.embedding_.double().flatten(0, 1), self.centroids_.double())
            return exponents_of(offsets, self.length_scale)

        return probe.once(("duq", id(self)), compute)

    def probabilities(self, probe: Probe) -> Tensor:
        """K_c / Σ_k K_k: (N, classes). The paper does not normalise the kernels, but only probabilities can be judged."""
        return (-self.exponents(probe)).softmax(1)

    def statistics(self, probe: Probe) -> Tensor:
        return -torch.expm1(-self.exponents(probe).min(1).values)


def kernel_gradients(offsets: Tensor, exponents: Tensor, embedding: Tensor, length_scale: float) -> Tensor:
    """∇_f Σ_c K_c = −Σ_c K_c W_cᵀ (W_c f − e_c) / Mσ²: (N, d). In closed form, so that it is differentiated only once."""
    pull = torch.exp(-exponents)[:, :, None] * offsets / (offsets.shape[2] * length_scale**2)
    return -pull.flatten(1) @ embedding.flatten(0, 1)
