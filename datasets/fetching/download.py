"""One file over HTTP: resumed where it stopped, tried again where the line stalls, from the first address that has it.

By requests, which knows redirects, proxies and certificates. pooch, which checks sums too, starts each file over after a
break, waits without end on a line that trickles, and tries one address only; huggingface_hub resumes, but from its own hub.
So what lies between two requests is here: ranges, what counts as a stall, whom to ask next, and the checksum of the whole.

A partial download only ever grows. Where an address has the whole file only, or another one, it is taken beside it, to a
file of its own (``anew_of``), and replaces it once its checksum is right: a page that asks to sign in costs nothing.
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
from oodbench.progress import Progress

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # states that may be over soon
CHUNK = 1 << 16
REDIRECTS = 10  # at most


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        connect, read: seconds for a connection, and for the next bytes.
        slowest: bytes a second below which a line is said to stall, over ``read`` seconds.
        retries: attempts without headway after which an address is given up.
        headway: bytes that an attempt must bring to count as such.
        pause: seconds before the first retry; doubled for each further one.
        longest_pause: seconds at most, whatever the server asks for.
        most: bytes of a file at most.
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
    """It may go on later."""

    def __init__(self, why: str, pause: float = 0) -> None:
        super().__init__(why)
        self.pause = pause


class _Misfit(_Interrupted):
    """It has nothing that could be put behind what is there; it may have the whole file."""


def addresses(url: str, mirrors: Sequence[str]) -> list[str]:
    """Where to look for a file, first to last: the mirrors, then its official address.

    Raises UsageError for a mirror that is no address of HTTP.
    """
    for mirror in mirrors:
        try:
            parts = urlsplit(mirror)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not re.search(r"\s", mirror)
        except ValueError:  # of brackets that do not match, or of a port
            valid = False
        if not valid:
            public = re.sub("//[^/]*@", "//", mirror)
            raise UsageError(f"mirror '{public}' is no address; give one as http://HOST/FOLDER, below which the files lie")
    file = url.rpartition("/")[2]
    return [*(f"{mirror.rstrip('/')}/{file}" for mirror in mirrors), url]


def download(
    urls: Sequence[str], part: Path, digest: str, *, room: int = 0, progress: Progress, patience: Patience = PATIENCE
) -> None:
    """Bring ``part`` to the whole file of this digest (``md5:…`` or ``sha256:…``), from the first address that has it.

    What ``part`` holds already is kept and the rest asked for; the note beside it (``note_of``) says of which file it is
    a part. ``room`` is bytes to be kept free beside the file. Raises BadData where an address gave a file with another
    digest, OodbenchError where none could be reached or the disk is full. ``part`` stays for the next time, unless it is wrong.
    """
    tried, wrong = [], False
    for url in urls:
        files = [part, anew_of(part), anew_of(part)]  # the last where the second was put together from two attempts too
        while files:
            file = files.pop(0)
            held = _size(file)
            try:
                pieced = _fill(url, file, file == part, room, progress, patience) or held > 0
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
                _write_note(note_of(part), {"size": _size(part)})  # whole: it is not asked for again
                return
            if pieced and files:
                progress.say(f"{shown(url)}: {found} instead of {digest}; starting over")
                _cut(file, held if file == part else 0)
                continue
            wrong = True
            tried.append(f"{shown(url)}: another file, {found} instead of {digest}")
            progress.say(tried[-1])
            _cut(file, 0)
            break
    name = urls[-1].rpartition("/")[2]
    remedy = "name a mirror that has it with --mirror URL or OODBENCH_MIRROR, or repeat the command, which goes on"
    raise (BadData if wrong else OodbenchError)(f"{name} cannot be fetched ({'; '.join(tried)}); {remedy}")


def remove(part: Path) -> None:
    """Remove ``part`` and what lies beside it."""
    for file in (part, anew_of(part)):
        _cut(file, 0)


def note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def anew_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.anew")


def shown(url: str) -> str:
    """The address without a name and password that it may hold."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _fill(url: str, file: Path, keep: bool, room: int, progress: Progress, patience: Patience) -> bool:
    """Ask until ``file`` is as long as the server says it is. Whether it was put together from several answers.

    With ``keep`` nothing is taken from what it holds; _Misfit is raised where the server has no continuation of it.
    """
    failures, furthest, pieced = 0, _size(file), False
    while True:
        try:
            _ask(url, file, keep, room, progress, patience)
            return pieced
        except _Interrupted as error:
            if isinstance(error, _Misfit):
                if keep:
                    raise
                _cut(file, 0)
            size = _size(file)
            pieced = size > 0
            failures = 1 if size >= furthest + patience.headway else failures + 1
            furthest = max(furthest, size)
            if failures > patience.retries:
                raise
            pause = min(max(error.pause, patience.pause * 2 ** (failures - 1)), patience.longest_pause)
            progress.say(f"{shown(url)}: {error}; attempt {failures + 1} of {patience.retries + 1} in {pause:.0f} s")
            time.sleep(pause)


