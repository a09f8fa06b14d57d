"""Fetching, against a real HTTP server on 127.0.0.1 that does what servers do on bad days."""

import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from oodbench.datasets import download as http
from oodbench.datasets.catalogue import Download, Item
from oodbench.datasets.download import Patience, addresses, download, note_of
from oodbench.datasets.fetch import WORKSHOP, fetch
from oodbench.datasets.pieces import File
from oodbench.errors import BadData, MissingData, OodbenchError, UsageError
from oodbench.progress import Progress

BODY = np.random.default_rng(0).bytes(300_000)
DIGEST = f"md5:{hashlib.md5(BODY).hexdigest()}"
QUICK = Patience(connect=2, read=0.3, retries=2, headway=50_000, pause=0.01, longest_pause=0.05)


class Server(ThreadingHTTPServer):
    """Serves ``body`` under every path. ``script`` says how, a function a request; after its end, as a good server does."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.script, self.asked, self.released = BODY, [], [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):  # a client that hangs up is part of the tests
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        self.close_connection = True
        (self.server.script.pop(0) if self.server.script else good)(self, self.server.body)

    def log_message(self, *_):
        pass

    def start(self, status, **headers):
        self.send_response(status)
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def begin_of(handler, body):
    """Where the range starts that is asked for, and the headers that a good server answers with."""
    asked = handler.headers.get("Range")
    if asked is None or handler.headers.get("If-Range", '"one"') != '"one"':
        return 0, 200, {"ETag": '"one"'}
    begin = int(asked.removeprefix("bytes=").removesuffix("-"))
    if begin >= len(body):
        return begin, 416, {"Content_Range": f"bytes */{len(body)}"}
    return begin, 206, {"ETag": '"one"', "Content_Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"}


def good(handler, body):
    begin, status, headers = begin_of(handler, body)
    handler.start(status, Content_Length=max(len(body) - begin, 0), **headers)
    handler.wfile.write(body[begin:])


def whole(handler, body):
    """Ignores ranges."""
    handler.start(200, Content_Length=len(body))
    handler.wfile.write(body)


def cut(count):
    """Ends after so many bytes."""

    def serve(handler, body):
        begin, status, headers = begin_of(handler, body)
        handler.start(status, Content_Length=len(body) - begin, **headers)
        handler.wfile.write(body[begin : begin + count])

    return serve


def stall(count, pause=None):
    """Sends so many bytes, and then none, or one in a while."""

    def serve(handler, body):
        begin, status, headers = begin_of(handler, body)
        handler.start(status, Content_Length=len(body) - begin, **headers)
        handler.wfile.write(body[begin : begin + count])
        handler.wfile.flush()
        for place in itertools.count(begin + count):
            if handler.server.released.wait(pause):
                break
            handler.wfile.write(body[place : place + 1])
            handler.wfile.flush()

    return serve


def status(code, **headers):
    return lambda handler, body: handler.start(code, Content_Length=0, **headers)


def redirect(where):
    return status(302, Location=where)


def stating(length):
    """Lies about the length."""

    def serve(handler, body):
        handler.start(200, Content_Length=length)
        handler.wfile.write(body)

    return serve


def other(handler, body):
    wrong = bytes(len(body))
    begin, code, headers = begin_of(handler, body)
    handler.start(code, Content_Length=len(body) - begin, **headers)
    handler.wfile.write(wrong[begin:])


def other_range(handler, body):
    handler.start(206, Content_Length=len(body), Content_Range=f"bytes 0-{len(body) - 1}/{len(body)}")
    handler.wfile.write(body)


def chunked(handler, body):
    """States no length."""
    handler.start(200, Transfer_Encoding="chunked")
    for start in range(0, len(body), 100_000):
        piece = body[start : start + 100_000]
        handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


class Record(Progress):
    def __init__(self):
        self.lines, self.bytes = [], 0.0

    def stage(self, title):
        self.bytes = 0.0

    def advance(self, units):
        self.bytes += units

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    serving = Server()
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield serving
    serving.released.set()
    serving.shutdown()
    thread.join()
    serving.server_close()


def get(server, tmp_path, *mirrors, digest=DIGEST, patience=QUICK):
    """Download, and the lines that were said meanwhile."""
    progress = Record()
    part = tmp_path / "file.part"
    download(addresses(f"{server.url}/file.bin", mirrors), part, digest, progress=progress, patience=patience)
    assert part.read_bytes() == server.body
    assert progress.bytes == len(server.body)
    return progress.lines


def ranges(server):
    return [headers.get("Range") for _, headers in server.asked]


@pytest.mark.parametrize(
    ("script", "asked"),
    [
        ([], [None]),
        ([whole], [None]),
        ([chunked], [None]),
        ([cut(100_000)], [None, "bytes=100000-"]),
        ([cut(100_000), cut(80_000)], [None, "bytes=100000-", "bytes=180000-"]),
        ([cut(60_000)] * 4, [None, *(f"bytes={60_000 * i}-" for i in range(1, 5))]),  # more than retries: each makes headway
        ([cut(100_000), whole], [None, "bytes=100000-"]),
        ([cut(100_000), other_range], [None, "bytes=100000-", None]),
        ([stall(100_000)], [None, "bytes=100000-"]),
        ([stall(100_000, pause=0.02)], None),  # a trickle that never lets a read time out
        ([status(503), good], [None, None]),
        ([status(429, Retry_After=1), good], [None, None]),
        ([stating(len(BODY) + 10)], [None, "bytes=300000-"]),  # which is then answered with 416: there is no more
        ([lambda handler, body: None], [None, None]),  # hangs up without an answer
    ],
)
def test_a_file_arrives_whole_whatever_the_server_does(server, tmp_path, script, asked):
    server.script = list(script)
    get(server, tmp_path)
    assert asked is None or ranges(server) == asked


def test_a_file_that_changed_in_between_is_taken_anew(server, tmp_path):
    server.body, server.script = bytes(len(BODY)), [cut(100_000)]
    with pytest.raises(OodbenchError):
        get(server, tmp_path, patience=Patience(read=1, retries=0))
    note = json.loads(note_of(tmp_path / "file.part").read_text())
    assert (note["validator"], note["size"]) == ('"one"', len(BODY))
    note_of(tmp_path / "file.part").write_text(json.dumps(note | {"validator": '"zero"'}))
    server.body = BODY
    get(server, tmp_path)
    assert server.asked[-1][1]["If-Range"] == '"zero"'
    assert (tmp_path / "file.part").read_bytes() == BODY


def test_two_attempts_that_do_not_fit_are_told_by_the_checksum_and_started_over(server, tmp_path):
    (tmp_path / "file.part").write_bytes(bytes(100_000))
    lines = get(server, tmp_path)
    assert ranges(server) == ["bytes=100000-", None]
    assert "starting over" in " ".join(lines)


def test_a_file_that_changes_without_a_mark_while_it_is_loaded(server, tmp_path):
    def unmarked_other(handler, body):
        handler.start(200, Content_Length=len(body))
        handler.wfile.write(bytes(100_000))

    server.script = [unmarked_other]
    lines = get(server, tmp_path)
    assert ranges(server) == [None, "bytes=100000-", None]
    assert "starting over" in " ".join(lines)


def test_what_was_loaded_to_the_last_byte_needs_no_server(server, tmp_path):
    get(server, tmp_path)
    download([f"{server.url}/file.bin"], tmp_path / "file.part", DIGEST, progress=Progress(), patience=QUICK)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("script", "error", "says", "requests"),
    [
        ([other], BadData, "another file, md5:", 1),
        ([stating(len(BODY) - 10)], BadData, "another file, md5:", 1),
        ([status(404)], OodbenchError, "HTTP 404 Not Found", 1),
        ([status(403)], OodbenchError, "HTTP 403 Forbidden", 1),
        ([status(503)] * 3, OodbenchError, "HTTP 503 Service Unavailable", 3),
        ([stall(0), stall(0), stall(0)], OodbenchError, "no answer in time", 3),
        ([cut(10)] * 3, OodbenchError, "ended after|IncompleteRead|bytes read", 3),
        ([redirect("/file.bin")] * 11, OodbenchError, "redirects", 11),
        ([redirect("file:///etc/passwd")], OodbenchError, "No connection adapters", 1),
    ],
)
def test_what_cannot_be_had_is_one_line_with_address_and_remedy(server, tmp_path, script, error, says, requests):
    server.script = list(script)
    with pytest.raises(error, match=says) as raised:
        get(server, tmp_path)
    line = str(raised.value)
    assert f"{server.url}/file.bin" in line
    assert "--mirror URL" in line
    assert "\n" not in line
    assert len(server.asked) == requests
    assert raised.type is error  # a wrong file is BadData, an absent one is not


def test_nobody_listens(tmp_path):
    with Server() as unused:
        url = unused.url
    with pytest.raises(OodbenchError, match="Connection refused"):
        download([f"{url}/file.bin"], tmp_path / "part", DIGEST, progress=Progress(), patience=QUICK)


def test_a_redirect_is_followed(server, tmp_path):
    server.script = [redirect("/elsewhere"), cut(100_000)]
    get(server, tmp_path)
    assert [path for path, _ in server.asked] == ["/file.bin", "/elsewhere", "/file.bin"]


def test_a_mirror_is_asked_first_and_must_have_the_same_file(server, tmp_path):
    server.script = [status(404), other]
    lines = get(server, tmp_path, f"{server.url}/one/", f"http://user:secret@127.0.0.1:{server.server_port}/two")
    assert [path for path, _ in server.asked] == ["/one/file.bin", "/two/file.bin", "/file.bin"]
    assert "404" in lines[0]
    assert "another file" in lines[1]
    assert "secret" not in " ".join(lines)


def test_a_mirror_goes_on_with_what_another_began(server, tmp_path):
    server.script = [cut(100_000), status(404)]
    get(server, tmp_path, f"{server.url}/one")
    assert ranges(server) == [None, "bytes=100000-", "bytes=100000-"]
    assert "If-Range" not in server.asked[-1][1]  # one server's tag says nothing to another


@pytest.mark.parametrize("mirror", ["ftp://host/x", "/a/folder", "http://", "host", "http:///x"])
def test_a_mirror_is_an_address(mirror):
    with pytest.raises(UsageError, match="mirror"):
        addresses("http://host/file", [mirror])


def test_an_endless_file_is_given_up(server, tmp_path):
    server.script = [chunked]
    with pytest.raises(OodbenchError, match="more than 200,000 bytes"):
        get(server, tmp_path, patience=Patience(most=200_000))
    assert (tmp_path / "file.part").stat().st_size == 0


def test_a_disk_without_room_is_said_before_anything_is_loaded(server, tmp_path, monkeypatch):
    monkeypatch.setattr(http.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 299_000}))
    with pytest.raises(OodbenchError, match=r"MB free, and file\.part needs 0 MB more"):
        get(server, tmp_path)
    assert not (tmp_path / "file.part").exists()


def packed(**files):
    """The bytes of a tar.gz with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def item_of(server, body, **changes):
    """A set of one archive that holds ``set/a`` and ``set/b``."""
    server.body = body
    pieces = (File("set/a", "test", 100), File("set/b", "test", 100))
    digest = f"md5:{hashlib.md5(body).hexdigest()}"
    return Item("some", downloads=(Download(f"{server.url}/set.tar.gz", digest, pieces, ("set",), **changes),))


