"""Every set and weights file: where to get it, where it lies below the data root, and what must be there.

A table apart from the readers, for it imports nothing heavy. Addresses, layouts and checksums are those of the sets' own
pages; the MD5s are those that torchvision and the sets' loaders in the literature check. An MD5 tells a damaged file, not a
forged one, so archives are unpacked as if they were hostile. Sizes of downloads are those that TensorFlow Datasets records.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oodbench import registry
from oodbench.datasets.fetching.expected_files import Challenges, File, Images, Piece, any_exists, differences
from oodbench.datasets.name import FOLDER, base_of
from oodbench.errors import UsageError
from oodbench.models.published import PUBLISHED

CORRUPTIONS_C = (
    *("brightness", "contrast", "defocus_blur", "elastic_transform", "fog", "frost", "gaussian_blur", "gaussian_noise"),
    *("glass_blur", "impulse_noise", "jpeg_compression", "motion_blur", "pixelate", "saturate", "shot_noise", "snow"),
    *("spatter", "speckle_noise", "zoom_blur"),
)
LEVELS = range(1, 6)
CHALLENGES = (
    *("Decolorization", "LensBlur", "CodecError", "Darkening", "DirtyLens", "Exposure"),
    *("GaussianBlur", "Noise", "Rain", "Shadow", "Snow", "Haze"),
)


@dataclass(frozen=True)
class Download:
    """One file to download.

    Attributes:
        url: its official address; a mirror has it under the same file name.
        digest: ``md5:…`` or ``sha256:…``.
        pieces: what must be there of it in the end.
        places: folders and files of the archive that are put below the data root, each at once; the rest of it is left
            out. The one path of a file that is no archive.
        archive: whether it is to be unpacked.
        size: bytes to download, where known.
        disk: bytes of it once unpacked, where known.
        optional: whether it is left out unless its split is asked for.
    """

    url: str
    digest: str
    pieces: tuple[Piece, ...]
    places: tuple[str, ...]
    archive: bool = True
    size: int | None = None
    disk: int | None = None
    optional: bool = False

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def splits(self) -> set[str]:
        """Those that it holds; none where it belongs to all."""
        return {piece.split for piece in self.pieces} - {""}


@dataclass(frozen=True)
class Item:
    """A set, or the weights of a model.

    Attributes:
        family: ``dataset`` or ``weights``.
        images: images of the official set, by split; of each part, in a set of parts.
        about: whether there are about so many, and releases differ.
        form: the page where somebody must ask for it, where no program can get it.
        asked: what must be there of a set behind a form.
        parts: the names by which a set is read that has no images of its own, or has more: ``cifar10c/fog@3``.
        embedded: whether it comes with the packages that are installed.
        owner: the package that registers it, where it is a third party's.
    """

    name: str
    family: str = "dataset"
    images: dict[str, int] = field(default_factory=dict)
    about: bool = False
    downloads: tuple[Download, ...] = ()
    form: str = ""
    asked: tuple[Piece, ...] = ()
    parts: tuple[str, ...] = ()
    embedded: bool = False
    owner: str = ""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What must be there for the set to be whole; optional splits are left out."""
        return self.asked + tuple(p for d in self.downloads if not d.optional for p in d.pieces)

    def wanted(self, splits: Sequence[str] = ()) -> tuple[Download, ...]:
        """The downloads of these splits, all but optional ones by default. What has no splits, as weights, belongs to each.

        Raises UsageError for a split that there is not.
        """
        known = {split for download in self.downloads for split in download.splits} | self.images.keys()
        for split in splits:
            if known and split not in known:
                raise UsageError(f"{self.name} has no split '{split}' to fetch; it has {', '.join(sorted(known))}")
        if not splits:
            return tuple(download for download in self.downloads if not download.optional)
        return tuple(d for d in self.downloads if not d.splits or d.splits & set(splits))

    def differences(self, root: Path) -> list[str]:
        """How the files below ``root`` differ from the whole set, by names and sizes; a line each."""
        return differences(self.pieces, root)

    def survey(self, root: Path) -> tuple[str, list[str]]:
        """``present``, ``partial`` or ``absent``, and of what is partial how it differs, as ``differences`` says.

        ``unknown`` for a third party's set, which only its own package knows.
        """
        if self.embedded:
            return "present", []
        if self.owner:
            return "unknown", []
        everything = (*self.asked, *(piece for download in self.downloads for piece in download.pieces))
        if not any_exists(everything, root):
            return "absent", []
        lacks = self.differences(root)
        return ("partial", lacks) if lacks else ("present", [])


