"""The report of a run: its site, in its own folder."""

import hashlib
import itertools
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from oodbench import __version__
from oodbench.errors import BadData
from oodbench.leaderboard import escape
from oodbench.leaderboard.tasks import task_of
from oodbench.progress import Progress
from oodbench.results.folder import RunFolder
from oodbench.results.site import FIRST, REPORT, differing, replace_site

MADE_FROM = "made-from.txt"  # what a report was made from
CODE = (".py", ".html", ".css", ".js", ".bib", ".csv", ".toml")  # endings of files that pages depend on


def report(folders: Sequence[RunFolder], progress: Progress | None = None) -> Path:
    """Write the site of a run or study that has just ended into its folder, and return its first page.

    It is not verified, and has no bundles. An intact report of the same results is left as it is. Raises BadData for a run
    without cells and for a damaged earlier report, and CannotWrite.
    """
    path = (folders[0].study or folders[0]).path
    for folder in folders:
        folder.name = folder.path.resolve().name
    out, made_from = path / REPORT, _digest(folders)
    with suppress(OSError, BadData):
        if (out / MADE_FROM).read_bytes() == made_from and not differing(out):
            return out / FIRST
    if progress is not None:
        progress.stage("writing the report")
    from oodbench.leaderboard.site.publish import site_files, title_of  # which load matplotlib

    pages = site_files(folders, f"{title_of([task_of(folders)])}: {path.resolve().name}", progress=progress)
    return replace_site(out, itertools.chain(pages, [(MADE_FROM, made_from)]))


def _digest(folders: Sequence[RunFolder]) -> bytes:
    """SHA-256, in hexadecimal, of all that the site of these runs is made from: their files, and the code of leaderboards."""
    digest = hashlib.sha256(__version__.encode())
    code = (path for path in Path(escape.__file__).parent.rglob("*") if path.suffix in CODE)
    stored = (
        file for folder in folders for file in (*folder.pass_files(), folder.shared_path, *sorted(folder.path.glob("*.json")))
    )
    for path in (*sorted(code), *stored):
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{digest.hexdigest()}\n".encode()
