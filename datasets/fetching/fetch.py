"""Fetch a set or weights: download, check the checksum, unpack apart, and put each place below the data root at once.

What is on its way lies in ``.downloads`` below the data root, or beside the place where a link leads to another file system,
so that a rename ends it. A kill leaves a partial download,
which is resumed; or a folder of what was unpacked, which is thrown away and unpacked again; or some places in their place
and others not yet, which follow. No reader looks into ``.downloads``.
"""

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from oodbench.datasets.fetching import archives
from oodbench.datasets.fetching.catalogue import Download, Item
from oodbench.datasets.fetching.download import PATIENCE, Patience, addresses, download, remove, require_room
from oodbench.datasets.fetching.expected_files import File, differences
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
    ``force`` replaces both. Where one file cannot be had the others are fetched all the same.

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
    got, errors = [], []
    for each, urls in wanted:
        try:
            if (force or differences(each.pieces, root)) and _fetch_one(
                item, each, urls, root, force, progress, patience, limits
            ):
                got.append(each.file)
        except OodbenchError as error:
            errors.append(error)
    if errors:
        also = f"; fetched all the same: {', '.join(got)}" if got else ""
        raise type(errors[0])(f"{'; '.join(map(str, errors))}{also}") from errors[0]
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
    part = root / WORKSHOP / f"{one.file}.part"
    try:
        targets = {place: _target(root, place) for place in one.places}
        part = _workshop(root, targets[one.places[0]]) / part.name
        part.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part.with_suffix(".lock"), progress):
            if not force:
                if not differences(one.pieces, root):
                    return False
                targets = {place: targets[place] for place in _absent(item, one, root)}
            room = (one.disk or one.size or 0) if one.archive else 0
            if one.size and not part.exists():
                require_room(part.parent, one.size + room, one.file)
            download(urls, part, one.digest, room=room, progress=progress, patience=patience)
            _install(one, part, targets, progress, limits)
            remove(part)
            for piece in one.pieces:
                if isinstance(piece, File) and piece.before and (root / piece.before).exists():
                    _move_aside(root / piece.before, progress)
    except OSError as error:
        raise archives.cannot_write(Path(error.filename or part), error) from error
    if left := differences(one.pieces, root):
        raise OodbenchError(
            f"{item.name} is not whole, though {one.file} has the right checksum ({left[0]}); another program may write"
            f" below {root.absolute()}: see `oodbench data verify {item.name}`"
        )
    return True


def _target(root: Path, place: str) -> Path:
    """Where a place lies, links followed. Raises OodbenchError for a link that leads nowhere."""
    path = root
    for name in place.split("/"):
        path /= name
        if path.is_symlink() and not path.exists():
            raise OodbenchError(
                f"{path.absolute()} is a link to {os.readlink(path)}, which is not there; make it be there, or remove the link"
            )
    return path.resolve()


def _workshop(root: Path, target: Path) -> Path:
    """A folder on the file system of the target, from which it can be renamed."""
    folder = root if _device(root) == _device(target.parent) else target.parent
    return folder / WORKSHOP


def _device(path: Path) -> int:
    """That of the path, or of the nearest folder above it that is there."""
    while not path.exists():
        path = path.parent
    return path.stat().st_dev


def _install(one: Download, part: Path, targets: Mapping[str, Path], progress: Progress, limits: archives.Limits) -> None:
    """Put the downloaded file, or what is unpacked from it, where it belongs."""
    apart = part.with_suffix(".unpacked")
    shutil.rmtree(apart, ignore_errors=True)  # of a fetch that was killed
    apart.mkdir()
    try:
        if not one.archive:
            for target in targets.values():
                _put(part, target, apart)
            return
        progress.stage(f"unpacking {one.file}")
        archives.unpack(part, apart, tuple(targets), limits, progress)
        for place, target in targets.items():
            _put(apart / place, target, apart)
    except BadData:
        remove(part)  # unpacked again it would be no better
        raise
    finally:
        shutil.rmtree(apart, ignore_errors=True)


def _absent(item: Item, one: Download, root: Path) -> list[str]:
    """The places to be filled. Raises OodbenchError where one is there and differs."""
    places = []
    for place in one.places:
        below = [p for p in one.pieces if p.path == place or p.path.startswith(f"{place}/")]
        if not (lacks := differences(below, root)):
            continue
        instead = [piece.before for piece in below if isinstance(piece, File) and piece.before]
        if there := [path for path in (*instead, place) if (root / path).exists()]:
            raise OodbenchError(
                f"{root.absolute() / there[0]} is there and is not the whole set ({lacks[0]}); move it away, or replace it"
                f" with `oodbench data fetch {item.name} --force`"
            )
        places.append(place)
    return places


def _put(source: Path, target: Path, apart: Path) -> None:
    """Rename; what was there before goes where the rest is thrown away, so that the place is the old or the new, or is not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        replaced = apart / ".replaced" / target.name
        replaced.parent.mkdir(exist_ok=True)
        os.replace(target, replaced)
    os.replace(source, target)


def _move_aside(path: Path, progress: Progress) -> None:
    """Rename what would be read before what was fetched. It may be somebody's own work, so it is not thrown away."""
    free = (path.with_name(f"{path.name}.old{number or ''}") for number in itertools.count())
    aside = next(other for other in free if not other.exists())
    os.replace(path, aside)
    progress.say(f"{path} would be read before what was fetched; it is {aside.name} now")


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
