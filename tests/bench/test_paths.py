"""Where the cache is: by variable, by system, and without a home folder; and files that are written whole."""

import sys
from pathlib import Path

import pytest

from oodbench.errors import OodbenchError
from oodbench.paths import cache_root, data_root, write_atomically


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
    assert cache_root() == data_root() == data_root("") == Path(expected)


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
