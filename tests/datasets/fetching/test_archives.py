"""Hostile and broken archives: refused in one line, and nothing written outside the folder."""

import contextlib
import gzip
import os
import re
import stat
import tarfile
import zipfile

import pytest
from hostile import overlapping, tar_of, zip_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oodbench.datasets.fetching import archives
from oodbench.datasets.fetching.archives import Limits, unpack
from oodbench.errors import BadData, OodbenchError

FILES = {"set/a.txt": b"first", "set/deep/b.txt": b"second" * 1000, "set/empty": b"", "other/c": b"third"}


def special(name, kind, target="target"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.devmajor, info.devminor = kind, target, 1, 3
    return info


def unpacked(tmp_path, content, paths=("set",), limits=archives.LIMITS):
    """Unpack into an empty folder; return the files written there, by name."""
    (tmp_path / "archive").write_bytes(content)
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    unpack(tmp_path / "archive", folder, paths, limits)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(tmp_path, content, **options):
    """Why it is refused: one line that names the archive, with nothing outside the folder."""
    with pytest.raises(BadData) as raised:
        unpacked(tmp_path, content, **options)
    assert str(raised.value).startswith("archive ")
    assert len(str(raised.value).splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == ["archive", "folder"]
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]
    return str(raised.value)


PACK = {
    "tar": tar_of,
    "tar.gz": lambda *members: tar_of(*members, mode="w:gz"),
    "zip": zip_of,
}


@pytest.mark.parametrize("kind", PACK)
def test_places_are_unpacked_and_the_rest_is_left_out(tmp_path, kind):
    content = PACK[kind](*FILES.items(), ("set/._a.txt", b"junk"), ("set/.DS_Store", b"junk"), ("__MACOSX/set/x", b"junk"))
    found = unpacked(tmp_path, content, paths=("set/deep", "set/a.txt"))
    assert found == {name: FILES[name] for name in ("set/a.txt", "set/deep/b.txt")}


@pytest.mark.parametrize("kind", PACK)
def test_folders_of_their_own_and_names_from_here_are_fine(tmp_path, kind):
    folder = tarfile.TarInfo("set/")
    folder.type = tarfile.DIRTYPE
    member = ("set/", b"") if kind == "zip" else (folder, b"")
    assert unpacked(tmp_path, PACK[kind](member, ("./set/a", b"x"))) == {"set/a": b"x"}


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../outside", "set/../../outside", "set/..", "..", "C:/x", "C:x", "..\\outside", "set\\..\\..\\x"),
        *("\\\\host\\share\\x", "//host/share/x", "set/a:stream"),
    ],
)
def test_names_that_lead_outside(tmp_path, kind, name):
    assert re.search("refused: it would write outside its folder", refusal(tmp_path, PACK[kind](("set/a", b""), (name, b"x"))))


@pytest.mark.parametrize("name", ["set/\x1b[31mred", "set/new\nline", "set/" + "x" * 300, "/".join("a" * 40)])
def test_names_that_no_data_set_has(tmp_path, name):
    assert re.search("a name that no data set has", refusal(tmp_path, tar_of((name, b"x"))))


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize(
    "names",
    [
        ("set/a", "set/a"),
        ("set/a", "set/A"),
        ("set/a/x", "set/A/y"),
        ("set/a", "set/a/b"),
        ("set/a/b", "set/a"),
        ("set/\u00e9", "set/e\u0301"),
        ("set/a", "./set//a"),
    ],
)
def test_names_that_may_be_one_file(tmp_path, kind, names):
    assert re.search("which may be the same file", refusal(tmp_path, PACK[kind](*((name, b"x") for name in names))))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"Z"],
)
@pytest.mark.parametrize("name", ["set/link", "elsewhere"])
def test_what_is_no_file_in_a_tar(tmp_path, kind, name):
    assert re.search(
        "a link, a device or another kind", refusal(tmp_path, tar_of(("set/a", b""), (special(name, kind, "../.."), b"")))
    )


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_what_is_no_file_in_a_zip(tmp_path, kind):
    info = zipfile.ZipInfo("set/link")
    info.external_attr = (kind | 0o777) << 16
    assert re.search("a link or a device", refusal(tmp_path, zip_of(("set/a", b""), (info, b"../.."))))


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_modes_are_not_taken_over(tmp_path, kind):
    info = tarfile.TarInfo("set/a") if kind == "tar" else zipfile.ZipInfo("set/a")
    if isinstance(info, tarfile.TarInfo):
        info.mode, info.uid = 0o6777, 12345
    else:
        info.external_attr = (stat.S_IFREG | 0o6777) << 16
    unpacked(tmp_path, PACK[kind]((info, b"x")))
    mode = (tmp_path / "folder" / "set" / "a").stat()
    assert mode.st_mode & 0o7111 == 0
    assert mode.st_uid == os.getuid()


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_bomb(tmp_path, kind):
    limits = Limits(any_ratio=1_000_000)
    content = PACK[kind](("set/zeros", bytes(20_000_000)))
    assert len(content) < 30_000
    assert re.search("it unpacks to more than [0-9,]+ bytes", refusal(tmp_path, content, limits=limits))
    assert not (tmp_path / "folder" / "set").exists()  # it was known before the first byte


