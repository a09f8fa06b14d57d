"""KADID-10k: 81 references under 25 distortions at five levels (Lin, Hosu & Saupe, QoMEX 2019)."""

import math
import re

from oodbench.datasets.quality.database import QualityDatabase
from oodbench.datasets.quality.layout import Opinion, by_name, finite, from_files, lookup, official_folder
from oodbench.datasets.quality.table import read_table
from oodbench.errors import BadData
from oodbench.paths import DataRoots

FOLDERS = ("kadid10k", "KADID-10k")
OFFICIAL_SIZE = 10_125
NAME = re.compile(r"i(\d\d)_(\d\d)_(\d\d)\.png", re.ASCII | re.IGNORECASE)  # reference, distortion, level
DISTORTIONS = (
    *("Gaussian blur", "lens blur", "motion blur", "colour diffusion", "colour shift", "colour quantization"),
    *("saturation in HSV", "saturation in Lab", "JPEG 2000", "JPEG", "white noise", "white noise in colour", "impulse noise"),
    *("multiplicative noise", "denoising", "brighten", "darken", "mean shift", "jitter", "non-eccentricity patch", "pixelate"),
    *("quantization", "colour blocks", "sharpening", "contrast"),
)


def load(path: str = "", *, data: DataRoots = None) -> QualityDatabase:
    """Load ``kadid10k/images`` with the scores of ``dmos.csv``, where higher is better, despite the name.

    A deviation is the root of the variance in the column ``var``. Images that are absent are left out.

    Raises UsageError for a path after the name, MissingData if the folder or all images are missing, and BadData for
    files that disagree.
    """
    folder = official_folder("kadid10k", path, data, FOLDERS)
    table = folder / "dmos.csv"
    columns = read_table(table, ("dist_img", "ref_img", "dmos", "var"))
    images = by_name(folder / "images")
    opinions = []
    for number, (name, reference, dmos, variance) in enumerate(
        zip(columns["dist_img"], columns["ref_img"], columns["dmos"], columns["var"], strict=True), start=1
    ):
        place = f"{table}, row {number}"
        match = NAME.fullmatch(name)
        if match is None or not 1 <= int(match[2]) <= len(DISTORTIONS):
            raise BadData(f"{place}: dist_img is not a name like I01_01_01.png; unpack KADID-10k again")
        if (spread := finite(variance, place)) < 0:
            raise BadData(f"{place}: var is {spread:g}, below 0; unpack KADID-10k again")
        opinions.append(
            Opinion(
                lookup(images, folder / "images", name),
                lookup(images, folder / "images", reference),
                finite(dmos, place),
                math.sqrt(spread),
                DISTORTIONS[int(match[2]) - 1],
                int(match[3]),
            )
        )
    return from_files("kadid10k", opinions, higher_is_better=True, score_name="DMOS", official_size=OFFICIAL_SIZE)
