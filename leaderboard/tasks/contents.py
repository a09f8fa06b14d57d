"""Names of sets and databases, for tables of runs that may have seen other images under one name."""

from collections.abc import Sequence
from typing import NamedTuple

from oodbench.errors import counted


class Tested(NamedTuple):
    """What a record was tested on: ``group`` is what else is the same in one table, ``images`` None without figures."""

    name: str
    fingerprint: str
    images: int | None
    group: tuple[str, ...] = ()
    seed: int = 0


def names_of(tested: Sequence[Tested]) -> list[str]:
    """``digits``, or ``digits (200 images)`` where the name stands for several numbers of images.

    Where it stands for several contents with one number and one seed, the name has the fingerprint too. Other seeds may have
    drawn other images: they are repeats.
    """
    counts = {(one.name, one.fingerprint): one.images for one in tested if one.images is not None}
    numbers: dict[object, set[int]] = {}
    contents: dict[object, set[str]] = {}
    for one in tested:
        if (images := counts.get((one.name, one.fingerprint))) is not None:
            numbers.setdefault((one.name, one.group), set()).add(images)
            contents.setdefault((one.name, one.group, images, one.seed), set()).add(one.fingerprint)
    names = []
    for one in tested:
        images = counts.get((one.name, one.fingerprint))
        words = [counted(images, "image")] if images is not None and len(numbers[one.name, one.group]) > 1 else []
        words += [one.fingerprint[:8]] if len(contents.get((one.name, one.group, images, one.seed), ())) > 1 else []
        names.append(f"{one.name} ({', '.join(words)})" if words else one.name)
    return names
