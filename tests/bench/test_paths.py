"""Where the cache is: by variable, by system, and without a home folder; and files that are written whole."""

import os
import socket
import sys
from pathlib import Path

import pytest

from oodbench.errors import BadData, OodbenchError
from oodbench.paths import (
    cache_root,
    data_roots,
    open_lock,
    read_small,
    require_regular,
    sweep_cache,
    try_lock,
    without_private,
    write_atomically,
)


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("OODBENCH_CACHE", "OODBENCH_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "/home/me/.cache/oodbench"),
        ("linux", {"XDG_CACHE_HOME": "/fast"}, "/fast/oodbench"),
        ("linux", {"XDG_CACHE_HOME": ""}, "/home/me/.cache/oodbench"),
        ("linux", {"XDG_CACHE_HOME": "here"}, "/home/me/.cache/oodbench"),
        ("linux", {"XDG_CACHE_HOME": "/fast", "OODBENCH_CACHE": "/mine"}, "/mine"),
        ("linux", {"OODBENCH_CACHE": ""}, "/home/me/.cache/oodbench"),
        ("darwin", {"XDG_CACHE_HOME": "/fast"}, "/home/me/Library/Caches/oodbench"),
        ("win32", {"LOCALAPPDATA": ""}, "/home/me/AppData/Local/oodbench"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/oodbench"),
    ],
)
def test_the_cache_is_where_the_system_keeps_caches(monkeypatch, platform, variables, expected):
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert [cache_root()] == data_roots() == data_roots("") == data_roots([]) == [Path(expected)]


def test_without_a_home_folder_it_says_what_to_set(monkeypatch):
    def missing():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", missing)
    with pytest.raises(OodbenchError, match=r"cannot find a cache folder .*; set OODBENCH_CACHE to a folder"):
        cache_root()
    monkeypatch.setenv("OODBENCH_CACHE", "/mine")
    assert cache_root() == Path("/mine")
    monkeypatch.setenv("OODBENCH_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert cache_root() == Path("/fast/oodbench")


@pytest.mark.parametrize("name", ["x" * 251 + ".csv", "é" * 127])
def test_a_file_may_have_the_longest_name(tmp_path, name):
    """The file that is written first has a longer name, unless that is cut."""
    write_atomically(tmp_path / name, b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(OodbenchError, match=r"cannot write .*: File name too long"):
        write_atomically(tmp_path / f"{name}longer", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_rename_is_kept_before_the_next_step(tmp_path, monkeypatch):
    done, replace, fsync = [], os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("renamed") or replace(*paths))
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file))
    write_atomically(tmp_path / "x", b"whole")
    assert done[0].startswith(str(tmp_path / ".x."))
    assert done[1:] == ["renamed", str(tmp_path)]


def test_a_folder_that_cannot_be_synchronised_is_written_to(tmp_path, monkeypatch):
    opened = os.open
    refuse = PermissionError(13, "a folder")  # as Windows answers
    monkeypatch.setattr(os, "open", lambda p, *a, **k: (_ for _ in ()).throw(refuse) if p == tmp_path else opened(p, *a, **k))
    write_atomically(tmp_path / "x", b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"


def test_a_cache_that_cannot_be_written_names_its_variable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "cache"):
        monkeypatch.setenv("OODBENCH_CACHE", str(root))
        with pytest.raises(OodbenchError, match=r"^cannot write .*; free space there or set OODBENCH_CACHE to another folder$"):
            write_atomically(root / "prepared" / "x", b"whole")
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(OodbenchError, match=r"^cannot write .*; free space there or choose another folder$"):
        write_atomically(tmp_path / "file" / "x", b"whole")


