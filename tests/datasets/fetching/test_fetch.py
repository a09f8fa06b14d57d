"""Fetching sets: whole, once, in place, and again after a kill, a full disk or a hostile archive."""

import errno
import fcntl
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time

import pytest
from heard import Heard
from web_server import BODY, DIGEST, QUICK, ranges, stall, status

from oodbench.datasets.fetching.catalogue import Download, Item
from oodbench.datasets.fetching.expected_files import File
from oodbench.datasets.fetching.fetch import WORK_FOLDER, fetch
from oodbench.errors import BadData, MissingData, OodbenchError, UsageError


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
    expected = (File("set/a", "test", 100), File("set/b", "test", 100))
    digest = f"md5:{hashlib.md5(body).hexdigest()}"
    return Item("some", downloads=(Download(f"{server.url}/set.tar.gz", digest, expected, ("set",), **changes),))


def names(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.suffix != ".lock")


def part_name(root):
    """The name of the one partial download."""
    (lock,) = (root / WORK_FOLDER).glob("*.lock")
    return lock.stem


GOOD = {"set__a": bytes(100), "set__b": BODY[:100], "readme": b"left out"}


def test_a_set_is_fetched_once(server, tmp_path):
    item = item_of(server, packed(**GOOD))
    assert item.survey(tmp_path)[0] == "absent"
    assert fetch(item, tmp_path, patience=QUICK) == ["set.tar.gz"]
    assert item.survey(tmp_path)[0] == "present"
    assert names(tmp_path) == ["set/a", "set/b"]
    assert fetch(item, tmp_path, patience=QUICK) == []
    assert len(server.asked) == 1


def test_what_is_there_and_not_whole_is_left_alone_unless_forced(server, tmp_path):
    item = item_of(server, packed(**GOOD))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").write_bytes(b"mine")
    assert item.survey(tmp_path)[0] == "partial"
    with pytest.raises(OodbenchError, match=r"set exists and is not the whole set \(set/a has 4 bytes.*--force"):
        fetch(item, tmp_path, patience=QUICK)
    assert not server.asked
    assert fetch(item, tmp_path, force=True, patience=QUICK) == ["set.tar.gz"]
    assert names(tmp_path) == ["set/a", "set/b"]
    assert fetch(item, tmp_path, force=True, patience=QUICK) == ["set.tar.gz"]


