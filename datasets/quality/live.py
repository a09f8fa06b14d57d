"""LIVE release 2: 29 references under five distortions (Sheikh et al., IEEE Transactions on Image Processing 15, 2006)."""

import zlib

import numpy as np

from oodbench.datasets.formats.layout import why
from oodbench.datasets.formats.mat_file import read_arrays, read_strings
from oodbench.datasets.quality.database import QualityDatabase
from oodbench.datasets.quality.layout import Opinion, by_name, from_files, lookup, official_folder
from oodbench.errors import BadData
from oodbench.paths import DataRoots

FOLDERS = ("databaserelease2", "live")
OFFICIAL_SIZE = 779
# Folders and their numbers of images, in the order of the scores; 203 of these images are copies of references.
DISTORTIONS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
COUNT = sum(DISTORTIONS.values())
SCORES, REFERENCES = "dmos_realigned.mat", "refnames_all.mat"


def load(path: str = "", *, data: DataRoots = None) -> QualityDatabase:
    """Load ``databaserelease2/{jp2k,jpeg,wn,gblur,fastfading}/imgN.bmp``, with realigned DMOS (lower is better).

    Copies of references, which have a DMOS of 0, and images that are absent are left out.

    Raises UsageError for a path after the name, MissingData if the folder or all images are missing, and BadData for
    files that disagree.
    """
    folder = official_folder("live", path, data, FOLDERS)
    try:
        arrays = read_arrays(folder / SCORES, dict.fromkeys(("dmos_new", "dmos_std", "orgs"), 8 * COUNT))
        names = read_strings(folder / REFERENCES, "refnames_all", COUNT)
    except (OSError, ValueError, zlib.error) as error:
        raise BadData(f"{folder}: {SCORES} or {REFERENCES} cannot be read ({why(error)}); unpack LIVE again") from error
    columns = [arrays.get(name, np.empty(0)).ravel() for name in ("dmos_new", "dmos_std", "orgs")]
    names = names or []
    counts = [*map(len, columns), len(names)]
    if counts != [COUNT] * 4:
        raise BadData(
            f"{folder}: dmos_new, dmos_std, orgs and refnames_all have {counts} entries, not {COUNT}; unpack LIVE again"
        )
    references = by_name(folder / "refimgs")
    opinions = []
    places = [(kind, number) for kind, count in DISTORTIONS.items() for number in range(1, count + 1)]
    images = {kind: by_name(folder / kind) for kind in DISTORTIONS}
    for (kind, number), score, deviation, copy, reference in zip(places, *columns, names, strict=True):
        if not copy:
            image = lookup(images[kind], folder / kind, f"img{number}.bmp")
            opinions.append(
                Opinion(image, lookup(references, folder / "refimgs", reference), float(score), float(deviation), kind)
            )
    return from_files("live", opinions, higher_is_better=False, score_name="DMOS", official_size=OFFICIAL_SIZE)
