"""GTSRB, German traffic signs in 43 classes (Stallkamp et al. 2012)."""

import re
from pathlib import Path

import torch

from oodbench.datasets import TABLE
from oodbench.datasets.fetching.catalogue import CATALOGUE
from oodbench.datasets.formats.files import ImageFiles
from oodbench.datasets.formats.layout import image_files, labelled_files, missing, require_split, text_lines
from oodbench.errors import BadData
from oodbench.image_set import ImageSet, Source

TEST_LABELS = CATALOGUE["gtsrb"].downloads[-1]
CLASSES = tuple(f"{label:05d}" for label in range(43))
SOURCE = Source(
    "GTSRB",
    TABLE["gtsrb"].source,
    "free to use; cite the paper",
    "Stallkamp et al., Man vs. Computer: Benchmarking Machine Learning Algorithms for Traffic Sign Recognition, 2012",
    CATALOGUE["gtsrb"].images,
)


def gtsrb(root: Path, split: str) -> ImageSet:
    """Load train, ``GTSRB/Training/<class>/*.ppm``, or test, ``GTSRB/Final_Test/Images/*.ppm`` with ``GT-final_test.csv``.

    The table may be in the data root, in ``GTSRB`` or in ``GTSRB/Final_Test``. Without ``Final_Test``, test may also be
    class folders, ``gtsrb/<class>/*``. Sizes vary.
    """
    require_split("gtsrb", split, SOURCE.official_size)
    training, final = root / "GTSRB" / "Training", root / "GTSRB" / "Final_Test" / "Images"
    if split == "test" and final.is_dir():
        where = final
        paths, labels = _final_test(root, final)
    else:
        where = training if split == "train" else root / "gtsrb"
        folders = [(where / name, label) for label, name in enumerate(CLASSES) if (where / name).is_dir()]
        if not folders:
            raise missing("gtsrb", split, training if split == "train" else final, CATALOGUE["gtsrb"].address(split))
        paths, labels = labelled_files(folders)
    if not paths:
        raise BadData(f"{where} holds no images; unpack {CATALOGUE['gtsrb'].address(split)} again")
    return ImageSet(
        ImageFiles(paths),
        torch.tensor(labels),
        name="gtsrb",
        split=split,
        kind="far-ood",
        classes=CLASSES,
        source=SOURCE,
        flips=False,
    )


def _final_test(root: Path, final: Path) -> tuple[list[Path], list[int]]:
    """Return the present images, sorted by name, and their labels from ``GT-final_test.csv``.

    Its columns Filename and ClassId are separated by semicolons.
    """
    places = [folder / "GT-final_test.csv" for folder in (root, root / "GTSRB", root / "GTSRB" / "Final_Test")]
    table = next((path for path in places if path.is_file()), None)
    if table is None:
        raise missing("gtsrb", "test", places[0], TEST_LABELS.url)
    labels: dict[str | None, int] = {}
    header, *lines = (line.split(";") for line in text_lines(table) or [""])
    for number, line in enumerate(lines, 2):
        row = dict(zip(header, line, strict=False))
        label = row.get("ClassId", "")
        if not (re.fullmatch("[0-9]{1,5}", label) and int(label) < len(CLASSES)):
            raise BadData(f"{table}, line {number}: ClassId is '{label[:20]}', not 0 to 42; unpack {TEST_LABELS.file} again")
        if labels.setdefault(row.get("Filename"), int(label)) != int(label):
            raise BadData(f"{table}, line {number}: the file has two classes; unpack {TEST_LABELS.file} again")
    paths = image_files(final)
    if strangers := [path for path in paths if path.name not in labels]:
        raise BadData(f"{strangers[0]} has no line in {table}; remove it or unpack {TEST_LABELS.file} again")
    return paths, [labels[path.name] for path in paths]
