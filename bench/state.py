"""Fitted state on disk: attributes that end in ``_``, stored as safetensors with a JSON header, without pickle.

A value is a tensor, a number, a string, a bool, or a list of one of these (lists of tensors included).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oodbench.errors import BadData, OodbenchError
from oodbench.paths import require_regular
from oodbench.paths import write_atomically as write_atomically


def fitted_state(thing: object) -> dict[str, Any]:
    """Attributes of an instance that end in ``_`` and do not start with it."""
    return {name: value for name, value in vars(thing).items() if name.endswith("_") and not name.startswith("_")}


def restore(thing: object, found: Mapping[str, Any], path: Path) -> None:
    """Set fitted state that ``load`` found in ``path``. Raises BadData, and sets nothing, if a name is not fitted state."""
    for name in found:
        if name.startswith("_") or not name.endswith("_"):
            raise BadData(f"{path} sets '{name}', which is not fitted state; do not use this file")
    for name, value in found.items():
        setattr(thing, name, value)


def save(path: Path, header: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write ``header`` (JSON values) and ``state`` to one safetensors file, atomically."""
    write_atomically(path, to_bytes(header, state, path.name))


def to_bytes(header: Mapping[str, Any], state: Mapping[str, Any], file: str) -> bytes:
    """What ``save`` writes to ``file``. Raises OodbenchError for a value that cannot be stored."""
    from safetensors.torch import save as tensors_to_bytes

    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().contiguous()
        elif isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) for v in value):
            tensors.update({f"{name}.{i}": v.detach().cpu().contiguous() for i, v in enumerate(value)})
        else:
            plain[name] = list(value) if isinstance(value, tuple) else value
    try:
        text = json.dumps({"header": dict(header), "state": plain}, sort_keys=True)
    except TypeError as error:
        raise OodbenchError(
            f"cannot store fitted state in {file}: {error}; keep tensors, numbers, strings or lists of"
            " these in attributes that end in _"
        ) from error
    # Copies, because safetensors refuses tensors that share memory.
    return tensors_to_bytes({k: v.clone() for k, v in tensors.items()}, {"oodbench": text})


def load(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, Any]]:
    """(header, state) of a file that ``save`` wrote. Raises BadData for any other file."""
    with _opened(path, device) as file:
        text = _text(file)
        # Copies, because the tensors are memory-mapped and change with the file.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # it has no iterator
        header, state = dict(text["header"]), dict(text["state"])
    lists: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, dot, place = name.rpartition(".")
        if dot and place.isdigit():
            lists.setdefault(stem, {})[int(place)] = tensor
        else:
            state[name] = tensor
    return header, state | {stem: [parts[i] for i in sorted(parts)] for stem, parts in lists.items()}


def load_header(path: Path) -> dict[str, Any]:
    """Read only the header, no tensors. Raises BadData like ``load``."""
    with _opened(path, "cpu") as file:
        return dict(_text(file)["header"])


def _text(file: Any) -> dict[str, Any]:
    return json.loads((file.metadata() or {})["oodbench"])


@contextmanager
def _opened(path: Path, device: torch.device | str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        require_regular(path)
        with safe_open(path, "pt", device=str(device)) as file:
            yield file
    except FileNotFoundError as error:
        raise BadData(f"no such file: {path}; check the path") from error
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise BadData(f"{path} is no oodbench file, or damaged ({error}); name another, or make it again") from error
