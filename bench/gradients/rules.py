"""One rule per function that a layer calls: how parameter gradients follow from its input and output gradient.

Rules are for functions instead of layers, because functions are few and everything else uses them: a LayerNorm over
channels, a convolution with circular padding, a fused normalisation and activation, a head that is called by hand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.errors import Unsuitable
from oodbench.gradients.factors import Correlation, Explicit, GradientFactors, Lookup, Outer


@dataclass
class Use:
    """One call of a function that has a rule.

    x: its input; parameters: by slot, the arguments there; parts: from the gradient of the output to (slot, factors) pairs;
    per_sample: whether the first dimension must be exactly the batch, and not a multiple of it; call: the function to call
    instead, if another one has the same values and a cheaper backward pass.
    """

    x: Tensor
    parameters: dict[str, Tensor | None]
    parts: Callable[[Tensor], dict[str, GradientFactors]]
    per_sample: bool = True
    call: Callable[[], Tensor] | None = None


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def _bias(g: Tensor) -> Explicit:
    """The gradient of a value added to each channel (dimension 1)."""
    return Explicit(g.flatten(2).sum(2) if g.dim() > 2 else g)


def linear(samples: int, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Use:
    def parts(g: Tensor) -> dict[str, GradientFactors]:
        g = g.reshape(samples, -1, weight.shape[0])
        return {"weight": Outer(input.reshape(samples, -1, weight.shape[1]), g), "bias": Explicit(g.sum(1))}

    return Use(input, {"weight": weight, "bias": bias}, parts, per_sample=False)


def conv2d(
    samples: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Use:
    stride, dilation, kernel = _pair(stride), _pair(dilation), _pair(weight.shape[2:])
    if isinstance(padding, str):  # "same" puts the extra zero at the end
        top, left = (d * (k - 1) // 2 if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True))
    else:
        top, left = _pair(padding)

    def parts(g: Tensor) -> dict[str, GradientFactors]:
        return {"weight": Correlation(input, g, kernel, stride, (left, top), dilation, groups), "bias": _bias(g)}

    return Use(input, {"weight": weight, "bias": bias}, parts)


def conv1d(
    samples: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Use:
    """A convolution of maps with height 1."""
    flat = [(1, _pair(value)[0]) for value in (stride, dilation)]
    padding = padding if isinstance(padding, str) else (0, _pair(padding)[0])
    use = conv2d(samples, input[:, :, None], weight[:, :, None], bias, flat[0], padding, flat[1], groups)

    def parts(g: Tensor) -> dict[str, GradientFactors]:
        return use.parts(g[:, :, None])

    return Use(input, {"weight": weight, "bias": bias}, parts)


def conv_transpose2d(
    samples: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Use:
    """A convolution in which input and output gradient are exchanged."""
    top, left = _pair(padding)

    def parts(g: Tensor) -> dict[str, GradientFactors]:
        weights = Correlation(g, input, _pair(weight.shape[2:]), _pair(stride), (left, top), _pair(dilation), groups)
        return {"weight": weights, "bias": _bias(g)}

    return Use(input, {"weight": weight, "bias": bias}, parts)


class EvalBatchNorm(torch.autograd.Function):
    """``F.batch_norm`` in eval mode with a backward pass of one product; PyTorch's own costs four times as much on the CPU."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, scale: Tensor, *others: Any) -> Tensor:
        ctx.save_for_backward(scale)
        return F.batch_norm(input, *others)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        return g * scale.view(-1, *[1] * (g.dim() - 2)), *[None] * 8


def batch_norm(
    samples: int,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Use:
    """In eval mode. Raises Unsuitable if images are normalised by their batch: a gradient then belongs to no single image."""
    if training or running_mean is None or running_var is None:
        raise Unsuitable(
            "normalises images by their batch (BatchNorm without running statistics), so no gradient belongs to one image"
        )
    mean, scale = running_mean, (running_var + eps).rsqrt()

    def parts(g: Tensor) -> dict[str, GradientFactors]:
        g, x = (tensor.flatten(2) if tensor.dim() > 2 else tensor[:, :, None] for tensor in (g, input))
        total = g.sum(2)
        return {"weight": Explicit(((g * x).sum(2) - mean * total) * scale), "bias": Explicit(total)}

    def call() -> Tensor:
        whole = scale if weight is None else scale * weight
        return EvalBatchNorm.apply(input, whole, mean, running_var, weight, bias, False, momentum, eps)

    return Use(input, {"weight": weight, "bias": bias}, parts, call=call)


def layer_norm(
    samples: int,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Use:
    def parts(g: Tensor) -> dict[str, GradientFactors]:
        standard = F.layer_norm(input, list(normalized_shape), eps=eps)
        g = g.reshape(samples, -1, *normalized_shape)
        return {"weight": Explicit((g * standard.view_as(g)).sum(1)), "bias": Explicit(g.sum(1))}

    return Use(input, {"weight": weight, "bias": bias}, parts, per_sample=False)


def group_norm(
    samples: int, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Use:
    def parts(g: Tensor) -> dict[str, GradientFactors]:
        return {"weight": _bias(g * F.group_norm(input, num_groups, eps=eps)), "bias": _bias(g)}

    return Use(input, {"weight": weight, "bias": bias}, parts)


def embedding(
    samples: int,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Use:
    """Raises Unsuitable for options that make an image's gradient depend on others, or that change the weight."""
    if max_norm is not None or scale_grad_by_freq:
        raise Unsuitable("has an embedding with max_norm or scale_grad_by_freq, so no gradient belongs to one image")
    row = -1 if padding_idx is None else padding_idx % len(weight)

    def parts(g: Tensor) -> dict[str, GradientFactors]:
        index = input.reshape(samples, -1)
        return {"weight": Lookup(torch.where(index == row, -1, index), g.reshape(samples, -1, weight.shape[1]))}

    return Use(input, {"weight": weight}, parts, per_sample=False)


RULES: dict[Callable[..., Any], Callable[..., Use]] = {
    F.linear: linear,
    F.conv1d: conv1d,
    F.conv2d: conv2d,
    F.conv_transpose2d: conv_transpose2d,
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.embedding: embedding,
}

# Functions that broadcast a bare parameter against the batch, so that one copy per sample changes nothing.
_OPERATORS = ("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv", "itruediv")
ELEMENTWISE = frozenset(
    [getattr(torch, name) for name in ("add", "sub", "mul", "div")]
    + [getattr(Tensor, name + end) for name in ("add", "sub", "mul", "div") for end in ("", "_")]
    + [getattr(Tensor, f"__{name}__") for name in _OPERATORS]
)
