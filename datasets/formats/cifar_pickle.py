"""Reads CIFAR's pickles without running any code in them.

A pickle may call anything that can be imported. This unpickler accepts only what the official files hold: dicts, lists,
strings, numbers and uint8 arrays. It does not even provide numpy's own functions, because numpy trusts a pickled dtype.

It also limits growth: a pickle can refer to one string a thousand times in two bytes each, so every copy of it counts. A
byte can make an object of a hundred bytes, so instructions are counted before they are followed.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from oodbench.datasets.formats.layout import why
from oodbench.errors import BadData

GROWTH = 4  # bytes of copies per byte of the file; repeated names take more than in the file
MOST_BYTES = 2**29  # of a file; the largest official one has 155 million
MOST_INSTRUCTIONS = 2**20  # of a file, which also bounds its memo; the largest official one has some 300,000
ANY_GROWTH = 1 << 16  # bytes of copies allowed for a file of any size


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dict in a CIFAR file; byte strings, also in its lists, become str, and arrays become uint8 ndarrays.

    Raises BadData, naming the file, for anything that no CIFAR file holds.
    """
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise pickle.UnpicklingError(f"it has {size:,} bytes, and a CIFAR file has at most {MOST_BYTES:,}")
        content = path.read_bytes()
        _check_instructions(content)
        room = _Room(ANY_GROWTH + GROWTH * len(content))
        value = _Unpickler(content, room).load()
        if not isinstance(value, dict):
            raise pickle.UnpicklingError(f"it holds a {type(value).__name__}, not a dict")
        return {_plain(key, room): _plain(item, room) for key, item in value.items()}
    except Exception as error:  # a broken pickle raises errors of many kinds
        raise BadData(
            f"{path} is not a CIFAR file, or it is truncated ({why(error)}); unpack the official archive again"
        ) from error


def _check_instructions(content: bytes) -> None:
    """Refuse too many instructions, and a memo index beyond what they can fill.

    The unpickler allocates all entries of the memo up to an index, and 5 bytes can request 64 GB.
    """
    for count, (opcode, place, _) in enumerate(pickletools.genops(content)):
        if count >= MOST_INSTRUCTIONS:
            raise pickle.UnpicklingError(f"it has more than {MOST_INSTRUCTIONS:,} pickle instructions, and no CIFAR file does")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(place or 0) > count:
            raise pickle.UnpicklingError(f"it stores index {place} in a memo of {count}")


class _Room:
    """Counts down the bytes of copies that may still be made."""

    def __init__(self, left: int) -> None:
        self._left = left

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise pickle.UnpicklingError("it would grow to many times its size, which no CIFAR file does")


def _plain(value: Any, room: _Room) -> Any:
    """Convert a value. Lists are flat in these files; a nested one could contain itself, or grow tenfold per level."""
    if isinstance(value, list):
        if any(isinstance(item, list | dict | tuple) for item in value):
            raise pickle.UnpicklingError("it holds lists of lists, which no CIFAR file does")
        room.take(len(value))
        return [_plain(item, room) for item in value]
    if isinstance(value, bytes | str):
        room.take(len(value))
        return value.decode("latin1") if isinstance(value, bytes) else value
    return value.value if isinstance(value, _Array) else value


class _Array:
    """Stands for a pickled ndarray; its state is (version, shape, dtype, Fortran order, bytes)."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple[int, tuple[int, ...], "_Uint8", bool, bytes]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Uint8):
            raise pickle.UnpicklingError("it holds an array that is not uint8")
        self.value = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Uint8:
    """Stands for the pickled dtype. Its state is ignored, because single bytes have no byte order."""

    def __setstate__(self, state: object) -> None:
        return None


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, room: _Room) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._room = room

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}, which no CIFAR file does")
        self._room.take(len(text))
        return text.encode("latin1")

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" == "_codecs.encode":  # how Python 3 writes bytes in protocol 2
            return _Function(self._encode)
        if f"{module}.{name}" not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file does")
        return _KNOWN[f"{module}.{name}"]


class _Function:
    """Wraps one of the functions below, because a pickle may set attributes of an object it receives."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a function, which no CIFAR file does")


def _array(_type: object, _shape: object, _code: object) -> _Array:
    return _Array()


def _dtype(code: str | bytes, *_align_and_copy: object) -> _Uint8:
    if code not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"it holds an array of {code!r}, which no CIFAR file does")
    return _Uint8()


_KNOWN = {
    "numpy.core.multiarray._reconstruct": _Function(_array),
    "numpy._core.multiarray._reconstruct": _Function(_array),
    "numpy.ndarray": None,  # an argument of _reconstruct, never called
    "numpy.dtype": _Function(_dtype),
}
