"""Requirements for every metric of image quality, built-in or third-party, on small textures, with and without noise.

Each check is a function of a ``Subject``, the metric under check. It returns its finding, or raises: ``Skipped`` if there is
nothing to check, and any other error if the metric does not fulfil the contract.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench import registry
from oodbench.conformance.outcomes import Failed, Skipped, require
from oodbench.conformance.watch import other_randomness
from oodbench.errors import BadData, MissingData, Unsuitable, UsageError, contained
from oodbench.paths import DataRoots
from oodbench.quality.metric import QualityMetric, load_metric

COUNT = 4
LEAST_SIDE = 64  # pixels of the textures, unless the metric needs more
NOISE = (4.0, 60.0)  # standard deviations of the weak and the strong noise, of 255
RTOL = 1e-5


class Subject:
    """A metric under check; ``make`` builds it."""

    def __init__(self, make: Callable[[], QualityMetric]) -> None:
        self.make = make
        self._values: Tensor | Exception | None = None

    @property
    def side(self) -> int:
        """The shorter side of the images that it is given."""
        return max(LEAST_SIDE, self.make().smallest_side)

    @property
    def images(self) -> tuple[Tensor, Tensor]:
        """References, and the same with weak noise."""
        references = textures(self.side, self.side + 10)
        return references, noisy(references, NOISE[0])

    def score(self, references: Tensor, distorted: Tensor) -> Tensor:
        """By a new metric. Raises Skipped if files that it reads are missing."""
        try:
            return self.make().score(references.clone(), distorted.clone())
        except MissingData as error:
            raise Skipped(str(error)) from error

    @property
    def values(self) -> Tensor:
        """Of ``images``, computed once. Raises the error of the metric, if it raised one."""
        if self._values is None:
            try:
                self._values = self.score(*self.images)
            except Exception as error:
                self._values = error
        if isinstance(self._values, Exception):
            raise self._values
        return self._values

    @property
    def sound(self) -> Tensor:
        """``values``. Raises Skipped if there are none."""
        try:
            return self.values
        except Skipped:
            raise
        except Exception as error:
            raise Skipped("has no values") from error


def subject(name: str, parameters: Mapping[str, Any], data: DataRoots = None) -> Subject:
    """A metric by name, with these hyper-parameters; ``data``: where the files that it reads are."""

    def make() -> QualityMetric:
        return load_metric(name, data=data, **parameters)

    registry.find("quality_metrics", name)
    try:
        make()
    except Exception as error:
        if isinstance(error, UsageError):  # of a misspelt parameter; the first check reports all others
            raise
    return Subject(make)


@cache
def textures(height: int, width: int) -> Tensor:
    """Random clouds in colour with fine grain: uint8 (COUNT, 3, height, width)."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(COUNT, 3, -(-height // 8) + 1, -(-width // 8) + 1, generator=random)
    clouds = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    grain = torch.randn(clouds.shape, generator=random)
    return (40 + 170 * clouds + 5 * grain).clamp(0, 255).to(torch.uint8)


def noisy(images: Tensor, deviation: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + deviation * noise).clamp(0, 255).to(torch.uint8)


def contract(subject: Subject) -> str:
    """A docstring; hyper-parameters that are attributes and JSON values; a direction and a smallest side."""
    metric = subject.make()
    kind, parameters = type(metric), metric.parameters()
    require(bool((kind.__doc__ or "").strip()), f"{kind.__name__} has no docstring; say in it what it computes")
    again = kind(**json.loads(json.dumps(parameters, allow_nan=False))).parameters()
    require(json.dumps(again) == json.dumps(parameters), f"created again from {parameters} it has {again}")
    require(isinstance(metric.higher_is_better, bool), f"higher_is_better is {metric.higher_is_better!r}, not True or False")
    side = metric.smallest_side
    require(type(side) is int and side >= 1, f"smallest_side is {side!r}, not a whole number of at least 1")
    return f"{'higher' if metric.higher_is_better else 'lower'} is better, from {side} pixels per side"


def values(subject: Subject) -> str:
    """float64 (N,) on the CPU, finite, and not the same for all images."""
    found = subject.values
    require(isinstance(found, Tensor), f"score gave {type(found).__name__}, not a tensor")
    require(
        found.dtype == torch.float64 and found.shape == (COUNT,) and found.device.type == "cpu",
        f"score gave {found.dtype} {tuple(found.shape)} on {found.device}, not float64 ({COUNT},) on the CPU",
    )
    require(bool(found.isfinite().all()), f"score gave {found.tolist()}")
    require(len(set(found.tolist())) > 1, f"score gave {found[0]} for each of {COUNT} different images")
    return f"from {found.min():.4g} to {found.max():.4g} for weak noise"


