"""A pretend accelerator, ``pretend:0``: its tensors hold CPU tensors, and it refuses what CUDA refuses.

PyTorch allows one such device per process and cannot remove it, so tests set it up in processes of their own. As a command,
``python tests/helpers/pretend_device.py run digits --limit 60`` is ``oodbench run digits --limit 60`` with this device.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing

NAME = "pretend"
DEVICE = f"{NAME}:0"
CPU = torch.device("cpu")
COPIES = ("aten::copy_", "aten::_to_copy", "aten::_copy_from")  # between devices
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
SCALARS = ("aten::fill_", "aten::masked_fill", "aten::masked_fill_")  # take a number on the CPU, as all pointwise ones do
WIDE = (torch.float64, torch.complex128)
OPERATIONS: Counter[str] = Counter()  # that ran on the device
WAITING = (
    "allclose",
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique_dim",
    "_unique2",
    "equal",
    "bincount",
    "is_nonzero",
)
WAITS: Counter[str] = Counter()  # operations for which a process would wait until the device has done all before them


class Backend(backend_registration._DummyBackendModule):
    """``torch.pretend``: what PyTorch asks of a device. Its random numbers come from a generator of its own."""

    def __init__(self) -> None:
        self._random = torch.Generator().manual_seed(0).get_state()

    def manual_seed_all(self, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed + 1).get_state()  # other numbers than the CPU's, as on CUDA

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return self._random

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        self._random = state

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: Any = 0) -> None:
        pass

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Let operations on the CPU draw from the device's generator."""
        before = torch.get_rng_state()
        torch.set_rng_state(self._random)
        yield
        self._random = torch.get_rng_state()
        torch.set_rng_state(before)


BACKEND = Backend()


class PretendTensor(torch.Tensor):
    """A tensor on the device; ``held`` has its values."""

    __module__ = "torch"  # by which Foolbox knows its tensors
    held: Tensor
    float64 = True  # whether the device has it
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> "PretendTensor":
        if held.dtype in WIDE and not cls.float64:
            raise TypeError(f"Cannot convert a {NAME} Tensor to float64 dtype as the framework doesn't support float64.")
        assert not isinstance(held, PretendTensor)
        with torch.inference_mode(held.is_inference()):
            made = torch.Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                layout=held.layout,
                device=DEVICE,
            )
        made.held = held
        return made

    # What PyTorch leaves out for subclasses.
    def tolist(self) -> Any:
        WAITS["tolist"] += 1
        return self.held.tolist()

    def __format__(self, form: str) -> str:
        return format(self.held, form)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{NAME}({self.held})"

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: "PretendTensor") -> None:
        torch.Tensor.data.__set__(self, other)
        self.held = other.held

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = operation.decompose(*args, **kwargs)  # inference mode passes on operations made of others
        return run(operation, args, kwargs) if found is NotImplemented else found


def run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation of the device on the values, if they are all there."""
    name = operation.name().partition(".")[0]
    require_one_device(operation, name, args, kwargs)
    OPERATIONS[name] += 1
    WAITS[name] += waits(name, args, kwargs)
    to = kwargs.get("device")
    values, options = _mapped(args, _held), {key: _mapped(value, _held) for key, value in kwargs.items()}
    if options.get("pin_memory"):
        raise RuntimeError(f"{NAME} cannot pin memory")
    options.pop("pin_memory", None)
    with BACKEND.drawing() if torch.Tag.nondeterministic_seeded in operation.tags else contextlib.nullcontext():
        found = operation(*values, **options)
    if name == "aten::copy_":
        return args[0]
    if to is not None and to.type != NAME:
        return found
    return return_and_correct_aliasing(operation, args, kwargs, _mapped(found, _wrapped))


def waits(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a process waits for the device here, as it does with CUDA: where a number, a shape or a copy needs its values."""
    if name.removeprefix("aten::") in WAITING:
        return True
    if name in INDEXED:
        return any(each.dtype in (torch.bool, torch.uint8) for each in _tensors(args[1]))
    if name == "aten::_to_copy":
        to = kwargs.get("device")
        return to is not None and (to.type == NAME) != isinstance(args[0], PretendTensor) and not _overlaps(args[0], kwargs)
    if name in ("aten::copy_", "aten::_copy_from"):
        ways = {isinstance(each, PretendTensor) for each in args[:2]}
        source = args[1] if name == "aten::copy_" else args[0]
        return len(ways) == 2 and not _overlaps(source, {"non_blocking": len(args) > 2 and args[2]} | kwargs)
    return False


def _overlaps(source: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether a copy to the device is made while the process goes on."""
    return bool(kwargs.get("non_blocking")) and not isinstance(source, PretendTensor)


def require_one_device(operation: Any, name: str, args: Any, kwargs: dict[str, Any]) -> None:
    """Raise RuntimeError as CUDA does for tensors of two devices, and for a generator of the CPU."""
    if getattr(kwargs.get("generator"), "device", None) == CPU:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    if name in COPIES:
        return
    if name in INDEXED and isinstance(args[0], PretendTensor):  # indices may be on the CPU
        args = (args[0], *args[2:])
    number = name in (*SCALARS, *INDEXED) or torch.Tag.pointwise in operation.tags
    tensors = list(_tensors((*args, *kwargs.values())))
    strangers = [each for each in tensors if not isinstance(each, PretendTensor) and not (number and each.dim() == 0)]
    if strangers and len(strangers) < len(tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu! ({operation})")


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same value with a change to each leaf; ten times as fast as PyTorch's own ``tree_map``."""
    if isinstance(value, list | tuple):
        return type(value)([_mapped(each, change) for each in value])
    return change(value)


def _held(value: Any) -> Any:
    if isinstance(value, PretendTensor):
        return value.held
    return CPU if isinstance(value, torch.device) else value


def _wrapped(value: Any) -> Any:
    return PretendTensor(value) if isinstance(value, Tensor) else value


def _tensors(values: Any) -> Iterator[Tensor]:
    for each in values:
        if isinstance(each, list | tuple):
            yield from _tensors(each)
        elif isinstance(each, Tensor):
            yield each


def _copy_from(values: Tensor, place: Tensor, non_blocking: bool = False) -> Tensor:
    WAITS["aten::_copy_from"] += waits("aten::_copy_from", (values, place), {"non_blocking": non_blocking})
    held = [each.held if isinstance(each, PretendTensor) else each for each in (values, place)]
    held[1].copy_(held[0])
    return place


def set_up(float64: bool = True) -> None:
    """Give this process the device."""
    global _library, _copies
    PretendTensor.float64 = float64
    backend_registration._setup_privateuseone_for_python_backend(NAME, BACKEND)
    _library = torch.library.Library("_", "IMPL")
    _library.fallback(lambda operation, *args, **kwargs: run(operation, args, kwargs), "PrivateUse1")
    _copies = torch.library.Library("aten", "IMPL")
    _copies.impl("_copy_from", _copy_from, "PrivateUse1")
    torch.accelerator.synchronize = BACKEND.synchronize  # type: ignore[assignment]  # which a device in Python cannot offer


if __name__ == "__main__":
    from oodbench.cli import main

    set_up()
    main()
