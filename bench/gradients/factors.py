"""Each sample's gradient of one parameter, kept as the factors that it is the product of.

It provides two quantities of N gradients ∇ₙ, each shaped like the parameter: ‖∇ₙ‖² and ⟨∇ₙ, D⟩ for a direction D. It uses
the cheapest way to compute them, and forms the gradients themselves only if they are small.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 2**24  # limit for temporary tensors, unless one sample needs more; on the CPU about its cache
DEVICE_CHUNK_BYTES = 2**28  # on an accelerator

# Cost of a convolution's norm in each of three ways, in multiply-adds of a large matrix product; fitted to measurements
# with float32 on one AVX2 core, maps of 4x4 to 32x32 and 16 to 512 channels.
THIN_COST, STORE_COST = 12, 30  # of the product: relative extra cost of a side with one channel; of storing a number
WINDOW_COST = 30  # of the Gram matrices: per entry of a window
GROUP_SHARE, GROUP_COST = 0.85, 75  # of the groups: per multiply-add; per output


class GradientFactors(Protocol):
    """‖∇ₙ‖² and ⟨∇ₙ, D⟩ of N samples."""

    def squared_norms(self) -> Tensor:
        """(N,)"""
        ...

    def inner_products(self, direction: Tensor) -> Tensor:
        """Inner products with a direction of the parameter's shape: (N,)."""
        ...


class Explicit:
    """The gradients themselves, (N, *shape): for biases, norm layers and other small parameters.

    A complex value counts as two real ones, so that norms and inner products are real.
    """

    def __init__(self, gradients: Tensor) -> None:
        self.gradients = _real(gradients).reshape(len(gradients), -1)

    def squared_norms(self) -> Tensor:
        return self.gradients.square().sum(1)

    def inner_products(self, direction: Tensor) -> Tensor:
        return self.gradients @ _real(direction).flatten()


def _real(values: Tensor) -> Tensor:
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


class Outer:
    """Σₜ gₜ xₜᵀ over T positions, for a linear layer's weight (O, I): input x (N, T, I), output gradient g (N, T, O).

    Its squared norm is Σ_{t,u} (gₜ·g_u)(xₜ·x_u), from the two Gram matrices, if there are fewer positions than channels.
    """

    def __init__(self, x: Tensor, g: Tensor) -> None:
        self.x, self.g = x, g

    def squared_norms(self) -> Tensor:
        places, inputs, outputs = self.x.shape[1], self.x.shape[2], self.g.shape[2]
        if places == 1:
            return self.x.square().sum((1, 2)) * self.g.square().sum((1, 2))
        if places * (inputs + outputs) < inputs * outputs:
            return _in_chunks(_gram_norms, places * places * 2, self.x, self.g)
        return _in_chunks(lambda x, g: _squares(torch.bmm(g.transpose(1, 2), x)), inputs * outputs, self.x, self.g)

    def inner_products(self, direction: Tensor) -> Tensor:
        return ((self.x @ direction.T) * self.g).sum((1, 2))


def _gram_norms(x: Tensor, g: Tensor) -> Tensor:
    return (torch.bmm(x, x.transpose(1, 2)) * torch.bmm(g, g.transpose(1, 2))).sum((1, 2)).clamp_min(0)


class Lookup:
    """For an embedding's weight (V, D): output gradient g (N, T, D) at rows ``index`` (N, T); an index < 0 has no gradient.

    Two positions interact if they read the same row: ‖∇‖² = Σ_{t,u} [indexₜ = index_u] gₜ·g_u.
    """

    def __init__(self, index: Tensor, g: Tensor) -> None:
        self.index, self.g = index, torch.where((index >= 0)[..., None], g, 0)

    def squared_norms(self) -> Tensor:
        def norms(index: Tensor, g: Tensor) -> Tensor:
            same = index[:, :, None] == index[:, None, :]
            return (torch.bmm(g, g.transpose(1, 2)) * same).sum((1, 2)).clamp_min(0)

        return _in_chunks(norms, 2 * self.index.shape[1] ** 2, self.index, self.g)

    def inner_products(self, direction: Tensor) -> Tensor:
        return (direction[self.index.clamp_min(0)] * self.g).sum((1, 2))