def test_a_drive_without_locks_is_reported_and_used(server, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    heard = Heard()
    assert fetch(item_of(server, packed(**GOOD)), tmp_path, patience=QUICK, progress=heard) == ["set.tar.gz"]
    assert [line for line in heard.lines if "lock" in line] == [
        f"{tmp_path / WORK_FOLDER} cannot be locked (no locks here): do not start a second download of {part_name(tmp_path)}"
    ]


def test_a_second_download_waits_for_the_first(server, tmp_path):
    """Held by another open file, as by another process."""
    item = item_of(server, packed(**GOOD))
    fetch(item, tmp_path, patience=QUICK)
    held = (tmp_path / WORK_FOLDER / f"{part_name(tmp_path)}.lock").open()
    fcntl.flock(held, fcntl.LOCK_EX)
    timer = threading.Timer(0.3, held.close)
    timer.start()
    heard = Heard()
    assert fetch(item, tmp_path, force=True, patience=QUICK, progress=heard) == ["set.tar.gz"]
    assert f"another process is fetching {part_name(tmp_path)}; waiting for it" in heard.lines
    assert held.closed


def test_one_file_that_cannot_be_had_does_not_stop_the_others(server, tmp_path):
    server.script = [status(404)]
    downloads = [
        Download(f"{server.url}/{name}.mat", DIGEST, (File(f"x/{name}.mat"),), (f"x/{name}.mat",), archive=False)
        for name in ("one", "two", "three")
    ]
    with pytest.raises(OodbenchError, match=r"one\.mat cannot be fetched .*404.*; fetched anyway: two\.mat, three\.mat"):
        fetch(Item("some", downloads=tuple(downloads)), tmp_path, patience=QUICK)
    assert names(tmp_path) == ["x/three.mat", "x/two.mat"]


def test_weights_of_ones_own_are_moved_aside_by_force_alone(server, tmp_path):
    piece = File("m/net.th", digest=DIGEST, override="m/net.safetensors", small=True)
    item = Item("net", "weights", downloads=(Download(f"{server.url}/net.th", DIGEST, (piece,), ("m/net.th",), False),))
    (tmp_path / "m").mkdir()
    own = tmp_path / "m" / "net.safetensors"
    own.write_bytes(b"broken off")
    link = tmp_path / "m" / "net.safetensors.old1"
    link.symlink_to("nowhere")
    with pytest.raises(
        OodbenchError, match=r"net\.safetensors exists and is not the whole set .*truncated\); move it.*--force"
    ):
        fetch(item, tmp_path, patience=QUICK)
    assert not server.asked
    for time_ in range(2):
        assert fetch(item, tmp_path, force=True, patience=QUICK) == ["net.th"]
        assert item.survey(tmp_path) == ("present", [])
        own.write_bytes(f"another {time_}".encode())
    assert names(tmp_path) == ["m/net.safetensors", "m/net.safetensors.old", "m/net.safetensors.old2", "m/net.th"]
    assert link.is_symlink()
    own.unlink()
    (tmp_path / "m" / "net.th").write_bytes(BODY[:1000])  # truncated
    assert item.survey(tmp_path)[0] == "partial"
    assert fetch(item, tmp_path, force=True, patience=QUICK) == ["net.th"]
    assert item.survey(tmp_path) == ("present", [])


def test_a_link_that_leads_nowhere_is_refused_before_anything_is_loaded(server, tmp_path):
    (tmp_path / "set").symlink_to("/nowhere/set")
    with pytest.raises(OodbenchError, match=r"set is a link to /nowhere/set, which does not exist; create it"):
        fetch(item_of(server, packed(**GOOD)), tmp_path, force=True, patience=QUICK)
    assert not server.asked
    assert (tmp_path / "set").is_symlink()


@pytest.mark.parametrize("end", ["lock", "part", "part.json", "part.anew", "part.anew.json", "unpacked"])
def test_a_link_among_the_downloads_keeps_its_target(server, tmp_path, end):
    theirs = tmp_path / "theirs"
    if end == "unpacked":
        theirs.mkdir()
        theirs /= "file"
    theirs.write_text("theirs")
    item = item_of(server, packed(**GOOD))
    (tmp_path / WORK_FOLDER).mkdir()
    (tmp_path / WORK_FOLDER / f"{item.downloads[0].file}.{end}").symlink_to(tmp_path / "theirs")
    with pytest.raises(BadData, match=rf"\.{end} is a link to .*theirs, and oodbench writes nothing through it"):
        fetch(item, tmp_path, patience=QUICK)
    assert theirs.read_text() == "theirs"


def test_what_killed_fetches_left_goes_with_the_next(server, tmp_path):
    item, work = item_of(server, packed(**GOOD)), tmp_path / WORK_FOLDER
    fetch(item, tmp_path, patience=QUICK)
    whole = item.downloads[0].file
    left = [f"{whole}.part", f"{whole}.part.json", f"{whole}.part.anew", "dead.tar.gz.unpacked/set/a"]
    kept = ["running.tar.gz.unpacked/set/a", "dead.tar.gz.part", "dead.tar.gz.part.json"]  # a download is resumed
    for name in left + kept:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).touch()
    with open(work / "running.tar.gz.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert fetch(item, tmp_path, patience=QUICK) == []
    assert names(work) == sorted(kept)
    assert not (work / "dead.tar.gz.unpacked").exists()


def test_a_hostile_archive_leaves_nothing(server, tmp_path):
    item = item_of(server, packed(**GOOD, **{"..__outside": b"x"}))
    with pytest.raises(BadData, match=r"set\.tar\.gz.* outside its folder"):
        fetch(item, tmp_path / "root", patience=QUICK)
    assert names(tmp_path) == []
    assert item.survey(tmp_path / "root")[0] == "absent"


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
    assert item.survey(tmp_path)[0] == "partial"
    assert fetch(item, tmp_path, patience=QUICK) == ["train.mat"]
    assert item.survey(tmp_path)[0] == "present"
    assert fetch(item, tmp_path, splits=["extra"], patience=QUICK) == ["extra.mat"]
    assert names(tmp_path) == ["x/extra.mat", "x/test.mat", "x/train.mat"]
    with pytest.raises(UsageError, match="no split 'val' to fetch; it has extra, test, train"):
        fetch(item, tmp_path, splits=["val"], patience=QUICK)
    weights = Item("net", downloads=(Download(f"{server.url}/net.th", DIGEST, (File("m/net.th"),), ("m/net.th",), False),))
    assert fetch(weights, tmp_path, splits=["test"], patience=QUICK) == ["net.th"]  # they have no splits


def test_a_set_behind_a_form_says_where_to_ask(tmp_path):
    from oodbench.datasets.fetching import catalogue

    with pytest.raises(MissingData) as raised:
        fetch(catalogue.find("curetsr/Haze@3"), tmp_path)
    for part in ("ieee-dataport.org", str(tmp_path / "CURE-TSR"), "Real_Train", "Haze-3", "data verify curetsr"):
        assert part in str(raised.value)


# Fetches in a process of its own: what follows kills it, limits it, or starts it twice.
FETCH = """
import resource, sys
from pathlib import Path
from oodbench.datasets.fetching import archives, fetch as fetching
from oodbench.datasets.fetching.catalogue import Download, Item
from oodbench.datasets.fetching.download import Patience
from oodbench.datasets.fetching.expected_files import File
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
expected = (File("set/a", min_size=100), File("other/b", min_size=100))
item = Item("some", downloads=(Download(url, digest, expected, ("set", "other")),))
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


def line_of(process):
    """The next line that it prints; it is killed where that takes too long, which ends the line."""
    timer = threading.Timer(30, process.kill)
    timer.start()
    try:
        return process.stdout.readline().strip()
    finally:
        timer.cancel()


def finish(process):
    output, _ = process.communicate(timeout=30)
    return process.returncode, output.strip()


def test_a_kill_amid_the_download_is_resumed(server, tmp_path, start):
    server.script = [stall(100_000)]
    process, part = start(), tmp_path / "root" / WORK_FOLDER / "x.tar.gz.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size >= 65_536):
        assert time.monotonic() < deadline
        assert process.poll() is None
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
        assert line_of(process) == where
        if line + 1 < lines:
            process.stdin.write("\n")
            process.stdin.flush()
    process.send_signal(signal.SIGKILL)
    process.wait()
    seen = [name for name in names(tmp_path / "root") if not name.startswith(WORK_FOLDER)]
    assert seen == (["set/a"] if (where, lines) == ("put", 2) else [])  # never a part of a place
    assert finish(start()) == (0, "['x.tar.gz']")
    assert names(tmp_path / "root") == ["other/b", "set/a"]
    assert len(server.asked) == 1  # what was loaded is not loaded again


def test_two_at_once_load_it_once(server, tmp_path, start):
    first = start(slowly="copy")
    assert line_of(first) == "copy"
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


@pytest.mark.parametrize("place", ["set", "set/deep"])
def test_a_link_to_another_file_system_is_followed(server, tmp_path, tiny_disk, place):
    content = {f"{place}/a".replace("/", "__"): BODY[:1000]}
    body = packed(**content)
    server.body, digest = body, f"md5:{hashlib.md5(body).hexdigest()}"
    item = Item("some", downloads=(Download(f"{server.url}/set.tar.gz", digest, (File(f"{place}/a", min_size=9),), (place,)),))
    root = tmp_path / "root"
    root.mkdir()
    (tiny_disk / "far").mkdir()
    (root / "set").symlink_to(tiny_disk / "far")
    for _ in range(2):
        assert fetch(item, root, force=True, patience=QUICK) == ["set.tar.gz"]
    assert (root / "set").is_symlink()
    assert names(tiny_disk) == [f"far{place.removeprefix('set')}/a"]
    assert not (root / WORK_FOLDER).exists()


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
