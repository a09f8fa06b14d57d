"""How detectors of pytorch-ood read oodbench's probe: one adapter for each kind of input that they take.

``adapt`` makes a class of ``oodbench.Detector`` from a class of pytorch-ood and the adapter that suits it. pytorch-ood
computes in float32, so it gets every input in float32. It runs on the CPU, because not all of it runs elsewhere; the network
runs where it is.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pytorch_ood.api import Detector
from torch import Tensor, nn

import oodbench
from oodbench.errors import Unsuitable
from oodbench_pytorch_ood.networks import Leaf, OneStep, Replay, features_of, linear, logits_of

# Arguments of pytorch-ood's constructors that are not hyper-parameters here. Most of them are parts of the network.
NOT_PARAMETERS = {
    *("model", "encoder", "backbone", "head", "w", "b", "num_classes", "feature_layers", "layers", "param_filter"),
    *("detector", "criterion", "feature_reduce", "norm_std", "threshold", "device", "batch_norm", "micro_batch_size"),
    "knn_kwargs",
}


def adapt(
    kind: type[Detector],
    adapter: type["Adapter"],
    note: str = "",
    *,
    labelled: bool = False,
    calibrates: bool = False,
    **defaults: Any,
) -> type[oodbench.Detector]:
    """A class of oodbench detectors that run ``kind``, with its paper as docstring.

    Args:
        kind: a class of pytorch-ood. The arguments of its constructor are the hyper-parameters, except NOT_PARAMETERS.
        adapter: what it reads from the probe.
        note: what differs from pytorch-ood, for the docstring.
        labelled: whether it needs labelled training images.
        calibrates: whether it is fitted on held-out images alone.
        defaults: of hyper-parameters for which pytorch-ood has none, or which only the adapter has.
    """
    names = inspect.signature(kind).parameters
    values = {name: names[name].default for name in names if name not in NOT_PARAMETERS} | defaults
    arguments = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in values.items()]
    paper = kind.info.paper
    source = f"{paper.title} ({paper.venue} {paper.year}, {paper.url})." if paper else ""
    body = {
        "__doc__": f"{kind.__name__} of pytorch-ood. {source} {note}".strip(),
        "__module__": __package__,
        "__signature__": inspect.Signature(arguments),
        "kind": kind,
        "labelled": labelled,
        "calibrates": calibrates,
    }
    return type(kind.__name__, (Learning, adapter) if kind.requires_fit else (adapter,), body)


@contextmanager
def own_graphs(gradients: bool = False) -> Iterator[None]:
    """Tensors made here may be part of a graph, which tensors of inference mode may not. pytorch-ood starts its own graphs."""
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        yield


def on_cpu(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.cpu() for tensor in tensors]


class Adapter(oodbench.Detector):
    """Base: scores what ``read`` takes from the probe. Subclasses say how, for one kind of input."""

    kind: ClassVar[type[Detector]]
    labelled: ClassVar[bool]

    def __init__(self, **parameters: Any) -> None:
        given = inspect.signature(type(self)).bind(**parameters)
        given.apply_defaults()
        vars(self).update(given.arguments)

    def statistics(self, probe: oodbench.Probe) -> Tensor:
        with own_graphs():
            inputs = on_cpu(self.read(probe))
            return self.predict(self.detector(probe, inputs), inputs)

    def detector(self, probe: oodbench.Probe, inputs: list[Tensor]) -> Detector:
        """The detector of pytorch-ood, ready to score."""
        return self.made(self.parts(self.last_layer(probe), inputs))

    def last_layer(self, probe: oodbench.Probe) -> nn.Linear | None:
        """A copy of the final linear layer in float32, for detectors that read features."""
        if "features" not in self.signals:
            return None
        weight, bias = probe.classifier.weight_and_bias
        return linear(weight.float().cpu(), bias.float().cpu())

    def made(self, parts: dict[str, Any]) -> Detector:
        """A detector of pytorch-ood with the hyper-parameters and with those of ``parts`` that it takes."""
        names = inspect.signature(self.kind).parameters
        return self.kind(**{name: value for name, value in (parts | self.parameters()).items() if name in names})

    def read(self, probe: oodbench.Probe) -> list[Tensor]:
        """What the detector takes of one batch, each with the images first."""
        raise NotImplementedError

    def parts(self, head: nn.Linear | None, inputs: list[Tensor]) -> dict[str, Any]:
        """The parts of the network that constructors of pytorch-ood ask for, by the names of their arguments."""
        return {"model": None, "encoder": None}

    def train(self, detector: Detector, inputs: list[Tensor], labels: Tensor) -> None:
        """Fit the detector on inputs like those of ``read``, of all training images, and labels (N,)."""
        raise NotImplementedError

    def predict(self, detector: Detector, inputs: list[Tensor]) -> Tensor:
        """Scores (N,) of what ``read`` gave."""
        raise NotImplementedError


class Learning(Adapter):
    """Mixin for detectors that are fitted. The fitted state is what they are fitted on, and a loaded one is fitted again.

    Some keep scikit-learn's or SciPy's objects, which are not tensors, and a fit on the same inputs gives the same detector.
    """

    observed_: list[Tensor]  # the inputs of all training images
    labels_: Tensor  # int64 (N,), 0 for images without labels
    layer_: list[Tensor]  # weight (classes, features) and bias (classes,) of the final linear layer, or nothing

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self._inputs: list[list[Tensor]] = []
        self._labels: list[Tensor] = []
        self._layer: nn.Linear | None = None
        self._detector: Detector | None = None

    def observe(self, probe: oodbench.Probe) -> None:
        if probe.labels is None and self.labelled:
            raise Unsuitable("needs labelled training images")
        with own_graphs():
            rows = probe.held_out.cpu() if self.calibrates else torch.ones(len(probe), dtype=torch.bool)
            labels = torch.zeros(len(probe), dtype=torch.int64) if probe.labels is None else probe.labels.cpu()
            self._inputs.append([part[rows] for part in on_cpu(self.read(probe))])
            self._labels.append(labels[rows])
            self._layer = self.last_layer(probe)

    def finish(self) -> None:
        with own_graphs():
            self.observed_ = [torch.cat(parts) for parts in zip(*self._inputs, strict=True)]
            self.labels_ = torch.cat(self._labels)
        self.layer_ = [] if self._layer is None else [self._layer.weight, self._layer.bias]
        self._inputs, self._labels, self._layer = [], [], None
        self._detector = self.fitted()

    def fitted(self) -> Detector:
        inputs, layer = on_cpu(self.observed_), on_cpu(self.layer_)
        detector = self.made(self.parts(linear(*layer) if layer else None, inputs))
        with own_graphs(gradients=True):
            self.train(detector, inputs, self.labels_.cpu())
        return detector

    def detector(self, probe: oodbench.Probe, inputs: list[Tensor]) -> Detector:
        if self._detector is None:  # loaded
            self._detector = self.fitted()
        return self._detector


class Logits(Adapter):
    """Logits (N, classes)."""

    signals = ("logits",)

    def read(self, probe: oodbench.Probe) -> list[Tensor]:
        return [probe.logits.float()]

    def train(self, detector: Detector, inputs: list[Tensor], labels: Tensor) -> None:
        detector.fit_logits(inputs[0], labels)

    def predict(self, detector: Detector, inputs: list[Tensor]) -> Tensor:
        return detector.predict_logits(inputs[0])


class AllClasses(Logits):
    """The same, beside one row for each class: OpenMax takes the distances to classes that no row predicts for 0."""

    def predict(self, detector: Detector, inputs: list[Tensor]) -> Tensor:
        (logits,) = inputs
        rows = torch.eye(logits.shape[1]).to(logits)
        return detector.predict_logits(torch.cat([logits, rows]))[: len(logits)]


class Features(Adapter):
    """Features (N, d), with the final linear layer as head."""

    signals = ("features",)

    def read(self, probe: oodbench.Probe) -> list[Tensor]:
        return [probe.features.float()]

    def parts(self, head: nn.Linear | None, inputs: list[Tensor]) -> dict[str, Any]:
        return super().parts(head, inputs) | {"head": head, "w": head.weight, "b": head.bias}

    def train(self, detector: Detector, inputs: list[Tensor], labels: Tensor) -> None:
        detector.fit_features(inputs[0], labels)

    def predict(self, detector: Detector, inputs: list[Tensor]) -> Tensor:
        return detector.predict_features(inputs[0])


class PooledMaps(Adapter):
    """Features as maps of one pixel, (N, d, 1, 1): the layer that the papers of these detectors change."""

    signals = ("features",)

    def read(self, probe: oodbench.Probe) -> list[Tensor]:
        return [probe.features.float()[:, :, None, None]]

    def parts(self, head: nn.Linear | None, inputs: list[Tensor]) -> dict[str, Any]:
        return {"backbone": None, "head": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)}

    def train(self, detector: Detector, inputs: list[Tensor], labels: Tensor) -> None:
        detector.fit_feature_maps(inputs[0], labels)

    def predict(self, detector: Detector, inputs: list[Tensor]) -> Tensor:
        return detector.predict_feature_maps(inputs[0])


class LastMaps(PooledMaps):
    """The maps (N, d, H, W) of the last layer, where their mean over space is what the final linear layer reads."""

    signals = ("features", "maps")

    def read(self, probe: oodbench.Probe) -> list[Tensor]:
        maps, features = probe.maps[-1].float(), probe.features.float()
        if maps.dim() != 4 or maps.shape[1] != features.shape[1] or not torch.allclose(maps.mean((2, 3)), features, 1e-3, 1e-4):
            raise Unsuitable("needs a network whose features are the mean of the maps of its last layer")
        return [maps]


class Layers(Adapter):
    """The activations of each layer, averaged over space: [(N, channels)]."""

    signals = ("layers",)

    def read(self, probe: oodbench.Probe) -> list[Tensor]:
        return [layer.float() for layer in probe.layers]

    def parts(self, head: nn.Linear | None, inputs: list[Tensor]) -> dict[str, Any]:
        return {"model": [nn.Identity() for _ in inputs]}  # only their number counts

    def train(self, detector: Detector, inputs: list[Tensor], labels: Tensor) -> None:
        detector.fit_structured(inputs, labels)

    def predict(self, detector: Detector, inputs: list[Tensor]) -> Tensor:
        return detector.predict_structured(inputs)


class GramVectors(Adapter):
    """Logits, then for each layer the row sums of its Gram matrices, (N, poles·channels). ``kind`` is ``PrecomputedGram``.

    pytorch-ood's fit wants to run the layers itself. The maps of all training images would be too large to keep.
    """

    signals = ("logits", "maps")

    def read(self, probe: oodbench.Probe) -> list[Tensor]:
        maps = [each.float() for each in probe.maps]
        poles = self.num_poles_list or range(1, len(maps) + 1)
        vectors = [torch.cat([self.kind.row_sums(each, pole) for pole in poles], 1) for each in maps]
        return [probe.logits.float(), *vectors]

    def parts(self, head: nn.Linear | None, inputs: list[Tensor]) -> dict[str, Any]:
        widths = [part.shape[1] for part in inputs[1:]]
        return {"head": nn.Identity(), "feature_layers": widths, "num_classes": inputs[0].shape[1]}

    def train(self, detector: Detector, inputs: list[Tensor], labels: Tensor) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.random_seed)
            detector.to("cpu").fit([(torch.cat(inputs[1:], 1), labels)])

    def predict(self, detector: Detector, inputs: list[Tensor]) -> Tensor:
        return detector.predict_structured(inputs[0], inputs[1:])


class LastLayer(Features):
    """Features (N, d) as the input of a network that is the final linear layer alone; gradients are those of its weights."""

    def parts(self, head: nn.Linear | None, inputs: list[Tensor]) -> dict[str, Any]:
        return {"model": head, "param_filter": "weight".__eq__}

    def predict(self, detector: Detector, inputs: list[Tensor]) -> Tensor:
        return detector.predict(inputs[0])


class Coverage(Features):
    """Features (N, d) as the only layer of a network that is the final linear layer alone."""

    def parts(self, head: nn.Linear | None, inputs: list[Tensor]) -> dict[str, Any]:
        leaf = Leaf()
        return {"model": nn.Sequential(leaf, head), "layers": [leaf]}

    def train(self, detector: Detector, inputs: list[Tensor], labels: Tensor) -> None:
        detector.fit([(inputs[0], labels)])

    def predict(self, detector: Detector, inputs: list[Tensor]) -> Tensor:
        return detector.predict(inputs[0])


class Dropout(Adapter):
    """Logits of passes with dropout, (N, samples, classes)."""

    signals = ("stochastic",)

    def read(self, probe: oodbench.Probe) -> list[Tensor]:
        return [probe.stochastic(self.samples, self.p, self.random_seed).float().transpose(0, 1)]

    def parts(self, head: nn.Linear | None, inputs: list[Tensor]) -> dict[str, Any]:
        return {"model": Replay(inputs[0])}

    def predict(self, detector: Detector, inputs: list[Tensor]) -> Tensor:
        return detector.predict(inputs[0])


class Step(Adapter):
    """Images, of which pytorch-ood makes others by a step of size ``eps`` against a gradient. The probe runs the network."""

    signals = ("logits", "images", "input_gradient")

    def statistics(self, probe: oodbench.Probe) -> Tensor:
        with own_graphs():
            return self.made({"model": OneStep(probe, self.eps, logits_of)}).predict(probe.images.cpu())


class StepByDistance(Features):
    """The same for the Mahalanobis distance of the features."""

    signals = ("features", "images", "input_gradient")

    def statistics(self, probe: oodbench.Probe) -> Tensor:
        with own_graphs():
            detector = self.detector(probe, [])
            detector._base.encoder = OneStep(probe, self.eps, features_of)
            return detector.predict(probe.images.cpu())
