"""Records one forward pass, so that per-sample gradients of parameters follow from activation gradients alone.

A pass goes through ``torch``'s function dispatch: if a function with a rule is called with a parameter, its input is kept
and a hook waits for the gradient of its output. No parameter requires a gradient, so no weight gradient is computed.

What a network makes from parameters alone (the entries of a table that an attention adds, a reshaped scale) is treated like
a parameter: its per-sample gradients go on to its parameters through the graph of how it was made.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from oodbench.gradients.attention import self_attention
from oodbench.gradients.factors import Explicit, GradientFactors
from oodbench.gradients.rules import ELEMENTWISE, RULES, Use

Sink = Callable[[str, GradientFactors], None]
Call = tuple[tuple[Any, ...], dict[str, Any]]
WHOLE = {F.multi_head_attention_forward: self_attention}  # recorded as the functions that they are made of


class Made(NamedTuple):
    """A tensor that a network uses, of parameters alone.

    names: of the parameters; tensor: without a graph, as the network sees it; value: the same with the graph of how it was
    made, or None for a parameter itself; steps: how many functions made it.
    """

    names: tuple[str, ...]
    tensor: Tensor
    value: Tensor | None = None
    steps: int = 0


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments of a function; many times as fast as ``tree_leaves``, and called for every function."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


class Recorder(TorchFunctionMode):
    """Run the network within ``with recorder:``, then call ``backward`` for the factors of each parameter.

    Args:
        parameters: by name, the parameters whose gradients are needed; none of the network's may require a gradient.
        samples: N, the batch size.
        leaf: existing start of the graph, if any: images that require a gradient.
        constants: the network's buffers.
        ways: how each parameter meets the batch, by name, as found in an earlier pass: rows per image of the tensor that it is
            added to or multiplied with, or 0 in a function with a rule, and how many functions it went through before. A pass
            adds those that it lacks. With other batch sizes a dimension of constants may look like the batch.

    After the pass, ``uncovered`` holds the names that no rule covers: used twice, or in a function without a rule.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        samples: int,
        leaf: Tensor | None = None,
        constants: Iterable[Tensor] = (),
        ways: dict[str, tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        self.samples = samples
        self.uncovered: set[str] = set()
        self.ways = {} if ways is None else ways
        # By id, with the tensors, which are thus kept alive: what does not depend on the images.
        self._constants = {id(constant): constant for constant in constants}
        self._made = {id(parameter): Made((name,), parameter) for name, parameter in parameters.items()}
        self._starts: dict[str, Tensor] = {}  # parameters as the network's own graphs of parameters start from them
        self._used: set[str] = set()
        self._leaves = [] if leaf is None else [leaf]  # where the graph starts
        self._spread: list[tuple[Tensor, Made]] = []  # leaves that hold one copy per sample, and of what
        self._late: list[tuple[Made, Tensor]] = []  # per-sample gradients that have not gone on to the parameters
        self._sink: Sink | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():  # no gradient reaches this place
            return func(*args, **kwargs)
        tensors = list(_tensors((*args, *kwargs.values())))
        own = [self._made[id(tensor)] for tensor in tensors if id(tensor) in self._made]
        if not own:
            made = func(*args, **kwargs)
            if tensors and all(map(self._is_constant, tensors)):
                self._add_constants(made)
            return made
        others = [tensor for tensor in tensors if id(tensor) not in self._made]
        if func in WHOLE:
            with self:
                whole = WHOLE[func](*args, **kwargs)
            if whole is not None:
                return whole
        elif func in RULES:
            use = RULES[func](self.samples, *args, **kwargs)
            if id(use.x) not in self._made and (out := self._recorded(own, use, func, (args, kwargs))) is not None:
                return out
        elif (call := self._with_copies(func, args, kwargs, own, others)) is not None:
            return func(*call[0], **call[1])
        if all(map(self._is_constant, others)):
            return self._combined(func, (args, kwargs), own)
        made = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(made)):  # not a shape, a dtype or a device
            self._lose(own)
        return made

    def backward(self, outputs: Tensor, cotangents: Tensor, sink: Sink) -> None:
        """Give ``sink`` the factors of each covered parameter that the outputs depend on, as gradients arrive.

        cotangents: the gradients of each sample's own loss with respect to its outputs. May be called several times.
        """
        if not self._leaves:
            return
        self._sink = sink
        self._late.clear()
        try:
            found = torch.autograd.grad(outputs, self._leaves, cotangents, retain_graph=True, allow_unused=True)
        finally:
            self._sink = None
        gradients = {id(leaf): gradient for leaf, gradient in zip(self._leaves, found, strict=True) if gradient is not None}
        late = [*self._late, *((made, gradients[id(leaf)]) for leaf, made in self._spread if id(leaf) in gradients)]
        for made, gradient in late:
            for name, part in self._through(made, gradient):
                if name not in self.uncovered:
                    sink(name, part)

    def _is_constant(self, tensor: Tensor) -> bool:
        return id(tensor) in self._constants

    def _add_constants(self, made: Any) -> None:
        self._constants |= {id(leaf): leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)}

    def _lose(self, own: list[Made]) -> None:
        names = {name for made in own for name in made.names}
        self._used |= names
        self.uncovered |= names

    def _take(self, own: list[Made], each: int) -> bool:
        """Whether these may meet the batch here: for the first time, and as in earlier passes."""
        ways = [(name, (each, made.steps)) for made in own for name in made.names]
        names = {name for name, _ in ways}
        if len(names) < len(ways) or not self._used.isdisjoint(names):
            return False
        if self.samples > 1 and any(self.ways.setdefault(name, way) != way for name, way in ways):
            return False
        self._used |= names
        return True

    def _combined(self, func: Callable[..., Any], call: Call, own: list[Made]) -> Any:
        """What a function makes of parameters and constants; its tensors are treated like parameters."""
        names = tuple(dict.fromkeys(name for made in own for name in made.names))
        steps = 1 + max(made.steps for made in own)

        def with_graph(part: Any) -> Any:
            made = self._made.get(id(part)) if isinstance(part, Tensor) else None
            if made is None or made.value is not None:
                return part if made is None else made.value
            name = made.names[0]
            if name not in self._starts:
                self._starts[name] = made.tensor.detach().requires_grad_()
            return self._starts[name]

        def without_graph(part: Any) -> Any:
            if not isinstance(part, Tensor) or not part.requires_grad:
                self._add_constants(part)
                return part
            tensor = part.detach()  # of the same memory, so that changes in place reach it
            self._made[id(tensor)] = Made(names, tensor, part, steps)
            return tensor

        try:
            args, kwargs = tree_map(with_graph, call)
            return tree_map(without_graph, func(*args, **kwargs))
        except Exception:  # what leaves torch, such as Tensor.numpy, and whole numbers refuse a graph
            self._lose(own)
            return func(*call[0], **call[1])

    def _through(self, made: Made, gradients: Tensor) -> list[tuple[str, Explicit]]:
        """From per-sample gradients (N, …) of a tensor to those of the parameters that it is made of."""
        if made.value is None:
            return [(made.names[0], Explicit(gradients))]
        starts, rows = [self._starts[name] for name in made.names], gradients.reshape(-1, *made.value.shape)
        found = torch.autograd.grad(made.value, starts, rows, retain_graph=True, allow_unused=True, is_grads_batched=True)
        return [(name, Explicit(each)) for name, each in zip(made.names, found, strict=True) if each is not None]

    def _recorded(self, own: list[Made], use: Use, func: Callable[..., Any], call: Call) -> Tensor | None:
        """The output of a function with a rule; None where it does not depend on the images."""
        out: Tensor = use.call() if use.call else func(*call[0], **call[1])
        samples = len(out)
        fits = samples == self.samples or (not use.per_sample and samples > 0 and samples % self.samples == 0)
        if not fits and self._is_constant(use.x):
            return None
        slots = {slot: self._made[id(p)] for slot, p in use.parameters.items() if p is not None and id(p) in self._made}
        # Rules multiply without conjugation, which is wrong for complex values.
        if not fits or len(slots) != len(own) or out.is_complex() or not self._take(own, 0):
            self._lose(own)
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
                self._lose(own)
                return
            parts = use.parts(gradient)
            for slot, made in slots.items():
                part = parts[slot]
                if made.value is None and made.names[0] not in self.uncovered:
                    self._sink(made.names[0], part)
                elif made.value is not None and isinstance(part, Explicit):
                    self._late.append((made, part.gradients))
                elif made.value is not None:  # a weight that is computed: its gradients would have to be formed
                    self.uncovered.update(made.names)

        out.register_hook(arrived)
        return out

    def _with_copies(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], own: list[Made], others: list[Tensor]
    ) -> Call | None:
        """The arguments with a parameter replaced by one copy per sample, if that changes nothing but its gradient."""
        bare = own[0].tensor
        if func is Tensor.expand:
            sizes = args[1] if len(args) == 2 and not isinstance(args[1], int) else args[1:]
            fits = bare.dim() == len(sizes) > 0 and sizes[0] == self.samples and not kwargs
            shape: tuple[int, ...] = (self.samples, *bare.shape[1:])
        elif func is F.scaled_dot_product_attention and len(args) >= 2:
            fits = bare is (args[3] if len(args) > 3 else kwargs.get("attn_mask"))
            shape = (*args[0].shape[:-1], args[1].shape[-2])
        elif func in ELEMENTWISE:
            fits = len(others) == 1
            shape = torch.broadcast_shapes(bare.shape, *(other.shape for other in others))
        else:
            return None
        room = (1,) * (len(shape) - bare.dim()) + tuple(bare.shape)
        fits = (
            fits and len(own) == 1 and len(room) == len(shape) and room[:1] == (1,) and shape[0] % self.samples == 0 < shape[0]
        )
        if not fits or not self._take(own, each := shape[0] // self.samples):
            return None
        leaf = bare.detach().reshape(room).expand(self.samples, *room[1:]).requires_grad_()
        self._leaves.append(leaf)
        self._spread.append((leaf, own[0]))
        copies = leaf if each == 1 else leaf.repeat_interleave(each, 0)
        changed: Call = tree_map(lambda part: copies if part is bare else part, (args, kwargs))
        return changed
