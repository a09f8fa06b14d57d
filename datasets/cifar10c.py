"""CIFAR-10-C: the test images of CIFAR-10 under 19 corruptions at five levels (Hendrycks & Dietterich, ICLR 2019).

These are the authors' files, memory-mapped. Names such as ``cifar10+haze@3`` mean corruptions that oodbench generates.
"""

from pathlib import Path

import numpy as np
import torch

from oodbench import registry
from oodbench.datasets import TABLE
from oodbench.datasets.cifar import CIFAR10
from oodbench.datasets.fetching.catalogue import CATALOGUE
from oodbench.datasets.formats.layout import missing, require_regular, require_split, why
from oodbench.datasets.formats.npy_file import mapped
from oodbench.datasets.name import CORRUPTIONS_C, LEVELS
from oodbench.errors import BadData, UsageError
from oodbench.image_set import ImageSet, Source

ARCHIVE = CATALOGUE["cifar10c"].address()
OFFICIAL_SIZE = CATALOGUE["cifar10c"].images  # of each level
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10c(root: Path, split: str, part: str, level: int | None) -> ImageSet:
    """Load one level of one corruption: ``CIFAR-10-C/<corruption>.npy``, uint8 (50000, 32, 32, 3), and ``labels.npy``.

    Level s is rows (s − 1)·10000 to s·10000, and only these are read. Row i of a level is made from test image i of
    CIFAR-10, so the ``base`` of a whole level is CIFAR-10's test split.

    Raises UsageError if the part or level is missing or unknown, MissingData if a file is missing, and BadData if a file is
    truncated, has another shape, or holds Python objects.
    """
    require_split("cifar10c", split, ("test",))
    if not part:
        raise UsageError(f"cifar10c needs a corruption and a level, such as cifar10c/fog@3 ({', '.join(CORRUPTIONS_C)})")
    if part not in CORRUPTIONS_C:
        raise UsageError(registry.unknown("part", part, CORRUPTIONS_C, f"known: {', '.join(CORRUPTIONS_C)}", of="cifar10c"))
    if level is None or level not in LEVELS:
        raise UsageError(f"cifar10c/{part} needs a level from 1 to 5; write cifar10c/{part}@1 to @5")
    path, label_path = (root / "CIFAR-10-C" / f"{name}.npy" for name in (part, "labels"))
    for needed in (path, label_path):
        if not needed.exists():
            raise missing("cifar10c", split, needed, ARCHIVE)
    images = _mapped(path)
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or len(images) % len(LEVELS) or not len(images):
        raise BadData(f"{path} is {images.dtype} {images.shape}, not uint8 (50000, 32, 32, 3); unpack {ARCHIVE} again")
    size = len(images) // len(LEVELS)
    rows = np.array(images[(level - 1) * size : level * size].transpose(0, 3, 1, 2), order="C")  # -> (size, 3, 32, 32)
    return ImageSet(
        torch.from_numpy(rows),
        torch.from_numpy(_labels(label_path, len(images))[:size]),
        name=f"cifar10c/{part}@{level}",
        split=split,
        kind="corruption",
        classes=CLASSES,
        base=f"{CIFAR10.name}/{split}" if size == OFFICIAL_SIZE[split] else "",
        level=level,
        source=Source(
            f"CIFAR-10-C, {part} at level {level}",
            TABLE["cifar10c"].source,
            "CC BY 4.0",
            "Hendrycks & Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019",
            OFFICIAL_SIZE,
        ),
    )


def _labels(path: Path, count: int) -> np.ndarray:
    """Return the labels, int64 (count,), which are the same for each level."""
    labels = _mapped(path)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise BadData(f"{path} is {labels.dtype} {labels.shape}, not one class per row of {count}; unpack {ARCHIVE} again")
    labels = np.array(labels, dtype=np.int64)
    by_level = labels.reshape(len(LEVELS), -1)
    if labels.min() < 0 or labels.max() >= len(CLASSES) or (by_level != by_level[0]).any():
        raise BadData(f"{path} does not hold classes 0 to 9, the same for each level; unpack {ARCHIVE} again")
    return labels


def _mapped(path: Path) -> np.ndarray:
    """Map the array of a .npy file; only the rows in use are read."""
    require_regular(path)
    try:
        return mapped(path)
    except (OSError, ValueError) as error:
        raise BadData(
            f"{path} is not an array of numbers, or it is truncated ({why(error)}); unpack {ARCHIVE} again"
        ) from error
