"""What a database of image quality is: references, distorted images, and people's scores."""

import hashlib
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from oodbench import registry
from oodbench.datasets.formats.digests import digests
from oodbench.datasets.formats.files import decode
from oodbench.errors import BadData, contained
from oodbench.paths import DataRoots

FINGERPRINT = 16  # hex digits


@dataclass
class QualityDatabase:
    """N distorted images, each with its reference image and a score.

    Attributes:
        name: as the user names it.
        references: uint8 RGB (3, H, W) each, decoded on demand; empty for a table of values without images.
        distorted: N of them, each of the same size as its reference, decoded on demand; empty for a table of values.
        reference_of: int64 (N,), row of each image's reference.
        scores: float64 (N,), people's opinion, or what takes its place.
        higher_is_better: direction of the scores (MOS: True, DMOS: False).
        score_name: what the scores are, such as ``MOS``, ``DMOS`` or ``level``.
        deviations: float64 (N,), standard deviation of each score over subjects; None if it is not known.
        distortions: name of each image's distortion, N of them; empty if they are not known.
        levels: float64 (N,), severity of each distortion; None if it is not known.
        official_size: N of the whole official database; None if there is none.
        fingerprint: SHA-256 over the files' bytes, references and scores (16 hex digits); not over decoded pixels, which may
            differ between versions of the decoder.
        values: for a table of values, the values of metrics by name, float64 (N,) each.

    Raises BadData for arrays that disagree in length, numbers that are not finite, scores that are all equal, and a reference
    that does not exist.
    """

    name: str
    references: Sequence[Tensor]
    distorted: Sequence[Tensor]
    reference_of: np.ndarray
    scores: np.ndarray
    higher_is_better: bool
    score_name: str
    fingerprint: str
    deviations: np.ndarray | None = None
    distortions: list[str] = field(default_factory=list)
    levels: np.ndarray | None = None
    official_size: int | None = None
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.scores)
        counted: dict[str, Sized | None] = {"references of images": self.reference_of, "deviations": self.deviations}
        counted |= {"levels": self.levels} | {f"values of {metric}": values for metric, values in self.values.items()}
        if not self.values or len(self.distorted):
            counted["distorted images"] = self.distorted
        if self.distortions:
            counted["names of distortions"] = self.distortions
        for what, found in counted.items():
            if found is not None and len(found) != count:
                raise BadData(f"{self.name} has {len(found)} {what} and {count} scores; give one of each per image")
        if count == 0:
            raise BadData(f"{self.name} holds no images; add some, or name another database")
        for what, numbers in {
            "scores": self.scores,
            "deviations": self.deviations,
            "levels": self.levels,
            **self.values,
        }.items():
            if numbers is not None and not np.isfinite(numbers).all():
                row = int(np.argmin(np.isfinite(numbers)))
                raise BadData(f"{self.name}: {what} of image {row} is {numbers[row]}, not a finite number; correct it")
        if count > 1 and self.scores.min() == self.scores.max():
            raise BadData(
                f"{self.name}: all {count} scores are {self.scores[0]:g}, so no metric can be compared with them; give others"
            )
        if len(self.distorted) and not 0 <= self.reference_of.min() <= self.reference_of.max() < len(self.references):
            raise BadData(f"{self.name}: an image names a reference that is not one of its {len(self.references)}; correct it")

    def __len__(self) -> int:
        return len(self.scores)

    def label(self, row: int) -> str:
        """What messages call an image: its file, or its number from 1."""
        return self.distorted.paths[row].name if isinstance(self.distorted, Pictures) else f"image {row + 1}"


def load_database(name: str, *, data: DataRoots = None) -> QualityDatabase:
    """A database by name: built in, from another package, ``folder:PATH`` or ``scores:FILE``.

    Raises UsageError for an unknown name, MissingData if its files are missing, and BadData if they are damaged.
    """
    base, _, path = name.partition(":")
    loader = registry.load("quality_databases", base)
    with contained():
        found = loader(path, data=data)
    if not isinstance(found, QualityDatabase):
        raise BadData(f"quality database '{base}' gave a {type(found).__name__}; return an oodbench QualityDatabase")
    return found


class Pictures(Sequence[Tensor]):
    """Image files, each decoded on demand: uint8 RGB (3, H, W)."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor:  # type: ignore[override]  # no slices
        return decode(self.paths[row])


def fingerprint(paths: Sequence[Path], *arrays: np.ndarray | None, text: str = "") -> str:
    """SHA-256 of the bytes of files, of arrays of numbers and of a text, in this order (16 hex digits).

    Raises BadData for a file that cannot be read.
    """
    digest = hashlib.sha256(text.encode())
    digest.update(np.ascontiguousarray(digests(paths)).tobytes())
    for array in arrays:
        if array is not None:
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:FINGERPRINT]
