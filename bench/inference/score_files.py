"""Scores image files: finds the files, and gives one row for each, also for files that cannot be read."""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from oodbench.datasets.formats.files import decode
from oodbench.datasets.formats.layout import SUFFIXES, entries, is_folder, why
from oodbench.errors import BadData, OodbenchError, reason
from oodbench.inference.fitted import Fitted

OK, ANOMALOUS = "ok", "anomalous"
# Images of formats that are not read: in a folder they get a row with the reason, where other files are not images.
UNREAD_SUFFIXES = frozenset(
    {".avif", ".dds", ".dib", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jp2", ".jpx", ".jxl", ".mpo", ".pcx", ".pfm"}
    | {".psd", ".sgi", ".svg", ".tga", ".xbm"}
)


class Row(NamedTuple):
    """One image; without a score if it cannot be read, with the cause in ``reason``."""

    path: str
    score: float | None
    verdict: str | None
    reason: str = ""


def score_files(fitted: Fitted, given: Iterable[Path], batch_size: int) -> Iterator[Row]:
    """One row for each image of these files and folders, in order."""
    batch: list[tuple[Path, Tensor | OodbenchError]] = []
    for path, error in image_paths(given):
        batch.append((path, error or _read(fitted, path)))
        if len(batch) == batch_size:
            yield from _rows(fitted, batch)
            batch = []
    yield from _rows(fitted, batch)


def image_paths(given: Iterable[Path]) -> Iterator[tuple[Path, OodbenchError | None]]:
    """The given files, and for a folder all images in it and its sub-folders, sorted, without hidden ones; links are followed.

    What cannot be listed has an error.
    """
    for path in given:
        if not os.path.isdir(path):
            yield path, None
        else:
            nothing = BadData(f"holds no images ({' '.join(sorted(SUFFIXES))})")
            yield from sorted(_below(path), key=itemgetter(0)) or [(path, nothing)]


def _below(top: Path) -> Iterator[tuple[Path, OodbenchError | None]]:
    to_list: list[tuple[Path, tuple[str, ...]]] = [(top, ())]
    while to_list:
        folder, above = to_list.pop()
        real = os.path.realpath(folder)
        if real in above:
            yield folder, BadData("is a link to a folder that contains it; remove the link")
            continue
        try:
            for entry in entries(folder):
                path = folder / entry.name
                if is_folder(entry):
                    to_list.append((path, (*above, real)))
                elif path.suffix.lower() in SUFFIXES | UNREAD_SUFFIXES or _was_folder(entry):
                    yield path, None
        except BadData as error:
            yield folder, error


def _was_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a broken link that may have been one to a folder."""
    return entry.is_symlink() and not os.path.splitext(entry.name)[1] and not os.path.exists(entry.path)


def _read(fitted: Fitted, path: Path) -> Tensor | OodbenchError:
    """The image (3, H, W) as the network takes it, or the error that prevents it."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block for ever
            return BadData("is not a regular file")
        return fitted.about.input.of(decode(path))
    except FileNotFoundError:
        return BadData("no such file")
    except OSError as error:
        return BadData(f"cannot be read ({why(error)}); check its permissions")
    except OodbenchError as error:
        unread = path.suffix.lower() in UNREAD_SUFFIXES
        return BadData(f"{path.suffix} images are not read; save it as PNG") if unread else error


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
