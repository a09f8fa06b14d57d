"""Squared norms of each sample's gradients, and their inner products with a direction, for every parameter tensor."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from oodbench.classifier import Classifier
from oodbench.errors import UsageError
from oodbench.gradients.coverage import uncovered
from oodbench.gradients.losses import Loss, loss_of
from oodbench.gradients.parts import Part
from oodbench.gradients.record import Recorder
from oodbench.gradients.slow import by_torch_func
from oodbench.registry import unknown

Norms = dict[str, Tensor]


def squared_norms(
    classifier: nn.Module,
    images: Tensor,
    loss: str | Loss | Tensor = "ones",
    *,
    parameters: Iterable[str] | None = None,
) -> Norms:
    """‖∇_θp Jₙ‖² for every parameter tensor p and every image n, J that image's own loss.

    Args:
        classifier: a Classifier, or any module that maps images (N, C, H, W) to outputs (N, …). It is put into eval mode
            for the pass; its parameters, and whether they require gradients, stay as they are.
        images: (N, C, H, W), floats on its device and in its dtype; for a Classifier in [0, 1].
        loss: ``ones`` (binary cross-entropy of the logits against all ones, summed over classes), ``cross-entropy`` (to
            the predicted class), ``reconstruction`` (mean squared error against the images), a label vector (classes,),
            or a function of outputs and images to (N,): see ``oodbench.gradients.losses``.
        parameters: names of those wanted; by default all.

    Returns:
        By name in ``module.named_parameters()``, in that order, (N,) in the network's dtype and on its device; for a
        Classifier, of the network inside. A parameter that the loss does not depend on has zeros.

    The images go through the network once, and activation gradients back once: no loop over samples, and no per-sample
    gradient is kept. Parameters that no rule covers go through ``torch.func``, which a warning says once.

    Raises Unsuitable where a gradient is not one image's own (BatchNorm without running statistics), UsageError for an
    unknown loss or parameter.
    """
    return norms_and_products(classifier, images, {}, loss, parameters=parameters)[0]


def inner_products(
    classifier: nn.Module, images: Tensor, directions: Mapping[str, Tensor], loss: str | Loss | Tensor = "ones"
) -> Norms:
    """⟨∇_θp Jₙ, D_p⟩ for every image and every direction D_p, by parameter's name: shaped like it. As ``squared_norms``."""
    return norms_and_products(classifier, images, directions, loss, parameters=directions)[1]


def norms_and_products(
    classifier: nn.Module,
    images: Tensor,
    directions: Mapping[str, Tensor],
    loss: str | Loss | Tensor = "ones",
    *,
    parameters: Iterable[str] | None = None,
) -> tuple[Norms, Norms]:
    """``squared_norms`` and ``inner_products`` of one pass: together they give cosines."""
    chosen = named_parameters(classifier, parameters)
    for name, direction in directions.items():
        if name not in chosen or direction.shape != chosen[name].shape:
            raise UsageError(f"no parameter '{name}' of shape {tuple(direction.shape)}; give directions shaped like parameters")
    with torch.inference_mode(False), _still(classifier):
        images = images.clone() if images.is_inference() else images.detach()
        recording = Recording(classifier, images, chosen)
        with torch.enable_grad(), recording.recorder:
            outputs = classifier(images)
        return recording.backward(outputs, loss_of(loss), directions)


class Recording:
    """One forward pass of images (N, C, H, W), through which losses go backwards: run it within ``with self.recorder:``.

    The network must be in eval mode, and none of its parameters require a gradient.
    """

    def __init__(self, classifier: nn.Module, images: Tensor, parameters: Mapping[str, Tensor] | None = None) -> None:
        self._classifier, self._images = classifier, images
        self._parameters = named_parameters(classifier) if parameters is None else parameters
        # As the module itself names them: a Classifier's network is its attribute ``module``.
        self._prefix = "module." if isinstance(classifier, Classifier) else ""
        full = {self._prefix + name: parameter for name, parameter in self._parameters.items()}
        self._slow = uncovered(classifier, full, images)
        covered = {name: parameter for name, parameter in full.items() if name not in self._slow}
        self.recorder = Recorder(covered, len(images), images if images.requires_grad else None)

    def backward(self, outputs: Tensor, loss: Loss, directions: Mapping[str, Tensor]) -> tuple[Norms, Norms]:
        """Squared norms by parameter, and inner products by direction; for as many losses as one likes."""
        with torch.enable_grad():
            (cotangents,) = torch.autograd.grad(loss(outputs, self._images).sum(), outputs, retain_graph=True)
        norms: Norms = {name: outputs.new_zeros(len(outputs)) for name in self._parameters}
        products: Norms = {name: outputs.new_zeros(len(outputs)) for name in directions}

        def take(full: str, part: Part, rows: slice = slice(None)) -> None:
            name = full.removeprefix(self._prefix)
            norms[name][rows] = part.squared_norms()
            if name in directions:
                products[name][rows] = part.inner_products(directions[name])

        self.recorder.backward(outputs, cotangents, take)
        if slow := self._slow | self.recorder.uncovered:
            parameters = {full: self._parameters[full.removeprefix(self._prefix)] for full in sorted(slow)}
            for rows, parts in by_torch_func(self._classifier, parameters, self._images, cotangents.detach()):
                for full, part in parts.items():
                    take(full, part, rows)
        return norms, products


def named_parameters(classifier: nn.Module, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The parameters of a module, or of the network inside a Classifier, by name. Raises UsageError for an unknown name."""
    module = classifier.module if isinstance(classifier, Classifier) else classifier
    known: dict[str, Tensor] = dict(module.named_parameters())
    if names is None:
        return known
    wanted = list(names)
    for name in wanted:
        if name not in known:
            raise UsageError(unknown("parameter", name, known, "names are those of named_parameters()"))
    return {name: parameter for name, parameter in known.items() if name in wanted}


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """In eval mode, and no parameter requires a gradient; afterwards all as it was."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    training = [part for part in module.modules() if part.training]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        for part in training:
            part.training = False
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for part in training:
            part.training = True
