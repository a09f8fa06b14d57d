"""Squared norms of each sample's gradients, and their inner products with a direction, for every parameter tensor."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from oodbench.classifier import Classifier
from oodbench.errors import UsageError
from oodbench.gradients.coverage import SAMPLES, coverage_of, norms_one_by_one, rounding
from oodbench.gradients.factors import GradientFactors
from oodbench.gradients.losses import Loss, loss_of, per_image
from oodbench.gradients.record import Recorder
from oodbench.gradients.slow import slowly
from oodbench.registry import unknown

Norms = dict[str, Tensor]


def squared_norms(
    classifier: nn.Module,
    images: Tensor,
    loss: str | Loss | Tensor = "ones",
    *,
    parameters: Iterable[str] | None = None,
) -> Norms:
    """‖∇_θp Jₙ‖² for every parameter tensor p and every image n, with J the loss of that image alone.

    Args:
        classifier: a Classifier, or any module that maps images (N, C, H, W) to outputs (N, …). It is put into eval mode
            for the pass; its parameters, and whether they require gradients, are unchanged afterwards.
        images: (N, C, H, W), floats on its device and in its dtype; for a Classifier in [0, 1].
        loss: ``ones`` (binary cross-entropy of the logits against all ones, summed over classes), ``cross-entropy`` (to
            the predicted class), ``reconstruction`` (mean squared error against the images), a label vector (classes,),
            or a function of outputs and images to (N,): see ``oodbench.gradients.losses``.
        parameters: names of the parameters to use; by default all.

    Returns:
        By name in ``module.named_parameters()``, in order, (N,) in the network's dtype and on its device; for a Classifier,
        of the network inside. A parameter that the loss does not depend on has zeros.

    The images go through the network once, and activation gradients back once: there is no loop over samples, and no
    per-sample gradient is stored. Parameters without a rule use ``torch.func``, with one warning. On first use, the network
    is also tested on three random images, which your own forward hooks see too.

    Raises Unsuitable if a gradient does not belong to one image (BatchNorm without running statistics), and UsageError for
    an unknown loss or parameter.
    """
    return norms_and_products(classifier, images, {}, loss, parameters=parameters)[0]


def inner_products(
    classifier: nn.Module, images: Tensor, directions: Mapping[str, Tensor], loss: str | Loss | Tensor = "ones"
) -> Norms:
    """⟨∇_θp Jₙ, D_p⟩ for every image and every direction D_p, by parameter name and shaped like it. See ``squared_norms``."""
    return norms_and_products(classifier, images, directions, loss, parameters=directions)[1]


def norms_and_products(
    classifier: nn.Module,
    images: Tensor,
    directions: Mapping[str, Tensor],
    loss: str | Loss | Tensor = "ones",
    *,
    parameters: Iterable[str] | None = None,
) -> tuple[Norms, Norms]:
    """``squared_norms`` and ``inner_products`` in one pass; together they give cosines."""
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
    """One recorded forward pass of images (N, C, H, W), for backward passes of losses: run it in ``with self.recorder:``.

    The network must be in eval mode, and none of its parameters may require a gradient. Raises Unsuitable if a gradient
    does not belong to one image.
    """

    def __init__(self, classifier: nn.Module, images: Tensor, parameters: Mapping[str, Tensor] | None = None) -> None:
        self._classifier, self._images = classifier, images.detach()
        # Names as in the module itself: a Classifier's network is its attribute ``module``.
        self._prefix = "module." if isinstance(classifier, Classifier) else ""
        parameters = named_parameters(classifier) if parameters is None else parameters
        self._parameters = {self._prefix + name: parameter for name, parameter in parameters.items()}
        self._coverage = coverage_of(classifier, self._parameters, self._images)
        covered = {name: p for name, p in self._parameters.items() if name not in self._coverage.slow}
        leaf = images if images.requires_grad else None
        self.recorder = Recorder(covered, len(images), leaf, classifier.buffers(), self._coverage.ways)

    def backward(self, outputs: Tensor, loss: Loss, directions: Mapping[str, Tensor]) -> tuple[Norms, Norms]:
        """Squared norms by parameter, and inner products by direction; may be called for any number of losses."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            (cotangents,) = torch.autograd.grad(per_image(loss(leaf, self._images), len(leaf)).sum(), leaf)
        directions = {self._prefix + name: direction for name, direction in directions.items()}
        found: list[Norms] = [{}, {}]

        def values(name: str, part: GradientFactors) -> Iterator[tuple[int, Tensor]]:
            yield 0, part.squared_norms().to(outputs.dtype)
            if name in directions:
                yield 1, part.inner_products(directions[name]).to(outputs.dtype)

        def take(name: str, part: GradientFactors) -> None:
            for which, each in values(name, part):
                found[which][name] = each

        self.recorder.backward(outputs, cotangents, take)
        norms, products = (
            {name: of[name] if name in of else outputs.new_zeros(len(outputs)) for name in names}
            for of, names in zip(found, (self._parameters, directions), strict=True)
        )
        self._prove(norms, cotangents)
        slow = {n: p for n, p in self._parameters.items() if n in self._coverage.slow | self.recorder.uncovered}
        for rows, parts in slowly(self._classifier, slow, self._images, cotangents) if slow else ():
            for name, part in parts.items():
                for which, each in values(name, part):
                    (norms, products)[which][name][rows] = each
        return (
            {name.removeprefix(self._prefix): found for name, found in norms.items()},
            {name.removeprefix(self._prefix): found for name, found in products.items()},
        )

    def _prove(self, norms: Norms, cotangents: Tensor) -> None:
        """Compare parameters that had no gradient in the test, and have one now, on the images where it is largest."""
        if len(cotangents) == 1:  # with one image, no dimension can be mistaken for the batch
            return
        known = self._coverage.proved | self._coverage.slow | self.recorder.uncovered
        unproved = {name: found.max() for name, found in norms.items() if name not in known}
        if not unproved:  # as in most networks, so that nothing waits for the device
            return
        least = rounding(norms)
        for name in [name for name, largest in unproved.items() if float(largest) > least]:
            rows = norms[name].topk(min(SAMPLES, len(cotangents))).indices
            one = {name: self._parameters[name]}
            expected = norms_one_by_one(self._classifier, one, self._images[rows], cotangents[rows])
            self._coverage.compare({name: norms[name][rows]}, expected)


def named_parameters(classifier: nn.Module, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The parameters of a module, or of the network inside a Classifier, by name. Raises UsageError for an unknown name."""
    module = classifier.module if isinstance(classifier, Classifier) else classifier
    known: dict[str, Tensor] = dict(module.named_parameters())
    if names is None:
        return known
    wanted = list(names)
    for name in wanted:
        if name not in known:
            raise UsageError(unknown("parameter", name, known, "see named_parameters()"))
    return {name: parameter for name, parameter in known.items() if name in wanted}


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """In eval mode, and no parameter requires a gradient; everything is restored afterwards."""
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
