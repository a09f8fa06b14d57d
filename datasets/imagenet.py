"""ImageNet in the layout of OpenOOD v1.5 (Zhang et al. 2023, arXiv 2306.09301): lists of images under one folder.

``imagenet`` is the in-distribution set, and ``imagenet/NAME`` what else has a list ``test_NAME.txt`` there, such as
``imagenet/ninco``. OpenOOD's download script gets lists and images.
"""

import re
from dataclasses import replace
from pathlib import Path

from oodbench import registry
from oodbench.datasets import TABLE
from oodbench.datasets.fetching.catalogue import CATALOGUE
from oodbench.datasets.formats.layout import require_split
from oodbench.datasets.image_list import image_list
from oodbench.errors import MissingData, NoSuchSplit, UsageError
from oodbench.image_set import CSID, ImageSet, Source

CLASSES = tuple(map(str, range(1000)))  # numbers: a list may show some of them only
LISTS = "benchmark_imglist/imagenet"
NEAR = ("ssb_hard", "ninco")
SHIFTED = ("imagenet_c", "imagenet_r", "imagenet_v2")  # the same classes under another distribution
OFFICIAL_SIZE = {
    **{"ssb_hard": 49_000, "ninco": 5_879, "inaturalist": 10_000, "textures": 5_160, "openimage_o": 15_869},
    **{"imagenet_c": 10_000, "imagenet_r": 30_000, "imagenet_v2": 10_000},
}
VALIDATION_SIZE = {"openimage_o": 1_763}  # images of the split val, on which OpenOOD chooses hyper-parameters
OPENOOD = TABLE["imagenet"].source
CITATION = "Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015"
CITATION_OF_PARTS = "Zhang et al., OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection, 2023"
TEST_LIST = re.compile(r"test_(?P<part>\w+)\.txt")


def imagenet(root: Path, split: str, part: str, level: int | None) -> ImageSet:
    """Load the images of a list, ``SPLIT_imagenet.txt`` or ``SPLIT_PART.txt`` in ``benchmark_imglist/imagenet``.

    The splits are train, val and test; of a part, val and test. A part whose images have labels shows the network's classes
    (kind ``csid``). Others are near-OOD if OpenOOD counts them so or their name ends with ``_near``, else far-OOD.

    Raises UsageError for a level and for another split, NoSuchSplit if there is no list of training
    images, MissingData for another list that is missing, and as ``image_list``.
    """
    whole = f"imagenet/{part}" if part else "imagenet"
    require_split(whole, split, ("val", "test") if part else ("train", "val", "test"))
    if level is not None:
        raise UsageError(f"{whole} has no levels; write {whole}")
    name = f"{LISTS}/{split}_{part or 'imagenet'}.txt"
    if not (root / name).is_file():
        raise _missing(whole, split, root, name)
    images = image_list(root, name, "test")
    kind = CSID if images.labels is not None else "near-ood" if part in NEAR or part.endswith("_near") else "far-ood"
    sizes = {name: of[part] for name, of in (("test", OFFICIAL_SIZE), ("val", VALIDATION_SIZE)) if part in of}
    return replace(
        images,
        name=whole,
        split=split,
        kind=kind if part else "near-ood",
        classes=() if images.labels is None else CLASSES,
        source=Source(
            title=f"{part}, as OpenOOD lists it for ImageNet" if part else "ImageNet (ILSVRC 2012), as OpenOOD lists it",
            homepage=OPENOOD,
            licence="that of its images" if part else "non-commercial research (terms of image-net.org)",
            citation=CITATION_OF_PARTS if part else CITATION,
            official_size=sizes if part else CATALOGUE["imagenet"].images,
        ),
    )


def parts(root: Path) -> list[str]:
    """The parts of ``imagenet`` whose lists are there, in order of name."""
    found = (TEST_LIST.fullmatch(path.name) for path in (root / LISTS).glob("test_*.txt"))
    return sorted(match["part"] for match in found if match and match["part"] != "imagenet")


imagenet.parts = parts  # type: ignore[attr-defined]  # what ``imagenet/*`` stands for


def _missing(whole: str, split: str, root: Path, name: str) -> MissingData | NoSuchSplit | UsageError:
    if split == "train":
        test = f"{LISTS}/test_imagenet.txt"
        if not (root / test).is_file():
            return _missing(whole, "test", root, test)
        return NoSuchSplit(f"{whole} has no training images here: no {name} below {root.absolute()}; add that list")
    there = parts(root)
    part = whole.partition("/")[2]
    if part and part not in OFFICIAL_SIZE and there:
        return UsageError(registry.unknown("part", part, there, f"lists are there of {', '.join(there)}", of="imagenet"))
    return MissingData(
        f"{whole} ({split}) is missing: no {name} below {root.absolute()}; OpenOOD's download script gets it ({OPENOOD}); or"
        " name another data root with --data DIR or OODBENCH_DATA"
    )
