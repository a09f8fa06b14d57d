"""Fetch a set or weights: download, check the checksum, unpack apart, and put each place below the data root at once.

What is on its way lies in ``.downloads`` below the data root, so that a rename ends it. A kill leaves a partial download,
which is resumed; or a folder of what was unpacked, which is thrown away and unpacked again; or some places in their place
and others not yet, which follow. No reader looks into ``.downloads``.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from oodbench.datasets import archives
from oodbench.datasets.catalogue import Download, Item
from oodbench.datasets.download import PATIENCE, Patience, addresses, download, remove, require_room
from oodbench.errors import BadData, MissingData, OodbenchError
from oodbench.progress import Progress

WORKSHOP = ".downloads"
SILENT = Progress()


def mirrors_of_setting() -> list[str]:
    """Addresses in ``$OODBENCH_MIRROR``, with blanks between."""
    return os.environ.get("OODBENCH_MIRROR", "").split()


def fetch(
    item: Item,
    root: Path,
    *,
    splits: Sequence[str] = (),
    mirrors: Sequence[str] = (),
    force: bool = False,
    progress: Progress = SILENT,
    patience: Patience = PATIENCE,
    limits: archives.Limits = archives.LIMITS,
) -> list[str]:
    """Bring what the item lacks below ``root``, and return the names of the files that were downloaded.

    What is there and whole is left alone. What is there and differs is left alone too and raises OodbenchError.
    ``force`` replaces both.

    Args:
        splits: only what these need; by default all but optional ones.
        mirrors: addresses below which the same file names lie, asked first. The checksum is the official one all the same.

    Raises MissingData for a set that no program can get, OodbenchError where no address has the file, or the disk is full
    or not to be written, BadData for a file with another checksum and for an archive that is refused.
    """
    if item.form:
        raise MissingData(how_to_ask(item, root))
    if item.owner:
        raise MissingData(f"{item.name} is a set of {item.owner}, and its documentation says how to get it")
    wanted = [(each, addresses(each.url, mirrors)) for each in item.wanted(splits)]
    got = []
    for each, urls in wanted:
        if (force or _lacks(each, root)) and _fetch_one(item, each, urls, root, force, progress, patience, limits):
            got.append(each.file)
    return got


def how_to_ask(item: Item, root: Path) -> str:
    """Where to ask for a set behind a form, and how to lay it out."""
    first = item.asked[0].path.split("/")
    folders = ", ".join(sorted({piece.path.split("/")[1] for piece in item.asked}))
    return (
        f"{item.name} is given on request only, and no program can fetch it: ask at {item.form}, and unpack what you get so"
        f" that {root.absolute() / first[0]} holds {folders}, each with {first[2]} and a folder for each challenge and"
        f" level, as Haze-3; then check it with `oodbench data verify {item.name}`"
    )


def _lacks(one: Download, root: Path) -> list[str]:
    return [line for piece in one.pieces for line in piece.differences(root)]


def _fetch_one(
    item: Item,
    one: Download,
    urls: Sequence[str],
    root: Path,
    force: bool,
    progress: Progress,
    patience: Patience,
    limits: archives.Limits,
) -> bool:
    """Whether it was downloaded; another process may have done so in the meantime."""
    workshop = root / WORKSHOP
    part = workshop / f"{one.file}.part"
    try:
        workshop.mkdir(parents=True, exist_ok=True)
        with _alone(workshop / f"{one.file}.lock", progress):
            if not force and not _lacks(one, root):
                return False
            places = _places(item, one, root, force)
            room = (one.disk or one.size or 0) if one.archive else 0
            if one.size and not part.exists():
                require_room(workshop, one.size + room, one.file)
            download(urls, part, one.digest, room=room, progress=progress, patience=patience)
            _install(one, part, places, root, progress, limits)
            remove(part)
    except OSError as error:
        raise archives.cannot_write(Path(error.filename or part), error) from error
    if left := _lacks(one, root):
        raise OodbenchError(
            f"{item.name} is not whole, though {one.file} has the right checksum ({left[0]}); another program may write"
            f" below {root.absolute()}: see `oodbench data verify {item.name}`"
        )
    return True


def _install(
    one: Download, part: Path, places: tuple[str, ...], root: Path, progress: Progress, limits: archives.Limits
) -> None:
    """Put the downloaded file, or what is unpacked from it, in its places."""
    apart = part.with_name(f"{one.file}.unpacked")
    shutil.rmtree(apart, ignore_errors=True)  # of a fetch that was killed
    apart.mkdir()
    try:
        if not one.archive:
            _put(part, root / places[0], apart)
            return
        progress.stage(f"unpacking {one.file}")
        archives.unpack(part, apart, places, limits, progress)
        for place in places:
            _put(apart / place, root / place, apart)
    except BadData:
        remove(part)  # unpacked again it would be no better
        raise
    finally:
        shutil.rmtree(apart, ignore_errors=True)


def _places(item: Item, one: Download, root: Path, force: bool) -> tuple[str, ...]:
    """The places to be filled. With ``force`` all; else raises OodbenchError where one is there and differs."""
    if force:
        return one.places
    places = []
    for place in one.places:
        below = [p for p in one.pieces if p.path == place or p.path.startswith(f"{place}/")]
        differences = [line for piece in below for line in piece.differences(root)]
        if (root / place).exists() and differences:
            raise OodbenchError(
                f"{root.absolute() / place} is there and is not the whole set ({differences[0]}); move it away, or replace it"
                f" with `oodbench data fetch {item.name} --force`"
            )
        if differences:
            places.append(place)
    return tuple(places)


def _put(source: Path, target: Path, apart: Path) -> None:
    """Rename; what was there before goes where the rest is thrown away, so that the place is the old or the new, or is not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() or target.is_symlink():
        replaced = apart / ".replaced" / target.name
        replaced.parent.mkdir(exist_ok=True)
        os.replace(target, replaced)
    os.replace(source, target)


@contextmanager
def _alone(lock: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other process fetches this file. The lock goes with its process, however that ends."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        progress.say(f"another process fetches {lock.stem}; waiting for it")
        held.acquire()
    try:
        yield
    finally:
        held.release()
