"""Decoded and resized images in the cache folder: written once, then mapped into memory.

A file is named by the contents of the image files and by how they are read, so the same images are kept once, whatever sets
they are in.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import PIL
import torch
from torch import Tensor

from oodbench.batching import decoded_batches
from oodbench.datasets.formats.digests import digests
from oodbench.errors import CannotWrite
from oodbench.image_set import Images
from oodbench.paths import cache_root, size, write_atomically
from oodbench.progress import Progress

FOLDER = "images"  # in the cache folder
CHUNK = 2**22  # bytes of pixels that are decoded at a time


def kept(
    images: Images, files: Sequence[Path], read_as: str, name: str, workers: int = 0, progress: Progress | None = None
) -> "Mapped":
    """The same images, from the cache folder; they are decoded first if they are not there.

    ``files`` has the file of each image, ``read_as`` says how files become images. Raises CannotWrite without the space, and
    the errors of decoding.
    """
    progress = progress or Progress()
    # Another version of Pillow may decode or resample to other pixels.
    key = hashlib.sha256(f"{read_as}, Pillow {PIL.__version__}".encode() + digests(files, progress).tobytes()).hexdigest()
    found = Mapped(cache_root() / FOLDER / f"{key}.npy", tuple(images.shape))
    if not found.is_whole():
        _keep(images, found, name, workers, progress)
    return found


def _keep(images: Images, found: "Mapped", name: str, workers: int, progress: Progress) -> None:
    folder, needed = found.path.parent, int(np.prod(found.shape))
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if (free := shutil.disk_usage(there).free) < needed:
        raise CannotWrite(
            f"{name}: its images take {size(needed)} in {folder}, where {size(free)} are free; free space there, set"
            " OODBENCH_CACHE to another folder, or leave --cache-images out"
        )
    progress.say(f"{name}: keeping {len(images):,} images in {folder}, {size(needed)}")
    progress.stage(f"decoding {len(images):,} images of {name}")
    progress.expect(len(images))
    step = max(1, CHUNK // int(np.prod(found.shape[1:])))
    pieces = [np.arange(start, min(start + step, len(images))) for start in range(0, len(images), step)]

    def write(file: IO[bytes]) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": found.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for piece, batch in zip(pieces, decoded_batches(images, pieces, workers, name=name), strict=True):
            file.write(np.ascontiguousarray(batch.numpy()).data)
            progress.advance(len(piece))

    write_atomically(found.path, write)


class Mapped:
    """``Images`` (N, C, H, W) in a NumPy file."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, shape
        self._pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        if self._pixels is None:
            self._pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return torch.from_numpy(self._pixels[list(rows)])

    def is_whole(self) -> bool:
        """Whether the file is there and holds an array of this shape."""
        try:
            pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        return isinstance(pixels, np.ndarray) and pixels.shape == self.shape and pixels.dtype == np.uint8

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "shape": self.shape, "_pixels": None}  # another process maps the file itself
