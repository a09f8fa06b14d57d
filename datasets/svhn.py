"""SVHN, cropped digits of house numbers (Netzer et al. 2011), from the official MATLAB files."""

import zlib
from pathlib import Path

import numpy as np
import torch

from oodbench.datasets import TABLE
from oodbench.datasets.fetching.catalogue import CATALOGUE
from oodbench.datasets.formats.layout import missing, require_split, why
from oodbench.datasets.formats.mat_file import read_arrays
from oodbench.errors import BadData
from oodbench.image_set import ImageSet, Source

ITEM = CATALOGUE["svhn"]
SOURCE = Source(
    "SVHN",
    TABLE["svhn"].source,
    "non-commercial use only",
    "Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, NIPS workshop 2011",
    ITEM.images,
)


def svhn(root: Path, split: str) -> ImageSet:
    """Load ``svhn/{train,test,extra}_32x32.mat``: X uint8 (32, 32, 3, N), y (N, 1) in which 10 stands for digit 0."""
    require_split("svhn", split, SOURCE.official_size)
    path = root / "svhn" / f"{split}_32x32.mat"
    address = ITEM.address(split)
    if not path.is_file():
        raise missing("svhn", split, path, address)
    most = SOURCE.official_size[split]
    try:
        content = read_arrays(path, {"X": most * 32 * 32 * 3, "y": most * 8})  # X is uint8, y any number
    except (OSError, ValueError, zlib.error) as error:
        raise BadData(
            f"{path} is not a MATLAB 5 file with X and y, or it is truncated ({why(error)}); download {address} again"
        ) from error
    images, digits = content.get("X"), content.get("y")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise BadData(f"{path}: X is {_describe(images)}, not uint8 (32, 32, 3, N); download {address} again")
    if digits is None or digits.size != images.shape[3] or not np.isin(digits, np.arange(1, 11)).all():
        raise BadData(
            f"{path}: y is {_describe(digits)}, not a label from 1 to 10 for each of {images.shape[3]} images;"
            f" download {address} again"
        )
    return ImageSet(
        torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))),  # (32, 32, 3, N) -> (N, 3, 32, 32)
        torch.from_numpy(digits.reshape(-1).astype(np.int64) % 10),
        name="svhn",
        split=split,
        kind="far-ood",
        classes=tuple("0123456789"),
        source=SOURCE,
        flips=False,
    )


def _describe(value: np.ndarray | None) -> str:
    return "missing" if value is None else f"{value.dtype} {value.shape}"
