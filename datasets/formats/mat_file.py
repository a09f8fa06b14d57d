"""Reads arrays of numbers, and cells of strings, from MATLAB 5 files, and trusts no size that such a file states.

A few bytes may claim gigabytes, stored or compressed. So an array that claims more bytes than its set can have is refused
before it is read. Structs, objects, functions and cells of anything else are never read. (MAT-File Format, The MathWorks.)
"""

import io
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

HEADER = 128  # bytes: text, version and byte order
MATRIX, COMPRESSED = 14, 15
CELL, CHARACTERS = 1, 4  # classes of arrays
# Codes in the file of the element types and array classes that hold numbers.
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
ENCODED = {2: "utf-8", 16: "utf-8", 4: "utf-16", 17: "utf-16"}  # element types that hold characters
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
COMPLEX = 0x0800  # a flag
MAX_NAME, MAX_DIMENSIONS = 63, 32
MAX_STRING = 2048  # bytes of a string in a cell, with what describes it


def read_arrays(path: Path, limits: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the arrays with these names, in MATLAB's (Fortran) order; everything else in the file is skipped.

    ``limits``: for each name, the most bytes that its values may take.

    Raises ValueError or zlib.error if the file is not a MATLAB 5 file, is truncated, or holds something else under one of
    the names.
    """
    found: dict[str, np.ndarray] = {}
    for source, order in _matrices(path):
        name, array = _array(source, order, limits)
        if array is not None:
            if name in found:
                raise ValueError(f"it holds two arrays named {name}")
            found[name] = array
    return found


def read_strings(path: Path, name: str, most: int) -> list[str] | None:
    """Return the strings of the cell array with this name, in MATLAB's (Fortran) order; None if the file has no such array.

    Raises ValueError or zlib.error as ``read_arrays``, and for a cell of more than ``most`` strings, or of anything else.
    """
    found = None
    for source, order in _matrices(path):
        elements = _Elements(source, order)
        kind, shape, found_name = elements.description()
        if found_name != name:
            continue
        count = math.prod(shape)
        if kind != CELL or min(shape, default=-1) < 0 or count > most:
            raise ValueError(f"{name} is of class {kind} and claims the shape {shape}, not at most {most:,} strings")
        found = [_string(source, order) for _ in range(count)]
        source.finish()
    return found


def _matrices(path: Path) -> Iterator[tuple["_Bounded", str]]:
    """Yield each array of a file, to be read from, and the byte order."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        order = {b"IM": "<", b"MI": ">"}.get(_exactly(file, HEADER)[-2:])
        if order is None:
            raise ValueError("it has no MATLAB 5 header")
        while file.tell() < size:
            kind, length = np.frombuffer(_exactly(file, 8), order + "u4").tolist()
            start = file.tell()
            if kind not in (MATRIX, COMPRESSED) or length > size - start:
                raise ValueError(f"an element of type {kind} claims {length:,} of {size - start:,} bytes")
            source = _Inflated(file, length) if kind == COMPRESSED else _Bounded(file, length)
            if kind == COMPRESSED and _Elements(source, order).tag()[0] != MATRIX:
                raise ValueError("a compressed element is not an array")
            yield source, order
            file.seek(start + length)


def _string(source: "_Bounded", order: str) -> str:
    """Return the next string of a cell."""
    kind, length = _Elements(source, order).tag()
    if kind != MATRIX or length > MAX_STRING:
        raise ValueError(f"an element of type {kind} of a cell holds {length:,} bytes, not a short string")
    body = _Bounded(io.BytesIO(source.read(length)), length)
    if length == 0:
        return ""
    elements = _Elements(body, order)
    found, shape, _ = elements.description()
    if math.prod(shape) == 0:
        return ""
    if found != CHARACTERS or len(shape) != 2 or shape[0] != 1:
        raise ValueError(f"an element of a cell is of class {found} and shape {shape}, not a string")
    return elements.text(MAX_STRING)


def _array(source: "_Bounded", order: str, limits: Mapping[str, int]) -> tuple[str, np.ndarray | None]:
    """Return the name of an array, and its values if ``limits`` names it; other values stay unread."""
    elements = _Elements(source, order)
    kind, shape, name = elements.description()
    if name not in limits:
        return name, None
    if kind not in CLASSES:
        raise ValueError(f"{name} is not an array of real numbers")
    count = math.prod(shape)
    wanted = np.dtype(CLASSES[kind])
    if min(shape, default=-1) < 0 or count * wanted.itemsize > limits[name]:
        raise ValueError(f"{name} claims the shape {shape} of {wanted}, more than the possible {limits[name]:,} bytes")
    values = elements.numbers(count * wanted.itemsize)
    if len(values) != count or not np.can_cast(values.dtype, wanted):  # MATLAB stores numbers in the smallest type that fits
        raise ValueError(f"{name} claims {wanted} {shape} but holds {len(values):,} of {values.dtype}")
    source.finish()
    return name, values.astype(wanted, copy=False).reshape(shape, order="F")


class _Bounded:
    """The bytes of one element; reading beyond its end fails."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file, self._left = file, length

    def read(self, length: int) -> bytes | bytearray:
        if length > self._left:
            raise ValueError("an array is longer than its element")
        self._left -= length
        return _exactly(self._file, length)

    def finish(self) -> None:
        """Raise ValueError if the bytes read are known to be damaged."""


class _Inflated(_Bounded):
    """The bytes of a compressed element, inflated as they are read, so that it cannot grow beyond the requested length."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        super().__init__(file, length)
        self._inflate = zlib.decompressobj()

    def read(self, length: int) -> bytes | bytearray:
        result = bytearray()
        while len(result) < length:
            packed = self._inflate.unconsumed_tail or super().read(min(2**20, self._left))
            part = self._inflate.decompress(packed, length - len(result))
            if not part and not packed:
                raise ValueError("a compressed array is truncated")
            if self._inflate.eof and len(result) + len(part) < length:
                raise ValueError("a compressed array ends too early")
            result += part
        return result

    def finish(self) -> None:
        padding = 8
        while not self._inflate.eof and padding > 0:  # the checksum is compared at the end of the stream
            packed = self._inflate.unconsumed_tail or super().read(min(2**20, self._left))
            part = self._inflate.decompress(packed, padding)
            padding -= len(part) if part or packed else padding
        if not self._inflate.eof:
            raise ValueError("a compressed array has no end")


class _Elements:
    """The elements of an array, in sequence."""

    def __init__(self, source: _Bounded, order: str) -> None:
        self._source, self._order = source, order

    def tag(self) -> tuple[int, int]:
        """Return the data type and the length in bytes."""
        kind, length = np.frombuffer(self._source.read(8), self._order + "u4").tolist()
        return kind, length

    def description(self) -> tuple[int, tuple[int, ...], str]:
        """Return class, shape and name of the array that begins here; the class of complex numbers is −1."""
        flags, dimensions = self.numbers(16), self.numbers(4 * MAX_DIMENSIONS)
        name = self.numbers(MAX_NAME).tobytes().decode("ascii", "replace")
        kind = int(flags[0]) & 0xFF if len(flags) == 2 and not int(flags[0]) & COMPLEX else -1
        return kind, tuple(int(length) for length in dimensions), name

    def numbers(self, most: int) -> np.ndarray:
        """Return the numbers of the next element, (n,). Raises ValueError if it has more than ``most`` bytes."""
        kind, data = self._next(most, STORED)
        stored = np.dtype(self._order + STORED[kind])
        if len(data) % stored.itemsize:
            raise ValueError(f"{len(data):,} bytes are not a whole number of {stored}")
        return np.frombuffer(data, stored).astype(stored.newbyteorder("="), copy=False)

    def text(self, most: int) -> str:
        """Return the characters of the next element. Raises ValueError if it has more than ``most`` bytes."""
        kind, data = self._next(most, ENCODED)
        suffix = {"<": "-le", ">": "-be"}[self._order] if ENCODED[kind] == "utf-16" else ""
        return data.decode(ENCODED[kind] + suffix)

    def _next(self, most: int, kinds: Mapping[int, str]) -> tuple[int, bytes | bytearray]:
        """Return type and bytes of the next element, which must be of one of these types."""
        head = self._source.read(4)
        kind = int(np.frombuffer(head, self._order + "u4")[0])
        kind, length, small = (kind & 0xFFFF, kind >> 16, True) if kind >> 16 else (kind, 0, False)
        if not small:
            length = int(np.frombuffer(self._source.read(4), self._order + "u4")[0])
        if kind not in kinds or length > (4 if small else most):
            raise ValueError(f"an element of type {kind} holds {length:,} bytes")
        data = self._source.read(length)
        self._source.read(4 - length if small else -length % 8)  # elements start at multiples of 8 bytes
        return kind, data


def _exactly(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise ValueError("it is truncated")
    return data
