"""Download one file over HTTP from the first address that has it; resume after an interruption, retry after a stall.

Built on requests, which handles redirects, proxies and certificates. pooch also checks checksums, but it restarts a file
after an interruption, waits forever on a connection that trickles, and tries one address only; huggingface_hub resumes, but
only from its own hub. So this module handles ranges, stalls, the next address, and the checksum of the whole file.

A partial download only ever grows. If an address cannot continue it, the whole file is downloaded beside it (``anew_of``) and
replaces it once the checksum is right. So a login page served instead of the file destroys nothing.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
import urllib3

from oodbench import __version__
from oodbench.datasets.fetching.expected_files import digest_of
from oodbench.errors import BadData, OodbenchError, UsageError
from oodbench.paths import read_small, require_own_file
from oodbench.progress import Progress

TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP states worth a retry
CHUNK = 1 << 16
REDIRECTS = 10  # at most


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        connect, read: seconds to wait for a connection, and for the next bytes.
        slowest: bytes per second, averaged over ``read`` seconds, below which a transfer counts as stalled.
        retries: number of attempts without headway before an address is abandoned.
        headway: bytes that an attempt must add to count as headway.
        pause: seconds before the first retry, doubled for each further one.
        longest_pause: most seconds between retries, even if the server asks for more.
        most: most bytes of a file.
    """

    connect: float = 15
    read: float = 30
    slowest: float = 1024
    retries: int = 5
    headway: int = 1 << 20
    pause: float = 1
    longest_pause: float = 60
    most: int = 64 * 2**30


PATIENCE = Patience()


class _Unavailable(Exception):
    """This address does not have the file."""


class _Interrupted(Exception):
    """The transfer stopped, and may continue later."""

    def __init__(self, why: str, pause: float = 0) -> None:
        super().__init__(why)
        self.pause = pause


class _Misfit(_Interrupted):
    """The address cannot continue the partial download; it may have the whole file."""


def addresses(url: str, mirrors: Sequence[str]) -> list[str]:
    """Return the addresses of a file in the order to try them: the mirrors, then the official one.

    Raises UsageError for a mirror that is not an HTTP address.
    """
    for mirror in mirrors:
        try:
            parts = urlsplit(mirror)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not re.search(r"\s", mirror)
        except ValueError:  # unbalanced brackets, or an invalid port
            valid = False
        if not valid:
            public = re.sub("//[^/]*@", "//", mirror)
            raise UsageError(f"mirror '{public}' is not an address; give one such as http://HOST/FOLDER that holds the files")
    file = url.rpartition("/")[2]
    return [*(f"{mirror.rstrip('/')}/{file}" for mirror in mirrors), url]


def download(
    urls: Sequence[str], part: Path, digest: str, *, room: int = 0, progress: Progress, patience: Patience = PATIENCE
) -> None:
    """Complete ``part`` to the whole file with this digest (``md5:…`` or ``sha256:…``), from the first address that has it.

    The bytes in ``part`` are kept and only the rest is requested; a note beside it (``note_of``) says which file it is part
    of. ``room`` is the number of bytes to keep free in addition. Raises BadData if an address sent a file with another digest,
    or ``part`` or its note is a link or a pipe; OodbenchError if no address was reachable or the disk is full. ``part`` is
    kept for the next time, unless it is wrong.
    """
    for file in (part, anew_of(part)):
        require_own_file(file)
        require_own_file(note_of(file))
    tried, wrong = [], False
    for url in urls:
        files = [part, anew_of(part), anew_of(part)]  # a third try if the second mixed two attempts too
        while files:
            file = files.pop(0)
            held = _size(file)
            try:
                resumed = _fill(url, file, file == part, room, progress, patience) or held > 0
            except _Misfit as error:
                progress.say(f"{shown(url)}: {error}; starting over")
                continue
            except (_Unavailable, _Interrupted) as error:
                tried.append(f"{shown(url)}: {error}")
                progress.say(tried[-1])
                break
            found = digest_of(file, digest)
            if found == digest:
                if file != part:
                    os.replace(file, part)
                    note_of(file).unlink(missing_ok=True)
                _write_note(note_of(part), {"size": _size(part)})  # whole: do not request it again
                return
            if resumed and files:
                progress.say(f"{shown(url)}: {found} instead of {digest}; starting over")
                _cut(file, held if file == part else 0)
                continue
            wrong = True
            tried.append(f"{shown(url)}: another file, {found} instead of {digest}")
            progress.say(tried[-1])
            _cut(file, 0)
            break
    name = urls[-1].rpartition("/")[2]
    remedy = "name a mirror with --mirror URL or OODBENCH_MIRROR, or repeat the command to resume"
    raise (BadData if wrong else OodbenchError)(f"{name} cannot be fetched ({'; '.join(tried)}); {remedy}")


