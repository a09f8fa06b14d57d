"""``oodbench fit`` and ``oodbench score`` as a user meets them: rows on standard output, notes beside, exit codes."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from new_process import oodbench as run
from PIL import Image

import oodbench

OODBENCH = [sys.executable, "-P", "-m", "oodbench.cli"]


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    """(what ``oodbench fit`` printed, its file), once for this module."""
    os.environ["OODBENCH_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    file = tmp_path_factory.mktemp("fit") / "energy.safetensors"
    options = ["--model", "resnet8-digits", "--dataset", "digits", "--false-alarms", 0.1, "--param", "energy.temperature=2"]
    return run("fit", "energy", *options, "--out", file), file


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder of digits and patches, grey and colour, of several sizes, in folders and hidden, and files that are none."""
    folder = tmp_path / "images"
    (folder / "b" / ".hidden").mkdir(parents=True)
    digits, photos = oodbench.load_dataset("digits").images, oodbench.load_dataset("photos").images
    for name, pixels, size in [("c.png", digits[0], 8), ("b/a.JPG", digits[1], 32), ("a.ppm", photos[0], 8)]:
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((size, size)).save(folder / name)
    Image.fromarray(photos[1, 0].numpy()).save(folder / "b" / "grey.png")
    Image.fromarray(digits[0, 0].numpy()).save(folder / "b" / ".hidden" / "d.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_fit_says_what_it_found_and_ends_with_the_file(fit):
    done, file = fit
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == str(file)
    assert lines[0].startswith("threshold ")
    assert "at most 10.00% requested" in lines[1]
    assert "times a forward pass" in lines[2]
    assert lines[3].startswith(
        "network       accuracy of resnet8-digits on digits (test): 99.8 % of 577 images (95 % interval "
    )
    fitted = oodbench.load_fitted(file)
    assert fitted.detector.parameters() == {"temperature": 2}
    assert fitted.false_alarms == 0.1


def test_score_gives_a_row_an_image_in_order(fit, images):
    done = run("score", fit[1], images, images / "c.png", "--format", "json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    names = ["a.ppm", "b/a.JPG", "b/grey.png", "c.png", "c.png"]
    assert [row["path"] for row in rows] == [str(images / name) for name in names]
    assert "of 5 scored images: anomalous (score above " in done.stderr
    fitted = oodbench.load_fitted(fit[1])
    scores, flagged = fitted(oodbench.load_dataset("photos").images[:1])
    np.testing.assert_allclose(rows[0]["score"], scores[0], rtol=1e-5)
    assert rows[0]["verdict"] == ("anomalous" if flagged[0] else "ok")
    assert {row["reason"] for row in rows} == {""}
    assert [row["verdict"] == "anomalous" for row in rows] == [row["score"] > fitted.threshold for row in rows]


def test_every_format_holds_the_same(fit, images):
    as_json = [json.loads(line) for line in run("score", fit[1], images, "--format", "json").stdout.splitlines()]
    as_csv = list(csv.DictReader(io.StringIO(run("score", fit[1], images, "--format", "csv", "--batch-size", 1).stdout)))
    table = run("score", fit[1], images).stdout.splitlines()
    assert [row["path"] for row in as_csv] == [row["path"] for row in as_json]
    np.testing.assert_allclose([float(row["score"]) for row in as_csv], [row["score"] for row in as_json], rtol=1e-5)
    assert [row["verdict"] for row in as_csv] == [row["verdict"] for row in as_json]
    assert table[0].split() == ["path", "score", "verdict"]
    assert [line.split()[0] for line in table[2:]] == [row["path"] for row in as_json]
    assert [line.split()[2] for line in table[2:]] == [row["verdict"] for row in as_json]


def test_what_cannot_be_read_is_a_row_with_a_reason(fit, images):
    whole = (images / "c.png").read_bytes()
    (images / "b" / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(images / "b" / "deep.png")
    (images / "empty").mkdir()
    done = run("score", fit[1], images, images / "nowhere.png", images / "notes.txt", images / "empty", "--format", "json")
    assert done.returncode == 1
    rows = {Path(row["path"]).name: row for line in done.stdout.splitlines() for row in [json.loads(line)]}
    bad = {
        "cut.png": "truncated",
        "deep.png": "8 bits",
        "nowhere.png": "no such file",
        "notes.txt": "not an image",
        "empty": "no images",
    }
    for name, says in bad.items():
        assert rows[name]["score"] is None
        assert rows[name]["verdict"] is None
        assert says in rows[name]["reason"]
        assert "\n" not in rows[name]["reason"]
    assert {name for name, row in rows.items() if row["score"] is not None} == {"a.ppm", "a.JPG", "grey.png", "c.png"}
    assert "of 4 scored images: " in done.stderr
    assert "5 cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
    table = run("score", fit[1], images / "nowhere.png", images / "c.png")
    assert table.returncode == 1
    assert "no such file" in table.stdout


def test_score_moves_the_threshold(fit, images):
    fitted = oodbench.load_fitted(fit[1])
    for options, moved in (
        (["--threshold", -15.5], fitted.with_threshold(-15.5)),
        (["--false-alarms", 0.5], fitted.with_false_alarms(0.5)),
    ):
        done = run("score", fit[1], images, "--format", "json", *options)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["verdict"] == "anomalous" for row in rows] == [row["score"] > moved.threshold for row in rows]
        assert f"score above {moved.threshold:.6g}" in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--threshold", 1, "--false-alarms", 0.1], "both set the threshold; give one of them"),
        (["--threshold", "nan"], "--threshold is nan; give a finite number"),
        (["--false-alarms", 2], "--false-alarms is 2; give a share between 0 and 1"),
    ],
)
def test_thresholds_that_cannot_be_set(fit, images, options, says):
    done = run("score", fit[1], images, *options)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""