@pytest.mark.parametrize("kind", PACK)
def test_too_many_files(tmp_path, kind):
    content = PACK[kind](*((f"set/{i}", b"") for i in range(11)))
    assert re.search("it holds more than 10 files", refusal(tmp_path, content, limits=Limits(files=10)))


@pytest.mark.parametrize("kind", PACK)
def test_too_many_bytes(tmp_path, kind):
    content = PACK[kind](*((f"set/{i}", os.urandom(400)) for i in range(3)))
    assert re.search("it unpacks to more than 1,000 bytes", refusal(tmp_path, content, limits=Limits(size=1000)))


def test_a_zip_that_states_less_than_it_holds(tmp_path):
    content = zip_of(("set/a", bytes(1000)))
    lie = content.replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert lie != content
    assert re.search("truncated|CRC", refusal(tmp_path, lie))


def test_a_bomb_of_overlapping_members(tmp_path):
    """Many entries of the directory point to one member."""
    assert re.search("it unpacks to more than", refusal(tmp_path, overlapping(1_000_000), limits=Limits(any_ratio=10_000_000)))


def test_a_header_that_states_a_gigabyte_is_not_read(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**30
    assert re.search("a header of more than", refusal(tmp_path, gzip.compress(info.tobuf() + bytes(2**21))))


@pytest.mark.parametrize("size", [-512, -1, 2**62])
def test_sizes_that_cannot_be(tmp_path, size):
    info = tarfile.TarInfo("set/a")
    info.size = size
    assert re.search(
        "unpacks to more than|truncated|sizes that cannot be", refusal(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    )


def test_an_encrypted_zip(tmp_path):
    content = bytearray(zip_of(("set/a", b"x")))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + offset] |= 1
    assert re.search("encrypted", refusal(tmp_path, bytes(content)))


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>sign in to download</html>" * 100, b"\x1f\x8b" + bytes(100), b"PK\x03\x04" + bytes(100), bytes(600)],
)
def test_what_is_no_archive(tmp_path, content):
    assert re.search("not a tar or zip archive, or it is truncated|holds no set", refusal(tmp_path, content))


@pytest.mark.parametrize("kind", PACK)
def test_what_is_truncated_at_any_place(tmp_path, kind):
    content = PACK[kind](*((name, os.urandom(700) + body) for name, body in FILES.items()))
    cuts = range(1, len(content) - (10_240 if kind == "tar" else 1), 211)
    for cut in cuts:
        (tmp_path / str(cut)).mkdir()
        assert re.search("truncated", refusal(tmp_path / str(cut), content[:cut]))
    assert len(cuts) > 4


def test_an_archive_of_another_set(tmp_path):
    assert re.search("archive holds no set; it is not the set's archive", refusal(tmp_path, tar_of(("cats/1.jpg", b"x"))))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "set").write_text("in the way")
    with pytest.raises(OodbenchError, match=r"cannot write .*set/a.*--data DIR"):
        unpacked(tmp_path, tar_of(("set/a", b"x")))


WHOLE = {kind: PACK[kind](*FILES.items()) for kind in PACK}


@pytest.mark.parametrize("kind", PACK)
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_archives_unpack_or_are_refused(tmp_path_factory, kind, data):
    content = bytearray(WHOLE[kind] if kind != "tar.gz" else WHOLE["tar"])
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + 4] = data.draw(st.binary(min_size=0, max_size=8))
    tmp_path = tmp_path_factory.mktemp("mutated")
    with contextlib.suppress(BadData):  # and nothing else
        unpacked(tmp_path, gzip.compress(content) if kind == "tar.gz" else bytes(content))
    assert sorted(os.listdir(tmp_path)) == ["archive", "folder"]