def remove(part: Path) -> None:
    """Remove ``part`` and the files that belong to it."""
    for file in (part, anew_of(part)):
        _cut(file, 0)


def note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def anew_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.anew")


def shown(url: str) -> str:
    """Return the address without user name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _fill(url: str, file: Path, keep: bool, room: int, progress: Progress, patience: Patience) -> bool:
    """Send requests until ``file`` has the length that the server states. Return whether several responses were joined.

    With ``keep``, bytes already in the file are never discarded; _Misfit is raised if the server cannot continue it.
    """
    failures, furthest, resumed = 0, _size(file), False
    while True:
        try:
            _ask(url, file, keep, room, progress, patience)
            return resumed
        except _Interrupted as error:
            if isinstance(error, _Misfit):
                if keep:
                    raise
                _cut(file, 0)
            size = _size(file)
            resumed = size > 0
            failures = 1 if size >= furthest + patience.headway else failures + 1
            furthest = max(furthest, size)
            if failures > patience.retries:
                raise
            pause = min(max(error.pause, patience.pause * 2 ** (failures - 1)), patience.longest_pause)
            progress.say(f"{shown(url)}: {error}; attempt {failures + 1} of {patience.retries + 1} in {pause:.0f} s")
            time.sleep(pause)


def _ask(url: str, file: Path, keep: bool, room: int, progress: Progress, patience: Patience) -> None:
    """Send one request for the bytes that ``file`` lacks."""
    start, known = _size(file), _read_note(note_of(file))
    if start and known.get("size") == start:
        return  # interrupted between the last byte and the checksum
    headers = {"Accept-Encoding": "identity", "User-Agent": f"oodbench/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if known.get("url") == shown(url) and known.get("validator"):
            headers["If-Range"] = known["validator"]
    try:
        with _answer(url, headers, patience) as answer:
            begin, size = _understand(answer, start, known.get("size"))
            if begin is None:
                return
            if begin != start and keep:
                raise _Misfit("it sends only the whole file")
            if size is not None:
                if size > patience.most:
                    raise _Unavailable(f"it states {size:,} bytes, more than {patience.most:,}")
                try:
                    require_room(file.parent, size - begin + room, file.name)
                except OodbenchError as error:  # another address may state another size
                    raise _Unavailable(str(error)) from error
            _write_note(note_of(file), {"url": shown(url), "size": size, "validator": _validator(answer)})
            progress.stage(url.rpartition("/")[2])
            if size is not None:
                progress.expect(size)
            progress.advance(begin)
            _store(answer, file, begin, size, progress, patience)
    except requests.exceptions.SSLError as error:
        raise _Unavailable(f"its certificate is not accepted ({_cause(error)})") from error
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise _Interrupted(_cause(error)) from error
    except (requests.RequestException, ValueError, OverflowError) as error:  # malformed addresses and headers
        raise _Unavailable(_cause(error)) from error


class _Session(requests.Session):
    """Ignores redirects, because requests would read the whole body of one."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


@contextmanager
def _answer(url: str, headers: dict[str, str], patience: Patience) -> Iterator[requests.Response]:
    """Yield the response of an address, after redirects, whose bodies are not read."""
    with _Session() as session:
        for _ in range(1 + REDIRECTS):
            with session.get(url, headers=headers, stream=True, timeout=(patience.connect, patience.read)) as answer:
                target = requests.Session.get_redirect_target(session, answer)
                if target is None:
                    yield answer
                    return
            url = urljoin(url, target)
            if (scheme := urlsplit(url).scheme) not in ("http", "https"):
                raise _Unavailable(f"it redirects to an address of {scheme[:20]}, not HTTP")
    raise _Unavailable(f"more than {REDIRECTS} redirects")