def names(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.suffix != ".lock")


GOOD = {"set__a": bytes(100), "set__b": BODY[:100], "readme": b"left out"}


def test_a_set_is_fetched_once(server, tmp_path):
    item = item_of(server, packed(**GOOD))
    assert item.state(tmp_path) == "absent"
    assert fetch(item, tmp_path, patience=QUICK) == ["set.tar.gz"]
    assert item.state(tmp_path) == "present"
    assert names(tmp_path) == ["set/a", "set/b"]
    assert fetch(item, tmp_path, patience=QUICK) == []
    assert len(server.asked) == 1


def test_what_is_there_and_not_whole_is_left_alone_unless_forced(server, tmp_path):
    item = item_of(server, packed(**GOOD))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").write_bytes(b"mine")
    assert item.state(tmp_path) == "partial"
    with pytest.raises(OodbenchError, match=r"set is there and is not the whole set \(set/a has 4 bytes.*--force"):
        fetch(item, tmp_path, patience=QUICK)
    assert not server.asked
    assert fetch(item, tmp_path, force=True, patience=QUICK) == ["set.tar.gz"]
    assert names(tmp_path) == ["set/a", "set/b"]
    assert fetch(item, tmp_path, force=True, patience=QUICK) == ["set.tar.gz"]


def test_a_hostile_archive_leaves_nothing(server, tmp_path):
    item = item_of(server, packed(**GOOD, **{"..__outside": b"x"}))
    with pytest.raises(BadData, match=r"set\.tar\.gz.* outside its folder"):
        fetch(item, tmp_path / "root", patience=QUICK)
    assert names(tmp_path) == ["root/.downloads/set.tar.gz.part.json"]
    assert item.state(tmp_path / "root") == "absent"


