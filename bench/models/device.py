"""The device that a network runs on, and what PyTorch tells of any device: CUDA, ROCm, MPS, XPU, or a plug-in's."""

import gc
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oodbench.errors import OodbenchError, UsageError

# Where Linux tells the memory of a container, in either version: its limit, what is in use, and which part can be dropped.
CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
PINNING = ("cuda", "xpu")  # where copies from pinned memory overlap with computation; a device cannot be asked
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# CUDA, ROCm and XPU raise torch.OutOfMemoryError. MPS, the CPU and libraries below PyTorch raise other errors that say so.
OUT_OF_MEMORY = re.compile(
    r"out of memory|can(no|')t allocate memory|not enough memory|STATUS_ALLOC_FAILED|OUT_OF_(DEVICE_|HOST_)?MEMORY"
    r"|invalid buffer size",
    re.IGNORECASE,
)


def resolve_device(name: str) -> torch.device:
    """``auto`` (the accelerator if there is one, else the CPU), or a name that PyTorch knows (``cpu``, ``cuda:1``, ``mps``,
    …) -> the device.

    Raises UsageError for an unknown name, and OodbenchError if the device is not available.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    device = parse_device(name)
    module = module_of(device)
    count = module.device_count() if getattr(module, "is_available", lambda: True)() else 0
    if (device.index or 0) >= count:
        remedy = f"--device {accelerator.type} or --device cpu" if accelerator else "--device cpu"
        kind = device.type.upper() if device.type != "cpu" else "CPU"
        raise OodbenchError(f"no device '{name}': this PyTorch sees {count} {kind} devices; run with {remedy}")
    return device


def parse_device(name: str) -> torch.device:
    """The device of a name other than ``auto``. Raises UsageError if PyTorch knows none, or cannot compute on it."""
    try:
        device = torch.device(name)
        module_of(device)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"unknown device '{name}'; give auto, cpu, or an accelerator that PyTorch knows, such as cuda, cuda:1, mps or xpu"
        ) from error
    return device


def module_of(device: torch.device) -> Any:
    """``torch.cuda`` of a CUDA device, ``torch.mps`` of MPS, …. Raises RuntimeError for a device without one."""
    return torch.get_device_module(device)


def name_of(device: torch.device) -> str | None:
    """The name of an accelerator, such as ``NVIDIA H100``; None if it does not tell."""
    told = getattr(module_of(device), "get_device_name", None)
    return told and told(device)


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock read next is accurate."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def available_memory(device: torch.device) -> int | None:
    """Bytes that may still be allocated: on CUDA and the like as the device tells, on the CPU as Linux tells; else None.

    The limit of a container (cgroup) counts, less what is in use there and cannot be dropped.
    """
    if device.type != "cpu":
        module = module_of(device)
        if not hasattr(module, "mem_get_info"):
            return None
        reserved = module.memory_reserved(device) - module.memory_allocated(device)  # by PyTorch, for what comes next
        return int(module.mem_get_info(device)[0]) + int(reserved)
    try:
        free = int(_entries(Path("/proc/meminfo"))["MemAvailable"]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    for folder, limit, used, droppable in CGROUPS:
        with suppress(OSError, KeyError, ValueError):  # no such limit
            kept = int((folder / used).read_text()) - int(_entries(folder / "memory.stat")[droppable])
            free = min(free, max(0, int((folder / limit).read_text()) - kept))
    return free


def _entries(path: Path) -> dict[str, str]:
    """``NAME: NUMBER kB`` or ``NAME NUMBER``, line by line."""
    return {name.rstrip(":"): rest.split()[0] for name, _, rest in (line.partition(" ") for line in path.open())}


def peak_memory(work: Callable[[], object], device: torch.device) -> float | None:
    """Run ``work``; MiB that it allocated above what was allocated before, or None for a device that does not count them."""
    module = module_of(device)
    if not hasattr(module, "max_memory_allocated"):
        work()
        return None
    module.reset_peak_memory_stats(device)
    before = module.memory_allocated(device)
    work()
    synchronise(device)
    return (module.max_memory_allocated(device) - before) / 2**20


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an operation failed because memory is short, on any device or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def release_memory(device: torch.device) -> None:
    """Give back what failed work left behind, so that other work may fit."""
    gc.collect()  # an error and the frames in its traceback refer to each other
    getattr(module_of(device), "empty_cache", lambda: None)()


def precision_on(device: torch.device, name: str) -> torch.dtype | None:
    """The dtype of a precision of ``PRECISIONS``, None for ``float32``. Raises UsageError if the device has no such one."""
    dtype = PRECISIONS[name]
    if dtype is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # where PyTorch would quietly go on in float32
            with torch.inference_mode(), torch.autocast(device.type, dtype):
                ones = torch.ones(1, 1, 2, 2, device=device)
                same = torch.nn.functional.conv2d(ones, ones).dtype == dtype
    except (RuntimeError, UserWarning) as error:
        why = str(error).partition(". ")[0]  # PyTorch then lists what other devices have
        raise UsageError(f"{device} cannot compute in {name} ({why}); leave out --precision") from error
    if not same:
        raise UsageError(f"{device} has no mixed precision in {name}; leave out --precision")
    return dtype


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Within this context, networks compute in a dtype of lower precision; None changes nothing."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Within this context, an ``autocast`` outside does not apply."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def mixed_precision(device: torch.device) -> torch.dtype | None:
    """The dtype of mixed precision; None, full precision, on the CPU and where PyTorch does not tell what is supported."""
    supported = getattr(module_of(device), "is_bf16_supported", None)
    if supported is None:
        return None
    return torch.bfloat16 if supported() else torch.float16


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's generators, those of the CPU and of every accelerator, and restore their state afterwards."""
    device = resolve_device("auto")
    count = 0 if device.type == "cpu" else torch.accelerator.device_count()
    with torch.random.fork_rng(range(count), device_type=device.type):
        torch.manual_seed(seed)
        yield


def random_state() -> Tensor:
    """The state of the accelerator's generator, empty for one that was not used yet, and without an accelerator."""
    device = resolve_device("auto")
    module = module_of(device)
    if device.type == "cpu" or not getattr(module, "is_initialized", lambda: True)():
        return torch.zeros(0)
    return module.get_rng_state()