def _understand(answer: requests.Response, start: int, known: Any) -> tuple[int | None, int | None]:
    """Return (offset of the first byte sent, size of the whole file or None); (None, …) if the file is already complete."""
    status = answer.status_code
    pattern = r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18}|\*)"
    stated = re.fullmatch(pattern, answer.headers.get("Content-Range", "").strip())
    total = int(stated[2]) if stated and stated[2] != "*" else None
    if status == 206 and start:
        same = known is None or total is None or known == total
        if stated and stated[1] is not None and int(stated[1]) == start and same:
            return start, total if total is not None else known
        raise _Misfit("it sends another range than requested")
    if status == 416 and start:
        if total == start:
            return None, total
        raise _Misfit("its file is shorter than the partial download")
    if status == 200:
        length = answer.headers.get("Content-Length", "")
        return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    if status in TEMPORARY:
        pause = answer.headers.get("Retry-After", "")
        raise _Interrupted(f"HTTP {status} {answer.reason}", float(pause) if re.fullmatch("[0-9]{1,18}", pause) else 0)
    raise _Unavailable(f"HTTP {status} {answer.reason}")


def _store(answer: requests.Response, part: Path, begin: int, size: int | None, progress: Progress, patience: Patience) -> None:
    """Write the response after the first ``begin`` bytes of ``part``. Raises _Interrupted if it ends early or stalls."""
    held = begin
    window, in_window = time.monotonic(), 0
    with part.open("r+b" if begin else "wb") as file:
        file.truncate(begin)
        file.seek(begin)
        while chunk := answer.raw.read1(CHUNK):  # what has arrived: a slow sender takes long to fill a chunk
            file.write(chunk)
            held += len(chunk)
            in_window += len(chunk)
            progress.advance(len(chunk))
            if held > patience.most:
                file.truncate(begin)
                raise _Unavailable(f"it sends more than {patience.most:,} bytes")
            if (passed := time.monotonic() - window) > patience.read:
                if in_window < patience.slowest * passed:
                    raise _Interrupted(f"it stalls: {in_window:,} bytes in {passed:.0f} s")
                window, in_window = time.monotonic(), 0
        file.flush()
        os.fsync(file.fileno())
    if size is not None and held != size:
        raise _Interrupted(f"it ended after {held:,} of {size:,} bytes")


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raise OodbenchError if the disk of ``folder`` has fewer free bytes than needed."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OodbenchError(
            f"{folder.absolute()} has {free / 1e6:,.0f} MB free; {what} needs {needed / 1e6:,.0f} MB more there: free space,"
            " or name another data root with --data DIR"
        )


def _validator(answer: requests.Response) -> str:
    """Return the value by which a server detects a changed file. A weak tag does not promise equal bytes."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _cut(part: Path, size: int) -> None:
    """Keep the first ``size`` bytes. A file with no more than these is wrong from the start: remove it."""
    if 0 < size < _size(part):
        os.truncate(part, size)
    else:
        part.unlink(missing_ok=True)
        note_of(part).unlink(missing_ok=True)


def _read_note(note: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_small(note).decode())
    except (OSError, ValueError, RecursionError, OodbenchError):  # missing or damaged: the checksum of the whole file decides
        return {}
    return found if isinstance(found, dict) else {}


def _write_note(note: Path, content: dict[str, Any]) -> None:
    note.write_text(json.dumps(content), encoding="utf-8")


def _cause(error: BaseException) -> str:
    """Return the innermost reason in a few words; requests wraps errors several times."""
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError) or "timed out" in str(error):
        return "no answer in time"
    inner: BaseException = error
    while deeper := inner.__cause__ or inner.__context__:
        inner = deeper
    return " ".join(str(getattr(inner, "strerror", None) or inner).split())[:160]
