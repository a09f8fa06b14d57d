"""The files of a site in its folder: site.json lists them with their SHA-256, so a later site replaces these and no others."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from oodbench.errors import CannotWrite, UsageError
from oodbench.paths import PART, require_no_link
from oodbench.results import json_files

FIRST = "index.html"
REPORT = "report"  # the folder of the site of a run, in its folder


def replace_site(out: Path, files: Iterable[tuple[str, bytes | Callable[[Path], object]]]) -> Path:
    """Write files, each by its path in the site, in place of those of an earlier site. Returns the path of the first page.

    A function as content writes the file itself. Files of others in the folder stay. Nothing changes before all files are made.

    Raises UsageError for a folder with files of others and no site, or with one where the site has its own, and CannotWrite.
    """
    before = _files_of(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name[:50]}.", suffix=PART) as made:
            hashes = {}
            for name, content in files:
                target = Path(made, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    target.write_bytes(content)
                else:
                    content(target)
                hashes[name] = _sha256(target)
            for name in hashes.keys() - before:
                if os.path.lexists(out / name):
                    raise UsageError(
                        f"{out / name} is not part of a site of oodbench; move it, or name a new folder with --out"
                    )
            out.mkdir(exist_ok=True)
            for name in sorted(hashes):
                (out / name).parent.mkdir(exist_ok=True)
                require_no_link((out / name).parent)
                os.replace(Path(made, name), out / name)
            for name in before - hashes.keys():
                (out / name).unlink(missing_ok=True)
            json_files.write(out / json_files.SITE, json_files.SiteManifest(files=hashes).model_dump())
    except OSError as error:
        raise CannotWrite(f"cannot write {out}: {error.strerror or error}; free space there or name another folder") from error
    return out / FIRST


def remove_site(out: Path) -> None:
    """Remove the files of a site, and its folders as far as they are empty then."""
    for name in _files_of(out):
        (out / name).unlink(missing_ok=True)
    (out / json_files.SITE).unlink(missing_ok=True)
    for folder in [*(path for path in out.glob("*") if path.is_dir() and not path.is_symlink()), out]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def differing(out: Path) -> list[str]:
    """What is wrong with the files of a site, one line each; nothing where there is none."""
    if not os.path.lexists(out):
        return []
    found = json_files.read_site(out / json_files.SITE).files
    if not json_files.is_canonical(out / json_files.SITE):
        return [f"{out / json_files.SITE} is damaged, or was edited; delete the folder, and write the site again"]
    wrong = [name for name, sha256 in found.items() if not (out / name).is_file() or _sha256(out / name) != sha256]
    return [f"{out / name} is missing, damaged or edited; the next run writes it again" for name in wrong]


def _files_of(out: Path) -> set[str]:
    """The files of the site that is in a folder; none in a new one."""
    require_no_link(out)
    if os.path.lexists(out / json_files.SITE):
        return {*json_files.read_site(out / json_files.SITE).files}
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder with --out")
    others = sorted(path.name for path in out.glob("*")) if out.exists() else []
    if others := [name for name in others if not name.startswith(".")]:
        raise UsageError(f"{out} holds {others[0]}, and no site of oodbench; name a new folder with --out")
    return set()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
