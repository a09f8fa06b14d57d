"""One file over HTTP, from a server that truncates, stalls, lies, redirects and refuses; see ``web_server``."""

import json

import pytest
from web_server import (
    BODY,
    DIGEST,
    QUICK,
    Server,
    chunked,
    cut,
    good,
    of_unknown_length,
    other,
    other_range,
    page,
    ranges,
    redirect,
    stall,
    stating,
    status,
    whole,
)

from oodbench.datasets.fetching import download as http
from oodbench.datasets.fetching.download import Patience, addresses, anew_of, download, note_of
from oodbench.errors import BadData, OodbenchError, UsageError, reason
from oodbench.progress import Progress


class Record(Progress):
    def __init__(self):
        self.lines, self.bytes = [], 0.0

    def stage(self, title):
        self.bytes = 0.0

    def advance(self, units):
        self.bytes += units

    def say(self, line):
        self.lines.append(line)


def get(server, tmp_path, *mirrors, digest=DIGEST, patience=QUICK):
    """Download; return the lines reported meanwhile."""
    progress = Record()
    part = tmp_path / "file.part"
    download(addresses(f"{server.url}/file.bin", mirrors), part, digest, progress=progress, patience=patience)
    assert part.read_bytes() == server.body
    assert progress.bytes == len(server.body)
    return progress.lines


@pytest.mark.parametrize(
    ("script", "asked"),
    [
        ([], [None]),
        ([whole], [None]),
        ([chunked], [None]),
        ([cut(100_000)], [None, "bytes=100000-"]),
        ([cut(100_000), cut(80_000)], [None, "bytes=100000-", "bytes=180000-"]),
        ([cut(60_000)] * 4, [None, *(f"bytes={60_000 * i}-" for i in range(1, 5))]),  # more than retries: each makes headway
        ([cut(100_000), whole], [None, "bytes=100000-", None]),
        ([cut(100_000), other_range], [None, "bytes=100000-", None]),
        ([cut(100_000), of_unknown_length], [None, "bytes=100000-"]),
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
    assert server.asked[-2][1]["If-Range"] == '"zero"'
    assert "Range" not in server.asked[-1][1]
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


@pytest.mark.parametrize("script", [[page], [page] * 4, [status(416, Content_Range="bytes */10"), page], [other]])
def test_another_file_does_not_cost_what_is_there(server, tmp_path, script):
    """A login page, or a mirror with another file: the next address continues from there."""
    part = tmp_path / "file.part"
    part.write_bytes(BODY[:100_000])
    server.script = [*script, status(404)]
    with pytest.raises(OodbenchError):
        download([f"{server.url}/file.bin"], part, DIGEST, progress=Progress(), patience=Patience(read=1, retries=0))
    assert part.read_bytes() == BODY[:100_000]
    assert not anew_of(part).exists()
    server.script, server.asked = [], []
    get(server, tmp_path)
    assert ranges(server) == ["bytes=100000-"]


def test_a_partial_file_longer_than_the_file_is_none_of_it(server, tmp_path):
    (tmp_path / "file.part").write_bytes(bytes(len(BODY) + 1))
    get(server, tmp_path)
    assert ranges(server) == [f"bytes={len(BODY) + 1}-", None]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.part", "file.part.json"]


def test_what_is_loaded_beside_a_partial_file_is_resumed_too(server, tmp_path):
    part = tmp_path / "file.part"
    part.write_bytes(bytes(200_000))
    server.script = [good, cut(60_000)]
    with pytest.raises(OodbenchError):
        download([f"{server.url}/file.bin"], part, DIGEST, progress=Progress(), patience=Patience(read=1, retries=0))
    assert (part.stat().st_size, anew_of(part).read_bytes()) == (200_000, BODY[:60_000])
    server.asked = []
    get(server, tmp_path)
    assert ranges(server) == ["bytes=200000-", "bytes=60000-"]


def test_what_comes_with_a_redirect_is_not_read(server, tmp_path):
    sent = []

    def endless(handler, body):
        handler.start(302, Location="/elsewhere", Content_Length=2**40)
        while not handler.server.released.is_set():  # until the client hangs up
            handler.wfile.write(body)
            sent.append(len(body))

    server.script = [endless]
    get(server, tmp_path)
    assert [path for path, _ in server.asked] == ["/file.bin", "/elsewhere"]
    assert sum(sent) < 64 * 2**20  # what fits the buffers of the line


def test_a_size_that_cannot_be_is_not_believed_and_the_next_address_asked(server, tmp_path):
    server.script = [stating(10**13), stating("9" * 5000)]
    lines = get(server, tmp_path, f"{server.url}/one")
    assert [path for path, _ in server.asked] == ["/one/file.bin", "/file.bin"]
    assert "it states 10,000,000,000,000 bytes" in lines[0]


def test_names_and_passwords_are_not_written_down(server, tmp_path):
    server.script = [cut(100_000)]
    url = f"http://user:secret@127.0.0.1:{server.server_port}/file.bin"
    part = tmp_path / "file.part"
    with pytest.raises(OodbenchError):
        download([url], part, DIGEST, progress=Progress(), patience=Patience(read=1, retries=0))
    assert "secret" not in note_of(part).read_text()
    download([url], part, DIGEST, progress=Progress(), patience=QUICK)
    assert server.asked[-1][1]["If-Range"] == '"one"'  # it is known for the same address all the same


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
        ([redirect("/file.bin")] * 11, OodbenchError, "more than 10 redirects", 11),
        ([redirect("http://[x")], OodbenchError, "Invalid IPv6 URL", 1),
        ([stating(10**13)], OodbenchError, "it states 10,000,000,000,000 bytes, more than", 1),
        ([redirect("file:///etc/passwd")], OodbenchError, "an address of file, not HTTP", 1),
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


def test_what_a_server_says_cannot_command_the_terminal(server, tmp_path):
    def rude(handler, body):
        handler.send_response(404, "Nö\x1b[2J\x9b31m".encode().decode("latin1"))
        handler.end_headers()

    server.script = [rude]
    with pytest.raises(OodbenchError) as raised:
        get(server, tmp_path)
    assert str(raised.value).isprintable()
    assert "HTTP 404 N" in str(raised.value)
    assert str(OodbenchError("“Größe”\n\t\x1b[2J \udce9 \u202e")) == "“Größe”  \\x1b[2J \\udce9 \\u202e"
    assert reason(ValueError("\x1b]0;x")) == "ValueError: \\x1b]0;x"


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


@pytest.mark.parametrize("mirror", ["ftp://host/x", "/a/folder", "http://", "host", "http:///x", "http://[x", "http://h:99999"])
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
    with pytest.raises(OodbenchError, match=r"MB free; file\.part needs 0 MB more"):
        get(server, tmp_path, f"{server.url}/one")
    assert len(server.asked) == 2  # the first may lie about its size
    assert not (tmp_path / "file.part").exists()
