"""``oodbench data``: what it lists, fetches and verifies, by exit code and output."""

import functools
import hashlib
import json
import os
import pty
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import new_process
import numpy as np
import pytest
import typer
from PIL import Image
from scipy.io import savemat

from oodbench import registry
from oodbench.commands import data as data_command
from oodbench.datasets.fetching import catalogue
from oodbench.datasets.fetching.catalogue import CATALOGUE, Download, Item
from oodbench.datasets.fetching.expected_files import File
from oodbench.datasets.name import CHALLENGES, LEVELS
from oodbench.errors import UsageError
from oodbench.models.published import PUBLISHED

SAFETENSORS = (2).to_bytes(8, "little") + b"{}"  # a file without a tensor
oodbench = functools.partial(new_process.oodbench, "data")


def rows(root):
    return {row["name"]: row for row in json.loads(oodbench("list", "--json", "--data", root).stdout)}


def test_list_says_state_size_and_how_to_get_it(tmp_path):
    (tmp_path / "CIFAR-10-C").mkdir()
    (tmp_path / "CIFAR-10-C" / "fog.npy").write_bytes(b"a part")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet20-cifar10.safetensors").write_bytes(SAFETENSORS)
    found = rows(tmp_path)
    assert list(found)[: len(CATALOGUE)] == list(CATALOGUE)
    assert {name for name, row in found.items() if row["state"] == "present"} == {
        *("digits", "digits-heldout", "photos", "uniform", "resnet20-cifar10")
    }
    assert found["cifar10c"]["state"] == "partial"
    assert found["cifar10c"]["lacks"][0] == "CIFAR-10-C/labels.npy is missing"
    assert "CIFAR-10-C/fog.npy has 6 bytes; the official file has at least 153,600,000" in found["cifar10c"]["lacks"]
    svhn = found["svhn"]
    assert (svhn["state"], svhn["get"]) == ("absent", "`oodbench data fetch svhn`")
    assert svhn["images"] == {"train": 73_257, "test": 26_032, "extra": 531_131}
    assert svhn["download_bytes"] == 182_040_794 + 64_275_384  # extra is fetched only when asked for
    assert found["curetsr"]["get"] == "on request: see `oodbench data fetch curetsr`"
    table = oodbench("list", OODBENCH_DATA=str(tmp_path)).stdout
    assert str(tmp_path) in table
    for name, row in found.items():
        line = next(line for line in table.splitlines() if line.startswith(f"{name} "))
        assert row["state"] in line
        assert row["get"] in line


def test_sets_of_other_packages_are_listed(tmp_path, monkeypatch, capsys):
    from oodbench import registry

    monkeypatch.setattr(registry, "discover", lambda group: [("checkers", "checkers:checkers", "oodbench-checkers", "0.1")])
    data_command.list_data(as_json=True, data=tmp_path)
    (row,) = (row for row in json.loads(capsys.readouterr().out) if row["name"] == "checkers")
    assert (row["state"], row["get"]) == ("unknown", "see the documentation of oodbench-checkers 0.1")
    with pytest.raises(typer.Exit):
        data_command.fetch(["checkers"], split=[], mirror=[], force=False, data=tmp_path)
    assert "oodbench-checkers 0.1; its documentation says how to get it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["list", "--json"],
        ["fetch", "digits"],
        ["fetch", "curetsr"],
        ["fetch", "svhm"],
        ["verify", "svhm"],
        ["--help"],
    ],
)
def test_answers_without_importing_anything_heavy(arguments, tmp_path):
    code = (
        "import sys\nfrom oodbench.cli import main\n"
        f"sys.argv = ['oodbench', 'data', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'pandas', 'sklearn', 'matplotlib', 'scipy', 'numpy', 'PIL', 'torchvision'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    environment = os.environ | {"OODBENCH_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr.rstrip().splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["fetch", "svhm"], 2, "unknown set or weights 'svhm'; did you mean 'svhn'? (oodbench data list)"),
        (["verify", "svhm"], 2, "did you mean 'svhn'?"),
        (["fetch", "folder:cats"], 2, "folder:cats is your own folder"),
        (["verify", "imglist:cats.txt"], 2, "imglist:cats.txt is your own list"),
        (["fetch", "svhn", "--split", "val"], 2, "svhn has no split 'val' to fetch; it has extra, test, train"),
        (["fetch", "svhn", "--mirror", "/a/folder"], 2, "mirror '/a/folder' is not an address"),
        (["fetch", "curetsr"], 1, "request it at https://ieee-dataport.org/"),
        (["fetch"], 2, "NAME"),
    ],
)
def test_wrong_usage_and_what_cannot_be_fetched_is_one_line(tmp_path, arguments, code, says):
    done = oodbench(*arguments, "--data", tmp_path)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_a_mirror_of_the_setting_is_checked_too(tmp_path):
    done = oodbench("fetch", "svhn", "--data", tmp_path, OODBENCH_MIRROR="nowhere")
    assert done.returncode == 2
    assert "mirror 'nowhere' is not an address" in done.stderr


