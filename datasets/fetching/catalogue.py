"""Every set and weights file: its address, its paths below the data root, and the files it must have.

This is the only place with addresses of archives and official sizes; loaders take them from here. The table is apart from
the loaders because it imports nothing heavy. Addresses, layouts and checksums come from the sets' own pages; the MD5s are
those that torchvision and the loaders in the literature check. An MD5 detects a damaged file, not a forged one, so archives
are unpacked as if they were hostile. Sizes of downloads are those that TensorFlow Datasets records.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oodbench import registry
from oodbench.datasets.fetching.expected_files import Challenges, Expected, File, Images, any_exists, differences
from oodbench.datasets.name import BY_PATH, CHALLENGES, CORRUPTIONS_C, LEVELS, parse
from oodbench.errors import UsageError
from oodbench.models.published import PUBLISHED


@dataclass(frozen=True)
class Download:
    """One file to download.

    Attributes:
        url: its official address; a mirror has it under the same file name.
        digest: ``md5:…`` or ``sha256:…``.
        expected: the files and folders that it must leave below the data root.
        paths: the files and folders of the archive to install below the data root, each in one step; the rest of the
            archive is left out. For a file that is not an archive, its one path below the data root.
        archive: whether to unpack it.
        size: bytes to download, if known.
        disk: bytes once unpacked, if known.
        optional: whether to skip it unless its split is requested.
    """

    url: str
    digest: str
    expected: tuple[Expected, ...]
    paths: tuple[str, ...]
    archive: bool = True
    size: int | None = None
    disk: int | None = None
    optional: bool = False

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def splits(self) -> set[str]:
        """The splits it holds; empty if it belongs to all."""
        return {entry.split for entry in self.expected} - {""}


@dataclass(frozen=True)
class Item:
    """A set, or the weights of a model.

    Attributes:
        family: ``dataset`` or ``weights``.
        images: number of images in the official set, by split; per part for a set that has parts.
        approximate: whether these numbers are approximate, because releases differ.
        request_form: the page on which to request a set that no program can download.
        requested: the files and folders that such a set must have.
        parts: names of all parts of a set that has parts, such as ``cifar10c/fog@3``.
        embedded: whether an installed package contains it.
        owner: the package that registers it, if it is a third party's.
    """

    name: str
    family: str = "dataset"
    images: dict[str, int] = field(default_factory=dict)
    approximate: bool = False
    downloads: tuple[Download, ...] = ()
    request_form: str = ""
    requested: tuple[Expected, ...] = ()
    parts: tuple[str, ...] = ()
    embedded: bool = False
    owner: str = ""

    def address(self, split: str = "") -> str:
        """Return the official address of the first download, or of the first that holds this split."""
        return next(download.url for download in self.downloads if not split or split in download.splits)

    @property
    def expected(self) -> tuple[Expected, ...]:
        """The files and folders of the whole set, without optional splits."""
        return self.requested + tuple(entry for d in self.downloads if not d.optional for entry in d.expected)

    def wanted(self, splits: Sequence[str] = ()) -> tuple[Download, ...]:
        """Return the downloads of these splits, by default all but optional ones. A download without splits belongs to each.

        Raises UsageError for an unknown split.
        """
        known = {split for download in self.downloads for split in download.splits} | self.images.keys()
        for split in splits:
            if known and split not in known:
                raise UsageError(f"{self.name} has no split '{split}' to fetch; it has {', '.join(sorted(known))}")
        if not splits:
            return tuple(download for download in self.downloads if not download.optional)
        return tuple(d for d in self.downloads if not d.splits or d.splits & set(splits))

    def differences(self, root: Path) -> list[str]:
        """Compare names and sizes below ``root`` with the whole set; return one line per difference."""
        return differences(self.expected, root)

    def survey(self, root: Path) -> tuple[str, list[str]]:
        """Return ``present``, ``partial`` or ``absent``, and the ``differences`` of a partial set.

        The state of a third party's set is ``unknown``: only its own package knows.
        """
        if self.embedded:
            return "present", []
        if self.owner:
            return "unknown", []
        everything = (*self.requested, *(entry for download in self.downloads for entry in download.expected))
        if not any_exists(everything, root):
            return "absent", []
        lacks = self.differences(root)
        return ("partial", lacks) if lacks else ("present", [])


def find(name: str) -> Item:
    """Return the item of a name; for ``cifar10:airplane``, ``cifar10+haze@3`` or ``cifar10c/fog@3``, the set behind it.

    Raises UsageError for an unknown name, with a suggestion, for an invalid part, level, corruption or attack, and for a name
    that two packages register.
    """
    base = parse(name).base
    if base in CATALOGUE and (base == name or CATALOGUE[base].family == "dataset"):
        return CATALOGUE[base]
    if base in BY_PATH:
        raise UsageError(f"{name} is your own {BY_PATH[base]}; data fetch and data verify do not apply to it")
    known = registry.records("datasets")
    if base not in known:
        raise UsageError(registry.unknown("set or weights", name, [*CATALOGUE, *known], "oodbench data list"))
    return Item(base, owner=registry.find("datasets", base).owner)


def items() -> list[Item]:
    """Return all items: built-in ones, then the sets of other packages."""
    others = [r for r in registry.records("datasets").values() if r.distribution != "oodbench" and r.name not in CATALOGUE]
    return [*CATALOGUE.values(), *(Item(record.name, owner=record.owner) for record in others)]


def _cifar(name: str, folder: str, digest: str, size: int, batches: Sequence[tuple[str, str, int, str]]) -> Item:
    """Build an item from batches (file, split, images, MD5); a batch holds 3,072 bytes per image."""
    files = tuple(File(f"{folder}/{file}", split, 3072 * images or 1, f"md5:{md5}") for file, split, images, md5 in batches)
    archive = f"https://www.cs.toronto.edu/~kriz/{name.replace('cifar', 'cifar-')}-python.tar.gz"
    whole = sum(file.min_size for file in files)
    return Item(
        name,
        images={"train": 50_000, "test": 10_000},
        downloads=(Download(archive, digest, files, (folder,), size=size, disk=whole),),
    )


def _one_folder(name: str, url: str, md5: str, path: str, count: int, size: int | None = None) -> Item:
    """Build an item from an archive with one folder of test images."""
    folder = Images(path, count, "test")
    return Item(name, images={"test": count}, downloads=(Download(url, f"md5:{md5}", (folder,), (path,), size=size),))


def _svhn(split: str, md5: str, size: int) -> Download:
    path = f"svhn/{split}_32x32.mat"
    return Download(
        f"http://ufldl.stanford.edu/housenumbers/{split}_32x32.mat",
        f"md5:{md5}",
        (File(path, split, size, f"md5:{md5}"),),
        (path,),
        archive=False,
        size=size,
        disk=size,
        optional=split == "extra",
    )


def _curetsr(name: str, kind: str, images: dict[str, int]) -> Item:
    """Build an item with 61 folders per split: in the current layout, the older one, or the older one with capital letters."""
    levels = [(number, challenge, level) for number, challenge in enumerate(CHALLENGES, 1) for level in LEVELS]
    requested = []
    for split in ("train", "test"):
        current = f"CURE-TSR/{kind}_{split.capitalize()}"
        layouts = [(f"{current}/ChallengeFree", *(f"{current}/{challenge}-{level}" for _, challenge, level in levels))]
        for older in (split, split.capitalize()):
            under = (f"CURE-TSR/{kind}Challenge/{number:02d}_{level:02d}/{older}" for number, _, level in levels)
            layouts.append((f"CURE-TSR/{kind}ChallengeFree/{older}", *under))
        requested.append(Challenges(tuple(layouts), images.get(split, 0), split))
    return Item(
        name,
        images=images,
        approximate=True,
        request_form="https://ieee-dataport.org/open-access/cure-tsr-challenging-unreal-and-real-environments-traffic-sign-recognition",
        requested=tuple(requested),
        parts=(name, *(f"{name}/{challenge}@{level}" for challenge in CHALLENGES for level in LEVELS)),
    )


_DROPBOX = "https://www.dropbox.com/s/raw"
_GTSRB = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"

_ITEMS = [
    Item("digits", images={"train": 866, "test": 577}, embedded=True),
    Item("digits-heldout", images={"test": 354}, embedded=True),
    Item("photos", images={"test": 500}, embedded=True),
    Item("uniform", images={"test": 500}, embedded=True),
    _cifar(
        "cifar10",
        "cifar-10-batches-py",
        "md5:c58f30108f718f92721af3b95e74349a",
        170_498_071,
        [
            ("data_batch_1", "train", 10_000, "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", "train", 10_000, "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", "train", 10_000, "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", "train", 10_000, "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", "train", 10_000, "482c414d41f54cd18b22e5b47cb7c3cb"),
            ("test_batch", "test", 10_000, "40351d587109b95175f43aff81a1287e"),
            ("batches.meta", "", 0, "5ff9c542aee3614f3951f8cda6e48888"),
        ],
    ),
    _cifar(
        "cifar100",
        "cifar-100-python",
        "md5:eb9058c3a382ffc7106e4002c42a8d85",
        169_001_437,
        [
            ("train", "train", 50_000, "16019d7e3df5f24257cddd939b257f8d"),
            ("test", "test", 10_000, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
            ("meta", "", 0, "7973b15100ade9c7d40fb424638fde48"),
        ],
    ),
    Item(
        "cifar10c",
        images={"test": 10_000},
        parts=tuple(f"cifar10c/{name}@{level}" for name in CORRUPTIONS_C for level in LEVELS),
        downloads=(
            Download(
                "https://zenodo.org/record/2535967/files/CIFAR-10-C.tar",
                "md5:56bf5dcef84df0e2308c6dcbcbbd8499",
                (
                    File("CIFAR-10-C/labels.npy", "test", 50_000),
                    *(File(f"CIFAR-10-C/{name}.npy", "test", 50_000 * 3072) for name in CORRUPTIONS_C),
                ),
                ("CIFAR-10-C",),
                size=2_918_471_680,
                disk=2_918_471_680,
            ),
        ),
    ),
    Item(
        "svhn",
        images={"train": 73_257, "test": 26_032, "extra": 531_131},
        downloads=(
            _svhn("train", "e26dedcc434d2e4c54c9b2d4a06d8373", 182_040_794),
            _svhn("test", "eb5a983be6a315427106f1b164d9cef3", 64_275_384),
            _svhn("extra", "a93ce644f1a588dc4d68dda5feec44a7", 1_329_278_602),
        ),
    ),
    _one_folder(
        "lsun-crop", f"{_DROPBOX}/fhtsw1m3qxlwj6h/LSUN.tar.gz", "458a0a0ab8e5f1cb4516d7400568e460", "LSUN/test", 10_000
    ),
    _one_folder(
        "lsun-resize",
        f"{_DROPBOX}/moqh2wh8696c3yl/LSUN_resize.tar.gz",
        "278b7b31c8cb7e804a1465a8ce03a2dc",
        "LSUN_resize/LSUN_resize",
        10_000,
    ),
    Item(
        "tinyimagenet",
        images={"train": 100_000, "test": 10_000},
        downloads=(
            Download(
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                "md5:90528d7ca1a48142e341f4ef8d21d0de",
                (
                    File("tiny-imagenet-200/wnids.txt"),
                    Images("tiny-imagenet-200/train/*/images", 100_000, "train", folders=200, per_folder=500),
                    File("tiny-imagenet-200/val/val_annotations.txt", "test"),
                    Images("tiny-imagenet-200/val/images", 10_000, "test"),
                ),
                ("tiny-imagenet-200",),
                size=248_100_043,
            ),
        ),
    ),
    _one_folder(
        "tinyimagenet-crop",
        f"{_DROPBOX}/avgm2u562itwpkl/Imagenet.tar.gz",
        "7c0827e4246c3718a5ee076e999e52e5",
        "Imagenet/test",
        10_000,
    ),
    _one_folder(
        "tinyimagenet-resize",
        f"{_DROPBOX}/kp3my3412u5k9rl/Imagenet_resize.tar.gz",
        "0f9ff11d45babf2eff5fe12281d1ac31",
        "Imagenet_resize/Imagenet_resize",
        10_000,
    ),
    Item(
        "textures",
        images={"test": 5_640},
        downloads=(
            Download(
                "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
                "md5:fff73e5086ae6bdbea199a49dfb8a4c1",
                (Images("dtd/images/*", 5_640, "test", folders=47, per_folder=120),),
                ("dtd",),
                size=625_239_812,
            ),
        ),
    ),
    _one_folder(
        "places365",
        "http://data.csail.mit.edu/places/places365/test_256.tar",
        "f532f6ad7b582262a2ec8009075e186b",
        "test_256",
        328_500,
        size=4_736_829_440,
    ),
    Item(
        "gtsrb",
        images={"train": 26_640, "test": 12_630},
        downloads=(
            Download(
                f"{_GTSRB}/GTSRB-Training_fixed.zip",
                "md5:513f3c79a4c5141765e10e952eaa2478",
                (Images("GTSRB/Training/*", 26_640, "train", folders=43),),
                ("GTSRB/Training",),
                size=187_490_228,
            ),
            Download(
                f"{_GTSRB}/GTSRB_Final_Test_Images.zip",
                "md5:c7e4e6327067d32654124b0fe9e82185",
                (Images("GTSRB/Final_Test/Images", 12_630, "test", alternative="gtsrb/*"),),
                ("GTSRB/Final_Test",),
                size=88_978_620,
            ),
            Download(
                f"{_GTSRB}/GTSRB_Final_Test_GT.zip",
                "md5:fe31e9c9270bbcd7b84b7f21a9d9d9e5",
                (
                    File(
                        "GT-final_test.csv",
                        "test",
                        alternatives=("GTSRB/GT-final_test.csv", "GTSRB/Final_Test/GT-final_test.csv"),
                    ),
                ),
                ("GT-final_test.csv",),
                size=99_620,
            ),
        ),
    ),
    Item(
        "imagenet",
        images={"test": 45_000, "val": 5_000, "train": 1_281_167},
        request_form="https://image-net.org/download.php",
        requested=tuple(File(f"benchmark_imglist/imagenet/{split}_imagenet.txt", split) for split in ("test", "val", "train")),
    ),
    _curetsr("curetsr", "Real", {"train": 7_292, "test": 3_334}),
    _curetsr("curetsr-unreal", "Unreal", {}),
]
_WEIGHTS = [
    Item(
        name,
        family="weights",
        downloads=(
            Download(
                published.url,
                f"sha256:{published.sha256}",
                (
                    File(
                        f"models/{published.file}",
                        digest=f"sha256:{published.sha256}",
                        override=f"models/{name}.safetensors",
                        small=True,
                    ),
                ),
                (f"models/{published.file}",),
                archive=False,
            ),
        ),
    )
    for name, published in PUBLISHED.items()
]
CATALOGUE = {item.name: item for item in _ITEMS + _WEIGHTS}
