"""Every command prints to outputs that cannot show all characters, such as in the C locale: nothing is lost, nothing fails."""

import csv
import io
import json
import os
import subprocess
import sys
import textwrap

import new_process
import numpy as np
import pytest
from PIL import Image

from oodbench.commands.common import print_json
from oodbench.leaderboard import escape

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="file names are any bytes on Linux")
NARROW = "import sys; [s.reconfigure(encoding='ascii', errors='strict') for s in (sys.stdout, sys.stderr)]; "
COMMANDS = ["run", "list", "leaderboard", "train", "fit", "score", "check", "data list", "data fetch", "data verify"]


def oodbench(*arguments, cwd=None):
    """The command with streams that are ASCII, which it must not fail on."""
    done = new_process.python(NARROW + new_process.COMMAND, *arguments, cwd=cwd)
    assert "UnicodeEncodeError" not in done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with plug-ins, images and runs whose names are hard to print; and what the run printed."""
    folder = tmp_path_factory.mktemp("narrow")
    (folder / "größe.py").write_text(
        textwrap.dedent('''
        import oodbench


        class Größe(oodbench.Detector):
            """Brightness × 2 – of 検."""

            signals = ("images",)

            def statistics(self, probe):
                return probe.images.mean((1, 2, 3)) * 2


        class Broken(oodbench.Detector):
            """Raises."""

            name = "bröken"

            def statistics(self, probe):
                raise ValueError("検 … × \\udcff")
        '''),
        encoding="utf-8",
    )
    (folder / "ünder").mkdir()
    for name in (b"\xc3\xa9\xc3\x97.png", b"\xff.png"):  # the second is no UTF-8
        path = os.fsdecode(os.fsencode(folder / "ünder") + b"/" + name)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    (folder / "ünder" / "…broken.png").write_bytes(b"no image")
    plugins = ["--plugin", "größe:Größe", "--plugin", "größe:Broken"]
    fast = ["--detector", "msp", "--dataset", "digits+noise@3", "--dataset", "digits+noise@5", "--dataset", "folder:ünder"]
    out = ["--data", folder, "--limit", 20, "--out", "läufe"]
    return folder, oodbench("run", *plugins, *fast, *out, cwd=folder)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_and_usage_errors(command):
    assert oodbench(*command.split(), "--help").returncode == 0
    assert oodbench(*command.split(), "--größe", "检").returncode == 2


@pytest.mark.parametrize("family", ["list detectors", "list datasets", "list models", "list suites", "data list"])
def test_listings(family):
    done = oodbench(*family.split())
    assert done.returncode == 0
    assert done.stdout.isascii()
    shown, whole = (json.loads(run(*family.split(), "--json").stdout) for run in (oodbench, new_process.oodbench))
    assert shown == whole


def test_a_run_and_its_leaderboards(folder):
    where, done = folder
    assert done.returncode == 1, done.stderr  # bröken failed
    assert done.stdout.endswith("l\\xe4ufe\n")
    assert "ValueError: \\u691c ... x \\udcff" in done.stderr.replace("br\\xf6ken: ", "")
    rows = json.loads(oodbench("leaderboard", "läufe", "--format", "json", cwd=where).stdout)
    assert {row["detector"] for row in rows} == {"msp", "größe", "bröken"}
    whole = new_process.oodbench("leaderboard", "läufe", "--format", "json", cwd=where)
    assert json.loads(whole.stdout) == rows
    for format in ("table", "md", "csv", "tex"):
        shown = oodbench("leaderboard", "läufe", "--format", format, cwd=where)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.isascii()
    assert oodbench("run", "--dry-run", "--dataset", "folder:ünder", "--data", where).returncode == 0


def test_fit_and_score(folder):
    where, _ = folder
    done = oodbench("fit", "größe", "--plugin", "größe:Größe", "--dataset", "digits", "--out", "fïtted", cwd=where)
    assert done.stdout.endswith("f\\xeftted\n"), done.stderr
    score = ["score", "fïtted", "ünder", "--plugin", "größe:Größe"]
    for format in ("table", "csv", "json"):
        shown = oodbench(*score, "--format", format, cwd=where)
        assert shown.returncode == 1, shown.stderr  # one is no image
        assert shown.stdout.isascii()
        if format == "json":
            paths = [json.loads(line)["path"] for line in shown.stdout.splitlines()]
            assert paths == ["ünder/é×.png", "ünder/…broken.png", r"ünder/\udcff.png"]
        if format == "csv":
            assert next(csv.DictReader(io.StringIO(shown.stdout)))["path"] == r"\xfcnder/\xe9x.png"


def test_check_data_and_train(folder, tmp_path):
    where, _ = folder
    assert oodbench("check", "--plugin", "größe:Größe", cwd=where).returncode == 0
    done = oodbench("check", "--plugin", "größe:Broken", cwd=where)
    assert done.returncode == 1
    assert "\\u691c ... x" in done.stdout
    rows = json.loads(oodbench("check", "--plugin", "größe:Broken", "--json", cwd=where).stdout)
    assert {row["name"] for row in rows} == {"bröken"}
    assert oodbench("data", "fetch", "digits", "--data", tmp_path / "dätä").returncode == 0
    assert oodbench("data", "verify", "svhn", "--data", tmp_path / "dätä").returncode == 1
    assert (
        "folder:d\\xe4t\\xe4 is missing"
        in oodbench("train", "resnet18", "--dataset", "folder:dätä", "--out", "w.safetensors").stderr
    )


def test_errors_and_tracebacks(folder):
    where, _ = folder
    done = oodbench("run", "--plugin", "größe:Grösse", cwd=where)
    assert done.stderr.startswith("oodbench: --plugin gr\\xf6\\xdfe:Gr\\xf6sse cannot be imported")
    assert "Traceback" in oodbench("run", "--plugin", "größe:Grösse", "--debug", cwd=where).stderr
    assert oodbench("leaderboard", "…").stderr.startswith("oodbench: ... does not exist")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii:strict", "utf-8:strict"])
def test_the_encoding_of_the_environment(encoding, folder):
    """In a process of its own. A folder whose name is no UTF-8 is printed with its own bytes."""
    where, _ = folder
    command = [sys.executable, "-P", "-m", "oodbench.cli"]
    copy = os.fsencode(where) + b"/\xffrun"
    options = ["run", "--detector", "pixels", "--dataset", "photos", "--limit", "20", "--out", copy]
    variables = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([*command, *options], capture_output=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == copy
    help_ = subprocess.run([*command, "data", "fetch", "--help"], capture_output=True, env=variables, check=False)
    assert help_.returncode == 0, help_.stderr


def test_json_keeps_its_content(capsys):
    value = {"é": "× \udcff 検 😀"}
    for encoding in ("ascii", "latin-1", "cp437", "utf-8"):
        text = escape.encodable_json(json.dumps(value, ensure_ascii=False), encoding)
        assert json.loads(text.encode(encoding)) == value
    assert escape.encodable_json('{"é": "検"}', "utf-8") == '{"é": "検"}'
    print_json('{"é": 1}')
    assert capsys.readouterr().out == '{"é": 1}\n'
