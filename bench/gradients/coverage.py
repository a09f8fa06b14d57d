"""Finds the parameters of a network for which the rules are right, by comparison with autograd, image by image.

A rule assumes that the first dimension of a function's input is the batch, or begins with it. If a network breaks this
(tokens first, windows first), norms are wrong. Therefore each network is tested once, on three random images in float64,
and each parameter's norms are compared with those of one backward pass per image. A gradient that is zero there proves
nothing: such a parameter is compared on the first real images that give it a gradient.
"""

import copy
import warnings
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from oodbench.errors import Unsuitable
from oodbench.gradients.record import Recorder
from oodbench.gradients.slow import of_one_image

SAMPLES = 3  # small, and rarely a network's number of tokens or frames: a dimension mistaken for the batch is noticed

# By dtype: the tolerance for a norm, and the share of the network's largest norm below which a value is rounding. A wrong
# rule is off by far more than either; in float32 a ReLU may change sides now and then.
TOLERANCES = {torch.float64: (1e-6, 1e-24), torch.float32: (1e-2, 1e-10)}
COARSE = (0.2, 1e-4)  # half precision


class Coverage:
    """What is known about one network, for images of one shape.

    Attributes:
        slow: names of parameters that need the slow way.
        proved: names of parameters whose norms were compared.
        ways: how each parameter met the batch in the test, by name (see ``Recorder``).
    """

    def __init__(self, name: str) -> None:
        self.slow: set[str] = set()
        self.proved: set[str] = set()
        self.ways: dict[str, tuple[int, int]] = {}
        self._name = name

    def compare(self, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> set[str]:
        """Compare norms by rules with norms by autograd, (n,) by name; returns the names that are wrong."""
        least = rounding(expected)
        wrong = set()
        for name, norms in expected.items():
            relative, _ = TOLERANCES.get(norms.dtype, COARSE)
            if torch.allclose(found[name], norms, rtol=relative, atol=least):
                if float(norms.max()) > least:
                    self.proved.add(name)
            else:
                wrong.add(name)
        self.leave(wrong)
        return wrong

    def leave(self, names: set[str]) -> None:
        """Mark these parameters as not covered, with a warning."""
        if new := names - self.slow:
            self.slow |= new
            some = sorted(new)
            listed = ", ".join(some[:3]) + (f" and {len(some) - 3} more" if len(some) > 3 else "")
            warnings.warn(
                f"no rule covers {listed} of {self._name}: their per-sample gradients are computed by torch.func or image"
                " by image, which is exact but slow",
                stacklevel=5,
            )


def rounding(norms: Mapping[str, Tensor]) -> float:
    """The part of a network's squared norms (n,) that is rounding, relative to the largest of them."""
    if not norms:
        return 0.0
    largest = torch.stack([found.max().double() for found in norms.values()]).tolist()  # one copy from the device
    dtype = max(zip(largest, (found.dtype for found in norms.values()), strict=True), key=lambda pair: pair[0])[1]
    return TOLERANCES.get(dtype, COARSE)[1] * max(largest)


_known: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Coverage]] = WeakKeyDictionary()


def coverage_of(module: nn.Module, parameters: Mapping[str, Tensor], images: Tensor) -> Coverage:
    """What is known about a network's parameters; the first call tests the network.

    Raises Unsuitable if a gradient does not belong to one image.
    """
    key = images.shape[1:], images.dtype, tuple(parameters)
    known = _known.setdefault(module, {})
    if key not in known:
        known[key] = _tried(module, parameters, images)
    return known[key]


def norms_one_by_one(
    module: nn.Module, parameters: Mapping[str, Tensor], images: Tensor, cotangents: Tensor
) -> dict[str, Tensor]:
    """Squared norms (n,) by name, from one backward pass per image."""
    rows = []
    for image, cotangent in zip(images.split(1), cotangents.split(1), strict=True):
        gradients = of_one_image(module, parameters, image, cotangent)
        rows.append({name: gradient.abs().square().sum() for name, gradient in gradients.items()})
    return {name: torch.stack([row[name] for row in rows]) for name in parameters}


def _tried(module: nn.Module, parameters: Mapping[str, Tensor], images: Tensor) -> Coverage:
    coverage = Coverage(str(getattr(module, "name", type(module).__name__)))
    random = torch.rand(SAMPLES, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    try:
        # A copy, so that buffers that change on the way are not the network's.
        double = copy.deepcopy(module)._apply(_doubled)  # complex parameters too, which module.double() leaves
        named = dict(double.named_parameters())
        _try(coverage, double, {name: named[name] for name in parameters}, random.to(images.device, torch.float64))
    except Unsuitable:
        raise
    except Exception:  # a network that cannot be copied, or that only accepts its dtype
        buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        try:
            _try(coverage, module, parameters, random.to(images))
        except Unsuitable:
            raise
        except Exception:  # or that cannot be recorded
            coverage.leave(set(parameters))
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
    return coverage


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128) if tensor.is_complex() else tensor.double() if tensor.is_floating_point() else tensor


def _try(coverage: Coverage, module: nn.Module, parameters: Mapping[str, Tensor], images: Tensor) -> None:
    recorder = Recorder(parameters, len(images), constants=module.buffers(), ways=coverage.ways)
    with torch.enable_grad(), recorder:
        outputs = module(images)
    cotangents = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).to(outputs)
    found = {name: outputs.new_zeros(len(images)) for name in parameters}
    recorder.backward(outputs, cotangents, lambda name, part: found.__setitem__(name, part.squared_norms()))
    covered = {name: parameter for name, parameter in parameters.items() if name not in recorder.uncovered}
    expected = norms_one_by_one(module, covered, images, cotangents)
    coverage.compare(found, expected)
    coverage.leave(recorder.uncovered)