def files(subject: Subject) -> str:
    """SHA-256 by path of each file that it reads."""
    try:
        found = subject.make().files()
    except MissingData as error:
        raise Skipped(str(error)) from error
    require(isinstance(found, dict), f"files() gave {type(found).__name__}, not a dict")
    wrong = [path for path, digest in found.items() if len(digest) != 64 or set(digest) - set("0123456789abcdef")]
    require(not wrong, f"files() has no SHA-256 of {', '.join(wrong)}")
    return ", ".join(found) or "reads no files"


def deterministic(subject: Subject) -> str:
    """The same values again, whatever the global random state."""
    found = subject.sound
    with other_randomness():
        again = subject.score(*subject.images)
    require(torch.equal(again, found), f"gave {found.tolist()}, then {again.tolist()}")
    return "the same again"


def batches(subject: Subject) -> str:
    """An image's value depends neither on the order of the batch nor on the other images."""
    found, (references, distorted) = subject.sound, subject.images
    turned = subject.score(references.flip(0), distorted.flip(0)).flip(0)
    require(torch.allclose(turned, found, rtol=RTOL, atol=0), f"gave {found.tolist()}, in another order {turned.tolist()}")
    alone = torch.cat([subject.score(*pair) for pair in zip(references.split(1), distorted.split(1), strict=True)])
    require(torch.allclose(alone, found, rtol=RTOL, atol=0), f"gave {found.tolist()} in a batch, and {alone.tolist()} alone")
    return "as one image at a time"


def best(subject: Subject) -> str:
    """Identical images have the best value, and strong noise has a worse one than weak noise."""
    weak, references = subject.sound, subject.images[0]
    sign = 1 if subject.make().higher_is_better else -1
    identical, strong = subject.score(references, references), subject.score(references, noisy(references, NOISE[1]))
    for better, worse, said in ((identical, weak, "identical images, and weak noise"), (weak, strong, "weak and strong noise")):
        row = int((sign * (better - worse)).argmin())
        require(bool(sign * (better[row] - worse[row]) > 0), f"gave {better[row]:.6g} and {worse[row]:.6g} for {said}")
    return f"{identical[0]:.4g} for identical images, {strong.min():.4g} to {strong.max():.4g} for strong noise"


def smallest_side(subject: Subject) -> str:
    """Images of the smallest side have a value; smaller ones are refused with Unsuitable, in one line."""
    subject.sound  # noqa: B018  # a metric without values raises for any image
    side = subject.make().smallest_side
    for height, width in ((side, 2 * side + 1), (2 * side + 1, side)):
        references = textures(height, width)
        require(bool(subject.score(references, noisy(references, NOISE[0])).isfinite().all()), f"no value for {height}x{width}")
    if side == 1:
        raise Skipped("compares images of any size")
    small = textures(side - 1, 2 * side)
    try:
        found = subject.score(small, small)
    except Unsuitable as error:
        require("\n" not in str(error), "Unsuitable must say in one line what is too small")
        return str(error)
    raise Failed(f"gave {found.tolist()} for images of {side - 1} pixels per side")


def other_images(subject: Subject) -> str:
    """Images of different shapes, of one channel or of floats are refused with BadData."""
    subject.sound  # noqa: B018
    references, distorted = subject.images
    for name, pair in {
        "images of different sizes": (references, distorted[:, :, 1:]),
        "one channel": (references[:, :1], distorted[:, :1]),
        "floats": (references / 255, distorted / 255),
    }.items():
        try:
            with contained():
                found = subject.score(*pair)
        except BadData:
            continue
        raise Failed(f"gave {found.tolist()} for {name}")
    return "refused"


def images_unchanged(subject: Subject) -> str:
    """It does not write into the images that it is given."""
    subject.sound  # noqa: B018
    given = [images.clone() for images in subject.images]
    subject.make().score(*given)
    changed = [not torch.equal(own, before) for own, before in zip(given, subject.images, strict=True)]
    require(not any(changed), f"changed the {'references' if changed[0] else 'distorted images'}")
    return "unchanged"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "contract": contract,
    "values": values,
    "files": files,
    "deterministic": deterministic,
    "batches": batches,
    "best": best,
    "smallest-side": smallest_side,
    "other-images": other_images,
    "images-unchanged": images_unchanged,
}
