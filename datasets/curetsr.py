"""CURE-TSR: traffic signs, real and rendered, under twelve challenges at five levels (Temel et al., NIPS workshop 2017)."""

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from oodbench import registry
from oodbench.datasets import TABLE
from oodbench.datasets.fetching.catalogue import CATALOGUE
from oodbench.datasets.formats.files import ImageFiles
from oodbench.datasets.formats.layout import image_files, require_split
from oodbench.datasets.name import CHALLENGES, LEVELS
from oodbench.errors import BadData, MissingData, UsageError
from oodbench.image_set import ImageSet, Source

CLASSES = (
    *("speed limit", "goods vehicles", "no overtaking", "no stopping", "no parking", "stop", "bicycle"),
    *("hump", "no left", "no right", "priority to", "no entry", "yield", "parking"),
)
SOURCE = Source(
    "CURE-TSR",
    TABLE["curetsr"].source,
    "given on request, for research",
    "Temel et al., CURE-TSR: Challenging Unreal and Real Environments for Traffic Sign Recognition, NIPS workshop 2017",
)
# Sequence type, sign, challenge, level, index. The older release adds a field before the challenge, its source, and one
# before the index. The authors' code reads the sign from the second field of either.
NAME = re.compile(r"(\d\d)_(\d\d)_(?:(\d\d)_(\d\d)|\d\d_(\d\d)_(\d\d)_(\d{1,3}))_(\d{1,9})\.bmp", re.ASCII | re.IGNORECASE)


class Kind(NamedTuple):
    """Photographs, or images that a game engine rendered."""

    name: str
    folder: str
    sequence: int  # the first field of a file's name


REAL, UNREAL = Kind("curetsr", "Real", 1), Kind("curetsr-unreal", "Unreal", 2)


def curetsr(root: Path, split: str, part: str, level: int | None) -> ImageSet:
    """Load the photographs: ``CURE-TSR/{Real_Train,Real_Test}/{ChallengeFree,<Type>-<1..5>}/*.bmp``, whose sizes vary.

    ``part`` is a challenge, in upper or lower case, or empty for the images without one. The older layout is read too:
    ``CURE-TSR/RealChallengeFree/{train,val,test}`` and ``CURE-TSR/RealChallenge/TT_LL/{train,val,test}``.

    ``base_index`` is the row of the image with the same sign and index in the folder without a challenge. If that image
    does not exist, it is a number beyond the last row, the same for all challenges of one image.

    Raises UsageError for an unknown split, part or level, MissingData if the folder does not exist, and BadData for a file
    whose name does not match the pattern or disagrees with its folder.
    """
    return _load(REAL, root, split, part, level)


def curetsr_unreal(root: Path, split: str, part: str, level: int | None) -> ImageSet:
    """Load the rendered images, as ``curetsr``, with ``Unreal`` in place of ``Real`` in all folder names."""
    return _load(UNREAL, root, split, part, level)


def _load(kind: Kind, root: Path, split: str, part: str, level: int | None) -> ImageSet:
    place = root / "CURE-TSR"
    older = _is_older(place, kind)
    # Without any folder, either layout may be expected.
    require_split(kind.name, split, ("train", "test", "val") if older or not place.is_dir() else ("train", "test"))
    challenge = _challenge(kind, part, level)
    free, folder = (_folder(place, kind, split, code, number, older) for code, number in ((0, 0), (challenge, level or 0)))
    if not folder.is_dir():
        raise _missing(kind, split, folder)
    keys = _keys(folder, kind, challenge, level or 0)
    rows = {key: row for row, key in enumerate(_keys(free, kind, 0, 0).values())} if free.is_dir() else {}
    sizes = {} if older else CATALOGUE[kind.name].images
    name = CHALLENGES[challenge - 1] if challenge else ""
    return ImageSet(
        ImageFiles(list(keys), sizes_vary=True),
        torch.tensor([key.sign - 1 for key in keys.values()]),
        name=f"{kind.name}/{name}@{level}" if challenge else kind.name,
        split=split,
        kind="corruption" if challenge else "far-ood",
        classes=CLASSES,
        base_index=torch.tensor([rows.get(key, len(rows) + key.number) for key in keys.values()]),
        base=f"{kind.name}/{split}",
        level=level,
        flips=False,
        source=replace(
            SOURCE,
            title=f"CURE-TSR, {kind.folder.lower()}, " + (f"{name} at level {level}" if challenge else "challenge-free"),
            official_size=sizes,
        ),
    )


