"""Scores image files: finds the files, and gives one row for each, also for files that cannot be read."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from oodbench.datasets.formats.files import decode
from oodbench.datasets.formats.layout import SUFFIXES
from oodbench.datasets.resize import fit as fit_size
from oodbench.errors import BadData, OodbenchError, reason
from oodbench.inference.fitted import Fitted

OK, ANOMALOUS = "ok", "anomalous"


class Row(NamedTuple):
    """One image; without a score if it cannot be read, with the cause in ``reason``."""

    path: str
    score: float | None
    verdict: str | None
    reason: str = ""


def score_files(fitted: Fitted, given: Iterable[Path], batch_size: int) -> Iterator[Row]:
    """One row for each image of these files and folders, in order."""
    batch: list[tuple[Path, Tensor | OodbenchError]] = []
    for path in image_paths(given):
        batch.append((path, _read(fitted, path)))
        if len(batch) == batch_size:
            yield from _rows(fitted, batch)
            batch = []
    yield from _rows(fitted, batch)


def image_paths(given: Iterable[Path]) -> Iterator[Path]:
    """The given files, and for a folder every image file in it and its sub-folders, sorted, without hidden ones."""
    for path in given:
        if not path.is_dir():
            yield path
            continue
        found: list[Path] = []
        for folder, below, files in os.walk(path):
            below[:] = [name for name in below if not name.startswith(".")]
            found += [Path(folder) / name for name in files if not name.startswith(".")]
        yield from sorted(file for file in found if file.suffix.lower() in SUFFIXES) or [path]


def _read(fitted: Fitted, path: Path) -> Tensor | OodbenchError:
    """The image (3, H, W) as the network takes it, or the error that prevents it."""
    if path.is_dir():
        return BadData(f"holds no images ({' '.join(sorted(SUFFIXES))})")
    if not path.exists():
        return BadData("no such file")
    if not path.is_file():  # opening a pipe would block for ever
        return BadData("is not a regular file")
    try:
        return fit_size(decode(path), fitted.about.input.size, fitted.about.input.resize)
    except OodbenchError as error:
        return error


def _rows(fitted: Fitted, batch: Sequence[tuple[Path, Tensor | OodbenchError]]) -> Iterator[Row]:
    images = [image for _, image in batch if isinstance(image, Tensor)]
    verdicts = iter(_verdicts(fitted, images))
    for path, image in batch:
        score, flagged, why = next(verdicts) if isinstance(image, Tensor) else (None, False, reason(image))
        yield Row(_printable(str(path)), score, None if score is None else ANOMALOUS if flagged else OK, _printable(why))


def _verdicts(fitted: Fitted, images: list[Tensor]) -> list[tuple[float | None, bool, str]]:
    """(score, flagged, reason) of each image; if one image makes the batch fail, each is scored alone."""
    if not images:
        return []
    try:
        scores, flagged = fitted(torch.stack(images))
        return [(float(score), bool(flag), "") for score, flag in zip(scores, flagged, strict=True)]
    except BadData as error:
        if len(images) == 1:
            return [(None, False, reason(error))]
        return [verdict for image in images for verdict in _verdicts(fitted, [image])]


def _printable(text: str) -> str:
    """Escape characters of a file name that are not valid text or that move the cursor."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
