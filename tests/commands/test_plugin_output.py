"""What plug-ins print or do to the process never spoils what a command prints on standard output, nor its exit code."""

import csv
import io
import json
import subprocess
import sys
import textwrap

import pytest
from new_process import COMMAND, oodbench, python
from PIL import Image

PLUGIN = """
    import atexit
    import ctypes
    import os
    import subprocess
    import sys
    from os import _exit

    import torch

    import oodbench


    def noise(of):
        print("NOISE of", of)
        os.write(1, f"NOISE of a descriptor in {of}\\n".encode())
        if sys.__stdout__:  # it is not closed
            sys.__stdout__.write(f"NOISE past the stream in {of}\\n")
        subprocess.run(["echo", "NOISE of a child in", of], check=True)


    noise("an import")
    ctypes.CDLL(None).printf(b"NOISE of C, which writes it when the process exits\\n")
    atexit.register(noise, "an exit")


    class Loud(oodbench.Detector):
        "Minus the mean of the pixels, with many words."

        def __init__(self):
            noise("a constructor")

        def check(self, classifier):
            noise("a check")

        def observe(self, probe):
            noise("a batch")

        def finish(self):
            self.seen_ = torch.ones(1)

        def statistics(self, probe):
            noise("statistics")
            return -probe.images.mean((1, 2, 3)) - probe.logits[:, 0] * 0


    class Leaves(Loud):
        "Would end the process as if all were well."

        def statistics(self, probe):
            _exit(0)


    class Red(Loud):
        "Has names that a terminal, a spreadsheet or a file would choke on."

        variants = ("\\x1b[31mred", "\\udce9\\x9b31m", "=1+1")

        def statistics(self, probe):
            return torch.stack([-probe.images.mean((1, 2, 3))] * 4, 1)

        def probabilities(self, probe):
            raise ValueError("\\x1b]0;title\\x07\\ud800")


    class Net(torch.nn.Sequential):
        def forward(self, images):
            noise("a network")
            return super().forward(images)


    def build():
        return Net(torch.nn.Flatten(), torch.nn.Linear(192, 8))


    def load(root, split):
        noise("a loader")
        return oodbench.ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), name="blank")
    """


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loud")
    (folder / "loud_for_a_test.py").write_text(textwrap.dedent(PLUGIN))
    (folder / "leaving_for_a_test.py").write_text("import os\nos._exit(0)\n")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return folder


INSTALLED = "import sys; sys.path.append(sys.argv.pop(1)); from oodbench.cli import main; main()"


def harmless(text):
    """Whether a terminal shows the text and does nothing else."""
    return all(character.isprintable() or character == "\n" for character in text)


def plugin(name):
    return ["--plugin", f"loud_for_a_test:{name}"]


OPTIONS = ["--detector", "pixels", "--dataset", "photos", "--protocol", "unsupervised", "--limit", 30]