def test_what_killed_processes_left_in_the_cache_goes_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path))
    sweep_cache()  # an empty one
    half = [f"{folder}/.x.safetensors.a1_b2c3d.oodbench-part" for folder in ("models", "prepared", "adversarial/digits+pgd-0")]
    others = [
        "prepared/x.safetensors",
        "prepared/.x.safetensors.swp",
        "mine/.x.safetensors.a1_b2c3d.oodbench-part",
        "models/.resnet20.original",
        "prepared/.folder.abcdefgh.oodbench-part/x",
    ]
    for name in [*half, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sweep_cache()
    assert all((tmp_path / name).exists() for name in half)  # a process may be writing them
    for path in tmp_path.rglob("*"):
        os.utime(path, (0, 0))
    sweep_cache()
    assert not any((tmp_path / name).exists() for name in half)
    assert all((tmp_path / name).exists() for name in others)


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.parametrize("make", [make_pipe, make_socket, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_named_and_not_opened(tmp_path, make):
    make(tmp_path / "x")
    for check in (require_regular, open_lock):
        with pytest.raises(BadData, match=f"{tmp_path / 'x'} is (not a regular file; replace it with one|a link to /dev/zero)"):
            check(tmp_path / "x")


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="there is no /dev/null")
def test_a_device_is_not_replaced(tmp_path, monkeypatch):
    """A rename would put a file in its place. The path is a link here, because root may do that to /dev/null itself."""
    (tmp_path / "null").symlink_to("/dev/null")
    with pytest.raises(OodbenchError, match=r"cannot write .*null: it is a device"):
        write_atomically(tmp_path / "null", b"whole")
    assert (tmp_path / "null").is_symlink()
    monkeypatch.setattr("oodbench.paths.DEVICES", tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "stdout").symlink_to("file")  # as /dev/stdout leads to a file where output is redirected to one
    with pytest.raises(OodbenchError, match=r"cannot write .*stdout: it is a device"):
        write_atomically(tmp_path / "stdout", b"whole")
    assert (tmp_path / "stdout").is_symlink()


def test_a_lock_is_no_link_and_keeps_what_is_in_it(tmp_path):
    (tmp_path / "thesis").write_text("three years")
    (tmp_path / "lock").symlink_to("thesis")
    with pytest.raises(BadData, match=r"lock is a link to thesis, and oodbench writes nothing through it; remove the link"):
        open_lock(tmp_path / "lock")
    (tmp_path / "lock").unlink()
    os.link(tmp_path / "thesis", tmp_path / "lock")  # no different from a file
    open_lock(tmp_path / "lock").close()
    assert (tmp_path / "thesis").read_text() == "three years"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_does_not_hold_a_lock(tmp_path):
    lock = open_lock(tmp_path / "lock")
    assert try_lock(lock)
    (begun, begin), (end, ended) = os.pipe(), os.pipe()
    if not (child := os.fork()):
        os.close(ended)
        os.write(begin, b"x")
        os.read(end, 1)  # until the other end is closed
        os._exit(0)
    try:
        assert os.read(begun, 1)
        lock.close()  # as the end of this process would
        with open_lock(tmp_path / "lock") as again:
            assert try_lock(again)
    finally:
        os.close(ended)
        os.waitpid(child, 0)


def test_a_file_of_text_beyond_all_measure_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"x" * 10)
    assert read_small(path) == b"x" * 10
    os.truncate(path, 2**40)  # sparse: no space on the disk
    with pytest.raises(BadData, match=r"a\.json has 1,099,511,627,776 bytes, more than 16,777,216 for a file of text; shorten"):
        read_small(path)


def test_a_text_without_private_folders_says_where_below_them(tmp_path, monkeypatch):
    home = tmp_path / "alice"
    (home / "secret").mkdir(parents=True)
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "link")
    monkeypatch.chdir(home / "secret")
    others = f"/data{home}/d, {home}-2/e, {home}s, {home}.old"
    text = f"no {home}/secret/a.npy, file://{home}/.cache/b, {tmp_path}/link/c or {home}: {others}"
    assert without_private(text) == f"no ./a.npy, file://~/.cache/b, ~/c or ~: {others}"
    monkeypatch.chdir("/")
    assert without_private(f"/etc and {home}.") == "/etc and ~."