def test_an_archive_of_something_else_is_no_set(server, tmp_path):
    item = item_of(server, packed(set__a=bytes(100)))
    with pytest.raises(OodbenchError, match="set/b"):
        fetch(item, tmp_path, patience=QUICK)


def test_splits_are_fetched_apart_and_optional_ones_when_asked_for(server, tmp_path):
    downloads = [
        Download(f"{server.url}/{split}.mat", DIGEST, (File(f"x/{split}.mat", split),), (f"x/{split}.mat",), archive=False)
        for split in ("train", "test")
    ]
    extra = Download(f"{server.url}/extra.mat", DIGEST, (File("x/extra.mat", "extra"),), ("x/extra.mat",), False, optional=True)
    item = Item("some", downloads=(*downloads, extra))
    assert fetch(item, tmp_path, splits=["test"], patience=QUICK) == ["test.mat"]
    assert item.state(tmp_path) == "partial"
    assert fetch(item, tmp_path, patience=QUICK) == ["train.mat"]
    assert item.state(tmp_path) == "present"
    assert fetch(item, tmp_path, splits=["extra"], patience=QUICK) == ["extra.mat"]
    assert names(tmp_path) == ["x/extra.mat", "x/test.mat", "x/train.mat"]
    with pytest.raises(UsageError, match="no split 'val' to fetch; it has extra, test, train"):
        fetch(item, tmp_path, splits=["val"], patience=QUICK)
    weights = Item("net", downloads=(Download(f"{server.url}/net.th", DIGEST, (File("m/net.th"),), ("m/net.th",), False),))
    assert fetch(weights, tmp_path, splits=["test"], patience=QUICK) == ["net.th"]  # they have no splits


