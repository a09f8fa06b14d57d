"""A fitted detector with its network as one plain module, for ``torch.export``, ONNX and other runtimes.

The module has no hooks, locks, context variables or checks of images: only the arithmetic from images to scores.
"""

import copy
import io
from contextlib import redirect_stderr
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from oodbench import standalone
from oodbench.classifier import Classifier, logits_of
from oodbench.detector import Detector
from oodbench.errors import BadData, OodbenchError, Unsuitable, contained, reason
from oodbench.heads import Identity
from oodbench.probe import Probe
from oodbench.state import fitted_state

READS = frozenset({"logits", "features"})
EXAMPLES = 3  # images to compare on; a batch of 1 would become a constant


class Exported(nn.Module):
    """Floats (N, 3, H, W) in [0, 1] -> float64 scores (N,), higher = more anomalous, and logits (N, classes).

    A score above ``threshold`` is flagged.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, classifier: Classifier, scoring: "Scoring", threshold: float) -> None:
        super().__init__()
        self.network = copy.deepcopy(classifier.module)
        self.scoring, self.threshold, self.dtype = scoring, threshold, classifier.dtype
        self.classes = 0
        if "features" in scoring.detector.declared_signals:
            self.classes = classifier.head.out_features
            head = dict(self.network.named_modules())[str(classifier.head_name)]
            if type(head) is not nn.Linear:
                raise Unsuitable(f"its last linear layer '{classifier.head_name}' is a {type(head).__name__}, not nn.Linear")
            head.__class__ = _LinearWithInput
        for name in ("mean", "std"):
            value = getattr(classifier, name)
            self.register_buffer(name, None if value is None else value.to(self.dtype, copy=True))
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if not images.is_floating_point():
            raise BadData(f"images are {images.dtype}; give floats in [0, 1] of the input size")
        logits, features = self.read(images)
        return self.scoring(logits, features), logits

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and features; logits twice for a detector that reads no features."""
        images = images.to(self.dtype)
        if self.mean is not None and self.std is not None:
            images = (images - self.mean) / self.std
        given = logits_of(self.network(images))
        return (given[:, : self.classes], given[:, self.classes :]) if self.classes else (given, given)


class Scoring(nn.Module):
    """Logits (N, classes) and features (N, d) -> scores (N,), by the detector's own ``statistics``."""

    def __init__(self, detector: Detector, classifier: Classifier) -> None:
        super().__init__()
        self.detector = copy.copy(detector)
        self.detector._settings = [detector.setting]
        for name, value in fitted_state(detector).items():  # copies, because those made in inference mode cannot be traced
            setattr(self.detector, name, [_copied(v) for v in value] if isinstance(value, list) else _copied(value))
        self.classifier: Any = None
        if "features" in detector.declared_signals:
            parts = tuple(map(_copied, classifier.weight_and_bias))
            self.classifier = SimpleNamespace(name=classifier.name, weight_and_bias=parts)

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        wide = logits.double()
        read = {"logits": wide, "softmax": wide.softmax(1), "prediction": wide.argmax(1), "classifier": self.classifier}
        if "features" in self.detector.declared_signals:
            read["features"] = features
        values = self.detector.statistics(cast(Probe, _Read(**read))).double()
        return values[:, 0] if values.dim() == 2 else values


class _Read(SimpleNamespace):
    """The part of a probe that these detectors read."""

    def perturbed(self, epsilon: float, *_: Any) -> "_Read":
        if epsilon != 0:
            raise Unsuitable("it steps along a gradient")
        return self


class _LinearWithInput(nn.Linear):
    """Output and input side by side, so that features leave the network without a hook, which threads would share."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([super().forward(features), features], -1)


def exported(detector: Detector, classifier: Classifier | None, size: tuple[int, int], threshold: float) -> Exported:
    """``Fitted.export``, for images of this size (H, W)."""
    name = detector.name
    others = "only detectors that compute scores from logits and features can, such as msp, energy, knn, mahalanobis-v and vim"
    extra = sorted(detector.declared_signals - READS)
    if extra or classifier is None:
        raise Unsuitable(f"{name} cannot be exported, because it reads {', '.join(extra) or 'no network'}; {others}")
    if not isinstance(detector.head, Identity):
        raise Unsuitable(f"{name} cannot be exported, because its head is {type(detector.head).__name__}; {others}")
    detector.require_fitted()
    images = torch.rand(EXAMPLES, 3, *size, generator=torch.Generator().manual_seed(0)).to(classifier.device)
    try:
        with standalone.lock_of(detector, classifier):  # other threads put hooks on the network
            made = Exported(classifier, Scoring(detector, classifier), threshold)
        with torch.no_grad(), contained():
            scores, logits = made(images)
            batch = torch.export.Dim("batch", min=1)
            with redirect_stderr(io.StringIO()):  # where PyTorch prints the whole graph of a detector that it does not take
                torch.export.export(made.scoring, made.read(images), dynamic_shapes=({0: batch}, {0: batch}))
    except OodbenchError as error:
        raise Unsuitable(f"{name} cannot be exported: {error}; {others}") from error
    except Exception as error:  # of a detector that reads more than it declares or branches on values, or of a network
        why = reason(error).split(". ")[0][:200]
        raise Unsuitable(f"{name} cannot be exported, because torch.export does not take it ({why}); {others}") from error
    wanted = standalone.scores_and_logits(detector, classifier, images, batch_size=EXAMPLES)
    if not all(_alike(a, torch.as_tensor(b), classifier.dtype) for a, b in zip((scores, logits), wanted, strict=True)):
        raise Unsuitable(
            f"{name} cannot be exported, because {classifier.name} does more with its last linear layer than return its"
            " output; wrap it in a module that ends in that layer"
        )
    return made


def _alike(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    """Whether values are equal up to half the digits of the network's dtype."""
    slack, found = torch.finfo(dtype).eps ** 0.5, found.double().cpu()
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=slack, atol=slack * float(wanted.abs().max()))


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