def test_embedded_sets_need_no_fetching(tmp_path):
    done = oodbench("fetch", "digits", "photos", "--data", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{name}: embedded, nothing to fetch" for name in ("digits", "photos")]


def verify(name, root, capsys):
    """Exit code and lines."""
    code = 0
    try:
        data_command.verify([name], data=root)
    except typer.Exit as end:
        code = end.exit_code
    return code, capsys.readouterr().out.splitlines()


def test_verify_reads_what_is_embedded_and_says_what_is_absent(tmp_path, capsys):
    assert verify("digits", tmp_path, capsys) == (0, ["digits: whole, train 866 test 577"])
    done = oodbench("verify", "svhn", "curetsr", "--data", tmp_path)
    assert done.returncode == 1
    assert f"svhn: absent: none of its files is below {tmp_path}\nsvhn: get it with `oodbench data fetch svhn`\n" in done.stdout
    assert "request it: see `oodbench data fetch curetsr`" in done.stdout


@pytest.fixture
def small_svhn(tmp_path, monkeypatch):
    """The set's reader, with as few images as a test can write; (root, function that writes a file)."""
    images = {"train": 3, "test": 2}
    expected = tuple(File(f"svhn/{split}_32x32.mat", split) for split in images)
    one = Download("http://127.0.0.1:9/none", "md5:0", expected, ("svhn",))
    registry.load("datasets", "svhn")  # it takes the official sizes from the catalogue when it is imported
    monkeypatch.setitem(catalogue.CATALOGUE, "svhn", Item("svhn", images=images, downloads=(one,)))
    (tmp_path / "svhn").mkdir()

    def write(split, count):
        content = {"X": np.zeros((32, 32, 3, count), np.uint8), "y": np.ones((count, 1), np.uint8)}
        savemat(tmp_path / "svhn" / f"{split}_32x32.mat", content)

    for split, count in images.items():
        write(split, count)
    return tmp_path, write


def test_verify_reads_as_a_run_does(small_svhn, capsys):
    root, write = small_svhn
    assert verify("svhn", root, capsys) == (0, ["svhn: whole, train 3 test 2"])
    write("test", 4)
    expected = [
        "svhn: svhn (test) has 4 images as read; the official set has 2",
        "svhn: get it again with `oodbench data fetch svhn --force`",
    ]
    assert verify("svhn", root, capsys) == (1, expected)
    (root / "svhn" / "train_32x32.mat").write_bytes(b"MATLAB" * 40)
    code, lines = verify("svhn", root, capsys)
    assert code == 1
    assert lines[0::2] == expected
    assert lines[1].startswith(f"svhn: {root}/svhn/train_32x32.mat is not a MATLAB")
    (root / "svhn" / "test_32x32.mat").unlink()
    assert verify("svhn", root, capsys) == (1, ["svhn: svhn/test_32x32.mat is missing", expected[1]])


def test_verify_shows_some_and_counts_the_rest(tmp_path, capsys):
    for expected in CATALOGUE["curetsr-unreal"].requested:
        for folder in expected.layouts[0]:
            (tmp_path / folder).mkdir(parents=True)
    for split in ("Train", "Test"):
        for number, challenge in enumerate(("ChallengeFree", *CHALLENGES)):
            for level in LEVELS if number else [0]:
                folder = f"CURE-TSR/Unreal_{split}/{challenge}{f'-{level}' if number else ''}"
                Image.new("RGB", (3, 3)).save(tmp_path / folder / f"02_06_{number:02d}_{level:02d}_0001.bmp")
    assert verify("curetsr-unreal", tmp_path, capsys) == (0, ["curetsr-unreal: whole"])
    train = tmp_path / "CURE-TSR" / "Unreal_Train"
    (train / "Haze-3" / "02_06_12_03_0001.bmp").rename(train / "Haze-3" / "sign.bmp")
    code, lines = verify("curetsr-unreal", tmp_path, capsys)
    assert code == 1
    assert lines[1:] == ["curetsr-unreal: request it: see `oodbench data fetch curetsr-unreal`"]
    assert "Haze-3/sign.bmp is not named like CURE-TSR's files" in lines[0]
    for number in range(20):
        Image.new("RGB", (3, 3)).save(train / "ChallengeFree" / f"02_06_00_00_1{number:03d}.bmp")
    code, lines = verify("curetsr-unreal", tmp_path, capsys)
    assert lines[0] == (
        "curetsr-unreal: CURE-TSR/Unreal_Train/Decolorization-1: 1 images; CURE-TSR/Unreal_Train/ChallengeFree has 21"
    )
    assert lines[-2] == "curetsr-unreal: … and 55 more"
    assert len(lines) == data_command.FAULTS_SHOWN + 2


def test_verify_of_the_older_layout_of_photographs(tmp_path, capsys):
    for expected in CATALOGUE["curetsr"].requested:
        for number, folder in enumerate(expected.layouts[1]):
            challenge, level = ((number - 1) // 5 + 1, (number - 1) % 5 + 1) if number else (0, 0)
            (tmp_path / folder).mkdir(parents=True)
            Image.new("RGB", (3, 3)).save(tmp_path / folder / f"01_06_01_{challenge:02d}_{level:02d}_05_0001.bmp")
    assert verify("curetsr", tmp_path, capsys) == (0, ["curetsr: whole"])


def test_verify_decodes_images(tmp_path, capsys):
    folder = tmp_path / "LSUN" / "test"
    folder.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "0.png")
    whole = (folder / "0.png").read_bytes()
    assert len(verify("lsun-crop", tmp_path, capsys)[1]) == 2  # too few, and the remedy
    (folder / "0.png").write_bytes(whole[: len(whole) // 2])  # the header is there
    code, lines = verify("lsun-crop", tmp_path, capsys)
    assert code == 1
    assert lines[1].startswith("lsun-crop: LSUN/test/0.png is not an image, or it is truncated")
    assert lines[2] == "lsun-crop: get it again with `oodbench data fetch lsun-crop --force`"


def test_names_of_files_cannot_command_the_terminal(tmp_path, capsys):
    folder = tmp_path / "LSUN" / "test"
    folder.mkdir(parents=True)
    (folder / "é\x1b[2J.png").write_text("no image")
    line = verify("lsun-crop", tmp_path, capsys)[1][1]
    assert "LSUN/test/é\\x1b[2J.png is not an image" in line
    assert line.isprintable()


def test_a_folder_that_may_not_be_read_hides_no_other_set(tmp_path, monkeypatch, capsys):
    from oodbench.datasets.formats import layout

    (tmp_path / "LSUN" / "test").mkdir(parents=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet20-cifar10.safetensors").write_bytes(SAFETENSORS)
    scandir = layout.os.scandir

    def refusing(path):
        if path == tmp_path / "LSUN" / "test":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(layout.os, "scandir", refusing)
    data_command.list_data(as_json=True, data=tmp_path)
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["lsun-crop"]["state"] == "partial"
    (line,) = found["lsun-crop"]["lacks"]
    assert line == "LSUN/test cannot be listed (Permission denied); check its permissions"
    assert found["resnet20-cifar10"]["state"] == "present"
    with pytest.raises(typer.Exit):
        data_command.verify(["lsun-crop", "digits"], data=tmp_path)
    assert capsys.readouterr().out.splitlines()[-1] == "digits: whole, train 866 test 577"


def test_verify_reads_weights(tmp_path, capsys):
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / PUBLISHED["resnet20-cifar10"].file
    file.write_bytes(b"other")
    code, lines = verify("resnet20-cifar10", tmp_path, capsys)
    assert code == 1
    assert "is not the official file: sha256:" in lines[0]
    file.rename(file.with_name("resnet20-cifar10.safetensors"))
    code, lines = verify("resnet20-cifar10", tmp_path, capsys)
    assert code == 1
    assert "resnet20-cifar10.safetensors is not a safetensors file, or it is truncated" in lines[0]


def test_verify_of_real_weights(data_root, capsys):
    assert verify("resnet20-cifar10", data_root, capsys) == (0, ["resnet20-cifar10: whole"])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror with one file of 3 MB, that is a whole set; its official address does not exist."""
    body = np.random.default_rng(0).bytes(3_000_000)
    served = tmp_path / "served"
    served.mkdir()
    (served / "one.bin").write_bytes(body)
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    expected = (File("one/one.bin", digest=digest),)
    one = Download("http://127.0.0.1:9/nowhere/one.bin", digest, expected, ("one/one.bin",), archive=False)
    monkeypatch.setitem(catalogue.CATALOGUE, "one", Item("one", downloads=(one,)))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=served))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(*names, root, mirrors=()):
    data_command.fetch(list(names), split=[], mirror=list(mirrors), force=False, data=root)


def test_fetch_says_what_it_did_and_goes_on_after_what_cannot_be_had(mirror, tmp_path, capsys):
    with pytest.raises(typer.Exit) as end:
        fetch("curetsr", "one", "digits", root=tmp_path / "root", mirrors=[mirror])
    assert end.value.exit_code == 1
    said = capsys.readouterr()
    where = tmp_path / "root"
    assert said.out.splitlines() == [f"one: fetched one.bin to {where}", "digits: embedded, nothing to fetch"]
    assert said.err.startswith("oodbench: curetsr is given on request only")
    fetch("one", root=tmp_path / "root", mirrors=[mirror])
    assert capsys.readouterr().out == f"one: present in {where}\n"


def test_a_mirror_from_the_setting(mirror, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OODBENCH_MIRROR", f"{mirror}/nothing-here {mirror}")
    fetch("one", root=tmp_path / "root")
    said = capsys.readouterr()
    assert "HTTP 404" in said.err
    assert said.out.startswith("one: fetched one.bin")


def test_no_fetch_begins_before_all_names_are_known(mirror, tmp_path):
    with pytest.raises(UsageError, match="unknown"):
        fetch("one", "two", root=tmp_path / "root", mirrors=[mirror])
    assert not (tmp_path / "root").exists()


def test_progress_in_lines_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(data_command.time, "monotonic", lambda: now[0])
    lines = data_command.Transfers()
    lines.stage("set.tar.gz")
    lines.expect(100e6)
    for _ in range(100):
        now[0] += 0.3
        lines.advance(1e6)
    assert capsys.readouterr().err.splitlines() == [f"set.tar.gz: {n} of 100 MB" for n in (34, 68)]


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_bar_on_a_terminal_and_the_result_on_standard_output(mirror, tmp_path):
    """Standard error is a terminal and standard output a pipe: the bar is drawn there, the result comes here."""
    item = catalogue.CATALOGUE["one"].downloads[0]
    code = (
        "import sys\nfrom oodbench.commands import data\nfrom oodbench.datasets.fetching import catalogue as c\n"
        "from oodbench.datasets.fetching import expected_files as p\n"
        f"d = c.Download({item.url!r}, {item.digest!r}, (p.File('one/one.bin'),), ('one/one.bin',), archive=False)\n"
        "c.CATALOGUE['one'] = c.Item('one', downloads=(d,))\n"
        f"data.fetch(['one'], split=[], mirror=[{mirror!r}], force=False, data={str(tmp_path / 'root')!r})\n"
    )
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, stderr=theirs, env=environment)
    output, _ = process.communicate(timeout=60)
    os.close(theirs)
    drawn = os.read(ours, 100_000).decode()
    os.close(ours)
    assert output.decode() == f"one: fetched one.bin to {tmp_path / 'root'}\n"
    assert "one.bin" in drawn
    assert "MB" in drawn
