"""Notices what a detector changed of the network that all detectors share, and undoes it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from oodbench.classifier import Classifier
from oodbench.errors import contained

PLAIN = (bool, int, float, str, bytes)
# What else all detectors share: how to read it, and how to set it.
TORCH: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
}


class Guard:
    """Remembers a network: weights, buffers, modules, hooks, modes and other attributes of each module.

    It keeps a copy of the weights on their device. What an attribute refers to is only compared if it is a plain value, a
    dict or a tensor among the parameters and buffers. What the network itself changes in a pass over ``images`` (N, C, H, W),
    such as a count of its passes, is ignored.
    """

    def __init__(self, classifier: Classifier | None, images: Tensor | None = None) -> None:
        self._torch = {what: read() for what, (read, _) in TORCH.items()}
        named = [] if classifier is None else list(classifier.named_modules())
        self._modules = [(name, module, _attributes(module)) for name, module in named]
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
