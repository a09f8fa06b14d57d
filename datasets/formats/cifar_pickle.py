"""Reads CIFAR's pickles without running anything in them.

A pickle may call whatever can be imported. This unpickler admits only what the official files hold: dicts, lists,
strings, numbers and uint8 arrays. Not even numpy's own functions are handed out, for numpy trusts a pickled dtype.

Nor may it grow: a pickle can name one string a thousand times in two bytes each, and each copy that is made of it counts.
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

GROWTH = 4  # bytes of copies for a byte of the file; names that recur take more than they do in the file
ANY_GROWTH = 1 << 16  # bytes of copies whatever the file's size


def read_pickle(path: Path) -> dict[str, Any]:
    """The dict in a CIFAR file; byte strings, also in its lists, become str and arrays uint8 ndarrays.

    Raises BadData, naming the file, for anything that such a file does not hold.
    """
    try:
        content = path.read_bytes()
        _check_memo(content)
        room = _Room(ANY_GROWTH + GROWTH * len(content))
        value = _Unpickler(content, room).load()
        if not isinstance(value, dict):
            raise pickle.UnpicklingError(f"it holds a {type(value).__name__}, not a dict")
        return {_plain(key, room): _plain(item, room) for key, item in value.items()}
    except Exception as error:  # a broken pickle raises whatever its last opcode ran into
        raise BadData(
            f"{path} is no CIFAR file, or it is truncated ({why(error)}); unpack the official archive again"
        ) from error


def _check_memo(content: bytes) -> None:
    """Refuse a place in the memo beyond what the file can fill: the unpickler makes room for all up to it, which 5 bytes
    can make 64 GB."""
    for count, (opcode, place, _) in enumerate(pickletools.genops(content)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(place or 0) > count:
            raise pickle.UnpicklingError(f"it keeps something in place {place} of a memo of {count}")


class _Room:
    """How many bytes of copies may still be made."""

    def __init__(self, left: int) -> None:
        self._left = left

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise pickle.UnpicklingError("it would grow to many times its size, which no CIFAR file does")


def _plain(value: Any, room: _Room) -> Any:
    """Lists are flat in these files; one in another could hold itself, or grow tenfold a level."""
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
    """Stands for a pickled ndarray; its state is (version, shape, dtype, is it Fortran-ordered, bytes)."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple[int, tuple[int, ...], "_Uint8", bool, bytes]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Uint8):
            raise pickle.UnpicklingError("it holds an array that is not uint8")
        self.value = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Uint8:
    """Stands for the pickled dtype; bytes have no order, so its state says nothing."""

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
    """One of the functions below. Not the function itself: a pickle may set attributes of what it is given."""

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
