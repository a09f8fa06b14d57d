"""Image files, decoded on demand."""

import io
import mmap
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from oodbench.datasets.formats.layout import require_regular, why
from oodbench.errors import BadData, OodbenchError

MAX_PIXELS = 2**25  # per image: 100 MB decoded, more than any data set has
MAX_SCANS = 100  # per JPEG: each takes a pass over all pixels; a progressive image has some ten
# What follows FF where no marker begins: 00 in compressed data, FF as filling, D0 to D7 between parts of a scan.
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
SCAN, END = b"\xff\xda", b"\xff\xd9"
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others may start programs, such as EPS
# What turns an image as it is stored into what its EXIF orientation says; 1 and unknown values turn nothing.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})


class ImageFiles:
    """``Images`` of files: RGB, upright, in their own size, so if sizes vary, request one image at a time.

    ``sizes_vary=True`` declares that sizes vary, so that headers need not be read.

    Raises BadData, naming the file, for a file that is not an image, is truncated, has more than 8 bits per channel, has more
    than ``MAX_PIXELS``, is a JPEG of more than ``MAX_SCANS``, or is a pipe or device.
    """

    def __init__(self, paths: Sequence[Path], sizes_vary: bool = False) -> None:
        self.paths = list(paths)
        self._sizes_vary = sizes_vary

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, H, W), or (N, 3, 0, 0) if sizes vary. Reads the headers of the files."""
        if self._sizes_vary:
            return (len(self), 3, 0, 0)
        sizes = set()
        for path in self.paths:
            with opened(path, header_only=True) as image:
                turned = image if image.height == image.width else upright(image)
                sizes.add((turned.height, turned.width))
        return (len(self), 3, *(sizes.pop() if len(sizes) == 1 else (0, 0)))

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        return torch.stack([decode(self.paths[row]) for row in rows])


def read_image(source: str | Path | bytes) -> Tensor:
    """Read an image file, or the bytes of one, which may come from anybody: uint8 (3, H, W), as every set is read.

    It is turned as its EXIF orientation says; grey is repeated, transparency dropped. Raises BadData for what is not an image,
    is truncated, has more than 8 bits per channel or more than ``MAX_PIXELS``, is a JPEG of more than ``MAX_SCANS``, or is a
    pipe or device.
    """
    return decode(source if isinstance(source, bytes) else Path(source))


def decode(source: Path | bytes) -> Tensor:
    """As ``read_image``."""
    with opened(source) as image:
        return torch.from_numpy(np.array(upright(image).convert("RGB")).transpose(2, 0, 1))


def upright(image: Image.Image) -> Image.Image:
    """Return the image as its EXIF orientation says to show it; an image without one is not decoded or copied."""
    if _orientation(image) not in TURNS:
        return image
    _require_few_scans(image)
    image.load()  # Pillow turns TIFF here and takes the orientation away
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Return 0 where there is none."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 0))
    except Exception:  # a damaged EXIF block does not make the pixels unreadable; damaged pixels are noticed later
        return 0


@contextmanager
def opened(source: Path | bytes, header_only: bool = False) -> Iterator[Image.Image]:
    """Open an image file, or the bytes of one. Any error inside the context becomes BadData that names the file.

    ``header_only``: the pixels will not be decoded, so that the file need not be searched for scans.
    """
    path: Path | str = "the image" if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those that matter are errors below
            if isinstance(source, Path):
                require_regular(source)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height}")
                if image.mode not in EIGHT_BIT_MODES:
                    raise BadData(f"{path} has more than 8 bits per channel (mode {image.mode}); save it as 8-bit")
                if not header_only:
                    _require_few_scans(image)
                yield image
    except Image.DecompressionBombError as error:
        raise BadData(
            f"{path} has too many pixels for a data set ({why(error)}); remove it, or shrink it if you trust it"
        ) from error
    except OodbenchError:
        raise
    except Exception as error:  # PIL's decoders raise errors of many kinds
        said = "" if isinstance(error, UnidentifiedImageError) else f" ({why(error)})"  # which names an object in memory
        raise BadData(f"{path} is not an image, or it is truncated{said}; replace or remove it") from error


def _require_few_scans(image: Image.Image) -> None:
    """Raise BadData for a JPEG of more than ``MAX_SCANS`` scans: 400 kB of them take a minute to decode."""
    if not isinstance(image, JpegImageFile):
        return
    if image.filename:
        with open(image.filename, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            many = _has_many_scans(content)
    else:
        many = _has_many_scans(cast(io.BytesIO, image.fp).getbuffer())
    if many:
        path = os.fsdecode(image.filename) or "the image"
        raise BadData(f"{path} has more than {MAX_SCANS} scans; remove it, or save it again if you trust it")


def _has_many_scans(content: mmap.mmap | memoryview) -> bool:
    scans, at = 0, 0
    while (marker := MARKER.search(content, at)) and marker[0] != END:
        scans += marker[0] == SCAN
        if scans > MAX_SCANS:
            return True
        # Two bytes of length follow, except after the marker at the beginning.
        at = marker.end() + (0 if marker[0] == b"\xff\xd8" else int.from_bytes(content[marker.end() : marker.end() + 2]))
    return False
