"""TID2013: 25 references, 24 distortions, five levels (Ponomarenko et al., Signal Processing: Image Communication 30, 2015)."""

import re

from oodbench.datasets.formats.layout import text_lines
from oodbench.datasets.quality.database import QualityDatabase
from oodbench.datasets.quality.layout import Opinion, by_name, finite, from_files, lookup, official_folder
from oodbench.errors import BadData
from oodbench.paths import DataRoots

FOLDERS = ("tid2013", "TID2013")
OFFICIAL_SIZE = 3000
NAME = re.compile(r"i(\d\d)_(\d\d)_(\d)\.bmp", re.ASCII | re.IGNORECASE)  # reference, distortion, level
DISTORTIONS = (
    *("additive Gaussian noise", "noise in colour", "spatially correlated noise", "masked noise", "high-frequency noise"),
    *("impulse noise", "quantization noise", "Gaussian blur", "denoising", "JPEG", "JPEG 2000", "JPEG transmission errors"),
    *("JPEG 2000 transmission errors", "non-eccentricity pattern", "local blocks", "mean shift", "contrast", "saturation"),
    *("multiplicative Gaussian noise", "comfort noise", "lossy compression of noisy images", "colour quantization"),
    *("chromatic aberrations", "sparse sampling"),
)


def load(path: str = "", *, data: DataRoots = None) -> QualityDatabase:
    """Load ``tid2013/{reference_images,distorted_images}``, with MOS (higher is better) from ``mos_with_names.txt``.

    ``mos_std.txt``, in the same order, has the deviations. Images that are absent are left out.

    Raises UsageError for a path after the name, MissingData if the folder or all images are missing, and BadData for
    files that disagree.
    """
    folder = official_folder("tid2013", path, data, FOLDERS)
    scores, deviations = folder / "mos_with_names.txt", folder / "mos_std.txt"
    lines, spread = text_lines(scores), text_lines(deviations)
    if len(spread) != len(lines):
        raise BadData(f"{deviations} has {len(spread)} lines and {scores.name} {len(lines)}; unpack TID2013 again")
    references, images = by_name(folder / "reference_images"), by_name(folder / "distorted_images")
    opinions = []
    for number, (line, deviation) in enumerate(zip(lines, spread, strict=True), start=1):
        place = f"{scores}, line {number}"
        score, _, name = " ".join(line.split()).partition(" ")
        match = NAME.fullmatch(name)
        if match is None or not 1 <= int(match[2]) <= len(DISTORTIONS):
            raise BadData(f"{place}: expected a score and a name like i01_01_1.bmp; unpack TID2013 again")
        opinions.append(
            Opinion(
                lookup(images, folder / "distorted_images", name),
                lookup(references, folder / "reference_images", f"I{match[1]}.BMP"),
                finite(score, place),
                finite(deviation, f"{deviations}, line {number}"),
                DISTORTIONS[int(match[2]) - 1],
                int(match[3]),
            )
        )
    return from_files("tid2013", opinions, higher_is_better=True, score_name="MOS", official_size=OFFICIAL_SIZE)
