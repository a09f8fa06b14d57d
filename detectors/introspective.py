"""Introspective learning (Prabhushankar and AlRegib, NeurIPS 2022, arXiv 2209.08425)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.classifier import Classifier
from oodbench.detector import Detector
from oodbench.detectors import _training
from oodbench.detectors._parameters import require_finite, require_whole
from oodbench.errors import UsageError
from oodbench.probe import Probe
from oodbench.progress import Progress
from oodbench.training_set import FitSize, TrainingSet

LOSSES = ("mse", "cross-entropy")
CONTRASTS = ("ones", "exact")
HIDDEN = (300, 100)
TRAINED = 6  # what training holds of each weight: itself, its gradient, two moments of Adam, and what a step needs


class Introspective(Detector):
    """A second network H on the gradients of the last layer: "why P, rather than Q?", asked for all N classes at once.

    r_x = vec(∇_W J), W (N, d) the last layer's weights; H, an MLP d·N – 300 – 100 – N with sigmoids between, learns the
    labels from r_x of clean training images that are not held out; the network is frozen. Score:
    1 − max_c softmax(H(r_x))_c.
    Variant ``odin``: 1 − max_c softmax(H(r_x̃)/T)_c after the step x̃ = x − ε·sign(∇_x CE(H(r_x)/T, argmax H(r_x))).

    ∇_W J = g fᵀ with f the features and g = ∂J/∂z (N,), so no backward pass is needed. For contrast ``ones``, J compares
    the logits z with all classes at once:

        mse            J = mean_c (z_c − M)²       g = 2 (z − M) / N    M = mean max_c z_c on training images
        cross-entropy  J = −Σ_c log softmax(z)_c   g = N softmax(z) − 1

    For contrast ``exact``, each of N losses compares z with a single class I, M·e_I or e_I, and only the row of W that
    belongs to I is used from each gradient: g = 2 (z − M) / N, the same as for all at once, and g = softmax(z) − 1. The
    other rows do not depend on I, 2 z_c f / N and softmax(z)_c f for row c, and would turn d·N numbers into d·N².

    The paper says that r_x is normalised, but not how: here each image's r_x is divided by its Euclidean norm. It does not
    give an optimiser either: here Adam, with Glorot's initial weights.

    features (N, d), logits (N, classes) -> (N, 2), float64
    """

    signals = ("logits", "features", "input_gradient")
    variants = ("odin",)
    quick: ClassVar[dict[str, Any]] = {"epochs": 20, "lr": 0.005}

    target_: float  # M
    weights_: list[Tensor]  # of H: weight and bias of each of its three layers

    def __init__(
        self,
        loss: str = "mse",
        contrast: str = "ones",
        epochs: int = 40,
        lr: float = 0.001,
        batch_size: int = 128,
        temperature: float = 1000.0,
        epsilon: float = 0.0014,
    ) -> None:
        for name, value, known in (("loss", loss, LOSSES), ("contrast", contrast, CONTRASTS)):
            if value not in known:
                raise UsageError(f"introspective: {name} = {value!r}; give {' or '.join(known)}")
        require_whole("introspective", 1, epochs=epochs, batch_size=batch_size)
        require_finite("introspective", "above 0", lr=lr, temperature=temperature)
        require_finite("introspective", "of at least 0", epsilon=epsilon)  # in pixel units of [0, 1]
        self.loss, self.contrast = loss, contrast
        self.epochs, self.lr, self.batch_size = epochs, lr, batch_size
        self.temperature, self.epsilon = temperature, epsilon

    def check(self, classifier: Classifier | None) -> None:
        _training.require_network(classifier).head  # noqa: B018  # says what is missing, if it is missing

    def memory(self, size: FitSize) -> int:
        outputs = size.images * (size.itemsize * size.features + max(4, size.itemsize) * size.classes)
        hidden = HIDDEN[0] * size.classes * (size.features * 4 * TRAINED + self.batch_size * 4 * 4)
        return outputs + hidden

    def prepare(self, train_set: TrainingSet, classifier: Classifier | None, progress: Progress) -> None:
        network = _training.require_network(classifier)
        features, logits, labels = _training.outputs_of("introspective", train_set, network, progress)
        self.target_ = float(logits.max(1).values.double().mean())
        random = torch.Generator().manual_seed(train_set.seed)
        weights = [w.to(features.device) for w in _initial(features.shape[1] * logits.shape[1], logits.shape[1], random)]
        optimizer = torch.optim.Adam([w.requires_grad_() for w in weights], self.lr)
        with torch.enable_grad():
            for epoch in range(self.epochs):
                total = 0.0
                for rows in _training.minibatches(len(labels), self.batch_size, random):
                    rows = rows.to(labels.device)
                    by_logit, of_image = introspect(features[rows], logits[rows], self.loss, self.contrast, self.target_)
                    loss = F.cross_entropy(_mlp(by_logit.float(), of_image.float(), weights), labels[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += float(loss.detach()) * len(rows)
                _training.report(progress, "introspective", epoch, self.epochs, total / len(labels))
        self.weights_ = [w.detach() for w in weights]

    def logits(self, probe: Probe) -> Tensor:
        """H(r_x): float64 (N, classes)."""
        return self.classes(probe.features, probe.logits)

    def classes(self, features: Tensor, logits: Tensor) -> Tensor:
        """H(r_x) of the network's features (N, d) and logits (N, classes): float64 (N, classes)."""
        return _mlp(*self._introspected(features, logits), [w.double() for w in self.weights_])

    def hidden(self, features: Tensor, logits: Tensor) -> Tensor:
        """What the last layer of H reads, after the sigmoid: float64 (N, 100)."""
        return _mlp(*self._introspected(features, logits), [w.double() for w in self.weights_[:-2]]).sigmoid()

    def _introspected(self, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        return introspect(features, logits, self.loss, self.contrast, self.target_)

    def probabilities(self, probe: Probe) -> Tensor:
        return self.logits(probe).softmax(1)

    def statistics(self, probe: Probe) -> Tensor:
        stepped = probe.perturbed(self.epsilon, self._surprise, key=("introspective", id(self)))
        tempered = (self.logits(stepped) / self.temperature).softmax(1)
        return 1 - torch.stack([self.probabilities(probe).max(1).values, tempered.max(1).values], 1)

    def _surprise(self, probe: Probe) -> Tensor:
        """CE(H(r_x)/T, argmax H(r_x)) of each image: (N,)."""
        logits = self.logits(probe)
        return F.cross_entropy(logits / self.temperature, logits.argmax(1), reduction="none")


def introspect(features: Tensor, logits: Tensor, loss: str, contrast: str, target: float) -> tuple[Tensor, Tensor]:
    """The factors of r_x = vec(g fᵀ): features (N, d) and logits (N, classes) -> float64 g (N, classes) and f (N, d).

    Each row of either factor has Euclidean norm 1, or is 0, so that r_x does.
    """
    classes = logits.shape[1]
    if loss == "mse":
        by_logit = 2 * (logits.double() - target) / classes
    else:
        by_logit = (classes if contrast == "ones" else 1) * logits.double().softmax(1) - 1
    # The norm of an outer product is the product of the norms.
    return F.normalize(by_logit, dim=1), F.normalize(features.double(), dim=1)


def _initial(inputs: int, outputs: int, random: torch.Generator) -> list[Tensor]:
    """Weights and biases of H: Glorot and Bengio's uniform distribution (2010), meant for sigmoids, and zeros."""
    weights = []
    sizes = (inputs, *HIDDEN, outputs)
    for before, after in pairwise(sizes):
        limit = (6 / (before + after)) ** 0.5
        weights += [(2 * torch.rand(after, before, generator=random) - 1) * limit, torch.zeros(after)]
    return weights


def _mlp(by_logit: Tensor, features: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Linear layers (weight, bias, weight, …) with sigmoids between them, of r_x = vec(g fᵀ), given g (N, classes), f (N, d).

    r_x itself, (N, classes·d), is not made: the first layer is Σ_c g_c (W_c f), with W_c (hidden, d) the part of class c.
    """
    first, bias = weights[:2]
    by_class = first.view(-1, features.shape[1]) @ features.T  # (hidden·classes, N)
    inputs = (by_class.view(len(first), *by_logit.T.shape) * by_logit.T).sum(1).T + bias  # (N, hidden)
    for weight, bias in zip(weights[2::2], weights[3::2], strict=True):
        inputs = F.linear(inputs.sigmoid(), weight, bias)
    return inputs
