"""Training checkpoints, written after each epoch, so that an interrupted training can be resumed."""

import copy
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oodbench import state
from oodbench.errors import BadData, UsageError, reason
from oodbench.models import pickled
from oodbench.paths import require_regular

SCHEMA_VERSION = 1
SIZE = hashlib.sha256().digest_size


class Checkpoint:
    """The checkpoint file of a training with these settings.

    Args:
        path: the file; it is always written completely or not at all. It begins with the SHA-256 of the rest.
        parts: the trained objects by name, with ``state_dict`` and ``load_state_dict``.
        settings: plain values that the training depends on; a file with other settings is not resumed.
    """

    def __init__(self, path: Path, parts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self.path = path
        self._parts = parts
        self._settings = {"schema_version": SCHEMA_VERSION, **settings}

    def store(self, epochs: int) -> None:
        """Save the state after this many epochs. Raises OodbenchError if the folder cannot be written."""
        buffer = io.BytesIO()
        states = {name: _moved(part.state_dict(), "cpu") for name, part in self._parts.items()}
        torch.save({"settings": self._settings, "epochs": epochs, "states": states}, buffer)
        state.write_atomically(self.path, hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())

    def restore(self, device: torch.device) -> int:
        """Restore the state from the file, on the device; returns the number of finished epochs.

        Raises BadData for a file that is not a checkpoint or is damaged, and UsageError for a training with other settings.
        """
        remedy = f"delete {self.path} to train from the start"
        require_regular(self.path)
        try:
            content = memoryview(self.path.read_bytes())
            if content[:SIZE] != hashlib.sha256(content[SIZE:]).digest():
                raise BadData("its content does not match its digest")
            found = pickled.load(io.BytesIO(content[SIZE:]))
            pickled.require_stored(pickled.every_tensor(found), len(content))
            settings, epochs, states = found["settings"], int(found["epochs"]), found["states"]
            other = [name for name, value in self._settings.items() if settings.get(name) != value]
        except Exception as error:  # a malicious file may raise any error
            raise BadData(f"{self.path} is not a checkpoint, or damaged ({reason(error)}); {remedy}") from error
        if other:
            changed = ", ".join(f"{name} {settings.get(name)} instead of {self._settings[name]}" for name in other)
            raise UsageError(f"{self.path} is from a training with {changed}; {remedy}, or train with those settings")
        try:
            for name, part in self._parts.items():
                part.load_state_dict(_moved(states[name], device))
        except (KeyError, ValueError, RuntimeError) as error:
            raise BadData(f"{self.path} is from another network; {remedy}") from error
        return epochs

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _moved(state: Any, device: torch.device | str) -> Any:
    """The same state with its tensors on the device: in the file they are on the CPU, since not every device reads files."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        made = copy.copy(state)  # with the attributes that a module's state dict has
        made.update({key: _moved(value, device) for key, value in state.items()})
        return made
    return [_moved(value, device) for value in state] if isinstance(state, list) else state
