"""Deep ensembles (Lakshminarayanan, Pritzel and Blundell, NeurIPS 2017, arXiv 1612.01474)."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from oodbench.classifier import Classifier
from oodbench.detector import Detector
from oodbench.detectors import _training
from oodbench.detectors._parameters import require_finite, require_whole
from oodbench.detectors._uncertainty import COLUMNS, uncertainties
from oodbench.errors import BadData, Unsuitable, UsageError
from oodbench.image_set import ImageSet
from oodbench.models import imports_code, recipes, weights
from oodbench.models.build import build, outline
from oodbench.models.train import Training
from oodbench.probe import Probe
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet

STEP_COST = 3  # cost of a training step, in forward passes
FILES = (".safetensors", ".pt", ".pth", ".th", ".tar", ".ckpt", ".bin")  # what the name of a weights file ends in


class Ensemble(Detector):
    """Entropy of the mean softmax of several networks, one of which is always the classifier: H(p̄).

    Variants: ``mutual-information``, H(p̄) − mean H(p_m), the disagreement between members; ``variance``, the variance of
    the softmax over members, summed over classes.

    ``members`` is the number K of networks, 5 as in the paper. K − 1 networks of the classifier's architecture are newly
    initialised and trained on the training images that are not held out, like ``oodbench train``: SGD with Nesterov
    momentum .9, weight decay 5e-4, a cosine schedule, crops, and flips if the set allows them. (The paper's adversarial
    training, which it calls optional, is left out.)

    Alternatively, ``members`` is a list of weights files and model names, which join the classifier; then nothing is trained
    and no labels are needed. A file (``.safetensors``, or ``.pt`` and the like) holds other weights of the classifier's own
    architecture, such as those of other seeds, and is searched as the classifier's. A name is that of a model with weights
    under the data root. No two networks may have the same weights. A member cannot be a ``module:function``: a saved ensemble
    holds the weights of its members and builds them by name, and a file must not name code to run.

    images (N, C, H, W), logits (N, classes) -> (N, 3), float64, in nats and squared probability
    """

    signals = ("images", "logits")
    variants = COLUMNS
    quick: ClassVar[dict[str, Any]] = {"members": 3, "epochs": 4, "batch_size": 32}

    weights_: list[Tensor]  # parameters and buffers of each additional member, one member after the other
    _networks: list[Classifier] | None = None  # the additional members, built from weights_ when first needed

    def __init__(self, members: int | list[str] = 5, epochs: int = 100, lr: float = 0.1, batch_size: int = 128) -> None:
        if isinstance(members, list | tuple):
            members = list(members)
            sound = len(members) > 0 and all(isinstance(name, str) for name in members)
        else:
            sound = isinstance(members, int) and not isinstance(members, bool) and members >= 2
        if not sound:
            raise UsageError(
                f"ensemble: members = {members!r}; give a whole number of at least 2, or a list of weights files or model names"
            )
        if isinstance(members, list):
            _refuse_code(members)
        require_whole("ensemble", 1, epochs=epochs, batch_size=batch_size)
        require_finite("ensemble", "above 0", lr=lr)
        self.caches = isinstance(members, int)  # the cache key does not cover the weights files of a list
        self.members, self.epochs, self.lr, self.batch_size = members, epochs, lr, batch_size

    def check(self, classifier: Classifier | None) -> None:
        network = _training.require_network(classifier)
        if isinstance(self.members, int):
            _training.require_initialisable(network, ", or give members as a list of weights files or model names")

    def prepare(self, train_set: TrainingSet, classifier: Classifier | None, progress: Progress) -> None:
        network = _training.require_network(classifier)
        if not len(train_set.rows):
            raise Unsuitable("saw no training images to fit on; give more training images")
        if isinstance(self.members, int):
            members = self._train(train_set, network, progress)
        else:
            members = _listed(self.members, network, train_set)
        self._networks = None
        self.weights_ = [value.detach().clone() for member in members for value in member.module.state_dict().values()]

    def _train(self, train_set: TrainingSet, classifier: Classifier, progress: Progress) -> list[Classifier]:
        """Train each additional member with its own initial weights and its own order of images."""
        assert isinstance(self.members, int)
        labels = _training.labels_of(train_set, _classes(classifier, train_set), classifier)
        images = _labelled(train_set, labels)
        progress.expect((self.members - 1) * self.epochs * len(images) * STEP_COST)
        members = []
        recipe = recipes.find(recipes.DEFAULT).override(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr)
        work = len(images) / math.ceil(len(images) / self.batch_size) * STEP_COST  # per step
        for number in range(1, self.members):
            member = _training.reinitialised(classifier, train_set.seed + number)
            training = Training(member, images, recipe, train_set.seed + number)
            for epoch in range(self.epochs):
                with torch.enable_grad():
                    loss, _ = training.epoch(epoch, lambda: progress.advance(work))
                _training.report(progress, f"ensemble, member {number + 1} of {self.members}", epoch, self.epochs, loss)
            members.append(member.requires_grad_(False).eval())
        return members

    def statistics(self, probe: Probe) -> Tensor:
        return uncertainties(self._logits(probe))

    def probabilities(self, probe: Probe) -> Tensor:
        """The mean softmax: (N, classes)."""
        return self._logits(probe).softmax(2).mean(0)

    def _logits(self, probe: Probe) -> Tensor:
        """Logits of the classifier, then of the other members: float64 (members, N, classes)."""

        def compute() -> Tensor:
            own = probe.logits
            with torch.no_grad():
                others = [member(probe.images).double() for member in self._further(probe.classifier, own.shape[1])]
            return torch.stack([own, *others])

        return probe.once(("ensemble", id(self)), compute)

    def _further(self, classifier: Classifier, classes: int) -> list[Classifier]:
        """The additional members, on the device of the classifier and in its dtype."""
        with torch.inference_mode(False):  # tensors created in inference mode could not be moved afterwards
            if self._networks is None:
                networks = (
                    (copy.deepcopy(classifier) for _ in range(self.members - 1))
                    if isinstance(self.members, int)
                    else self._listed(self.members, classifier, classes)
                )
                self._networks = _training.filled(networks, self.weights_)
            for network in self._networks:
                _training.place_like(network, classifier)
            return self._networks

    def _listed(self, members: list[str], classifier: Classifier, classes: int) -> Iterator[Classifier]:
        """New networks, and no file is opened: ``weights_`` holds their values.

        A fitted file may name any model, so shapes are compared with its weights before a network is built.
        """
        start = 0
        for name in members:
            if _is_file(name):
                network, shapes = copy.deepcopy(classifier), None
            else:
                if (shapes := outline(name, classes)) is not None:
                    wanted = [value.shape for value in shapes.module.state_dict().values()]
                    if wanted != [weight.shape for weight in self.weights_[start : start + len(wanted)]]:
                        raise BadData(_training.OTHERS)
                network = build(name, classes)
            start += len((shapes or network).module.state_dict())
            yield network


def _is_file(member: str) -> bool:
    """Whether a member is a weights file, and not the name of a model."""
    return member.lower().endswith(FILES)


def _refuse_code(members: list[str]) -> None:
    """Raise UsageError for a ``module:function``: loading a file with that name in it would import and call it."""
    for name in members:
        if imports_code(name) and not _is_file(name):
            raise UsageError(
                f"ensemble: the member {name!r} is code to run; name a built-in, timm: or torchvision: model, or one that a"
                " package registers, or a weights file"
            )


def _listed(names: list[str], classifier: Classifier, train_set: TrainingSet) -> list[Classifier]:
    """The members of a list. Raises Unsuitable for two with the same weights: they always agree."""
    classes = _classes(classifier, train_set)
    seen = {classifier.weights_hash: f"the classifier {classifier.name}"}
    members = []
    for name in names:
        load = _from_file if _is_file(name) else _by_name
        member = load(name, classifier, train_set)
        _training.place_like(member, classifier)
        if (found := _classes(member, train_set)) != classes:
            raise Unsuitable(f"the member {name} has {found} classes, but the classifier has {classes}; give one with as many")
        if (same := seen.get(hash := member.weights_hash)) is not None:
            raise Unsuitable(f"the member {name} has the same weights as {same}; give those of another seed, or leave it out")
        seen[hash] = f"the member {name}"
        members.append(member)
    return members


def _from_file(name: str, classifier: Classifier, train_set: TrainingSet) -> Classifier:
    """The classifier's network with the weights of a file. Raises MissingData without it, and BadData if it does not fit."""
    from oodbench.models.load import weights_path

    path = weights_path(classifier.name, name, train_set.data)
    assert path is not None  # a name is given
    member = copy.deepcopy(classifier)
    state = weights.part_for(weights.read(path), member.module, classifier.name, path, None)
    try:
        weights.put(state, member.module, classifier.name, path)
    except BadData as error:
        fault = str(error).rpartition("; ")[0]
        raise BadData(f"the member {fault}; members from files have the architecture and classes of the classifier") from error
    return member


def _by_name(name: str, classifier: Classifier, train_set: TrainingSet) -> Classifier:
    """A member by name. Raises MissingData without its weights, and Unsuitable if it needs other images."""
    from oodbench.models.load import load_model

    member = load_model(name, data=train_set.data, require_weights=True)
    _, images = next(train_set.batches(train_set.rows[:1], 1, member))
    member.check(images)
    return member


def _classes(classifier: Classifier, train_set: TrainingSet) -> int:
    """The number of its logits."""
    return next(train_set.probes(classifier, ("logits",), train_set.rows[:1])).logits.shape[1]


def _labelled(train_set: TrainingSet, labels: Tensor) -> ImageSet:
    """The training images with their labels. They are mirrored only if their set allows it."""
    images = train_set.images
    if isinstance(images, Tensor):  # floats are rounded to 8 bits
        pixels = images if images.dtype == torch.uint8 else (images * 255).round().clamp(0, 255).to(torch.uint8)
        images = ImageSet(pixels.cpu(), flips=False)
    return replace(images, labels=labels.cpu()).select(torch.from_numpy(train_set.rows))
