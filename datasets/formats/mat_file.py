"""Reads arrays of numbers from MATLAB 5 files, and trusts no size that such a file states.

A few bytes may claim gigabytes, stored or compressed. So an array that claims more bytes than its set can have is refused
before it is read. Structs, cells, objects and functions are never read. (MAT-File Format, The MathWorks.)
"""

import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

HEADER = 128  # bytes: text, version and byte order
MATRIX, COMPRESSED = 14, 15
# Codes in the file of the element types and array classes that hold numbers.
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
COMPLEX = 0x0800  # a flag
MAX_NAME, MAX_DIMENSIONS = 63, 32


def read_arrays(path: Path, limits: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the arrays with these names, in MATLAB's (Fortran) order; everything else in the file is skipped.

    ``limits``: for each name, the most bytes that its values may take.

    Raises ValueError or zlib.error if the file is not a MATLAB 5 file, is truncated, or holds something else under one of
    the names.
    """
    found: dict[str, np.ndarray] = {}
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
            name, array = _array(source, order, limits)
            if array is not None:
                if name in found:
                    raise ValueError(f"it holds two arrays named {name}")
                found[name] = array
            file.seek(start + length)
    return found


def _array(source: "_Bounded", order: str, limits: Mapping[str, int]) -> tuple[str, np.ndarray | None]:
    """Return the name of an array, and its values if ``limits`` names it; other values stay unread."""
    elements = _Elements(source, order)
    flags, dimensions = elements.numbers(16), elements.numbers(4 * MAX_DIMENSIONS)
    name = elements.numbers(MAX_NAME).tobytes().decode("ascii", "replace")
    if name not in limits:
        return name, None
    if len(flags) != 2 or int(flags[0]) & 0xFF not in CLASSES or int(flags[0]) & COMPLEX:
        raise ValueError(f"{name} is not an array of real numbers")
    shape = tuple(int(length) for length in dimensions)
    count = math.prod(shape)
    wanted = np.dtype(CLASSES[int(flags[0]) & 0xFF])
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

    def numbers(self, most: int) -> np.ndarray:
        """Return the numbers of the next element, (n,). Raises ValueError if it has more than ``most`` bytes."""
        head = self._source.read(4)
        kind = int(np.frombuffer(head, self._order + "u4")[0])
        kind, length, small = (kind & 0xFFFF, kind >> 16, True) if kind >> 16 else (kind, 0, False)
        if not small:
            length = int(np.frombuffer(self._source.read(4), self._order + "u4")[0])
        if kind not in STORED or length > (4 if small else most):
            raise ValueError(f"an element of type {kind} holds {length:,} bytes")
        stored = np.dtype(self._order + STORED[kind])
        if length % stored.itemsize:
            raise ValueError(f"{length:,} bytes are not a whole number of {stored}")
        data = self._source.read(length)
        self._source.read(4 - length if small else -length % 8)  # elements start at multiples of 8 bytes
        return np.frombuffer(data, stored).astype(stored.newbyteorder("="), copy=False)


def _exactly(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise ValueError("it is truncated")
    return data
