"""Records one forward pass, so that per-sample gradients of parameters follow from activation gradients alone.

A pass goes through ``torch``'s function dispatch: if a function with a rule is called with a parameter, its input is kept
and a hook waits for the gradient of its output. No parameter requires a gradient, so no weight gradient is computed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from oodbench.gradients.factors import Explicit, GradientFactors
from oodbench.gradients.rules import ELEMENTWISE, RULES, Use

Sink = Callable[[str, GradientFactors], None]


class Recorder(TorchFunctionMode):
    """Run the network within ``with recorder:``, then call ``backward`` for the factors of each parameter.

    Args:
        parameters: by name, the parameters whose gradients are needed; none of the network's may require a gradient.
        samples: N, the batch size.
        leaf: existing start of the graph, if any: images that require a gradient.

    After the pass, ``uncovered`` holds the names that no rule covers: used twice, or in a function without a rule.
    """

    def __init__(self, parameters: Mapping[str, Tensor], samples: int, leaf: Tensor | None = None) -> None:
        super().__init__()
        self.samples = samples
        self.uncovered: set[str] = set()
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._kept = list(parameters.values())  # keeps them alive, because their ids are used as keys
        self._used: set[str] = set()
        self._leaves = [] if leaf is None else [leaf]  # where the graph starts
        self._bare: dict[str, Tensor] = {}  # parameters that were expanded over the batch
        self._sink: Sink | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():  # no gradient reaches this place
            return func(*args, **kwargs)
        names = {self._names[id(leaf)] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._names}
        if not names:
            return func(*args, **kwargs)
        if rule := RULES.get(func):
            use = rule(self.samples, *args, **kwargs)
            return self._recorded(names, use, use.call() if use.call else func(*args, **kwargs))
        if func in ELEMENTWISE or func is Tensor.expand:
            args = self._spread(func, args)
        made = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(made)):  # not a shape, a dtype or a device
            self.uncovered.update(self._names[id(leaf)] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._names)
        return made

    def backward(self, outputs: Tensor, cotangents: Tensor, sink: Sink) -> None:
        """Give ``sink`` the factors of each covered parameter that the outputs depend on, as gradients arrive.

        cotangents: the gradients of each sample's own loss with respect to its outputs. May be called several times.
        """
        if not self._leaves:
            return
        self._sink = sink
        try:
            found = torch.autograd.grad(outputs, self._leaves, cotangents, retain_graph=True, allow_unused=True)
        finally:
            self._sink = None
        for leaf, gradient in zip(self._leaves, found, strict=True):
            for name, spread in self._bare.items():
                if spread is leaf and gradient is not None and name not in self.uncovered:
                    sink(name, Explicit(gradient))

    def _recorded(self, names: set[str], use: Use, out: Tensor) -> Tensor:
        samples = len(out)
        fits = samples == self.samples or (not use.per_sample and samples > 0 and samples % self.samples == 0)
        slots = {slot: self._names[id(p)] for slot, p in use.parameters.items() if p is not None and id(p) in self._names}
        again = self._used.intersection(names)
        self._used.update(names)
        # Rules multiply without conjugation, which is wrong for complex values.
        if not fits or again or set(slots.values()) != names or len(slots) != len(names) or out.is_complex():
            self.uncovered.update(names)
            return out
        if not out.requires_grad:
            # A leaf must not be changed in place, which later layers may do; a copy of it may be.
            self._leaves.append(out.detach().requires_grad_())
            out = self._leaves[-1].clone()
        version = use.x._version

        def arrived(gradient: Tensor) -> None:
            if self._sink is None:
                return
            if use.x._version != version:  # overwritten since
                self.uncovered.update(names)
                return
            parts = use.parts(gradient)
            for slot, name in slots.items():
                if name not in self.uncovered:
                    self._sink(name, parts[slot])

        out.register_hook(arrived)
        return out

    def _spread(self, func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments with a bare parameter replaced by one copy per sample, if that changes nothing but its gradient."""
        bare = [arg for arg in args if id(arg) in self._names]
        if not bare:  # passed by keyword
            return args
        others = [arg for arg in args if isinstance(arg, Tensor) and id(arg) not in self._names]
        name = self._names[id(bare[0])]
        if func is Tensor.expand:
            sizes = args[1] if len(args) == 2 and not isinstance(args[1], int) else args[1:]
            shape = torch.Size((self.samples, *bare[0].shape[1:]))
            fits = bare[0].dim() == len(sizes) > 0 and bare[0].shape[0] == 1 and sizes[0] == self.samples
        else:
            shape = torch.broadcast_shapes(*(arg.shape for arg in (*bare, *others)))
            room = (1,) * (len(shape) - bare[0].dim()) + tuple(bare[0].shape)
            fits = len(others) == 1 and shape[:1] == (self.samples,) and room[0] == 1
            shape = torch.Size((self.samples, *room[1:]))
        if not fits or len(bare) != 1 or name in self._used:
            self._used.add(name)
            return args
        self._used.add(name)
        leaf = bare[0].detach().reshape(1, *shape[1:]).expand(shape).requires_grad_()
        self._leaves.append(leaf)
        self._bare[name] = leaf
        return tuple(leaf if arg is bare[0] else arg for arg in args)
