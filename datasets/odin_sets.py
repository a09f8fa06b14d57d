"""The crops and resizes of LSUN and Tiny ImageNet on which ODIN was tested (Liang et al., ICLR 2018).

These are the files that ODIN's authors published. The resizes are not antialiased, which a detector can pick up. LSUN's own
release is different data.
"""

from pathlib import Path

from oodbench.datasets import TABLE
from oodbench.datasets.fetching.catalogue import CATALOGUE
from oodbench.datasets.formats.files import ImageFiles
from oodbench.datasets.formats.layout import image_files, missing, require_split
from oodbench.errors import BadData
from oodbench.image_set import ImageSet, Source

LSUN = "Yu et al., LSUN: Construction of a Large-scale Image Dataset, 2015"
IMAGENET = "Deng et al., ImageNet: A Large-Scale Hierarchical Image Database, CVPR 2009"


def lsun_crop(root: Path, split: str) -> ImageSet:
    """Load ``LSUN/test``: crops of the test images of LSUN's ten scenes, without labels."""
    return _load("lsun-crop", root, split, LSUN)


def lsun_resize(root: Path, split: str) -> ImageSet:
    """Load ``LSUN_resize/LSUN_resize``: the same images, resized."""
    return _load("lsun-resize", root, split, LSUN)


def tinyimagenet_crop(root: Path, split: str) -> ImageSet:
    """Load ``Imagenet/test``: crops of test images of 200 classes of ImageNet, without labels."""
    return _load("tinyimagenet-crop", root, split, IMAGENET)


def tinyimagenet_resize(root: Path, split: str) -> ImageSet:
    """Load ``Imagenet_resize/Imagenet_resize``: the same images, resized."""
    return _load("tinyimagenet-resize", root, split, IMAGENET)


def _load(name: str, root: Path, split: str, citation: str) -> ImageSet:
    item = CATALOGUE[name]
    require_split(name, split, item.images)
    (archive,) = item.downloads
    (path,) = archive.paths
    folder = root / path
    if not folder.is_dir():
        raise missing(name, split, folder, archive.url)
    if not (files := image_files(folder)):
        raise BadData(f"{folder} holds no images; unpack {archive.url} again")
    title, _, made = name.partition("-")
    return ImageSet(
        ImageFiles(files),
        name=name,
        split=split,
        kind="far-ood" if title == "lsun" else "near-ood",
        source=Source(
            f"{'LSUN' if title == 'lsun' else 'Tiny ImageNet'} ({made}) of ODIN",
            TABLE[name].source,
            "non-commercial research" if title == "lsun" else "ImageNet's terms: non-commercial research",
            f"{citation}; Liang et al., Enhancing The Reliability of Out-of-distribution Image Detection, ICLR 2018",
            item.images,
        ),
    )