def _challenge(kind: Kind, part: str, level: int | None) -> int:
    """Return the number of a challenge, 1 to 12, or 0 for none."""
    if not part:
        return 0
    codes = {challenge.lower(): code for code, challenge in enumerate(CHALLENGES, 1)}
    if part.lower() not in codes:
        raise UsageError(registry.unknown("part", part, CHALLENGES, f"known: {', '.join(CHALLENGES)}", of=kind.name))
    if level is None or level not in LEVELS:
        raise UsageError(f"{kind.name}/{part} needs a level from 1 to 5; write {kind.name}/{part}@1 to @5")
    return codes[part.lower()]


def _is_older(place: Path, kind: Kind) -> bool:
    today = any((place / f"{kind.folder}_{split}").is_dir() for split in ("Train", "Test"))
    return not today and any((place / f"{kind.folder}{name}").is_dir() for name in ("ChallengeFree", "Challenge"))


def _folder(place: Path, kind: Kind, split: str, challenge: int, level: int, older: bool) -> Path:
    """Return the folder of a challenge; challenge 0 means no challenge."""
    if not older:
        name = f"{CHALLENGES[challenge - 1]}-{level}" if challenge else "ChallengeFree"
        return place / f"{kind.folder}_{split.capitalize()}" / name
    name = f"Challenge/{challenge:02d}_{level:02d}" if challenge else "ChallengeFree"
    capital = place / f"{kind.folder}{name}" / split.capitalize()  # as in the authors' code
    return capital if capital.is_dir() else capital.with_name(split)


class _Key(NamedTuple):
    """Identifies an image within a split. An image has the same key under each challenge."""

    sign: int
    sequence: int  # of the older names only
    image: int  # the index

    @property
    def number(self) -> int:
        """All three fields as one number."""
        return (self.sign * 1000 + self.sequence) * 10**9 + self.image


def _keys(folder: Path, kind: Kind, challenge: int, level: int) -> dict[Path, _Key]:
    """Return the key of each image of a folder. Raises BadData for a file name that does not belong in the folder."""
    found: dict[Path, _Key] = {}
    for path in image_files(folder):
        match = NAME.fullmatch(path.name)
        if match is None:
            raise BadData(f"{path} is not named like CURE-TSR's files (01_06_03_01_0001.bmp); rename or remove it")
        sequence_type, sign, *fields = (int(field or 0) for field in match.groups())
        said = (sequence_type, fields[0] + fields[2], fields[1] + fields[3])  # only one of the two pairs is present
        if said != (kind.sequence, challenge, level):
            wanted = f"{kind.sequence:02d}, {challenge:02d} and {level:02d}"
            given = ", ".join(f"{field:02d}" for field in said)
            raise BadData(f"{path} says sequence type, challenge and level {given}; its folder holds {wanted}; move it away")
        if not 1 <= sign <= len(CLASSES):
            raise BadData(f"{path} says sign type {sign:02d}, which is not 01 to {len(CLASSES)}; rename or remove it")
        found[path] = _Key(sign, fields[4], fields[5])
    if len(set(found.values())) < len(found):
        raise BadData(f"{folder} holds two images with the same sign and index; remove the files that are not part of the set")
    if not found:
        raise BadData(f"{folder} holds no images; unpack CURE-TSR again")
    return found


def _missing(kind: Kind, split: str, folder: Path) -> MissingData:
    return MissingData(
        f"{kind.name} ({split}) is missing: {folder.absolute()} does not exist; CURE-TSR is given on request only: use"
        f" the request form at IEEE DataPort or {SOURCE.homepage}, and unpack it below the data root (--data DIR or"
        f" OODBENCH_DATA) as CURE-TSR/{kind.folder}_Train and CURE-TSR/{kind.folder}_Test, each with ChallengeFree and folders"
        " such as Haze-3"
    )
