"""Which axis of a layer's output holds its channels.

Convolutions give (N, channels, H, W); linear layers, LayerNorm and attention give (N, …, channels). What a layer ends in, and
how many channels that has, decides; if neither does, the layer cannot be averaged over space.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from oodbench.errors import Unsuitable

NORMS_LAST = (nn.LayerNorm, nn.RMSNorm)
FIRST = (_ConvNd, _NormBase, nn.GroupNorm)
LAST = (nn.Linear, *NORMS_LAST, nn.MultiheadAttention)


def channels_first(name: str, network: nn.Module, output: Tensor, count: int) -> Tensor:
    """The output of a layer for ``count`` images (count, …), with its channels moved to axis 1: (count, channels, …).

    Raises Unsuitable if its first axis is not the images', or if the axis of its channels is unknown.
    """
    shape = tuple(output.shape)
    if not shape or shape[0] != count:
        raise Unsuitable(
            f"layer '{name}' gives {shape} for {count} images, not {count} rows; build the network with batch_first=True, or"
            " name other layers with Classifier(…, layers=[…])"
        )
    axis = _axis(name, network, shape) if len(shape) > 2 else 1
    if axis is None:
        raise Unsuitable(
            f"layer '{name}' gives {shape}, and nothing in it tells which axis is the channels'; name layers that end in a"
            " convolution, a linear layer or a norm with Classifier(…, layers=[…])"
        )
    return output if axis == 1 else output.movedim(-1, 1)


def _axis(name: str, network: nn.Module, shape: Sequence[int]) -> int | None:
    """1, -1, or None if unknown."""
    known = _known(network.get_submodule(name).modules())
    if not known:  # an activation, for example: what comes before it decides
        parts = list(network.modules())
        before = _known(parts[: parts.index(network.get_submodule(name))])[-1:]
        by_size = _by_size(before[0], shape) if before else None
        if len(shape) == 4 and not any(isinstance(part, (*NORMS_LAST, nn.MultiheadAttention)) for part in parts):
            return by_size or 1 if before and isinstance(before[0], LAST) else 1  # a convolutional network
        return by_size
    by_size = _by_size(known[-1], shape)
    if all(isinstance(part, FIRST) for part in known):
        dims = {len(part.kernel_size) + 2 for part in known if isinstance(part, _ConvNd)}
        if dims and len(shape) not in dims:  # flattened
            return by_size
        return by_size or 1 if len({_size(part) for part in known}) == 1 else 1
    if all(isinstance(part, LAST) for part in known):
        # A subclass may normalise channels that come first.
        sure = all(type(part) in NORMS_LAST for part in known if isinstance(part, NORMS_LAST))
        return by_size or (-1 if sure or shape[1] != shape[-1] else None)
    return by_size


def _known(modules: Iterable[nn.Module]) -> list[nn.Module]:
    return [part for part in modules if isinstance(part, (*FIRST, *LAST))]


def _by_size(part: nn.Module, shape: Sequence[int]) -> int | None:
    """The axis, of the first and the last, that has as many channels as a module gives; None if both or neither has."""
    first, last = (shape[axis] == _size(part) for axis in (1, -1))
    return None if first == last else 1 if first else -1


def _size(part: nn.Module) -> int:
    """How many channels a module of ``FIRST`` or ``LAST`` gives."""
    if isinstance(part, NORMS_LAST):
        return part.normalized_shape[-1]
    names = ("out_channels", "num_features", "num_channels", "out_features", "embed_dim")
    return next(getattr(part, name) for name in names if hasattr(part, name))
