"""Arithmetic as exact as its dtype says, on every device.

PyTorch computes float32 convolutions on NVIDIA's GPUs with TF32 (10 bits instead of 23), unless it is told otherwise: logits
then differ from the CPU's by a thousandth, and gradient norms by up to 8 %. Lower precision is a choice (``--precision``).
Devices that have no float64, such as Apple's MPS, run a step that needs it on the CPU.
"""

import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from oodbench.models.device import module_of

Value = TypeVar("Value")
NARROW = {torch.float64: torch.float32, torch.complex128: torch.complex64}
WIDE = tuple(NARROW)
CPU = torch.device("cpu")
# These take tensors of two devices.
AS_THEY_ARE = (
    *(torch.autograd.grad, torch.autograd.backward, Tensor.backward),
    *(Tensor.copy_, torch._has_compatible_shallow_copy_type),
)


class Float32(NamedTuple):
    """What PyTorch computes with where it is given float32, as both of its interfaces tell.

    cudnn: whether convolutions may use TF32; matmul: ``highest``, ``high`` or ``medium``. Either is None where the interface
    of PyTorch 2.9 was used for it. parts: by place of ``_PLACES``, ``none``, ``ieee``, ``tf32`` or ``bf16``; empty before 2.9.
    """

    cudnn: bool | None
    matmul: str | None
    parts: tuple[str, ...] = ()


_PLACES = ("", "cudnn.conv", "cudnn.rnn", "cuda.matmul", "mkldnn.conv", "mkldnn.rnn", "mkldnn.matmul")
EXACT = Float32(False, "highest", ("none", "none", "none", "ieee", "ieee", "ieee", "ieee"))  # as the first two leave it


def float32() -> Float32:
    """What is set now."""
    parts = tuple(place.fp32_precision for place in _places())
    return Float32(
        _unless_mixed(lambda: bool(torch.backends.cudnn.allow_tf32)), _unless_mixed(torch.get_float32_matmul_precision), parts
    )


def set_float32(precision: Float32) -> None:
    """Set what ``float32`` gave, or ``EXACT``: first by the older interface, so that who reads it afterwards gets no error."""
    if precision.cudnn is not None:
        torch.backends.cudnn.allow_tf32 = precision.cudnn
    if precision.matmul is not None:
        torch.set_float32_matmul_precision(precision.matmul)
    for place, value in zip(_places(), precision.parts, strict=False):  # PyTorch has none before 2.9
        if place.fp32_precision != value:
            place.fp32_precision = value


def _places() -> list[Any]:
    if not hasattr(torch.backends, "fp32_precision"):
        return []
    return [operator.attrgetter(place)(torch.backends) if place else torch.backends for place in _PLACES]


def _unless_mixed(read: Callable[[], Value]) -> Value | None:
    """None where PyTorch refuses to tell, because the newer interface was used too."""
    try:
        return read()
    except RuntimeError:
        return None


class _Float32:
    """Keeps float32 exact while any thread is within it, and restores what was set before the first came."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = Lock(), 0, EXACT

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = float32()
                set_float32(EXACT)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                set_float32(self._before)


_FLOAT32 = _Float32()


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Within this context, float32 is float32 and float64 works on the device."""
    with _FLOAT32, float64_for(device):
        yield


def float64_for(device: torch.device) -> AbstractContextManager[Any]:
    """Within this context, float64 works on the device: on the CPU, if the device has none, which is reported once."""
    if _has_float64(device.type):
        return nullcontext()
    _warn(device.type)
    return _OnCPU(device.type)


@cache
def _has_float64(kind: str) -> bool:
    if kind in ("cpu", "meta"):
        return True
    try:
        torch.zeros((), dtype=torch.float64, device=kind)
    except (TypeError, RuntimeError):
        return False
    properties = getattr(module_of(torch.device(kind)), "get_device_properties", None)
    return properties is None or getattr(properties(), "has_fp64", True)  # XPU tells


@cache
def _warn(kind: str) -> None:
    warnings.warn(f"{kind} has no float64: steps that need it run on the CPU, which takes longer", stacklevel=3)


class _OnCPU(TorchFunctionMode):
    """Runs each function of torch that needs float64, or that is given what such a one returned, on the CPU."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in AS_THEY_ARE or name == "__set__":
            return func(*args, **kwargs)
        given = list(_leaves((args, tuple(kwargs.values()))))
        tensors = [each for each in given if isinstance(each, Tensor)]
        dtypes = [each for each in given if isinstance(each, torch.dtype)]
        if func is Tensor.to:
            target = (*dtypes, tensors[-1].dtype)[0]
            if target not in WIDE:
                return func(args[0].to(target), *args[1:], **kwargs)  # first narrow, then to the device
            mixed = True
        else:
            here = [each for each in tensors if each.device.type == self._kind]
            mixed = bool(here) and any(
                each.device.type != self._kind and (each.dim() or each.dtype in WIDE) for each in tensors
            )
            if mixed and here[0] is args[0] and (name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))):
                return func(args[0], *_mapped(args[1:], self._back), **_mapped(kwargs, self._back))  # in place
        if mixed or func is Tensor.double or any(each in WIDE for each in dtypes or [each.dtype for each in tensors]):
            args, kwargs = _mapped(args, self._moved), _mapped(kwargs, self._moved)
        return func(*args, **kwargs)

    def _moved(self, value: Any) -> Any:
        """A tensor or device to the CPU."""
        if isinstance(value, Tensor):
            return value.cpu() if value.device.type == self._kind else value
        named = value.partition(":")[0] if isinstance(value, str) else value.type if isinstance(value, torch.device) else None
        return CPU if named == self._kind else value

    def _back(self, value: Any) -> Any:
        """A tensor to the device, in the dtype that stands for its own there."""
        if not isinstance(value, Tensor):
            return value
        return value.to(NARROW.get(value.dtype, value.dtype)).to(self._kind)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)([_mapped(each, change) for each in value])
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    return change(value)
