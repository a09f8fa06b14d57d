"""Places365: photographs of 365 kinds of places (Zhou et al., TPAMI 2018)."""

from pathlib import Path

from oodbench.datasets.formats.files import ImageFiles
from oodbench.datasets.formats.layout import image_files, missing, require_split
from oodbench.errors import BadData
from oodbench.image_set import ImageSet, Source

ARCHIVE = "http://data.csail.mit.edu/places/places365/test_256.tar"
SOURCE = Source(
    "Places365",
    "http://places2.csail.mit.edu/",
    "non-commercial research and education",
    "Zhou et al., Places: A 10 Million Image Database for Scene Recognition, TPAMI 2018",
    {"test": 328_500},
)


def places365(root: Path, split: str) -> ImageSet:
    """``test_256/*.jpg``, the test images, whose labels are not published.

    So many headers are not read to find out whether all have one size: without a size asked for they become 32x32.
    """
    require_split("places365", split, SOURCE.official_size)
    folder = root / "test_256"
    if not folder.is_dir():
        raise missing("places365", split, folder, ARCHIVE)
    if not (files := image_files(folder)):
        raise BadData(f"{folder} holds no images; unpack {ARCHIVE} again")
    return ImageSet(ImageFiles(files, sizes_vary=True), name="places365", split=split, kind="far-ood", source=SOURCE)