class Correlation:
    """For a convolution's weight (O, I / groups, kh, kw): input x (N, I, H, W), output gradient g (N, O, H', W').

    ∇[o, i, a, b] = Σ_p g[o, p] x[i, s p + d (a, b)], x padded, with stride s and dilation d. Four ways to its norm:

    - The *product*: for each of the kh·kw offsets the matrix g xᵀ, over all positions p. Rows of g are padded with zeros to
      those of x, so that an offset is a shift of the flattened map, a view without an unfolded copy.
    - The *Gram matrices*, for small maps: Σ_{p,q} (g_p·g_q)(X_p·X_q); the Gram matrix of patches X is the sum of kh·kw
      windows of the Gram matrix of pixels, again without unfolding.
    - The *groups*, for few channels: samples are the groups of one convolution, whose weight gradient is that of each.
    - The *patches*, for accelerators, which copy fast and start functions slowly: as a linear layer of unfolded patches.

    For the first two, x is split into s² phases, and an offset stays within one of them.
    """

    def __init__(
        self,
        x: Tensor,
        g: Tensor,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],  # left, top
        dilation: tuple[int, int],
        groups: int,
    ) -> None:
        self.x, self.g, self.kernel = x, g, kernel
        self.stride, self.dilation, self.groups = stride, dilation, groups
        # Patches reach exactly this area, whatever the padding of the other two edges.
        height, width = (
            (n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(g.shape[2:], stride, dilation, kernel, strict=True)
        )
        left, top = padding
        self.padding = (left, width - x.shape[3] - left, top, height - x.shape[2] - top)

    def inner_products(self, direction: Tensor) -> Tensor:
        weight = direction.reshape(*direction.shape[:2], *self.kernel)
        made = F.conv2d(F.pad(self.x, self.padding), weight, None, self.stride, 0, self.dilation, self.groups)
        return (made * self.g).sum((1, 2, 3))

    def squared_norms(self) -> Tensor:
        way = self._way
        sizes = {"gram": self._gram_size, "patches": self._patches_size}
        return _in_chunks(getattr(self, f"_{way}"), sizes.get(way, self._product_size), self.x, self.g)

    @property
    def _way(self) -> str:
        """The name of the fastest way."""
        if self.x.device.type != "cpu":
            return "patches"
        costs = {"product": self._product_cost, "gram": self._gram_cost, "grouped": self._grouped_cost}
        return min(costs, key=costs.__getitem__)

    # Costs and sizes per sample

    @property
    def _channels(self) -> tuple[int, int]:
        """Channels of a group: (in, out)."""
        return self.x.shape[1] // self.groups, self.g.shape[1] // self.groups

    @property
    def _weights(self) -> int:
        """Number of values in a sample's gradient."""
        return self.groups * math.prod(self._channels) * math.prod(self.kernel)

    @cached_property
    def _offsets(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """By phase (row, column): the shifts within it, one per kernel element."""
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for a in range(self.kernel[0]):
            for b in range(self.kernel[1]):
                (down, row), (right, column) = (
                    divmod(place * step, stride) for place, step, stride in zip((a, b), self.dilation, self.stride, strict=True)
                )
                found.setdefault((row, column), []).append((down, right))
        return found

    def _phase_size(self, shifts: list[tuple[int, int]]) -> tuple[int, int]:
        """(height, width) of the area of a phase's map that patches reach."""
        height, width = self.g.shape[2:]
        return height + max(down for down, _ in shifts), width + max(right for _, right in shifts)

    @property
    def _product_cost(self) -> float:
        inputs, outputs = self._channels
        thin = 1 + THIN_COST * (1 / inputs + 1 / outputs)
        return self._weights * (math.prod(self.g.shape[2:]) * thin + STORE_COST)

    @property
    def _gram_cost(self) -> float:
        inputs, outputs = self._channels
        places = math.prod(self.g.shape[2:])
        pixels = sum(math.prod(self._phase_size(shifts)) ** 2 for shifts in self._offsets.values())
        windows = WINDOW_COST * math.prod(self.kernel) * places**2
        return self.groups * (places**2 * outputs + pixels * inputs + windows)

    @property
    def _grouped_cost(self) -> float:
        if self.x.dtype != torch.float32:
            return math.inf  # only oneDNN computes many groups at once
        return self._weights * (GROUP_SHARE * math.prod(self.g.shape[2:]) + GROUP_COST)

    @property
    def _patches_size(self) -> int:
        places, inputs = math.prod(self.g.shape[2:]), self.x.shape[1] * math.prod(self.kernel)
        return places * inputs + min(self._weights, 2 * self.groups * places**2)

    @property
    def _product_size(self) -> int:
        return self._weights + 2 * self.x[0].numel() + 2 * self.g[0].numel()

    @property
    def _gram_size(self) -> int:
        pixels = max(math.prod(self._phase_size(shifts)) for shifts in self._offsets.values())
        return self.groups * (2 * math.prod(self.g.shape[2:]) ** 2 + 2 * pixels**2) + 2 * self.x[0].numel()

    # The four ways

    def _phases(self, x: Tensor) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
        """(x's map of the phase (N·groups, I, h, w), its shifts)."""
        x = F.pad(x, self.padding)
        x = x.reshape(-1, self._channels[0], *x.shape[2:])
        for (row, column), shifts in self._offsets.items():
            height, width = self._phase_size(shifts)
            phase = x[:, :, row :: self.stride[0], column :: self.stride[1]]
            yield phase[:, :, :height, :width].contiguous(), shifts

    def _product(self, x: Tensor, g: Tensor) -> Tensor:
        inputs, outputs = self._channels
        height, wide = g.shape[2:]
        total = g.new_zeros(len(g))
        for phase, shifts in self._phases(x):
            width = phase.shape[3]
            length = (height - 1) * width + wide
            flat = phase.flatten(2)
            rows = F.pad(g, (0, width - wide)).reshape(len(flat), outputs, -1)[:, :, :length]
            for down, right in shifts:
                start = down * width + right
                window = flat[:, :, start : start + length]
                if inputs == outputs == 1:  # depthwise: a matrix product of vectors is not faster
                    total += _squares((rows * window).sum(2).view(len(g), -1))
                else:
                    total += _squares(torch.bmm(rows, window.transpose(1, 2)).view(len(g), -1))
        return total

    def _gram(self, x: Tensor, g: Tensor) -> Tensor:
        height, width = g.shape[2:]
        rows = g.reshape(-1, self._channels[1], height * width)
        of_patches: Tensor | None = None  # (N·groups, height, width, height, width)
        for phase, shifts in self._phases(x):
            flat = phase.flatten(2)
            pixels = torch.bmm(flat.transpose(1, 2), flat).view(-1, *phase.shape[2:], *phase.shape[2:])
            # The windows of a phase form a grid, so that they are summed first down and then across.
            downs, rights = ({shift[axis] for shift in shifts} for axis in (0, 1))
            lines = _sum(pixels[:, down : down + height, :, down : down + height] for down in downs)
            windows = _sum(lines[:, :, right : right + width, :, right : right + width] for right in rights)
            of_patches = windows if of_patches is None else of_patches.add_(windows)
        assert of_patches is not None
        of_gradients = torch.bmm(rows.transpose(1, 2), rows)
        return (of_patches.flatten(1) * of_gradients.flatten(1)).view(len(g), -1).sum(1).clamp_min(0)

    def _grouped(self, x: Tensor, g: Tensor) -> Tensor:
        left, right, top, bottom = self.padding
        edges = [top, left]
        if (left, top) != (right, bottom):
            x, edges = F.pad(x, self.padding), [0, 0]
        x, g = (tensor.reshape(1, -1, *tensor.shape[2:]) for tensor in (x, g))
        groups = self.groups * x.shape[1] // self.x.shape[1]
        weight = x.new_empty(g.shape[1], self._channels[0], *self.kernel)  # only its shape is used
        options = (self.stride, edges, self.dilation, False, [0, 0], groups, (False, True, False))
        gradients = torch.ops.aten.convolution_backward(g, x, weight, None, *options)[1]
        return _squares(gradients.view(groups // self.groups, -1))

    def _patches(self, x: Tensor, g: Tensor) -> Tensor:
        inputs, outputs = self._channels
        maps = F.pad(x, self.padding) if any(self.padding) else x
        for axis in (0, 1):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            maps = maps.unfold(2 + axis, reach, self.stride[axis])[..., :: self.dilation[axis]]
        patches = maps.permute(0, 1, 4, 5, 2, 3).reshape(len(x) * self.groups, inputs * math.prod(self.kernel), -1)
        gradients = g.reshape(len(patches), outputs, -1)
        norms = Outer(patches.transpose(1, 2), gradients.transpose(1, 2)).squared_norms()
        return norms if self.groups == 1 else norms.view(len(x), -1).sum(1)


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    first, *others = tensors
    total = first.clone()
    for other in others:
        total += other
    return total


def _squares(products: Tensor) -> Tensor:
    return products.flatten(1).square().sum(1)


def _in_chunks(way: Callable[..., Tensor], numbers: int, *tensors: Tensor) -> Tensor:
    """``way`` for a few samples at a time, if each needs ``numbers`` temporary values: (N,)."""
    most = CHUNK_BYTES if tensors[-1].device.type == "cpu" else DEVICE_CHUNK_BYTES
    rows = max(1, most // (numbers * tensors[-1].element_size()))
    if rows >= len(tensors[0]):
        return way(*tensors)
    return torch.cat([way(*parts) for parts in zip(*(tensor.split(rows) for tensor in tensors), strict=True)])