def test_a_set_behind_a_form_says_where_to_ask(tmp_path):
    from oodbench.datasets import catalogue

    with pytest.raises(MissingData) as raised:
        fetch(catalogue.find("curetsr/Haze@3"), tmp_path)
    for part in ("ieee-dataport.org", str(tmp_path / "CURE-TSR"), "Real_Train", "Haze-3", "data verify curetsr"):
        assert part in str(raised.value)


# Fetches in a process of its own: what follows kills it, limits it, or starts it twice.
FETCH = """
import resource, sys
from pathlib import Path
from oodbench.datasets import archives, fetch as fetching
from oodbench.datasets.catalogue import Download, Item
from oodbench.datasets.download import Patience
from oodbench.datasets.pieces import File
from oodbench.errors import OodbenchError

url, digest, root, limit, slowly = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
if slowly:  # before each call of this function, say so and wait for a line
    module, name = (fetching, "_put") if slowly == "put" else (archives, "_copy")
    function = getattr(module, name)

    def slow(*arguments):
        print(slowly, flush=True)
        sys.stdin.readline()
        function(*arguments)

    setattr(module, name, slow)
pieces = (File("set/a", least=100), File("other/b", least=100))
item = Item("some", downloads=(Download(url, digest, pieces, ("set", "other")),))
try:
    print(fetching.fetch(item, Path(root), patience=Patience(read=5, retries=0)))
except OodbenchError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def start(server, tmp_path):
    """start() -> a process that fetches ``set`` and ``other`` to tmp_path / "root"."""
    server.body = packed(set__a=BODY, other__b=bytes(100))
    processes = []

    def run(limit=0, slowly="", root=tmp_path / "root"):
        digest = f"md5:{hashlib.md5(server.body).hexdigest()}"
        command = [sys.executable, "-P", "-c", FETCH, f"{server.url}/x.tar.gz", digest, str(root), str(limit), slowly]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def finish(process):
    output, _ = process.communicate(timeout=30)
    return process.returncode, output.strip()


def test_a_kill_amid_the_download_is_resumed(server, tmp_path, start):
    server.script = [stall(100_000)]
    process, part = start(), tmp_path / "root" / WORKSHOP / "x.tar.gz.part"
    while not (part.exists() and part.stat().st_size >= 65_536):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = part.stat().st_size
    assert names(tmp_path / "root") == [".downloads/x.tar.gz.part", ".downloads/x.tar.gz.part.json"]
    assert finish(start()) == (0, "['x.tar.gz']")
    assert ranges(server) == [None, f"bytes={held}-"]
    assert names(tmp_path / "root") == ["other/b", "set/a"]


@pytest.mark.parametrize(("where", "lines"), [("copy", 1), ("copy", 2), ("put", 1), ("put", 2)])
def test_a_kill_amid_unpacking_or_renaming_is_made_good(server, tmp_path, start, where, lines):
    process = start(slowly=where)
    for line in range(lines):
        assert process.stdout.readline().strip() == where
        if line + 1 < lines:
            process.stdin.write("\n")
            process.stdin.flush()
    process.send_signal(signal.SIGKILL)
    process.wait()
    seen = [name for name in names(tmp_path / "root") if not name.startswith(WORKSHOP)]
    assert seen == (["set/a"] if (where, lines) == ("put", 2) else [])  # never a part of a place
    assert finish(start()) == (0, "['x.tar.gz']")
    assert names(tmp_path / "root") == ["other/b", "set/a"]
    assert len(server.asked) == 1  # what was loaded is not loaded again


def test_two_at_once_load_it_once(server, tmp_path, start):
    first = start(slowly="copy")
    assert first.stdout.readline().strip() == "copy"
    second = start()
    time.sleep(0.5)  # whether it is waiting by then or not, the end is the same
    for _ in range(2):
        first.stdin.write("\n")
        first.stdin.flush()
    assert finish(first)[1].endswith("['x.tar.gz']")
    assert finish(second) == (0, "[]")
    assert len(server.asked) == 1


@pytest.mark.parametrize(("limit", "stops"), [(200_000, "x.tar.gz.part"), (400_000, "set/a")])
def test_a_file_that_may_not_grow_is_one_line(server, tmp_path, start, limit, stops):
    """A limit on the size of files: a write that fails, on any system that has such limits."""
    if stops == "set/a":
        server.body = packed(set__a=bytes(500_000), other__b=bytes(100))  # the archive is small
    code, line = finish(start(limit=limit))
    assert code == 1
    assert line.startswith("cannot write")
    assert stops in line
    assert "--data DIR" in line
    assert len(line.splitlines()) == 1


@pytest.fixture
def tiny_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_the_fetch_goes_on_from_there(server, tmp_path, start, tiny_disk):
    code, line = finish(start(root=tiny_disk))  # the archive fits, and its files beside it do not
    assert code == 1
    assert "No space left on device" in line
    assert len(line.splitlines()) == 1
    assert names(tiny_disk) == [".downloads/x.tar.gz.part", ".downloads/x.tar.gz.part.json"]
    subprocess.run(["mount", "-o", "remount,size=2m", str(tiny_disk)], check=True)
    assert finish(start(root=tiny_disk)) == (0, "['x.tar.gz']")
    assert len(server.asked) == 1


def test_a_read_only_disk_is_one_line(server, tiny_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(OodbenchError, match=f"cannot write {tiny_disk}.*Read-only file system.*--data DIR"):
        fetch(item_of(server, packed(**GOOD)), tiny_disk, patience=QUICK)
    assert not server.asked


@pytest.mark.parametrize("how", ["file", "mode"])
def test_a_root_that_cannot_be_written_is_one_line(server, tmp_path, how):
    root = tmp_path / "root"
    if how == "file":
        root.write_text("in the way")
    elif os.getuid() == 0:
        pytest.skip("root may write anywhere")
    else:
        root.mkdir(mode=0o500)
    with pytest.raises(OodbenchError, match=f"cannot write {root}.*--data DIR"):
        fetch(item_of(server, packed(**GOOD)), root, patience=QUICK)
    assert not server.asked