def test_run(folder):
    done = oodbench("run", *OPTIONS, *plugin("Loud"), "--model", "loud_for_a_test:build", "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "NOISE" not in done.stdout
    assert done.stdout.splitlines()[-1] == "run"
    for what in ("an import", "a constructor", "a check", "a batch", "statistics", "a network", "an exit"):
        for how in ("", "a descriptor in ", "a child in "):
            assert f"NOISE of {how}{what}\n" in done.stderr
    planned = oodbench("run", *OPTIONS, *plugin("Loud"), "--dry-run", cwd=folder)
    assert "detector  loud: unsupervised" in planned.stdout
    assert "NOISE" not in planned.stdout


def test_what_the_process_writes_when_it_exits(folder):
    command = [sys.executable, "-c", COMMAND, "check", *plugin("Leaves"), "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert {row["name"] for row in json.loads(done.stdout)} == {"leaves"}
    for what in ("of C", "of an exit", "past the stream in an import"):
        assert f"NOISE {what}" in done.stderr


def test_train(folder):
    options = ["--dataset", "digits", "--epochs", "1", "--out", "trained.safetensors"]
    done = oodbench("train", "loud_for_a_test:build", *options, cwd=folder)
    assert (done.returncode, done.stdout) == (0, "trained.safetensors\n"), done.stderr
    assert "NOISE of a child in a network" in done.stderr


@pytest.mark.parametrize(("closed", "number"), [("stdout", 1), ("stderr", 2)])
def test_a_closed_stream_takes_no_output(folder, closed, number):
    code = f"import os, sys; os.close({number}); sys.{closed} = sys.__{closed}__ = None; {COMMAND}"
    done = python(code, "check", *plugin("Loud"), "--json", cwd=folder)
    if closed == "stderr":
        assert {row["name"] for row in json.loads(done.stdout)} == {"loud"}
        assert done.stderr == ""
    else:
        assert done.stdout == ""
        assert "oodbench: cannot write to standard output: it is closed" in done.stderr
        assert "NOISE of a descriptor in statistics" in done.stderr


def test_check(folder):
    done = oodbench("check", *plugin("Loud"), "--json", cwd=folder)
    assert {row["name"] for row in json.loads(done.stdout)} == {"loud"}
    assert "NOISE" in done.stderr


def test_fit_and_score(folder):
    options = [*plugin("Loud"), "--model", "loud_for_a_test:build"]
    done = oodbench("fit", "loud", *options, "--dataset", "digits", "--out", "loud", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("threshold ")
    assert "NOISE" not in done.stdout
    for form in ("csv", "json"):
        done = oodbench("score", "loud", "a.png", *plugin("Loud"), "--trust-model", "--format", form, cwd=folder)
        assert done.returncode == 0, done.stderr
        (row,) = csv.DictReader(io.StringIO(done.stdout)) if form == "csv" else map(json.loads, done.stdout.splitlines())
        assert row["path"] == "a.png"


def test_list(folder):
    (folder / "loud-1.dist-info").mkdir()
    (folder / "loud-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1\n")
    (folder / "loud-1.dist-info" / "entry_points.txt").write_text(
        "[oodbench.detectors]\nloud = loud_for_a_test:Loud\nleaving = leaving_for_a_test:Any\n\x1b[31m = red:Red\n"
        "msp\x1b[31m = red:Red\n[oodbench.datasets]\n\x1b[31m = red:load\nblank = loud_for_a_test:load\n"
    )
    done = python(INSTALLED, folder, "list", "detectors", "--check", "--json")
    assert done.returncode == 1
    errors = {row["name"]: row["error"] for row in json.loads(done.stdout)}
    assert errors["loud"] == ""
    assert "raised SystemExit(0), which would end the process" in errors["leaving"]
    for arguments in (["list", "detectors"], ["list", "datasets"], ["data", "list"]):
        done = python(INSTALLED, folder, *arguments)
        assert done.returncode == 0, done.stderr
        assert "[31m" in done.stdout
        assert harmless(done.stdout + done.stderr)
    done = python(INSTALLED, folder, "data", "verify", "blank")
    assert done.stdout.startswith("blank: ")
    assert "NOISE" not in done.stdout
    assert "NOISE of a child in a loader" in done.stderr


def test_hostile_names(folder):
    harmful = ["run", *OPTIONS, *plugin("Red"), "--out", "red"]
    planned = oodbench(*harmful, "--dry-run", cwd=folder)
    assert r"detector  red:\x1b[31mred: unsupervised" in planned.stdout
    done = oodbench(*harmful, cwd=folder)
    assert done.returncode == 1
    assert r"red: ValueError: \x1b]0;title\x07\ud800" in done.stderr
    assert harmless(planned.stdout + done.stdout + done.stderr)
    for form in ("table", "md", "csv", "json", "tex"):
        done = oodbench("leaderboard", "red", "--format", form, "--out", f"table.{form}", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert harmless((folder / f"table.{form}").read_text(encoding="utf-8"))
    rows = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    assert {row["detector"] for row in rows} == {"pixels", "red", "red:\x1b[31mred", "red:\\udce9\x9b31m", "red:=1+1"}


def test_a_process_cannot_be_left(folder):
    done = oodbench("run", *OPTIONS, *plugin("Leaves"), "--out", "left", cwd=folder)
    assert done.returncode == 1
    said = " ".join(done.stdout.split())  # whatever the width
    assert "1 cell failed (leaves): RuntimeError: raised SystemExit(0), which would end the process" in said
    done = oodbench("run", "--plugin", "leaving_for_a_test:Any", cwd=folder)
    assert done.returncode == 2
    assert "--plugin leaving_for_a_test:Any cannot be imported: RuntimeError: raised SystemExit(0)" in done.stderr
