"""One forward pass of a batch, and what it keeps for each signal.

What fails is noted for the signals that need it, so that detectors that read other signals are not affected: a layer that
cannot be read, a network that does not work with gradients.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from oodbench.classifier import Classifier
from oodbench.errors import OodbenchError, TooSlow, Unsuitable, reason
from oodbench.forward.channels import channels_first
from oodbench.forward.hooks import hook, hookable
from oodbench.gradients import Recording
from oodbench.models.device import is_out_of_memory

NEED_GRAPH = frozenset({"input_gradient", "gradient_norms"})  # these keep the graph of the forward pass


class _Reached(Exception):
    """Ends a forward pass at the last layer that is needed."""


@dataclass
class ForwardPass:
    """What one pass keeps; of ``layers`` and ``maps`` by name of the layer, a tensor or why there is none.

    features, head: input and output of the final linear layer. leaf: the images that the graph starts from. recording: of
    parameter gradients. failures: why a signal has no values.
    """

    logits: Tensor | None = None  # None where the pass ended before
    features: Tensor | None = None
    head: Tensor | None = None
    layers: dict[str, Tensor | Exception] = field(default_factory=dict)
    maps: dict[str, Tensor | Exception] = field(default_factory=dict)
    leaf: Tensor | None = None
    recording: Recording | None = None
    failures: dict[str, Exception] = field(default_factory=dict)

    def require(self, signal: str) -> None:
        """Raise what this signal failed with."""
        if signal in self.failures:
            raise self.failures[signal]


def shared_pass(classifier: Classifier, images: Tensor, signals: frozenset[str], until: str | None) -> ForwardPass:
    """Run the network once for all signals, up to the layer ``until`` if that is given.

    If the network fails with gradients, it is run again without those that it fails with. Raises what it raises without any,
    and that memory is short for more than one image.
    """
    needed = signals & NEED_GRAPH
    refusal: Exception | None = None
    for kept in _subsets(needed):
        try:
            made = _run(classifier, images, signals - needed | kept, until)
        except TooSlow:
            raise
        except Exception as error:  # a third party's forward may raise anything
            if not kept or (is_out_of_memory(error) and len(images) > 1):
                raise
            traceback.clear_frames(error.__traceback__)  # which hold the graph of the pass that failed
            refusal = refusal or _refused(error, f"{classifier.name} does not work with gradients", "leave this detector out")
            continue
        if refusal is not None:
            made.failures |= dict.fromkeys(needed - kept, refusal)
        return made
    raise AssertionError("the last subset is empty")


def _subsets(signals: frozenset[str]) -> Iterator[frozenset[str]]:
    """All subsets, the largest first."""
    for size in range(len(signals), -1, -1):
        yield from map(frozenset, combinations(sorted(signals, reverse=True), size))


def _run(classifier: Classifier, images: Tensor, signals: frozenset[str], until: str | None) -> ForwardPass:
    made, graph = ForwardPass(), bool(signals & NEED_GRAPH)
    if graph:
        images = images.detach().clone()
    if "input_gradient" in signals:
        made.leaf = images.requires_grad_()
    with ExitStack() as hooks, torch.set_grad_enabled(graph):
        if "gradient_norms" in signals:
            try:
                made.recording = Recording(classifier, images)
                hooks.enter_context(made.recording.recorder)
            except Exception as error:
                what = f"{classifier.name}: its parameter gradients cannot be recorded"
                made.failures["gradient_norms"] = _refused(error, what, "leave this detector out")
        _hook(classifier, made, len(images), signals, until, hooks)
        with suppress(_Reached):
            made.logits = classifier(images)
    return made


def _hook(
    classifier: Classifier, made: ForwardPass, count: int, signals: frozenset[str], until: str | None, hooks: ExitStack
) -> None:
    def attach(name: str, seen: Callable[..., None]) -> None:
        hooks.callback(hook(hookable(classifier, name), seen))

    def keep_head(module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        made.features, made.head = next(iter((*inputs, *kwargs.values())), None), output

    def keep_layer(name: str) -> Callable[..., None]:
        # Take means and copies immediately: a later in-place module would change a map that is only referenced.
        def keep(module: nn.Module, inputs: Any, kwargs: Any, output: Any) -> None:
            for signal, kept, take in (("layers", made.layers, _averaged), ("maps", made.maps, torch.clone)):
                if signal in signals and name not in kept:  # first use of a module that is used twice
                    try:
                        kept[name] = take(channels_first(name, classifier.module, _tensor(output), count))
                    except Exception as error:
                        kept[name] = unreadable(name, error)
            if name == until:
                raise _Reached

        return keep

    def unreadable(name: str, error: Exception) -> Exception:
        return _refused(
            error, f"{classifier.name}: its layer '{name}' cannot be read", "name others with Classifier(…, layers=[…])"
        )

    if signals & {"features", "stochastic"} and classifier.head_name is not None:
        try:
            attach(classifier.head_name, keep_head)
        except Exception as error:
            what = f"{classifier.name}: the input of '{classifier.head_name}' cannot be read"
            made.failures["features"] = _refused(error, what, "name another layer with Classifier(…, head=…)")
    if signals & {"layers", "maps"}:
        for name in classifier.layer_names:
            try:
                attach(name, keep_layer(name))
            except Exception as error:
                made.layers[name] = made.maps[name] = unreadable(name, error)


def _tensor(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(f"it gives {type(output).__name__}, not a tensor")
    return output


def _averaged(output: Tensor) -> Tensor:
    """(N, channels, …) -> (N, channels), a copy."""
    return output.flatten(2).mean(2) if output.dim() > 2 else output.clone()


def _refused(error: Exception, what: str, remedy: str) -> Exception:
    """What a failure means for the detectors that it concerns. Too little memory does not make a network unsuitable."""
    if isinstance(error, OodbenchError) or is_out_of_memory(error):
        return error
    return Unsuitable(f"{what} ({reason(error)}); {remedy}")
