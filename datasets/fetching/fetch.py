"""Fetch a set or weights: download a file, check its checksum, unpack it in a work folder, and rename each path into place.

The work folder is ``.downloads`` below the data root, or beside the target if a link leads to another file system: a rename
must stay within one file system. A killed fetch leaves a partial download, which is resumed; or an unpacked folder, which is
deleted by the next fetch; or some paths installed and others not, which follow. No loader looks into ``.downloads``.
"""

import itertools
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from oodbench.datasets.fetching import archives
from oodbench.datasets.fetching.catalogue import Download, Item
from oodbench.datasets.fetching.download import PATIENCE, Patience, addresses, download, remove, require_room
from oodbench.datasets.fetching.expected_files import File, differences
from oodbench.errors import BadData, MissingData, OodbenchError
from oodbench.paths import open_lock, require_no_link, try_lock
from oodbench.progress import Progress

WORK_FOLDER = ".downloads"
SILENT = Progress()


def mirrors_of_setting() -> list[str]:
    """Return the addresses in ``$OODBENCH_MIRROR``, separated by blanks."""
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
    """Fetch what the item lacks below ``root``, and return the names of the downloaded files.

    Existing whole files are kept. Existing files that differ are kept too, and raise OodbenchError. ``force`` replaces both.
    If one file is unavailable, the others are still fetched.

    Args:
        splits: fetch only what these need; by default all but optional ones.
        mirrors: addresses below which the same file names exist, tried first. Their files must have the official checksum.

    Raises MissingData for a set that no program can download, OodbenchError if no address has the file, or the disk is full
    or not writable, BadData for a file with another checksum and for an archive that is refused.
    """
    if item.request_form:
        raise MissingData(how_to_ask(item, root))
    if item.owner:
        raise MissingData(f"{item.name} is a set of {item.owner}; its documentation says how to get it")
    wanted = [(each, addresses(each.url, mirrors)) for each in item.wanted(splits)]
    _sweep(root / WORK_FOLDER, [] if force else [each.file for each, _ in wanted if not differences(each.expected, root)])
    got, errors = [], []
    for each, urls in wanted:
        try:
            if (force or differences(each.expected, root)) and _fetch_one(
                item, each, urls, root, force, progress, patience, limits
            ):
                got.append(each.file)
        except OodbenchError as error:
            errors.append(error)
    if errors:
        also = f"; fetched anyway: {', '.join(got)}" if got else ""
        raise type(errors[0])(f"{'; '.join(map(str, errors))}{also}") from errors[0]
    return got


def _sweep(folder: Path, whole: Sequence[str]) -> None:
    """Delete what killed fetches unpacked, and the downloads of files that are whole. Those of a running fetch are locked."""
    for left in (*folder.glob("*.unpacked"), *(folder / f"{file}.part" for file in whole)):
        if left.is_symlink() or not left.exists():
            continue
        with suppress(OSError, OodbenchError), open_lock(left.with_suffix(".lock")) as lock:
            if not try_lock(lock):
                continue
            if left.suffix == ".part":
                remove(left)
            else:
                shutil.rmtree(left, ignore_errors=True)


def how_to_ask(item: Item, root: Path) -> str:
    """Return a message that says where to request a set, and how to lay it out."""
    first = item.requested[0].path.split("/")
    folders = ", ".join(sorted({entry.path.split("/")[1] for entry in item.requested}))
    return (
        f"{item.name} is given on request only, and no program can fetch it: request it at {item.request_form}, unpack it so"
        f" that {root.absolute() / first[0]} holds {folders}, each with {first[2]} and one folder per challenge and level,"
        f" such as Haze-3; then check it with `oodbench data verify {item.name}`"
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
    """Fetch one file. Return whether it was downloaded: another process may have done so meanwhile."""
    part = root / WORK_FOLDER / f"{one.file}.part"
    try:
        targets = {path: _target(root, path) for path in one.paths}
        part = _work_folder(root, targets[one.paths[0]]) / part.name
        part.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part.with_suffix(".lock"), progress):
            if not force:
                if not differences(one.expected, root):
                    return False
                targets = {path: targets[path] for path in _absent(item, one, root)}
            room = (one.disk or one.size or 0) if one.archive else 0
            if one.size and not part.exists():
                require_room(part.parent, one.size + room, one.file)
            download(urls, part, one.digest, room=room, progress=progress, patience=patience)
            _install(one, part, targets, progress, limits)
            remove(part)
            for entry in one.expected:
                if isinstance(entry, File) and entry.override and (root / entry.override).exists():
                    _move_aside(root / entry.override, progress)
    except OSError as error:
        raise archives.cannot_write(Path(error.filename or part), error) from error
    if left := differences(one.expected, root):
        raise OodbenchError(
            f"{item.name} is not whole although {one.file} has the right checksum ({left[0]}); another program may be writing"
            f" below {root.absolute()}: run `oodbench data verify {item.name}`"
        )
    return True


