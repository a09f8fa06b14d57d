"""Filters that remove noise from the images before a network sees them: ``denoised:NAME`` at test time."""

import inspect
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from oodbench import models
from oodbench.datasets.corruptions import reflected
from oodbench.detectors._parameters import require_finite, require_whole
from oodbench.errors import UsageError
from oodbench.registry import check_parameters, unknown

MOST = 63  # pixels per side of a window


class Filter(nn.Module):
    """Base of filters: images (N, C, H, W), floats in [0, 1], to the same. Edges are mirrored; gradients pass through."""

    def get_extra_state(self) -> dict[str, Any]:
        """The hyper-parameters, which count in the hash of the weights."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int | float) and name != "training"}


class NonLocalMeans(Filter):
    """Non-local means (Buades, Coll and Morel, CVPR 2005): the mean over pixels around, those with similar surroundings first.

    The weight of a pixel is exp(−d² / strength²), d² the mean squared difference between the patches around it and around the
    pixel to filter, over all channels. The mean of 0.06 is about 0.8 of the noise of the generated corruptions.

    strength: in units of [0, 1].
    search: pixels per side of the window of the mean, odd.
    patch: pixels per side of a patch, odd.
    """

    def __init__(self, strength: float = 0.06, search: int = 11, patch: int = 3) -> None:
        super().__init__()
        require_finite("nl-means", "above 0", strength=strength)
        _require_odd("nl-means", search=search, patch=patch)
        self.strength, self.search, self.patch = strength, search, patch

    def forward(self, images: Tensor) -> Tensor:
        reach, border = self.search // 2, self.patch // 2
        around = _with_border(images, reach + border)
        height, width = (size + 2 * border for size in images.shape[2:])  # of an image with what patches at its edges need

        def shifted(down: int, right: int) -> Tensor:
            return around[:, :, down : down + height, right : right + width]

        centre, total, weights = shifted(reach, reach), torch.zeros_like(images), torch.zeros_like(images[:, :1])
        for down in range(self.search):
            for right in range(self.search):
                other = shifted(down, right)
                apart = (other - centre).square().mean(1, keepdim=True)  # (N, 1, H + 2b, W + 2b)
                distance = nn.functional.avg_pool2d(apart, self.patch, stride=1)  # (N, 1, H, W)
                weight = (-distance / self.strength**2).exp()
                total = total + weight * other[:, :, border : height - border, border : width - border]
                weights = weights + weight
        return total / weights


class Median(Filter):
    """The median of each channel in a window around each pixel.

    side: pixels per side of the window, odd.
    """

    def __init__(self, side: int = 3) -> None:
        super().__init__()
        _require_odd("median", side=side)
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        windows = _with_border(images, self.side // 2).unfold(2, self.side, 1).unfold(3, self.side, 1)
        return windows.flatten(4).sort(4).values[..., self.side**2 // 2]


FILTERS: dict[str, Callable[..., Filter]] = {"nl-means": NonLocalMeans, "median": Median}


def filter_of(settings: str) -> Filter:
    """The filter of settings, ``filter=median,side=5``; non-local means by default.

    Raises UsageError for an unknown filter or parameter, and for a value without sense.
    """
    given = {}
    for part in settings.split(",") if settings else ():
        key, equals, value = part.partition("=")
        if not (equals and key and value) or key in given:
            raise UsageError(f"{models.DENOISED}{settings}: '{part}' is not one KEY=VALUE; write filter=nl-means,strength=0.06")
        given[key] = value
    name = given.pop("filter", "nl-means")
    if name not in FILTERS:
        raise UsageError(unknown("filter", name, FILTERS, f"known: {', '.join(FILTERS)}"))
    check_parameters(name, given, inspect.signature(FILTERS[name]).parameters)
    return FILTERS[name](**{key: _number(name, key, value) for key, value in given.items()})


def _number(name: str, key: str, value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name}: {key} = {value!r}; give a number") from error


def _require_odd(name: str, **values: int) -> None:
    require_whole(name, 1, MOST, **values)
    for key, value in values.items():
        if value % 2 == 0:
            raise UsageError(f"{name}: {key} = {value}; give an odd number")


def _with_border(images: Tensor, size: int) -> Tensor:
    """(N, C, H, W) -> (N, C, H + 2 size, W + 2 size), mirrored at the edges."""
    rows, columns = (reflected(torch.arange(-size, side + size, device=images.device), side) for side in images.shape[2:])
    return images[:, :, rows[:, None], columns]