def find(name: str) -> Item:
    """The item of a name; of ``cifar10:airplane``, ``cifar10+haze@3`` or ``cifar10c/fog@3`` the set that it is made from.

    Raises UsageError for an unknown name, with the nearest, and for one that two packages register.
    """
    base = base_of(name)
    if base in CATALOGUE:
        return CATALOGUE[base]
    if base == FOLDER:
        raise UsageError(f"{name} is a folder of yours below the data root; there is nothing to fetch or verify")
    known = registry.records("datasets")
    if base not in known:
        raise UsageError(registry.unknown("set or weights", name, [*CATALOGUE, *known], "oodbench data list"))
    return Item(base, owner=registry.find("datasets", base).owner)


def items() -> list[Item]:
    """All that there is: ours, then the sets of other packages."""
    others = [r for r in registry.records("datasets").values() if r.distribution != "oodbench" and r.name not in CATALOGUE]
    return [*CATALOGUE.values(), *(Item(record.name, owner=record.owner) for record in others)]


def _cifar(name: str, folder: str, digest: str, size: int, batches: Sequence[tuple[str, str, int, str]]) -> Item:
    """Batches as (file, split, images, MD5); a batch holds 3,072 bytes an image."""
    pieces = tuple(File(f"{folder}/{file}", split, 3072 * images or 1, f"md5:{md5}") for file, split, images, md5 in batches)
    archive = f"https://www.cs.toronto.edu/~kriz/{name.replace('cifar', 'cifar-')}-python.tar.gz"
    whole = sum(piece.least for piece in pieces)
    return Item(
        name,
        images={"train": 50_000, "test": 10_000},
        downloads=(Download(archive, digest, pieces, (folder,), size=size, disk=whole),),
    )


def _one_folder(name: str, url: str, md5: str, path: str, count: int, size: int | None = None) -> Item:
    """An archive with one folder of test images."""
    pieces = (Images(path, count, "test"),)
    return Item(name, images={"test": count}, downloads=(Download(url, f"md5:{md5}", pieces, (path,), size=size),))


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
    """61 folders a split: in the layout of today, in the older one, or in that as the authors' code names its splits."""
    levels = [(number, challenge, level) for number, challenge in enumerate(CHALLENGES, 1) for level in LEVELS]
    pieces = []
    for split in ("train", "test"):
        today = f"CURE-TSR/{kind}_{split.capitalize()}"
        layouts = [(f"{today}/ChallengeFree", *(f"{today}/{challenge}-{level}" for _, challenge, level in levels))]
        for older in (split, split.capitalize()):
            under = (f"CURE-TSR/{kind}Challenge/{number:02d}_{level:02d}/{older}" for number, _, level in levels)
            layouts.append((f"CURE-TSR/{kind}ChallengeFree/{older}", *under))
        pieces.append(Challenges(tuple(layouts), images.get(split, 0), split))
    return Item(
        name,
        images=images,
        about=True,
        form="https://ieee-dataport.org/open-access/cure-tsr-challenging-unreal-and-real-environments-traffic-sign-recognition",
        asked=tuple(pieces),
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
                    Images("tiny-imagenet-200/train/*/images", 100_000, "train", folders=200, each=500),
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
                (Images("dtd/images/*", 5_640, "test", folders=47, each=120),),
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
                (Images("GTSRB/Final_Test/Images", 12_630, "test", instead="gtsrb/*"),),
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
                        instead=("GTSRB/GT-final_test.csv", "GTSRB/Final_Test/GT-final_test.csv"),
                    ),
                ),
                ("GT-final_test.csv",),
                size=99_620,
            ),
        ),
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
                        before=f"models/{name}.safetensors",
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
