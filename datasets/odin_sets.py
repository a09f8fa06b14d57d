"""The crops and resizes of LSUN and Tiny ImageNet that ODIN was tested on (Liang et al., ICLR 2018).

They are files of their own, as their authors made them: the resizes are not antialiased, which a detector can pick up.
LSUN's own release is different data.
"""

from pathlib import Path

from oodbench.datasets.formats.files import ImageFiles
from oodbench.datasets.formats.layout import image_files, missing, require_split
from oodbench.errors import BadData
from oodbench.image_set import ImageSet, Source

SIZE = {"test": 10_000}
LSUN = "Yu et al., LSUN: Construction of a Large-scale Image Dataset, 2015"
IMAGENET = "Deng et al., ImageNet: A Large-Scale Hierarchical Image Database, CVPR 2009"


def lsun_crop(root: Path, split: str) -> ImageSet:
    """``LSUN/test``: crops of the test images of LSUN's ten scenes, without labels."""
    return _load("lsun-crop", root, split, "LSUN/test", "fhtsw1m3qxlwj6h/LSUN.tar.gz", LSUN)


def lsun_resize(root: Path, split: str) -> ImageSet:
    """``LSUN_resize/LSUN_resize``: the same images, made small."""
    return _load("lsun-resize", root, split, "LSUN_resize/LSUN_resize", "moqh2wh8696c3yl/LSUN_resize.tar.gz", LSUN)


def tinyimagenet_crop(root: Path, split: str) -> ImageSet:
    """``Imagenet/test``: crops of test images of 200 classes of ImageNet, without labels."""
    return _load("tinyimagenet-crop", root, split, "Imagenet/test", "avgm2u562itwpkl/Imagenet.tar.gz", IMAGENET)


def tinyimagenet_resize(root: Path, split: str) -> ImageSet:
    """``Imagenet_resize/Imagenet_resize``: the same images, made small."""
    path = "Imagenet_resize/Imagenet_resize"
    return _load("tinyimagenet-resize", root, split, path, "kp3my3412u5k9rl/Imagenet_resize.tar.gz", IMAGENET)


def _load(name: str, root: Path, split: str, path: str, archive: str, citation: str) -> ImageSet:
    require_split(name, split, SIZE)
    folder, address = root / path, f"https://www.dropbox.com/s/raw/{archive}"
    if not folder.is_dir():
        raise missing(name, split, folder, address)
    if not (files := image_files(folder)):
        raise BadData(f"{folder} holds no images; unpack {address} again")
    title, _, made = name.partition("-")
    return ImageSet(
        ImageFiles(files),
        name=name,
        split=split,
        kind="far-ood" if title == "lsun" else "near-ood",
        source=Source(
            f"{'LSUN' if title == 'lsun' else 'Tiny ImageNet'} ({made}) of ODIN",
            "https://github.com/facebookresearch/odin",
            "non-commercial research" if title == "lsun" else "ImageNet's terms: non-commercial research",
            f"{citation}; Liang et al., Enhancing The Reliability of Out-of-distribution Image Detection, ICLR 2018",
            SIZE,
        ),
    )
