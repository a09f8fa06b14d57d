"""LIVE multiply distorted: 15 references, blurred and then compressed or noisy (Jayaraman et al., Asilomar 2012)."""

import zlib

import numpy as np

from oodbench.datasets.formats.layout import why
from oodbench.datasets.formats.mat_file import read_arrays, read_strings
from oodbench.datasets.quality.database import QualityDatabase
from oodbench.datasets.quality.layout import Opinion, by_name, from_files, lookup, official_folder
from oodbench.errors import BadData
from oodbench.paths import DataRoots

FOLDERS = ("LIVEmultidistortiondatabase/To_Release", "LIVEmultidistortiondatabase", "To_Release")
PARTS = {"Part 1": "blurjpeg", "Part 2": "blurnoise"}  # each part's folder of images, references among them
COUNT, SUBJECTS = 225, 100  # images of a part; most subjects that its file may have
OFFICIAL_SIZE = COUNT * len(PARTS)


def load(path: str = "", *, data: DataRoots = None) -> QualityDatabase:
    """Load ``LIVEmultidistortiondatabase/To_Release/{Part 1,Part 2}``, with DMOS (lower is better).

    A deviation is the standard deviation over subjects of ``dist_diffscores``. Images that are absent are left out.

    Raises UsageError for a path after the name, MissingData if the folder or all images are missing, and BadData for
    files that disagree.
    """
    folder = official_folder("multi", path, data, FOLDERS)
    opinions: list[Opinion] = []
    known = {name: file for part, kind in reversed(PARTS.items()) for name, file in by_name(folder / part / kind).items()}
    for part, kind in PARTS.items():
        lists, scores = folder / part / "Imagelists.mat", folder / part / "Scores.mat"
        try:
            names, references = (read_strings(lists, name, COUNT) or [] for name in ("distimgs", "refimgs"))
            numbers = read_arrays(lists, {"ref4dist": 8 * COUNT}).get("ref4dist", np.empty(0)).ravel()
            said = read_arrays(scores, {"DMOSscores": 8 * COUNT, "dist_diffscores": 8 * COUNT * SUBJECTS})
        except (OSError, ValueError, zlib.error) as error:
            raise BadData(
                f"{folder / part}: {lists.name} or {scores.name} cannot be read ({why(error)}); unpack it again"
            ) from error
        dmos, ratings = said.get("DMOSscores", np.empty(0)).ravel(), said.get("dist_diffscores", np.empty((0, 0)))
        shapes = len(names), len(numbers), len(dmos), ratings.shape[-1]
        if shapes != (COUNT,) * 4 or ratings.ndim != 2 or len(ratings) < 2:
            raise BadData(
                f"{folder / part}: distimgs, ref4dist, DMOSscores and columns of dist_diffscores are {shapes}, not {COUNT}"
                " each; unpack it again"
            )
        if not (np.isin(numbers, np.arange(1, len(references) + 1))).all():
            raise BadData(f"{lists}: ref4dist names a reference that is not one of {len(references)}; unpack it again")
        if ((~np.isnan(ratings)).sum(0) < 2).any():
            raise BadData(f"{scores}: an image has fewer than two ratings in dist_diffscores; unpack it again")
        with np.errstate(over="ignore", invalid="ignore"):  # of absurd ratings, which are refused as not finite
            deviations = np.nanstd(ratings, axis=0, ddof=1)  # a subject whose rating was left out is NaN
        images = by_name(folder / part / kind)
        for name, number, score, deviation in zip(names, numbers, dmos, deviations, strict=True):
            reference = lookup(known, folder / part / kind, references[int(number) - 1])
            image = lookup(images, folder / part / kind, name)
            opinions.append(Opinion(image, reference, float(score), float(deviation), kind))
    return from_files("multi", opinions, higher_is_better=False, score_name="DMOS", official_size=OFFICIAL_SIZE)