def _ask(url: str, file: Path, keep: bool, room: int, progress: Progress, patience: Patience) -> None:
    """One request, for what ``file`` lacks."""
    start, known = _size(file), _read_note(note_of(file))
    if start and known.get("size") == start:
        return  # it was broken off between the last byte and the checksum
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
                raise _Misfit("it has the whole file, and not the rest alone")
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
    except (requests.RequestException, ValueError, OverflowError) as error:  # of addresses and headers that are none
        raise _Unavailable(_cause(error)) from error


class _Session(requests.Session):
    """Follows no redirect, and does not even look for one: requests would read the whole of what comes with it."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


@contextmanager
def _answer(url: str, headers: dict[str, str], patience: Patience) -> Iterator[requests.Response]:
    """The answer of an address, or of that to which it leads; what comes with a redirect is not read."""
    with _Session() as session:
        for _ in range(1 + REDIRECTS):
            with session.get(url, headers=headers, stream=True, timeout=(patience.connect, patience.read)) as answer:
                target = requests.Session.get_redirect_target(session, answer)
                if target is None:
                    yield answer
                    return
            url = urljoin(url, target)
            if (scheme := urlsplit(url).scheme) not in ("http", "https"):
                raise _Unavailable(f"it leads to an address of {scheme[:20]}, not of HTTP")
    raise _Unavailable(f"more than {REDIRECTS} redirects")


def _understand(answer: requests.Response, start: int, known: Any) -> tuple[int | None, int | None]:
    """(where its bytes begin, bytes of the whole file or None); (None, …) where nothing is lacking."""
    status = answer.status_code
    pattern = r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18}|\*)"
    stated = re.fullmatch(pattern, answer.headers.get("Content-Range", "").strip())
    total = int(stated[2]) if stated and stated[2] != "*" else None
    if status == 206 and start:
        same = known is None or total is None or known == total
        if stated and stated[1] is not None and int(stated[1]) == start and same:
            return start, total if total is not None else known
        raise _Misfit("it answers with another range than was asked for")
    if status == 416 and start:
        if total == start:
            return None, total
        raise _Misfit("it has a shorter file than was begun")
    if status == 200:
        length = answer.headers.get("Content-Length", "")
        return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    if status in PASSING:
        pause = answer.headers.get("Retry-After", "")
        raise _Interrupted(f"HTTP {status} {answer.reason}", float(pause) if re.fullmatch("[0-9]{1,18}", pause) else 0)
    raise _Unavailable(f"HTTP {status} {answer.reason}")


def _store(answer: requests.Response, part: Path, begin: int, size: int | None, progress: Progress, patience: Patience) -> None:
    """Write the answer's bytes behind the first ``begin`` of ``part``; raise _Interrupted where they end too early or stall."""
    held = begin
    window, in_window = time.monotonic(), 0
    with part.open("r+b" if begin else "wb") as file:
        file.truncate(begin)
        file.seek(begin)
        while chunk := answer.raw.read1(CHUNK):  # whatever is there: a full chunk of a trickle would be long in coming
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
    """Raise OodbenchError where the disk of ``folder`` has fewer bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OodbenchError(
            f"{folder.absolute()} has {free / 1e6:,.0f} MB free, and {what} needs {needed / 1e6:,.0f} MB more there; free some,"
            " or name another data root with --data DIR"
        )


def _validator(answer: requests.Response) -> str:
    """What tells a server whether its file has changed since; a weak tag does not promise the same bytes."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _cut(part: Path, size: int) -> None:
    """Keep the first ``size`` bytes; nothing where it has no more than these, for then they are wrong themselves."""
    if 0 < size < _size(part):
        os.truncate(part, size)
    else:
        part.unlink(missing_ok=True)
        note_of(part).unlink(missing_ok=True)


def _read_note(note: Path) -> dict[str, Any]:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or broken off: the checksum of the whole decides then
        return {}
    return found if isinstance(found, dict) else {}


def _write_note(note: Path, content: dict[str, Any]) -> None:
    note.write_text(json.dumps(content), encoding="utf-8")


def _cause(error: BaseException) -> str:
    """The innermost reason in a few words; requests wraps them several times over."""
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError) or "timed out" in str(error):
        return "no answer in time"
    inner: BaseException = error
    while deeper := inner.__cause__ or inner.__context__:
        inner = deeper
    return " ".join(str(getattr(inner, "strerror", None) or inner).split())[:160]
