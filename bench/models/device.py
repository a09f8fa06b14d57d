"""The device that a network runs on."""

import torch

from oodbench.errors import OodbenchError, UsageError


def resolve_device(name: str) -> torch.device:
    """``auto`` (CUDA if available, else the CPU), ``cpu``, ``cuda`` or ``cuda:N`` -> the device.

    Raises UsageError for an unknown name, and OodbenchError if the device is not available.
    """
    kind, _, index = name.partition(":")
    if name not in ("auto", "cpu", "cuda") and not (kind == "cuda" and index.isdigit()):
        raise UsageError(f"unknown device '{name}'; give auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    if kind == "cuda" and int(index or 0) >= count:
        raise OodbenchError(f"no device '{name}': this PyTorch sees {count} CUDA devices; run with --device cpu")
    return torch.device(name)
