"""Places365: photographs of 365 kinds of places (Zhou et al., TPAMI 2018)."""

from pathlib import Path

from oodbench.datasets import TABLE
from oodbench.datasets.fetching.catalogue import CATALOGUE
from oodbench.datasets.formats.files import ImageFiles
from oodbench.datasets.formats.layout import image_files, missing, require_split
from oodbench.errors import BadData
from oodbench.image_set import ImageSet, Source

ARCHIVE = CATALOGUE["places365"].address()
SOURCE = Source(
    "Places365",
    TABLE["places365"].source,
    "non-commercial research and education",
    "Zhou et al., Places: A 10 Million Image Database for Scene Recognition, TPAMI 2018",
    CATALOGUE["places365"].images,
)


def places365(root: Path, split: str) -> ImageSet:
    """Load the test images, ``test_256/*.jpg``. Their labels are not published.

    The headers of so many files are not read to compare sizes: unless a size is given, the images become 32x32.
    """
    require_split("places365", split, SOURCE.official_size)
    folder = root / "test_256"
    if not folder.is_dir():
        raise missing("places365", split, folder, ARCHIVE)
    if not (files := image_files(folder)):
        raise BadData(f"{folder} holds no images; unpack {ARCHIVE} again")
    return ImageSet(ImageFiles(files, sizes_vary=True), name="places365", split=split, kind="far-ood", source=SOURCE)
