"""Maps arrays of numbers in NumPy's files, and trusts no size that such a file states.

NumPy divides by the item size, which a header may state as 0; this would crash the process instead of raising.
"""

import math
from pathlib import Path

import numpy as np


def mapped(path: Path) -> np.ndarray:
    """Return the array of a .npy file, memory-mapped: only the rows in use are read.

    Raises OSError or ValueError if it is not such a file, holds anything but numbers, or has another length than it claims.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0
        elif version == (2, 0):
            header = np.lib.format.read_array_header_2_0
        else:
            raise ValueError(f"its version is {version}")
        try:
            shape, fortran, dtype = header(file)
        except Exception as error:  # numpy raises errors of many kinds on a hostile header
            raise ValueError(f"its header is broken: {error}") from error
        start = file.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if dtype.kind not in "biuf":
        raise ValueError(f"it holds {dtype}")
    size = start + math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 1 or path.stat().st_size != size:
        raise ValueError(f"it has {path.stat().st_size:,} bytes and claims the shape {shape}")
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
