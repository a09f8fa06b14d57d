"""Fitted state on disk: attributes that end in ``_``, stored as safetensors with a JSON header, without pickle.

A value is a tensor, a number, a string, a bool, or a list of one of these (lists of tensors included). The header holds a
digest of the whole content, so that ``load`` notices a changed byte.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oodbench.errors import BadData, OodbenchError
from oodbench.models.exact import float64_for
from oodbench.paths import require_regular
from oodbench.paths import write_atomically as write_atomically

DIGEST = "sha256"


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
        # As ``load`` reads it: JSON makes every key a string.
        content = json.loads(json.dumps({"header": dict(header), "state": plain}))
    except TypeError as error:
        raise OodbenchError(
            f"cannot store fitted state in {file}: {error}; keep tensors, numbers, strings or lists of"
            " these in attributes that end in _"
        ) from error
    text = json.dumps(content | {DIGEST: digest_of(tensors, content)}, sort_keys=True)
    # Copies, because safetensors refuses tensors that share memory. One entry, because it writes several in a random order.
    return tensors_to_bytes({k: v.clone() for k, v in tensors.items()}, {"oodbench": text})


def digest_of(tensors: Mapping[str, Tensor], content: Any = None) -> str:
    """SHA-256 of tensors, with their names, dtypes and shapes, and of JSON values."""
    described = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in sorted(tensors)]
    digest = hashlib.sha256(json.dumps([content, described], sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, Any]]:
    """(header, state) of a file that ``save`` wrote. Raises BadData for any other file, or for one that has changed since."""
    with _opened(path) as file:
        about = (file.metadata() or {}).get("oodbench")
        if about is None:
            raise ValueError("it holds tensors that oodbench did not write, such as weights")
        content = dict(json.loads(about))
        # Copies, because the tensors are memory-mapped and change with the file.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # it has no iterator
        if content.pop(DIGEST, None) != digest_of(tensors, content):
            raise ValueError("its content does not match its digest")
        header, state = dict(content["header"]), dict(content["state"])
    lists: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        with float64_for(torch.device(device)):
            tensor = tensor.to(device)
        stem, dot, place = name.rpartition(".")
        if dot and place.isdigit():
            lists.setdefault(stem, {})[int(place)] = tensor
        else:
            state[name] = tensor
    return header, state | {stem: [parts[i] for i in sorted(parts)] for stem, parts in lists.items()}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        require_regular(path)
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError as error:
        raise BadData(f"no such file: {path}; check the path") from error
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError, OSError) as error:
        raise BadData(f"{path} is not an oodbench file, or is damaged ({error}); name another, or make it again") from error