def test_only_regular_files_are_opened(fit, images):
    os.mkfifo(images / "b" / "pipe.png")
    os.mkfifo(images / "pipe")
    (images / "link.png").symlink_to(images / "c.png")
    done = run("score", fit[1], images, images / "pipe", "/dev/zero", "--format", "json")
    assert done.returncode == 1
    rows = {row["path"]: row for row in map(json.loads, done.stdout.splitlines())}
    for path in (images / "b" / "pipe.png", images / "pipe", "/dev/zero"):
        assert rows.pop(str(path)) == {"path": str(path), "score": None, "verdict": None, "reason": "is not a regular file"}
    assert len(rows) == 5
    assert rows[str(images / "link.png")]["score"] == rows[str(images / "c.png")]["score"]


def test_a_score_that_is_no_number_is_no_verdict(fit, images, tmp_path):
    """A detector that is NaN on some images alone: the file loads, and those images are rows without a verdict."""
    (tmp_path / "nans.py").write_text(
        "import numpy as np\n\nimport oodbench\n\n\nclass Dark(oodbench.Detector):\n    'NaN where it is bright.'\n"
        "    signals = ('images',)\n    unsupervised_head = 'standardised-sum'\n\n    def statistics(self, probe):\n"
        "        return probe.images.flatten(1).mean(1)\n\n    def columns_of(self, statistics, variant=''):\n"
        "        return np.where(statistics > .9, np.nan, statistics)\n"
    )
    own = ["--plugin", "nans:Dark"]
    done = run("fit", "dark", *own, "--dataset", "digits", "--out", "dark", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    Image.fromarray(np.full((8, 8, 3), 255, dtype=np.uint8)).save(images / "white.png")
    done = run("score", "dark", images, *own, "--format", "json", cwd=tmp_path)
    assert done.returncode == 1
    assert "NaN" not in done.stdout.replace("(NaN or infinity)", "")
    rows = {Path(row["path"]).name: row for row in map(json.loads, done.stdout.splitlines())}
    assert rows["white.png"]["verdict"] is None
    assert rows["white.png"]["reason"].startswith("1 of 1 scores of dark are not finite")
    assert sum(row["verdict"] is not None for row in rows.values()) == len(rows) - 1 == 4


def test_a_file_goes_into_a_folder_that_is_there(tmp_path):
    done = run("fit", "msp", "--model", "resnet8-digits", "--dataset", "digits", "--out", tmp_path / "a" / "b" / "x")
    assert done.returncode == 2
    assert done.stderr == (
        f"oodbench: --out {tmp_path / 'a' / 'b' / 'x'}: folder {tmp_path / 'a' / 'b'} does not exist;"
        " create it, or choose another\n"
    )
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_text_or_would_move_the_cursor(fit, images):
    try:
        (images / "c.png").rename(os.fsdecode(os.fsencode(images) + b"/\xff\x1b[2J,\n.png"))
        Path(os.fsdecode(os.fsencode(images) + b"/\xfe.png")).write_text("no image")
    except OSError:
        pytest.skip("this file system takes no such names")
    done = run("score", fit[1], images, "--format", "csv")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert rows[-1]["path"].endswith(r"\udcff\x1b[2J,\n.png")
    assert rows[-1]["verdict"] in ("ok", "anomalous")
    assert r"\udcfe.png is not an image" in rows[-2]["reason"]


def test_csv_holds_no_formula(fit, images):
    shutil.copy(images / "c.png", images / "=1+1.png")
    (images / "-2.png").write_text("no image")
    done = run("score", fit[1], "=1+1.png", "-2.png", "--format", "csv", cwd=images)
    assert done.returncode == 2  # an option
    done = run("score", fit[1], "--format", "csv", "--", "=1+1.png", "-2.png", "c.png", cwd=images)
    first, second, third = csv.DictReader(io.StringIO(done.stdout))
    assert [row["path"] for row in (first, second, third)] == ["'=1+1.png", "'-2.png", "c.png"]
    assert first["score"] == third["score"]
    assert float(first["score"]) < 0  # a number, not a text
    assert second["reason"].startswith("'-2.png ")
    done = run("score", fit[1], "--format", "json", "--", "=1+1.png", cwd=images)
    assert json.loads(done.stdout)["path"] == "=1+1.png"


def test_a_reader_that_has_enough_is_no_error(fit, images):
    for number in range(200):
        (images / f"x{number}.png").write_bytes((images / "c.png").read_bytes())
    command = [*OODBENCH, "score", str(fit[1]), str(images), "--format", "json", "--batch-size", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_a_file_that_is_none_is_one_line(fit, images, tmp_path):
    (tmp_path / "cut").write_bytes(fit[1].read_bytes()[:50])
    done = run("score", tmp_path / "cut", images)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("oodbench: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_network_and_a_detector_of_the_users_own(images, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n\nimport oodbench\n\n\ndef flat():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8))\n\n\n"
        "class Gap(oodbench.Detector):\n    'Minus the gap between the two largest logits.'\n    signals = ('logits',)\n\n"
        "    def statistics(self, probe):\n        top = probe.logits.topk(2).values\n        return top[:, 1] - top[:, 0]\n"
    )
    own = ["--plugin", "mine:Gap"]
    done = run("fit", "gap", *own, "--model", "mine:flat", "--dataset", "digits", "--out", "gap", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    refused = run("score", "gap", images, *own, cwd=tmp_path)
    assert refused.returncode == 2
    assert "names the model mine:flat, and loading it would run that code" in refused.stderr
    unknown = run("score", "gap", images, "--trust-model", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "holds the detector 'gap', which no package here registers" in unknown.stderr
    trusted = run("score", "gap", images, *own, "--trust-model", "--format", "csv", cwd=tmp_path)
    assert trusted.returncode == 0, trusted.stderr
    assert len(trusted.stdout.splitlines()) == 5
    assert torch.isfinite(torch.tensor([float(row["score"]) for row in csv.DictReader(io.StringIO(trusted.stdout))])).all()
