"""Decoded and resized images in the cache folder: written once, then mapped into memory.

A file is named by the contents of the image files and by how they are read, so the same images are kept once, whatever sets
they are in.
"""

import hashlib
import io
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import PIL
import torch
from torch import Tensor

from oodbench.batching import decoded_batches
from oodbench.datasets.formats.digests import digests
from oodbench.errors import BadData, CannotWrite
from oodbench.image_set import Images
from oodbench.paths import cache_root, require_regular, size, write_atomically
from oodbench.progress import Progress

FOLDER = "images"  # in the cache folder
CHUNK = 2**22  # bytes of pixels that are decoded at a time


def kept(
    images: Images, files: Sequence[Path], read_as: str, name: str, workers: int = 0, progress: Progress | None = None
) -> "Mapped":
    """The same images, from the cache folder; they are decoded first if they are not there.

    ``files`` has the file of each image, ``read_as`` says how files become images. Raises CannotWrite without the space,
    BadData for something else in place of the file, and the errors of decoding.
    """
    progress = progress or Progress()
    # Another version of Pillow may decode or resample to other pixels.
    key = hashlib.sha256(f"{read_as}, Pillow {PIL.__version__}".encode() + digests(files, progress).tobytes()).hexdigest()
    found = Mapped(cache_root() / FOLDER / f"{key}.npy", tuple(images.shape))
    if not found.is_whole():
        _keep(images, found, name, workers, progress)
    return found


def _keep(images: Images, found: "Mapped", name: str, workers: int, progress: Progress) -> None:
    folder, needed = found.path.parent, len(found) * found.dtype.itemsize
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if (free := shutil.disk_usage(there).free) < needed:
        raise CannotWrite(
            f"{name}: its images take {size(needed)} in {folder}, where {size(free)} are free; free space there, set"
            " OODBENCH_CACHE to another folder, or leave --cache-images out"
        )
    progress.say(f"{name}: keeping {len(images):,} images in {folder}, {size(needed)}")
    progress.stage(f"decoding {len(images):,} images of {name}")
    progress.expect(len(images))
    step = max(1, CHUNK // found.dtype.itemsize)
    pieces = [np.arange(start, min(start + step, len(images))) for start in range(0, len(images), step)]

    def write(file: IO[bytes]) -> None:
        file.write(found.header)
        for piece, batch in zip(pieces, decoded_batches(images, pieces, workers, name=name), strict=True):
            file.write(found.records(batch.numpy()).data)
            progress.advance(len(piece))

    write_atomically(found.path, write)


class Mapped:
    """``Images`` (N, C, H, W) in a NumPy file of one record per image: its pixels, and a checksum of them."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, shape
        self.dtype = np.dtype([("pixels", "|u1", shape[1:]), ("crc32", "<u4")])
        self._mapped: np.ndarray | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        """Raises BadData if a pixel is not what was written."""
        if self._mapped is None:
            self._mapped = np.memmap(self.path, self.dtype, "r", len(self.header), self.shape[0])
        records = self._mapped[list(rows)]
        pixels = np.ascontiguousarray(records["pixels"])
        if not np.array_equal(_checksums(pixels), records["crc32"]):
            raise BadData(f"{self.path} is damaged; delete it, and run again")
        return torch.from_numpy(pixels)

    def records(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (n, C, H, W) with their checksums, as the file has them."""
        made = np.empty(len(pixels), self.dtype)
        made["pixels"], made["crc32"] = pixels, _checksums(pixels)
        return made

    @property
    def header(self) -> bytes:
        """The bytes before the records."""
        file = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(self.dtype)
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": self.shape[:1]})
        return file.getvalue()

    def is_whole(self) -> bool:
        """Whether the file is there, with its header and of its size. Raises BadData for a pipe or a folder in its place."""
        header = self.header
        try:
            require_regular(self.path)
            with self.path.open("rb") as file:
                begun = file.read(len(header)) == header
            return begun and self.path.stat().st_size == len(header) + len(self) * self.dtype.itemsize
        except OSError:
            return False

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_mapped": None}  # another process maps the file itself


def _checksums(pixels: np.ndarray) -> np.ndarray:
    """CRC-32 of each image: uint32 (n,)."""
    return np.array([zlib.crc32(np.ascontiguousarray(image).data) for image in pixels], np.uint32)
