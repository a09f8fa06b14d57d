"""CIFAR-10-C: the test images of CIFAR-10 under 19 corruptions at five levels (Hendrycks & Dietterich, ICLR 2019).

These are the authors' files, memory-mapped; ``cifar10+haze@3`` and its like are generated here instead.
"""

from pathlib import Path

import numpy as np
import torch

from oodbench import registry
from oodbench.datasets.cifar import CIFAR10
from oodbench.datasets.fetching.catalogue import CORRUPTIONS_C
from oodbench.datasets.formats.layout import missing, require_regular, require_split, why
from oodbench.datasets.formats.npy_file import mapped
from oodbench.errors import BadData, UsageError
from oodbench.image_set import ImageSet, Source

ARCHIVE = "https://zenodo.org/record/2535967/files/CIFAR-10-C.tar"
LEVELS = 5
OFFICIAL_SIZE = 10_000  # images a level
# The paper's benchmark is the mean over the 15 main corruptions; the other 4 are for validation.
EXTRA = ("gaussian_blur", "saturate", "spatter", "speckle_noise")
MAIN = tuple(name for name in CORRUPTIONS_C if name not in EXTRA)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10c(root: Path, split: str, part: str, level: int | None) -> ImageSet:
    """``CIFAR-10-C/<corruption>.npy``, uint8 (50000, 32, 32, 3), and ``labels.npy``; one level of one corruption.

    Level s is rows (s − 1)·10000 to s·10000, and only these are read. Each row is made from the row of CIFAR-10's test
    images of its number, so of the whole set ``base`` is theirs.

    Raises UsageError where the part or level is missing or unknown, MissingData where a file is, and BadData for one that
    is truncated, of another shape, or holds Python objects.
    """
    require_split("cifar10c", split, ("test",))
    if not part:
        raise UsageError(
            f"cifar10c has no images of its own; name a corruption and a level, as cifar10c/fog@3 ({', '.join(CORRUPTIONS_C)})"
        )
    if part not in CORRUPTIONS_C:
        raise UsageError(registry.unknown("part of cifar10c", part, CORRUPTIONS_C, f"known: {', '.join(CORRUPTIONS_C)}"))
    if level is None or level not in range(1, LEVELS + 1):
        raise UsageError(f"cifar10c/{part} needs a level from 1 to {LEVELS}; write cifar10c/{part}@1 to @{LEVELS}")
    path, label_path = (root / "CIFAR-10-C" / f"{name}.npy" for name in (part, "labels"))
    for needed in (path, label_path):
        if not needed.exists():
            raise missing("cifar10c", split, needed, ARCHIVE)
    images = _mapped(path)
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or len(images) % LEVELS or not len(images):
        raise BadData(f"{path} is {images.dtype} {images.shape}, not uint8 (50000, 32, 32, 3); unpack {ARCHIVE} again")
    size = len(images) // LEVELS
    rows = np.array(images[(level - 1) * size : level * size].transpose(0, 3, 1, 2), order="C")  # -> (size, 3, 32, 32)
    return ImageSet(
        torch.from_numpy(rows),
        torch.from_numpy(_labels(label_path, len(images))[:size]),
        name=f"cifar10c/{part}@{level}",
        split=split,
        kind="corruption",
        classes=CLASSES,
        base=f"{CIFAR10.name}/{split}" if size == OFFICIAL_SIZE else "",
        level=level,
        source=Source(
            f"CIFAR-10-C, {part} at level {level}",
            "https://zenodo.org/records/2535967",
            "CC BY 4.0",
            "Hendrycks & Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019",
            {"test": OFFICIAL_SIZE},
        ),
    )


def _labels(path: Path, count: int) -> np.ndarray:
    """int64 (count,): the same labels for each level."""
    labels = _mapped(path)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise BadData(f"{path} is {labels.dtype} {labels.shape}, not a class for each of {count} rows; unpack {ARCHIVE} again")
    labels = np.array(labels, dtype=np.int64)
    if labels.min() < 0 or labels.max() >= len(CLASSES) or (labels.reshape(LEVELS, -1) != labels[: count // LEVELS]).any():
        raise BadData(f"{path} does not hold classes 0 to 9, the same for each level; unpack {ARCHIVE} again")
    return labels


def _mapped(path: Path) -> np.ndarray:
    """The array of a .npy file; what is not looked at is not read."""
    require_regular(path)
    try:
        return mapped(path)
    except (OSError, ValueError) as error:
        raise BadData(f"{path} is no array of numbers, or it is truncated ({why(error)}); unpack {ARCHIVE} again") from error
