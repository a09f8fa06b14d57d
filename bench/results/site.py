"""The files of a site in its folder: site.json lists them with their SHA-256, so a later site replaces these and no others."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from oodbench.errors import CannotWrite, UsageError
from oodbench.paths import HALF_WRITTEN, PART, require_no_link
from oodbench.results import json_files

FIRST = "index.html"
LONGEST_NAME = 255  # bytes of the name of a folder
REPORT = "report"  # the folder of the site of a run, in its folder


def replace_site(out: Path, files: Iterable[tuple[str, bytes | Callable[[Path], object]]]) -> Path:
    """Write files, each by its path in the site, in place of those of an earlier site. Returns the path of the first page.

    A function as content writes the file itself. Files of others in the folder stay. Nothing changes before all files are made.
    Where the process is killed, site.json lists all that it may have written, so that the next site replaces it.

    Raises UsageError for a folder with files of others and no site, or with one where the site has its own, and CannotWrite.
    """
    require_place(out)
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        try:
            with _held(out), tempfile.TemporaryDirectory(dir=out, prefix=".site.", suffix=PART) as made:
                _replace(out, files, Path(made))
        finally:
            if new and not any(out.iterdir()):
                out.rmdir()
    except OSError as error:
        raise CannotWrite(f"cannot write {out}: {error.strerror or error}; free space there or name another folder") from error
    return out / FIRST


def _replace(out: Path, files: Iterable[tuple[str, bytes | Callable[[Path], object]]], made: Path) -> None:
    hashes = {}
    for name, content in files:
        target = made / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            content(target)
        hashes[name] = _sha256(target)
    before = require_place(out)
    for name in hashes.keys() - before.keys():
        if os.path.lexists(out / name):
            raise UsageError(f"{out / name} is not part of a site of oodbench; move it, or name a new folder with --out")
    _list(out, before | hashes)
    for name in sorted(hashes):
        (out / name).parent.mkdir(exist_ok=True)
        require_no_link((out / name).parent)
        os.replace(made / name, out / name)
    _unlink(out, before.keys() - hashes.keys())
    _list(out, hashes)


def remove_site(out: Path) -> None:
    """Remove the files of a site, and its folders as far as they are empty then."""
    _unlink(out, require_place(out).keys())
    (out / json_files.SITE).unlink(missing_ok=True)
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()


def differing(out: Path) -> list[str]:
    """What is wrong with the files of a site, one line each; nothing where there is none."""
    if not os.path.lexists(out):
        return []
    found = json_files.read_site(out / json_files.SITE).files
    if not json_files.is_canonical(out / json_files.SITE):
        return [f"{out / json_files.SITE} is damaged, or was edited; delete the folder, and write the site again"]
    wrong = [name for name, sha256 in found.items() if not (out / name).is_file() or _sha256(out / name) != sha256]
    return [f"{out / name} is missing, damaged or edited; the next run writes it again" for name in wrong]


def require_place(out: Path) -> dict[str, str]:
    """Raise UsageError or BadData for anything but a new folder or one with a site, whose files it returns."""
    if len(os.fsencode(out.name)) > LONGEST_NAME:
        raise UsageError(f"{out} has too long a name for a folder; name another with --out")
    require_no_link(out)
    # Before site.json is looked for, which another process writes before any other file.
    others = sorted(path.name for path in out.glob("*") if not path.name.startswith("."))
    if os.path.lexists(out / json_files.SITE):
        return json_files.read_site(out / json_files.SITE).files
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder with --out")
    if others:
        raise UsageError(f"{out} holds {others[0]}, and no site of oodbench; name a new folder with --out")
    return {}


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Hold a folder, so that two processes replace its site one after the other, where the system can lock folders.

    What a killed process left half written is removed.
    """
    opened = None
    try:
        with suppress(ImportError, OSError):  # Windows locks no folders, and some network drives nothing
            import fcntl

            opened = os.open(out, os.O_RDONLY)
            fcntl.flock(opened, fcntl.LOCK_EX)
        for left in out.glob(f".site.*{PART}"):
            if HALF_WRITTEN.fullmatch(left.name) and not left.is_symlink():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        if opened is not None:
            os.close(opened)


def _list(out: Path, hashes: Mapping[str, str]) -> None:
    json_files.write(out / json_files.SITE, json_files.SiteManifest(files=dict(hashes)).model_dump())


def _unlink(out: Path, names: Iterable[str]) -> None:
    """Remove files of a site, and its folders that are empty then."""
    names = [*names]
    for name in names:
        (out / name).unlink(missing_ok=True)
    for folder in {(out / name).parent for name in names} - {out}:
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
