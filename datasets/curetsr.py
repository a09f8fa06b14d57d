"""CURE-TSR: traffic signs, real and rendered, under twelve challenges at five levels (Temel et al., NIPS workshop 2017)."""

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from oodbench import registry
from oodbench.datasets.fetching.catalogue import CHALLENGES
from oodbench.datasets.formats.files import ImageFiles
from oodbench.datasets.formats.layout import image_files, require_split
from oodbench.errors import BadData, MissingData, UsageError
from oodbench.image_set import ImageSet, Source

LEVELS = 5
CLASSES = (
    *("speed limit", "goods vehicles", "no overtaking", "no stopping", "no parking", "stop", "bicycle"),
    *("hump", "no left", "no right", "priority to", "no entry", "yield", "parking"),
)
SOURCE = Source(
    "CURE-TSR",
    "https://github.com/olivesgatech/CURE-TSR",
    "given on request, for research",
    "Temel et al., CURE-TSR: Challenging Unreal and Real Environments for Traffic Sign Recognition, NIPS workshop 2017",
)
REAL_SIZE = {"train": 7_292, "test": 3_334}  # images a folder, in today's layout
# Sequence type, sign, challenge, level, index; the older release puts the challenge's source before it and another number
# before the index. The authors' code reads the sign from the second field of either.
NAME = re.compile(r"(\d\d)_(\d\d)_(?:(\d\d)_(\d\d)|\d\d_(\d\d)_(\d\d)_(\d{1,3}))_(\d{1,9})\.bmp", re.ASCII | re.IGNORECASE)


class Kind(NamedTuple):
    """Photographs, or pictures that a game engine rendered."""

    name: str
    folder: str
    sequence: int  # the first field of a file's name


REAL, UNREAL = Kind("curetsr", "Real", 1), Kind("curetsr-unreal", "Unreal", 2)


def curetsr(root: Path, split: str, part: str, level: int | None) -> ImageSet:
    """The photographs: ``CURE-TSR/{Real_Train,Real_Test}/{ChallengeFree,<Type>-<1..5>}/*.bmp``, sizes vary.

    ``part`` is a challenge, in any case of letters, or empty for the images without one. The older layout is read too:
    ``CURE-TSR/RealChallengeFree/{train,val,test}`` and ``CURE-TSR/RealChallenge/TT_LL/{train,val,test}``.

    ``base_index`` is the row, in the folder without a challenge, of the image of the same sign and index. Where that is
    not there it is a number beyond the last row, the same for all challenges of one image.

    Raises UsageError for an unknown split, part or level, MissingData where the folder is not there, and BadData for a
    file whose name is out of pattern or disagrees with its folder.
    """
    return _load(REAL, root, split, part, level)


def curetsr_unreal(root: Path, split: str, part: str, level: int | None) -> ImageSet:
    """The rendered pictures, as ``curetsr``, with ``Unreal`` for ``Real`` in all names of folders."""
    return _load(UNREAL, root, split, part, level)


def _load(kind: Kind, root: Path, split: str, part: str, level: int | None) -> ImageSet:
    place = root / "CURE-TSR"
    older = _is_older(place, kind)
    # Where nothing is there, either layout may come.
    require_split(kind.name, split, ("train", "test", "val") if older or not place.is_dir() else ("train", "test"))
    challenge = _challenge(kind, part, level)
    free, folder = (_folder(place, kind, split, code, number, older) for code, number in ((0, 0), (challenge, level or 0)))
    if not folder.is_dir():
        raise _missing(kind, split, folder)
    keys = _keys(folder, kind, challenge, level or 0)
    rows = {key: row for row, key in enumerate(_keys(free, kind, 0, 0).values())} if free.is_dir() else {}
    sizes = REAL_SIZE if kind is REAL and not older else {}
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
    """The number of a challenge, 1 to 12; 0 for none."""
    if not part:
        return 0
    codes = {challenge.lower(): code for code, challenge in enumerate(CHALLENGES, 1)}
    if part.lower() not in codes:
        raise UsageError(registry.unknown(f"part of {kind.name}", part, CHALLENGES, f"known: {', '.join(CHALLENGES)}"))
    if level is None or level not in range(1, LEVELS + 1):
        raise UsageError(f"{kind.name}/{part} needs a level from 1 to {LEVELS}; write {kind.name}/{part}@1 to @{LEVELS}")
    return codes[part.lower()]


def _is_older(place: Path, kind: Kind) -> bool:
    today = any((place / f"{kind.folder}_{split}").is_dir() for split in ("Train", "Test"))
    return not today and any((place / f"{kind.folder}{name}").is_dir() for name in ("ChallengeFree", "Challenge"))


def _folder(place: Path, kind: Kind, split: str, challenge: int, level: int, older: bool) -> Path:
    """Where the images of a challenge lie; of challenge 0, those without one."""
    if not older:
        name = f"{CHALLENGES[challenge - 1]}-{level}" if challenge else "ChallengeFree"
        return place / f"{kind.folder}_{split.capitalize()}" / name
    name = f"Challenge/{challenge:02d}_{level:02d}" if challenge else "ChallengeFree"
    capital = place / f"{kind.folder}{name}" / split.capitalize()  # as in the authors' code
    return capital if capital.is_dir() else capital.with_name(split)


class _Key(NamedTuple):
    """What tells an image of one split apart; its challenges have the same."""

    sign: int
    sequence: int  # of the older names only
    image: int  # the index

    @property
    def number(self) -> int:
        """One number for all three."""
        return (self.sign * 1000 + self.sequence) * 10**9 + self.image


def _keys(folder: Path, kind: Kind, challenge: int, level: int) -> dict[Path, _Key]:
    """The images of a folder, by name. Raises BadData for a name that is none of this folder's."""
    found: dict[Path, _Key] = {}
    for path in image_files(folder):
        match = NAME.fullmatch(path.name)
        if match is None:
            raise BadData(f"{path} is not named as CURE-TSR's files are (01_06_03_01_0001.bmp); rename or remove it")
        sequence_type, sign, *fields = (int(field or 0) for field in match.groups())
        said = (sequence_type, fields[0] + fields[2], fields[1] + fields[3])  # one pair of the two is there
        if said != (kind.sequence, challenge, level):
            wanted = f"{kind.sequence:02d}, {challenge:02d} and {level:02d}"
            given = ", ".join(f"{field:02d}" for field in said)
            raise BadData(f"{path} says sequence type, challenge and level {given}; its folder holds {wanted}; move it away")
        if not 1 <= sign <= len(CLASSES):
            raise BadData(f"{path} says sign type {sign:02d}, which is none of 01 to {len(CLASSES)}; rename or remove it")
        found[path] = _Key(sign, fields[4], fields[5])
    if len(set(found.values())) < len(found):
        raise BadData(f"{folder} holds two images of one sign and index; remove what was added to the set")
    if not found:
        raise BadData(f"{folder} holds no images; unpack CURE-TSR again")
    return found


def _missing(kind: Kind, split: str, folder: Path) -> MissingData:
    return MissingData(
        f"{kind.name} ({split}) is not there: no {folder.absolute()}; no program can download it: ask for CURE-TSR by the"
        f" request form at IEEE DataPort or {SOURCE.homepage}, and lay it out below the data root (--data DIR or OODBENCH_DATA)"
        f" as CURE-TSR/{kind.folder}_Train and CURE-TSR/{kind.folder}_Test, each with ChallengeFree and folders as Haze-3"
    )
