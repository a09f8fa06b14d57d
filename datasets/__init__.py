"""The data sets: one family per file. The table below lists them.

Each name stands for a loader, ``loader(root: Path, split: str) -> ImageSet``, for built-in and third-party sets alike
(entry-point group ``oodbench.datasets``). A set with parts (``cifar10c/fog@3``) has ``loader(root, split, part, level)``
instead; without a part in the name, ``part`` is empty and ``level`` is None. It may have an attribute ``parts(root)``, which
lists the parts that are there: ``NAME/*`` in a suite stands for them. A loader returns images unchanged, grey or RGB,
in their own size: a uint8 tensor (N, C, H, W), or an indexable (``oodbench.image_set.Images``) that decodes on demand. If
sizes vary, its ``shape`` is (N, C, 0, 0) and images are requested one at a time. It raises MissingData if the set is not
below ``root``, and UsageError for an unknown split or part. Resizing, colour, one class of a set, corruptions and attacks
work the same for all sets: see ``load``.

``folder:PATH`` and ``imglist:FILE`` need no entry in the table: they are any folder of images and any list of images,
absolute or below the data root.
"""

import importlib
from typing import TYPE_CHECKING, Any

from oodbench.registry import Entry

if TYPE_CHECKING:
    from oodbench.datasets import adversarial, corruptions, load

__all__ = ["TABLE", "adversarial", "corruptions", "load"]

PATTERNS = {  # names that stand for many sets
    "folder:PATH": Entry("", "Any folder of images, or of class folders, with train and test or without"),
    "imglist:FILE": Entry("", "The images that a text file lists, with labels or without, such as OpenOOD's lists"),
}
TABLE = {
    "digits": Entry(
        "oodbench.datasets.digits:digits",
        "Handwritten digits 0-7, 8x8 grey, embedded: in-distribution",
        "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    ),
    "digits-heldout": Entry(
        "oodbench.datasets.digits:digits_heldout",
        "Handwritten digits 8 and 9, 8x8 grey, embedded: near-OOD of digits",
        "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    ),
    "photos": Entry(
        "oodbench.datasets.photos:photos",
        "500 grey 8x8 patches of two photographs, embedded: far-OOD of digits",
        "https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_sample_images.html",
    ),
    "uniform": Entry("oodbench.datasets.uniform:uniform", "500 grey 8x8 images of uniform noise, embedded: far-OOD"),
    "cifar10": Entry(
        "oodbench.datasets.cifar:cifar10",
        "10 classes of 32x32 photographs",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": Entry(
        "oodbench.datasets.cifar:cifar100",
        "100 classes of 32x32 photographs: near-OOD of CIFAR-10",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar10c": Entry(
        "oodbench.datasets.cifar10c:cifar10c",
        "CIFAR-10-C, 19 corruptions of CIFAR-10 at five levels as parts, such as cifar10c/fog@3",
        "https://zenodo.org/records/2535967",
    ),
    "svhn": Entry(
        "oodbench.datasets.svhn:svhn",
        "Digits of house numbers from Street View, 32x32",
        "http://ufldl.stanford.edu/housenumbers/",
    ),
    "lsun-crop": Entry(
        "oodbench.datasets.odin_sets:lsun_crop",
        "Crops of scenes, from ODIN's file",
        "https://github.com/facebookresearch/odin",
    ),
    "lsun-resize": Entry(
        "oodbench.datasets.odin_sets:lsun_resize",
        "Resized scenes, from ODIN's file",
        "https://github.com/facebookresearch/odin",
    ),
    "tinyimagenet": Entry(
        "oodbench.datasets.tinyimagenet:tinyimagenet",
        "200 ImageNet classes at 64x64; shares classes with CIFAR-10",
        "http://cs231n.stanford.edu/",
    ),
    "imagenet": Entry(
        "oodbench.datasets.imagenet:imagenet",
        "ImageNet, 1,000 classes, and as parts the sets that OpenOOD tests beside it, such as imagenet/ninco",
        "https://github.com/Jingkang50/OpenOOD",
    ),
    "tinyimagenet-crop": Entry(
        "oodbench.datasets.odin_sets:tinyimagenet_crop",
        "Crops of images of 200 ImageNet classes, from ODIN's file",
        "https://github.com/facebookresearch/odin",
    ),
    "tinyimagenet-resize": Entry(
        "oodbench.datasets.odin_sets:tinyimagenet_resize",
        "Resized images of 200 ImageNet classes, from ODIN's file",
        "https://github.com/facebookresearch/odin",
    ),
    "textures": Entry(
        "oodbench.datasets.textures:textures",
        "Describable textures (DTD), 47 classes, sizes vary",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    ),
    "places365": Entry(
        "oodbench.datasets.places365:places365",
        "Photographs of places, 256x256",
        "http://places2.csail.mit.edu/",
    ),
    "gtsrb": Entry(
        "oodbench.datasets.gtsrb:gtsrb",
        "German traffic signs, 43 classes, sizes vary",
        "https://benchmark.ini.rub.de/gtsrb_news.html",
    ),
    "curetsr": Entry(
        "oodbench.datasets.curetsr:curetsr",
        "CURE-TSR, photographs of traffic signs, 14 classes, sizes vary; twelve challenges at five levels as parts, such as"
        " curetsr/Haze@3",
        "https://github.com/olivesgatech/CURE-TSR",
    ),
    "curetsr-unreal": Entry(
        "oodbench.datasets.curetsr:curetsr_unreal",
        "CURE-TSR, rendered traffic signs, with the same classes and parts",
        "https://github.com/olivesgatech/CURE-TSR",
    ),
}


def __getattr__(name: str) -> Any:
    if name in ("adversarial", "corruptions", "load"):
        return importlib.import_module(f"oodbench.datasets.{name}")
    raise AttributeError(f"module 'oodbench.datasets' has no attribute '{name}'")
