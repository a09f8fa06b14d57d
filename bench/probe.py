"""What the network computes for one batch of images: each quantity once, when first needed, shared by all detectors.

A detector never runs the network outside the probe, so that N detectors cost one forward pass plus their own work.
The forward pass keeps its graph only if a detector declared a gradient, and is not run again for it: all losses use
the same graph for their backward passes.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from oodbench.classifier import HALF, Classifier
from oodbench.errors import BadData, TooSlow, Unsuitable, contained
from oodbench.forward.dropout import stochastic
from oodbench.forward.edit import with_edit
from oodbench.forward.shared_pass import NEED_GRAPH, ForwardPass, shared_pass
from oodbench.models.device import autocast, is_out_of_memory

SIGNALS = frozenset(
    {"images", "logits", "features", "layers", "maps", "stochastic", "input_gradient", "gradient_norms", "base", "edited"}
)

Loss = Callable[["Probe"], Tensor]  # a probe -> one loss per image (N,)
Edit = Callable[[Tensor], Tensor]  # a map (N, channels, …) -> another of its shape
LogitLoss = Callable[[Tensor, Tensor], Tensor]  # logits (N, classes), images -> one loss per image (N,)


@dataclass
class _Reader:
    """The signals that the detector that reads now has declared; None if no detector reads."""

    signals: frozenset[str] | None = None


class Probe:
    """One batch under one classifier.

    Args:
        classifier: None in a suite without a network; then only ``images`` is available.
        images: floats (N, C, H, W) in [0, 1], on the classifier's device and in its dtype.
        signals: the names (of ``SIGNALS``) that detectors will use; None for all of them. Using an undeclared one is an
            error, because the forward pass was not set up for it.
        labels: int64 (N,), only while training data is observed.
        held_out: bool (N,), while training data is observed: the tenth kept for detectors that normalise or calibrate
            on images that they were not fitted on.
        clean: the images (N, C, H, W) before their corruption or attack, or a function that reads them when needed;
            ``images`` itself if these are clean.
        until: index of the last layer that will be used: the forward pass stops there, before the logits.
        precision: of the forward passes, a dtype of fewer digits; None for the network's own. Probes with one have no
            gradients. What they give is in the network's dtype.
        defer: receives what ``require`` would wait for, and its error; None to check at once.

    Returned tensors are copies, and are detached except inside a loss function.
    """

    def __init__(
        self,
        classifier: Classifier | None,
        images: Tensor,
        signals: Iterable[str] | None = None,
        *,
        labels: Tensor | None = None,
        held_out: Tensor | None = None,
        clean: Tensor | Callable[[], Tensor] | None = None,
        until: int | None = None,
        precision: torch.dtype | None = None,
        defer: Callable[[tuple[Tensor, Exception]], None] | None = None,
    ) -> None:
        self._classifier = classifier
        self._images, self._labels = images, labels
        none = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self._held_out = none if held_out is None else held_out
        self._signals = SIGNALS if signals is None else frozenset(signals)
        self._reader = _Reader()  # shared with the probes made from this one
        self._graph = bool(self._signals & NEED_GRAPH) and classifier is not None
        self._clean = clean
        self._until, self._precision = until, precision
        self._defer = defer
        self._memo: dict[Hashable, Any] = {}
        self._in_loss = False

    def __len__(self) -> int:
        return len(self._images)

    @contextmanager
    def read_by(self, signals: Iterable[str]) -> Iterator[None]:
        """Within this context, reading others than these signals raises BadData, even if other detectors read them."""
        before, self._reader.signals = self._reader.signals, frozenset(signals)
        try:
            yield
        finally:
            self._reader.signals = before

    @property
    def images(self) -> Tensor:
        """Floats (N, C, H, W) in [0, 1], on the classifier's device and in its dtype."""
        with torch.inference_mode(False):  # so that a detector may start a graph from them
            return self._images.clone()

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,) while training data is observed, else None."""
        return None if self._labels is None else self._labels.clone()

    @property
    def held_out(self) -> Tensor:
        """bool (N,): which training images are kept to normalise or calibrate on; False for all others."""
        return self._held_out.clone()

    def mode(self) -> AbstractContextManager:
        """The context in which detectors read this probe: inference mode, unless a gradient is declared."""
        return torch.no_grad() if self._graph else torch.inference_mode()

    @property
    def classifier(self) -> Classifier:
        """The network that the images go through. Raises Unsuitable if the suite has none."""
        if self._classifier is None:
            raise Unsuitable("needs a classifier, and this suite has none")
        return self._classifier

    @property
    def logits(self) -> Tensor:
        """float64 (N, classes); in float32 a third of the largest softmax probabilities of real images tie."""
        return self._give(self._once("logits", lambda: self._logits().double()))

    @property
    def softmax(self) -> Tensor:
        """float64 (N, classes)."""
        return self._give(self._once("softmax", lambda: self._logits().double().softmax(1)))

    @property
    def prediction(self) -> Tensor:
        """int64 (N,): the class of the largest logit."""
        return self._give(self._once("prediction", lambda: self.logits.argmax(1)))

    @property
    def features(self) -> Tensor:
        """(N, features): input of the final linear layer, in the network's dtype. Raises Unsuitable if there is none."""
        self._declared("features", "stochastic")
        self._forward().require("features")
        features = self._forward().features
        if features is None or not self._once("is head", self._head_gives_logits):
            self.classifier.head  # noqa: B018  # raises with the reason if the head is missing
            raise Unsuitable(
                f"{self.classifier.name}: its logits do not come from '{self.classifier.head_name}', its last linear layer;"
                " name the one that gives them with Classifier(…, head=…)"
            )
        return self._give(features.to(self._images.dtype))

    @property
    def layers(self) -> list[Tensor]:
        """One (N, channels) per layer of ``classifier.layer_names``: activations averaged over space, or over tokens.

        Raises Unsuitable if the layers are not known, if the forward pass does not go through one of them, or if its channels
        are not (see ``oodbench.forward.channels``).
        """
        return [self.layer(place) for place in range(max(1, len(self.classifier.layer_names)))]

    def layer(self, place: int) -> Tensor:
        """(N, channels): one of ``layers``."""
        self._declared("layers")
        return self._give(self._kept("layers", place).to(self._images.dtype))

    @property
    def maps(self) -> list[Tensor]:
        """One (N, channels, …) per layer of ``classifier.layer_names``, not averaged. Raises like ``layers``."""
        self._declared("maps")
        kept = (self._kept("maps", place) for place in range(max(1, len(self.classifier.layer_names))))
        return [self._give(one.to(self._images.dtype)) for one in kept]

    def stochastic(self, passes: int, p: float = 0.5, seed: int = 0) -> Tensor:
        """Logits of ``passes`` forward passes with dropout, BatchNorm in eval mode: float64 (passes, N, classes).

        Each image has masks of its own in each pass, drawn from the seed and its pixels, so that its logits do not depend
        on its batch. Units are dropped in the modules of ``DROPOUTS`` that the forward pass goes through, but not by
        ``F.dropout`` or inside ``nn.MultiheadAttention``. In a network without dropout, features are dropped with
        probability ``p`` before the head, which needs no further forward pass.

        Raises Unsuitable if the first dimension of a dropout's input is not the images', so that a mask would not belong
        to an image.
        """
        self._declared("stochastic")
        given = self._images, passes, p, seed, lambda: self.features
        logits, check = self._once(
            ("stochastic", passes, p, seed), lambda: stochastic(self.classifier, *given, self._precision)
        )
        if check is not None:
            self.require(*check)
        return self._give(logits)

    def edited(self, place: int, edit: Edit, key: Hashable = None) -> Tensor:
        """Logits of a forward pass in which ``edit`` changes the output of one of the layers: float64 (N, classes).

        ``edit`` maps one of ``maps`` (N, channels, …) to a tensor of the same shape, for the first call of that layer. The
        logits are computed once for each place and ``key`` (by default the function itself). Raises like ``maps``.
        """
        self._declared("edited")
        name = self._layer_name(place)
        once = "edited", name, key if key is not None else edit
        return self._give(self._once(once, lambda: self._cast(with_edit, self._images, name, edit)))

    @property
    def base(self) -> "Probe":
        """The probe of the clean twins, without gradients; for in-distribution images, this probe itself.

        Raises Unsuitable if the images have no clean twins: only corrupted and attacked images do.
        """
        self._declared("base")
        clean = self._clean
        if clean is None:
            raise Unsuitable("needs the clean twin of each image; only sets with a corruption or an attack have them")
        if clean is self._images:
            return self

        def probe() -> Probe:
            images = clean if isinstance(clean, Tensor) else clean()
            return self._made(images, clean=images)

        return self._once("base", probe)

    def require(self, holds: Tensor, error: Exception) -> None:
        """Raise ``error`` unless ``holds``, a bool tensor, is True everywhere.

        On an accelerator the detector fails with it once the set ends, so that no batch waits for the device.
        """
        if self._defer is not None and holds.device.type != "cpu":
            self._defer((holds.all(), error))
        elif not holds.all():
            raise error

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """What a detector computes of this batch for its scores and its class probabilities, computed once for each ``key``."""
        return self._give(self._once(("own", key), compute))

    def input_gradient(self, loss: Loss, key: Hashable = None) -> Tensor:
        """∂ Σₙ lossₙ / ∂ images: (N, C, H, W), so each image's gradient is its own.

        ``loss`` maps a probe to (N,) and may use a detector's fitted state. It is computed once for each ``key``
        (by default the function itself), so detectors that pass the same key share its backward pass.
        """
        self._declared("input_gradient")
        return self._give(self._once(("gradient", key if key is not None else loss), lambda: self._backward(loss)))

    def gradient_norms(self, loss: str | LogitLoss = "ones", key: Hashable = None) -> Tensor:
        """‖∇_θp lossₙ‖² for every parameter tensor p of the network, in order: (N, parameters).

        ``loss`` is a name of ``oodbench.gradients.losses`` or a function of logits (N, classes) and images to (N,);
        memoised like ``input_gradient``. The backward pass uses the shared graph, and no weight gradient is computed
        (see ``oodbench.gradients``).
        """
        self._declared("gradient_norms")
        return self._give(self._once(("norms", key if key is not None else loss), lambda: self._parameter_norms(loss)))

    def perturbed(self, epsilon: float, loss: Loss, key: Hashable = None, until: int | None = None) -> "Probe":
        """The probe of images − ε·sign(∂loss/∂images), with sign(0) = +1, sign(NaN) = NaN, not clipped (Liang et al. 2018).

        ε is in pixel units of [0, 1]. ε = 0 returns this probe itself, without computing a gradient. If only layers up
        to ``layer(until)`` are needed, give ``until``: the forward pass stops there.
        """
        if epsilon == 0:
            return self
        key = key if key is not None else loss

        def step() -> Probe:
            gradient = self.input_gradient(loss, key)
            sign = torch.where(gradient >= 0, 1.0, torch.where(gradient < 0, -1.0, gradient)).to(self._images.dtype)
            return self._made(self._images - epsilon * sign, until=until)

        return self._once(("perturbed", float(epsilon), key, until), step)

    def with_images(self, images: Tensor, key: Hashable) -> "Probe":
        """The probe of changed images (N, C, H, W), without gradients, made once for each ``key``, which names the change."""
        return self._once(("images", key), lambda: self._made(images))

    def _made(self, images: Tensor, **options: Any) -> "Probe":
        """A probe of other images, without gradients, for the detector that reads this one."""
        made = Probe(
            self._classifier, images, self._signals - NEED_GRAPH, precision=self._precision, defer=self._defer, **options
        )
        made._reader = self._reader
        return made

    def _layer_name(self, place: int) -> str:
        if not self.classifier.layer_names:
            raise Unsuitable(f"{self.classifier.name}: its layers are not known; name them with Classifier(…, layers=[…])")
        return self.classifier.layer_names[place]

    def _kept(self, what: Literal["layers", "maps"], place: int) -> Tensor:
        """The tensor of ``layers`` or ``maps`` at one index."""
        name = self._layer_name(place)
        kept = getattr(self._forward(), what).get(name)
        if kept is None:
            raise Unsuitable(f"{self.classifier.name}: its forward pass does not go through {name}")
        if isinstance(kept, Exception):
            raise kept
        return kept

    def _cast(self, passed: Callable[..., Any], *arguments: Any) -> Any:
        """What a forward pass, ``passed(classifier, *arguments)``, gives in the precision of this probe."""
        with autocast(self._images.device, self._precision):
            return passed(self.classifier, *arguments)

    def _head_gives_logits(self) -> bool:
        given, logits = self._forward().head, self._forward().logits
        if logits is None or given is logits:  # which no device need compare
            return True
        return isinstance(given, Tensor) and given.shape == logits.shape and torch.allclose(given, logits, equal_nan=True)

    def _logits(self) -> Tensor:
        logits = self._forward().logits
        if logits is None:
            raise Unsuitable(f"asked for logits of a probe that stops at layer {self._until}")
        return logits

    def _declared(self, signal: str, *implied_by: str) -> None:
        declared = self._signals if self._reader.signals is None else self._signals & self._reader.signals
        if not declared & {signal, *implied_by}:
            raise BadData(f"asked the probe for '{signal}' without declaring it: add it to the detector's signals")
        if signal in NEED_GRAPH and self._images.dtype in HALF:
            dtype = str(self._images.dtype).removeprefix("torch.")
            raise Unsuitable(
                f"needs a network in float32 or float64, because {dtype} loses gradients and small pixel steps to rounding;"
                " convert it with module.float()"
            )

    def _give(self, tensor: Tensor) -> Tensor:
        # A copy, so that a detector that writes into it does not change what the others see.
        return tensor if self._in_loss else tensor.detach().clone()

    def _once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if key not in self._memo:
            # Gradients are on whenever a graph is kept, so that a value first computed outside a loss still depends
            # on the images when a loss uses it.
            with torch.set_grad_enabled(self._graph):
                self._memo[key] = compute()
        return self._memo[key]

    def forward(self) -> None:
        """Run the network now, so that its time is not charged to one detector; otherwise it runs when first needed.

        What the network raises is raised when a detector reads something of the network, except TooSlow, and that memory is
        short for more than one image.
        """
        self._once("forward", self._run)

    def forget(self) -> None:
        """Compute everything again when it is next needed. A graph does not outlive a change of weights, even an undone one."""
        self._memo.clear()

    def _forward(self) -> ForwardPass:
        if self._reader.signals is not None and self._reader.signals <= {"images"}:
            raise BadData("asked the probe for what the network gives, but declares only images: add 'logits' to its signals")
        made: ForwardPass | Exception = self._once("forward", self._run)
        if isinstance(made, Exception):
            raise made
        return made

    def _run(self) -> ForwardPass | Exception:
        try:
            until = None if self._until is None else self.classifier.layer_names[self._until]
            with contained():
                return self._cast(shared_pass, self._images, self._signals, until)
        except TooSlow:
            raise
        except Exception as error:
            if is_out_of_memory(error) and len(self) > 1:
                raise
            return error

    def _parameter_norms(self, loss: str | LogitLoss) -> Tensor:
        from oodbench.gradients.losses import loss_of

        logits, made = self._logits(), self._forward()
        made.require("gradient_norms")
        assert made.recording is not None
        norms, _ = made.recording.backward(logits, loss_of(loss), {})
        return torch.stack(list(norms.values()), 1)

    def _backward(self, loss: Loss) -> Tensor:
        from oodbench.gradients.losses import per_image

        made = self._forward()
        made.require("input_gradient")
        assert made.leaf is not None
        self._in_loss = True
        try:
            with torch.enable_grad():
                values = per_image(loss(self), len(self))
            (gradient,) = torch.autograd.grad(values.sum(), made.leaf, retain_graph=True)
        finally:
            self._in_loss = False
        return gradient.masked_fill(values.detach().isnan().view(-1, 1, 1, 1), torch.nan)  # a NaN loss has no gradient
