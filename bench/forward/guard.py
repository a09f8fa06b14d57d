"""Notices what a detector changed of the network that all detectors share, and undoes it."""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oodbench.classifier import Classifier
from oodbench.errors import contained
from oodbench.models import exact

PLAIN = (bool, int, float, str, bytes)
GLOBAL_HOOKS = [hooks for name, hooks in vars(torch.nn.modules.module).items() if re.fullmatch("_global_.*_hooks", name)]


def _autocast() -> dict[str, bool]:
    """Whether it is on, by device type."""
    kinds = {"cpu", (torch.accelerator.current_accelerator() or torch.device("cpu")).type}
    return {kind: torch.is_autocast_enabled(kind) for kind in kinds}


def _set_autocast(modes: dict[str, bool]) -> None:
    for kind, mode in modes.items():
        torch.set_autocast_enabled(kind, mode)


def _set_global_hooks(before: Sequence[dict[int, Any]]) -> None:
    for hooks, content in zip(GLOBAL_HOOKS, before, strict=True):
        hooks.clear()
        hooks.update(content)


# What networks, detectors and we call; torch wraps manual_seed itself, once the first optimizer is made.
FUNCTIONS: dict[Any, list[str]] = {
    space: [name for name, value in vars(space).items() if callable(value) and name != "manual_seed"]
    for space in (torch, torch.nn.functional, torch.linalg, torch.special, np, np.linalg)
}
FUNCTIONS[torch.Tensor] = dir(torch.Tensor)  # most of which it inherits


def _functions() -> list[dict[str, Any]]:
    return [{name: vars(space).get(name) for name in names} for space, names in FUNCTIONS.items()]


def _set_functions(before: Sequence[dict[str, Any]]) -> None:
    for space, functions in zip(FUNCTIONS, before, strict=True):
        for name, function in functions.items():
            if vars(space).get(name) is function:
                continue
            if function is None:  # it was inherited
                delattr(space, name)
            else:
                setattr(space, name, function)


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)  # a set one costs time at each call


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


# What else all detectors share: how to read it, and how to set it.
TORCH: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "the umask": (_umask, os.umask),
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, _set_device),
    "functions of torch or numpy": (_functions, _set_functions),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's deterministic mode": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "torch's precision of float32": (exact.float32, exact.set_float32),
    "torch's autocast": (_autocast, _set_autocast),
    "torch's hooks on all modules": (lambda: [dict(hooks) for hooks in GLOBAL_HOOKS], _set_global_hooks),
}


class Guard:
    """Remembers a network: weights, buffers, modules, hooks, modes and other attributes of each module, and of ``TORCH`` and
    of the classes of the modules what changes their passes.

    It keeps a copy of the weights on their device. What an attribute refers to is only compared if it is a plain value, a
    dict or a tensor among the parameters and buffers. What the network itself changes in a pass over ``images`` (N, C, H, W),
    such as a count of its passes, is ignored.
    """

    def __init__(self, classifier: Classifier | None, images: Tensor | None = None) -> None:
        self._torch = {what: read() for what, (read, _) in TORCH.items()}
        named = [] if classifier is None else list(classifier.named_modules())
        self._modules = [(name, module, _attributes(module)) for name, module in named]
        kinds = {kind for _, module in named for kind in type(module).mro() if issubclass(kind, nn.Module)}
        self._kinds = [(kind, _methods(kind)) for kind in kinds]
        self._scripted = [  # a TorchScript module keeps these out of its own dict
            (_joined(name, leaf), module, leaf, value)
            for name, module in named
            if isinstance(module, torch.jit.ScriptModule)
            for leaf, value in (
                ("training", module.training),
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            )
        ]
        self._tensors: list[tuple[str, Tensor, Tensor, bool, Tensor | None]] = []
        if classifier is not None:
            self._tensors += [
                (name, tensor, tensor.detach().clone(), tensor.requires_grad, tensor.grad)
                for name, tensor in (*classifier.named_parameters(), *classifier.named_buffers())
            ]
        self._ignored: set[str] = set()
        if classifier is not None and images is not None:
            with suppress(Exception), contained(), torch.no_grad():  # which detectors report
                classifier(images.to(classifier.device, classifier.dtype))
            self.ignore_changes()

    def ignore_changes(self) -> None:
        """Undo all changes, which the network itself made, and ignore such changes from now on."""
        self._ignored |= set(self.restore())

    def restore(self) -> list[str]:
        """Undo all changes, and return the names of what was changed, such as ``fc.weight``; empty if nothing was."""
        attributes, tensors = list[str](), list[str]()
        for name, module, before in self._modules:
            for key, value in _attributes(module).items():
                if key not in before and callable(value[0]):  # such as a forward of its own; a new number harms nobody
                    attributes.append(_joined(name, key))
                    del vars(module)[key]
            for key, (value, content) in before.items():
                if not _same(vars(module).get(key), value, content):
                    attributes.append(_joined(name, key))
                    vars(module)[key] = value
                    if content is not None:
                        value.clear()
                        value.update(content)
        for kind, methods in self._kinds:
            now = _methods(kind)
            for key in now.keys() | methods.keys():
                if now.get(key) is methods.get(key):
                    continue
                attributes.append(f"{kind.__name__}.{key}")
                if key in methods:
                    setattr(kind, key, methods[key])
                else:
                    delattr(kind, key)
        for name, module, leaf, original in self._scripted:
            if getattr(module, leaf) is not original:
                attributes.append(name)
                setattr(module, leaf, original)
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor, copy, requires_grad, gradient in self._tensors:
                same = tensor.requires_grad == requires_grad and tensor.grad is gradient and _equal(tensor, copy)
                if not same:
                    tensors.append(name)
                    tensor.data = copy.clone()
                    tensor.requires_grad_(requires_grad)
                    tensor.grad = gradient
        for what, (read, write) in TORCH.items():
            if read() != self._torch[what]:
                attributes.append(what)
                write(self._torch[what])
        found = [name.removeprefix("module.") for name in (*tensors, *attributes)]
        return [name for name in found if name not in self._ignored]


def _attributes(module: nn.Module) -> dict[str, tuple[Any, dict[Any, Any] | None]]:
    """What is compared of a module: by name, each value and, of a dict, its content."""
    return {
        name: (value, dict(value) if isinstance(value, dict) else None)
        for name, value in vars(module).items()
        if value is None or isinstance(value, (dict, tuple, *PLAIN)) or callable(value)
    }


def _methods(kind: type) -> dict[str, Any]:
    """What the class itself defines, not what it inherits."""
    return {name: value for name, value in vars(kind).items() if callable(value)}


def _same(now: Any, value: Any, content: dict[Any, Any] | None) -> bool:
    if content is None or not isinstance(now, dict):
        return now is value or (isinstance(value, PLAIN) and type(now) is type(value) and now == value)
    return now is value and list(now) == list(content) and all(_same(now[key], content[key], None) for key in content)


def _equal(tensor: Tensor, copy: Tensor) -> bool:
    """Whether two tensors have the same bytes: NaN equals NaN."""
    if (tensor.dtype, tensor.device, tensor.shape) != (copy.dtype, copy.device, copy.shape):
        return False
    if tensor.is_quantized or tensor.layout != torch.strided:
        return torch.equal(tensor, copy)
    return torch.equal(*(each.detach().contiguous().reshape(-1).view(torch.uint8) for each in (tensor, copy)))


def _joined(module: str, attribute: str) -> str:
    return f"{module}.{attribute}".lstrip(".")
