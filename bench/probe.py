"""What the network makes of one batch of images: each thing computed once, when first asked for, shared by all detectors.

A detector never runs the network behind the probe's back, so that N detectors cost one forward pass plus what is truly
theirs. The forward pass keeps its graph only where some detector declared ``input_gradient``, and is never run twice
for that: several losses go backwards through the one graph.
"""

from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from oodbench.classifier import Classifier
from oodbench.errors import Unsuitable

SIGNALS = frozenset({"images", "logits", "features", "layers", "input_gradient"})

Loss = Callable[["Probe"], Tensor]  # a probe -> one loss an image (N,)


class _Reached(Exception):
    """Ends a forward pass at the last layer that is asked for."""


class Probe:
    """One batch under one classifier.

    Args:
        classifier: None in a suite without a network: then only ``images`` can be had.
        images: floats (N, C, H, W) in [0, 1], on the classifier's device and in its dtype.
        signals: the names (of ``SIGNALS``) that somebody will ask for; None for all of them. Asking for one that was
            not declared is an error, for its cost was not paid.
        labels: int64 (N,), only while training data is observed.
        held_out: bool (N,), while training data is observed: the tenth kept for those that normalise or calibrate
            on images they did not fit.
        until: the last layer (its place) that will be asked for: the forward pass stops there, before the logits.

    Tensors come detached, except inside a loss function, and are the asker's own, except ``images``.
    """

    def __init__(
        self,
        classifier: Classifier | None,
        images: Tensor,
        signals: Iterable[str] | None = None,
        *,
        labels: Tensor | None = None,
        held_out: Tensor | None = None,
        until: int | None = None,
    ) -> None:
        self._classifier = classifier
        self.images = images
        self.labels = labels
        none = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.held_out = none if held_out is None else held_out
        self._signals = SIGNALS if signals is None else frozenset(signals)
        self._graph = "input_gradient" in self._signals and classifier is not None
        self._leaf: Tensor | None = None  # the images that the graph starts from
        self._until = until
        self._memo: dict[Hashable, Any] = {}
        self._in_loss = False

    def __len__(self) -> int:
        return len(self.images)

    def mode(self) -> AbstractContextManager:
        """The context in which detectors read this probe: inference mode, unless a gradient will be asked for."""
        return torch.no_grad() if self._graph else torch.inference_mode()

    @property
    def classifier(self) -> Classifier:
        """The network that the images go through. Raises Unsuitable where the suite has none."""
        if self._classifier is None:
            raise Unsuitable("needs a classifier, and this suite has none")
        return self._classifier

    @property
    def logits(self) -> Tensor:
        """float64 (N, classes): in float32 a third of the largest softmax probabilities of real images tie."""
        return self._give(self._once("logits", lambda: self._logits().double()))

    @property
    def softmax(self) -> Tensor:
        """float64 (N, classes)."""
        return self._give(self._once("softmax", lambda: self._logits().double().softmax(1)))

    @property
    def prediction(self) -> Tensor:
        """int64 (N,): the class of the largest logit."""
        return self._once("prediction", lambda: self.logits.argmax(1))

    @property
    def features(self) -> Tensor:
        """(N, features): what the final linear layer reads, in the network's dtype. Raises Unsuitable where there is none."""
        self._declared("features")
        if not self._once("is head", self._head_gives_logits):
            self.classifier.head  # noqa: B018  # says what is missing, if it is missing
            raise Unsuitable(
                f"{self.classifier.name}: its logits do not come from '{self.classifier.head_name}', its last linear layer;"
                " name the one that gives them with Classifier(…, head=…)"
            )
        return self._give(self._forward()["features"])

    @property
    def layers(self) -> list[Tensor]:
        """One (N, channels) a layer of ``classifier.layer_names``: activations averaged over space.

        Raises Unsuitable where the layers are not known, or the forward pass does not go through one.
        """
        return [self.layer(place) for place in range(max(1, len(self.classifier.layer_names)))]

    def layer(self, place: int) -> Tensor:
        """(N, channels): one of ``layers``."""
        self._declared("layers")
        names = self.classifier.layer_names
        if not names:
            raise Unsuitable(f"{self.classifier.name}: its layers are not known; name them with Classifier(…, layers=[…])")
        means = self._forward()["layers"]
        if names[place] not in means:
            raise Unsuitable(f"{self.classifier.name}: its forward pass does not go through {names[place]}")
        return self._give(means[names[place]])

    def input_gradient(self, loss: Loss, key: Hashable = None) -> Tensor:
        """∂ Σₙ lossₙ / ∂ images: (N, C, H, W), so each image's gradient is its own.

        ``loss`` maps a probe to (N,) and may use a detector's fitted state. It is computed once for each ``key``
        (by default the function itself), so detectors that name one loss alike share its backward pass.
        """
        self._declared("input_gradient")
        return self._once(("gradient", key if key is not None else loss), lambda: self._backward(loss))

    def perturbed(self, epsilon: float, loss: Loss, key: Hashable = None, until: int | None = None) -> "Probe":
        """The probe of images − ε·sign(∂loss/∂images), with sign(0) = +1 and not clipped (Liang et al. 2018).

        ε is in pixel units of [0, 1]. ε = 0 is this probe itself: no gradient is taken. Where only ``layer(until)`` will
        be asked of it, say so: its forward pass goes no further.
        """
        if epsilon == 0:
            return self
        key = key if key is not None else loss

        def step() -> Probe:
            sign = torch.where(self.input_gradient(loss, key) >= 0, 1.0, -1.0).to(self.images.dtype)
            return Probe(self._classifier, self.images - epsilon * sign, self._signals - {"input_gradient"}, until=until)

        return self._once(("perturbed", float(epsilon), key, until), step)

    def _head_gives_logits(self) -> bool:
        given, logits = self._forward()["head"], self._forward().get("logits")
        return logits is None or (given is not None and given.shape == logits.shape and torch.allclose(given, logits))

    def _logits(self) -> Tensor:
        if "logits" not in self._forward():
            raise Unsuitable(f"asked for logits of a probe that goes no further than layer {self._until}")
        return self._forward()["logits"]

    def _declared(self, signal: str) -> None:
        if signal not in self._signals:
            raise Unsuitable(f"asked the probe for '{signal}' without declaring it: add it to the detector's signals")

    def _give(self, tensor: Tensor) -> Tensor:
        # A copy, for a detector that writes into it must not change what the others see.
        return tensor if self._in_loss else tensor.detach().clone()

    def _once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if key not in self._memo:
            # With gradients on wherever a graph is kept, so that what a detector computes first, outside a loss,
            # still leads back to the images when a loss uses it.
            with torch.set_grad_enabled(self._graph):
                self._memo[key] = compute()
        return self._memo[key]

    def forward(self) -> None:
        """Run the network now, so that its time is nobody's in particular; without this it runs when first needed."""
        self._forward()

    def _forward(self) -> dict[str, Any]:
        return self._once("forward", self._run)

    def _run(self) -> dict[str, Any]:
        images = self.images
        if self._graph:
            self._leaf = images = images.detach().clone().requires_grad_()
        seen: dict[str, Any] = {"features": None, "head": None, "layers": {}}
        with ExitStack() as hooks, torch.set_grad_enabled(self._graph):
            self._hook(hooks, seen)
            with suppress(_Reached):
                seen["logits"] = self.classifier(images)
        return seen

    def _hook(self, hooks: ExitStack, seen: dict[str, Any]) -> None:
        def keep_head(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen["features"], seen["head"] = inputs[0], output

        def keep_mean(name: str) -> Callable[..., None]:
            # The mean is taken here and now: a later in-place module would change the map under a kept reference.
            def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
                if name not in seen["layers"]:  # of a module that is used twice, the first use
                    seen["layers"][name] = output.flatten(2).mean(2) if output.dim() > 2 else output.clone()
                if name == last:
                    raise _Reached

            return keep

        last = None if self._until is None else self.classifier.layer_names[self._until]

        modules = dict(self.classifier.module.named_modules())
        if "features" in self._signals and self.classifier.head_name is not None:
            hooks.callback(modules[self.classifier.head_name].register_forward_hook(keep_head).remove)
        if "layers" in self._signals:
            for name in self.classifier.layer_names:
                hooks.callback(modules[name].register_forward_hook(keep_mean(name)).remove)

    def _backward(self, loss: Loss) -> Tensor:
        self._forward()
        assert self._leaf is not None
        self._in_loss = True
        try:
            with torch.enable_grad():
                values = loss(self)
            (gradient,) = torch.autograd.grad(values.sum(), self._leaf, retain_graph=True)
        finally:
            self._in_loss = False
        return gradient
