"""Hashes of files: right, remembered, computed again when a file changes, and never a reason to fail."""

import hashlib
import os
import sqlite3

import numpy as np
import pytest

from oodbench.datasets.formats import digests as module
from oodbench.datasets.formats.digests import digests
from oodbench.errors import BadData
from oodbench.paths import cache_root


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "AT_ONCE", 3)
    paths = [tmp_path / f"{number}.jpg" for number in range(8)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * number)
    return paths


def expected(paths):
    return np.stack([np.frombuffer(hashlib.sha256(path.read_bytes()).digest(), np.uint8) for path in paths])


def counted(monkeypatch):
    read, hashed = module._digest, []
    monkeypatch.setattr(module, "_digest", lambda name: hashed.append(os.path.basename(name)) or read(name))
    return hashed


def test_each_file_is_read_once(files, monkeypatch):
    hashed = counted(monkeypatch)
    assert np.array_equal(digests(files), expected(files))
    assert sorted(hashed) == [path.name.encode() for path in files]
    assert np.array_equal(digests(files[::-1]), expected(files[::-1]))
    assert len(hashed) == 8
    files[2].write_bytes(b"another size")
    files[5].write_bytes(bytes([9]) * 5)
    os.utime(files[5], ns=(0, 1))
    assert np.array_equal(digests(files), expected(files))
    assert sorted(hashed[8:]) == [b"2.jpg", b"5.jpg"]


@pytest.mark.parametrize("damage", [b"no table", b""])
def test_a_damaged_cache_costs_time_alone(files, damage):
    cache_root().mkdir()
    (cache_root() / module.NAME).write_bytes(damage)
    assert np.array_equal(digests(files), expected(files))


def test_entries_of_another_form_are_not_believed(files):
    digests(files)
    with sqlite3.connect(cache_root() / module.NAME) as cache:
        cache.execute("UPDATE files SET digest = 'x'")
    assert np.array_equal(digests(files), expected(files))


def test_a_cache_that_cannot_be_made(files, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "file" / "below"))
    assert np.array_equal(digests(files), expected(files))


def test_names_that_are_not_utf8(files, tmp_path):
    strange = tmp_path / os.fsdecode(b"\xff.jpg")
    strange.write_bytes(b"strange")
    assert np.array_equal(digests([strange]), expected([strange]))
    assert np.array_equal(digests([strange]), expected([strange]))


def test_files_that_cannot_be_hashed(files, tmp_path):
    with pytest.raises(BadData, match=r"gone\.jpg cannot be read \(No such file or directory\)"):
        digests([*files, tmp_path / "gone.jpg"])
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BadData, match=r"pipe\.jpg"):
        digests([tmp_path / "pipe.jpg"])
