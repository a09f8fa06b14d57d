"""Pictures of the images of a run's sets, where their licence lets anybody show them: samples, and what detectors miss."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pydantic import ValidationError

from oodbench.datasets.name import parse
from oodbench.engine.loaded_suite import LoadedSuite
from oodbench.errors import BadData, OodbenchError, counted, reason
from oodbench.image_set import ImageSet
from oodbench.leaderboard.aggregate import BENIGN
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.paths import DataRoots
from oodbench.progress import Progress
from oodbench.results.folder import RunFolder
from oodbench.suite import Suite

ACROSS = 16  # samples side by side, of each level
MISSES = 12  # hardest images of a detector
SIDE = 48  # pixels of a thumbnail at least
FREE = re.compile(r"(CC0|CC BY(-SA)?( [\d.]+)?$|public domain|MIT|Apache)", re.IGNORECASE)  # licences


class Strip(NamedTuple):
    """A picture of several images side by side."""

    src: str
    alt: str
    caption: str
    width: int
    height: int
    png: bytes


class Thumbnails:
    """Reads the images of runs as the runs read them."""

    def __init__(self, folders: Sequence[RunFolder], data: DataRoots, progress: Progress) -> None:
        self._images: dict[str, ImageSet] = {}
        self._stored: dict[str, set[str]] = {}
        for folder in folders:
            try:
                self._images |= _images_of(folder, data, progress)
            except OodbenchError as error:
                progress.say(f"no images of {folder.name} are shown: {reason(error)}")
            for record in folder.records():
                self._stored.setdefault(record.set_name, set()).add(record.fingerprint)

    def of(self, set_name: str) -> ImageSet:
        """The images of a set. Raises BadData where they may not be shown, or are not those of the run."""
        images = self._images.get(set_name)
        if images is None or parse(set_name).attack:
            raise BadData(f"{set_name} cannot be read without the network, or was not found")
        if not FREE.match(images.source.licence):
            raise BadData(f"its licence ({images.source.licence or 'not stated'}) does not let anybody show its images")
        if images.fingerprint not in self._stored.get(set_name, ()):
            raise BadData("the images here are not those of the run")
        return images


def _images_of(folder: RunFolder, data: DataRoots, progress: Progress) -> dict[str, ImageSet]:
    """The images of each set of a run. Raises BadData for a forged suite, and what reading its in-distribution set raises."""
    manifest = folder.manifest()
    limit = manifest.settings.get("limit")
    try:
        # Images need no detectors, and those of the run may not be installed.
        suite = Suite.model_validate(manifest.suite | {"detectors": ["msp"], "parameters": {}})
        suite = suite.override(protocols=["unsupervised"])
    except ValidationError as error:
        raise BadData("its suite is not what this version of oodbench writes") from error
    loaded = LoadedSuite(suite, progress, data=data, limit=limit if isinstance(limit, int) else None)
    loaded.load_test_sets(progress)
    return {one.name: one.images for one in loaded.test_sets if one.images is not None}


def samples(path: str, names: list[str], thumbnails: Thumbnails) -> Strip:
    """Some images of a set, spread evenly over it; a row for each of ``names``, its levels. Raises BadData as ``of``."""
    sets = [thumbnails.of(name) for name in names]
    rows = [np.linspace(0, len(images) - 1, min(ACROSS, len(images))).astype(int) for images in sets]
    said = f"{counted(len(rows[0]), 'image')} of {', '.join(names)}"
    caption = f"{said}, spread evenly over the set. {sets[0].source.title}, {sets[0].source.licence}."
    return _strip(path, [images.read(row).numpy() for images, row in zip(sets, rows, strict=True)], said, caption)


def misses(path: str, cell: Mapping[Any, Any], name: str, thumbnails: Thumbnails, scores: StoredScores) -> Strip:
    """The images of a cell that its detector judges worst: the least anomalous, of benign changes the most anomalous.

    Raises BadData as ``of``, and without scores.
    """
    images = thumbnails.of(name)
    if images.fingerprint != scores.record(cell).fingerprint:
        raise BadData("the images here are those of another run")
    arrays = scores.arrays(cell)
    benign = cell["kind"] == BENIGN
    worst = np.argsort(-arrays["out_scores"] if benign else arrays["out_scores"], kind="stable")[:MISSES]
    rows = arrays["out_test"][worst] if "out_test" in arrays else worst
    said = f"{cell['detector']}: the {'most' if benign else 'least'} anomalous of {name} first"
    return _strip(path, [images.read(rows).numpy()], said, said)


def _strip(path: str, rows: list[np.ndarray], alt: str, caption: str) -> Strip:
    """Rows of images (n, C, H, W), enlarged by a whole factor, with a line of background between them."""
    _, channels, high, wide = rows[0].shape
    factor = max(1, SIDE // min(high, wide))
    high, wide = high * factor, wide * factor
    across = max(map(len, rows))
    sheet = np.full((len(rows) * (high + 2), across * (wide + 2), channels), 255, np.uint8)
    for down, images in enumerate(rows):
        large = images.repeat(factor, 2).repeat(factor, 3).transpose(0, 2, 3, 1)
        for right, image in enumerate(large):
            sheet[down * (high + 2) : down * (high + 2) + high, right * (wide + 2) : right * (wide + 2) + wide] = image
    written = io.BytesIO()
    Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet).save(written, "png", optimize=False)
    return Strip(path, alt, caption, sheet.shape[1], sheet.shape[0], written.getvalue())