def _target(root: Path, relative: str) -> Path:
    """Resolve a path below the root, through links. Raises OodbenchError for a broken link."""
    path = root
    for name in relative.split("/"):
        path /= name
        if path.is_symlink() and not path.exists():
            raise OodbenchError(
                f"{path.absolute()} is a link to {os.readlink(path)}, which does not exist; create it, or remove the link"
            )
    return path.resolve()


def _work_folder(root: Path, target: Path) -> Path:
    """Return the work folder on the target's file system, so that a rename into place is possible."""
    folder = root if _device(root) == _device(target.parent) else target.parent
    return folder / WORK_FOLDER


def _device(path: Path) -> int:
    """Return the device of the path, or of its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return path.stat().st_dev


def _install(one: Download, part: Path, targets: Mapping[str, Path], progress: Progress, limits: archives.Limits) -> None:
    """Install the downloaded file, or what is unpacked from it."""
    unpacked = part.with_suffix(".unpacked")
    require_no_link(unpacked)
    shutil.rmtree(unpacked, ignore_errors=True)  # left by a killed fetch
    unpacked.mkdir()
    try:
        if not one.archive:
            for target in targets.values():
                _put(part, target, unpacked)
            return
        progress.stage(f"unpacking {one.file}")
        archives.unpack(part, unpacked, tuple(targets), limits, progress)
        for path, target in targets.items():
            _put(unpacked / path, target, unpacked)
    except BadData:
        remove(part)  # unpacking it again would fail again
        raise
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _absent(item: Item, one: Download, root: Path) -> list[str]:
    """Return the paths to fill. Raises OodbenchError if one exists and differs."""
    absent = []
    for path in one.paths:
        below = [entry for entry in one.expected if entry.path == path or entry.path.startswith(f"{path}/")]
        if not (lacks := differences(below, root)):
            continue
        overrides = [entry.override for entry in below if isinstance(entry, File) and entry.override]
        if existing := [other for other in (*overrides, path) if (root / other).exists()]:
            raise OodbenchError(
                f"{root.absolute() / existing[0]} exists and is not the whole set ({lacks[0]}); move it away, or replace it"
                f" with `oodbench data fetch {item.name} --force`"
            )
        absent.append(path)
    return absent


def _put(source: Path, target: Path, unpacked: Path) -> None:
    """Rename into place. An existing target first moves to the work folder, so that no mixture of both is ever seen."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        replaced = unpacked / ".replaced" / target.name
        replaced.parent.mkdir(exist_ok=True)
        os.replace(target, replaced)
    os.replace(source, target)


def _move_aside(path: Path, progress: Progress) -> None:
    """Rename a file that would be used in preference to the fetched one. It may be the user's own work, so it is kept."""
    free = (path.with_name(f"{path.name}.old{number or ''}") for number in itertools.count())
    aside = next(other for other in free if not os.path.lexists(other))  # a link that leads nowhere stays
    os.replace(path, aside)
    progress.say(f"{path} would be used instead of the fetched file; it is renamed to {aside.name}")


@contextmanager
def _alone(lock: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other process fetches this file. The lock ends with its process, even a killed one."""
    with open_lock(lock) as file:
        try:
            if not try_lock(file):
                progress.say(f"another process is fetching {lock.stem}; waiting for it")
                while not try_lock(file):
                    time.sleep(0.1)
        except OSError as error:
            progress.say(f"{lock.parent} cannot be locked ({error.strerror}): do not start a second download of {lock.stem}")
        yield
