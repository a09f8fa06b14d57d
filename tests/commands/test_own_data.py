"""``oodbench run`` on a user's own network and images, as a user meets it: without a suite file."""

import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from new_process import oodbench
from PIL import Image
from safetensors.torch import save_file

from oodbench.api import run
from oodbench.detectors import TABLE as DETECTORS
from oodbench.errors import MissingData, UsageError
from oodbench.models.load import load_model

NET = """
    import torch

    def build():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(12, 2))
"""


def save(folder: Path, count: int, low: int = 0, size: tuple[int, int] = (8, 8)) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(low)
    for number in range(count):
        image = generator.integers(low, low + 120, (size[1], size[0], 3), np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with ``net.py`` and two sets in ``data``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(textwrap.dedent(NET))
    for number, split in enumerate(("train", "train", "test", "test")):
        save(tmp_path / "data" / "mydata" / split / f"class{number % 2}", 15 + number, 10 * number)
    save(tmp_path / "data" / "other", 20, 130)
    return tmp_path


MINE = ["--in-distribution", "folder:mydata", "--dataset", "folder:other", "--model", "net:build", "--data", "data"]


def test_without_a_suite_all_detectors_run(here):
    done = oodbench("run", *MINE, "--dry-run", cwd=here)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:6] == [
        "mydata: folder:mydata against folder:other",
        "model     net:build",
        "folder    runs/mydata",
        "fit on    folder:mydata (train), 31 images",
        "inside    folder:mydata (test), 35 images",
        "size      8x8 pixels, bilinear",
    ]
    rows = {line.split()[1].strip(":").partition(":")[0] for line in lines if line.startswith("detector")}
    assert rows >= set(DETECTORS)
    assert {row for line in lines if line.startswith("detector") for row in line.split(": ")[-1].split(", ")} == {
        "unsupervised",
        "per-shift",
    }


def test_the_run_is_named_after_its_in_distribution_set(here):
    done = oodbench("run", *MINE, "--detector", "msp", "--detector", "pixels", "--no-costs", cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("net:build, in-distribution folder:mydata: AUROC")
    assert done.stdout.splitlines()[-1] == "runs/mydata"
    manifest = json.loads((here / "runs" / "mydata" / "run.json").read_text())
    assert manifest["suite"]["name"] == "mydata"
    assert manifest["settings"]["in_distribution"] == "folder:mydata"


def test_the_same_from_python(here):
    options = {"data": here / "data", "detectors": ["pixels"], "measure_costs": False}
    results = run(in_distribution="folder:mydata", datasets=["folder:other", "folder:mydata+noise@3"], **options)
    assert results.path == Path("runs/mydata")
    assert set(results.frame()["dataset"]) == {"folder:other", "folder:mydata+noise"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--in-distribution", "folder:mydata", "--model", "net:build"], "add --dataset SET"),
        (["--in-distribution", "folder:mydata", "--dataset", "uniform"], "add --model NAME"),
        (["digits", *MINE], "takes the place of a suite; leave out the suite"),
        ([*MINE, "--protocol", "transfer"], "transfer needs transfer_from, the name of one of its sets"),
        (
            ["--in-distribution", "folder:other", *MINE[2:], "--detector", "knn"],
            "folder:other has no split 'train'; it has test; to learn from it",
        ),
    ],
)
def test_what_is_missing_is_one_line(here, options, why):
    done = oodbench("run", *options, "--data", "data", cwd=here)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("oodbench:")]
    assert why in line


def test_names_of_runs_are_names_of_folders(here):
    options = {"datasets": ["uniform"], "detectors": ["pixels"], "measure_costs": False, "limit": 20}
    assert run(in_distribution="digits:3", **options).path == Path("runs/digits-3")


def test_images_that_are_not_square_need_a_size(here):
    """They were read at two shapes: training images as they are, test images square."""
    for split in ("train", "test"):
        for number in range(2):
            save(here / "wide" / split / str(number), 12, 10 * number + 50 * (split == "test"), (12, 8))
    options = {"data": here, "datasets": ["uniform"], "detectors": ["pixels"], "measure_costs": False}
    with pytest.raises(UsageError, match=r"folder:wide: its images are 12x8 pixels, not square; .*--size N"):
        run(in_distribution="folder:wide", **options)
    results = run(in_distribution="folder:wide", size=10, **options)
    assert results.manifest().settings["size"] == 10


def test_images_of_several_sizes_are_reported(here):
    save(here / "data" / "mydata" / "train" / "class2", 3, 90, (9, 9))
    options = [*MINE, "--detector", "pixels", "--no-costs"]
    varied = oodbench("run", *options, "--out", "runs/varied", cwd=here)
    assert "folder:mydata (train): its images vary in size and are resized to 32x32 pixels" in varied.stderr
    assert "vary in size" not in oodbench("run", *options, "--size", 8, "--out", "runs/sized", cwd=here).stderr


def written(folder: Path) -> str:
    """All text that a run wrote."""
    return "".join(path.read_text("latin-1") for path in folder.rglob("*") if path.is_file())


def test_folders_anywhere_and_results_without_their_paths(here):
    private = here / "home" / "me" / "more"
    save(private, 20, 60)
    sets = [f"folder:{here}/data/mydata", "--dataset", f"folder:{private}", "--dataset", f"folder:{private}+noise@1"]
    run_all = ["run", "--in-distribution", *sets, "--model", "net:build", "--detector", "msp", "--no-costs"]
    done = oodbench(*run_all, "--protocol", "unsupervised", cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "runs/mydata"
    assert str(here) not in written(here / "runs" / "mydata")
    rows = json.loads(oodbench("leaderboard", "runs/mydata", "--format", "json", cwd=here).stdout)
    assert {(row["in_distribution"], row["dataset"], row["level"], row["status"]) for row in rows} == {
        ("folder:mydata", "folder:more", None, "ok"),
        ("folder:mydata", "folder:more+noise", 1, "ok"),
    }
    again = oodbench(*run_all, "--protocol", "unsupervised", cwd=here)
    assert "2 cells already done" in again.stderr
    assert again.returncode == 0


@pytest.mark.parametrize("other", ["folder:{}/b/photos", "folder:photos", "folder:{}/b/photos:cat"])
def test_folders_that_results_could_not_tell_apart_are_refused(here, other):
    sets = [f"folder:{here}/a/photos+noise@1", other.format(here)]
    with pytest.raises(UsageError, match=r"/a/photos and .*photos would both be folder:photos in results; rename one"):
        run(in_distribution="digits", datasets=sets, detectors=["pixels"])
    with pytest.raises(UsageError, match=r"would both be folder:photos"):
        run("digits", datasets=sets)


def test_several_data_roots(here):
    save(here / "second" / "more", 20, 60)
    options = ["run", *MINE[:4], "--dataset", "folder:more", "--detector", "pixels", "--protocol", "unsupervised", "--no-costs"]
    done = oodbench(*options, "--data", "data", "--data", "second", cwd=here)
    assert done.returncode == 0, done.stderr
    for name in ("more", "mydata"):
        checked = oodbench("check", f"folder:{name}", "--data", "data", "--data", "second", cwd=here)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    fitting = ["fit", "pixels", "--dataset", "folder:mydata", "--held-out", "train", "--false-alarms", 0.6, "--out", "it"]
    training = ["train", "resnet8-digits", "--dataset", "folder:mydata", "--epochs", 1, "--out", "it.safetensors"]
    for command in (fitting, training):
        done = oodbench(*command, "--data", "second", "--data", "data", cwd=here)
        assert done.returncode == 0, done.stderr
    absent = ["run", *MINE[:2], "--dataset", "folder:gone", "--detector", "pixels"]
    gone = oodbench(*absent, "--data", "data", "--data", "second", cwd=here)
    assert gone.returncode == 1
    assert f"{here}/data/gone is not a folder" in gone.stderr
    assert f"; also searched: {here}/second" in gone.stderr


def test_weights_in_the_second_data_root(here):
    (here / "second" / "models").mkdir(parents=True)
    file = here / "second" / "models" / "resnet18.safetensors"
    with pytest.warns(UserWarning, match="random weights"):
        save_file(load_model("resnet18", num_classes=2).module.state_dict(), file)
    found = load_model("resnet18", data=[here / "data", here / "second"])
    assert found(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    with pytest.raises(MissingData, match=f"looked for {here}/data/models/.* and {here}/models/resnet18.safetensors"):
        load_model("resnet18", data=[here / "data", here], require_weights=True)


def test_data_commands_find_each_set_in_its_root(here):
    save(here / "second" / "test_256", 3)
    roots = ["--data", "data", "--data", "second"]
    listed = oodbench("data", "list", "--json", *roots, cwd=here)
    assert {row["name"]: row["state"] for row in json.loads(listed.stdout)}["places365"] == "partial"
    assert f"Data roots: {here}/data, {here}/second" in oodbench("data", "list", *roots, cwd=here).stdout
    verified = oodbench("data", "verify", "places365", "svhn", *roots, cwd=here)
    assert verified.returncode == 1
    assert "places365: test_256: 3 images; the official set has 328,500" in verified.stdout
    assert f"svhn: absent: none of its files is below {here}/data or {here}/second" in verified.stdout


MODULES = {
    "net.py": "import torch\n\ndef build():\n    return layer()\n\ndef layer():\n    return torch.nn.Linear(3, 'x')\n",
    "typo.py": "import torch\n\nwidth = widht\n",
    "syntax.py": "def build():\n    return (\n",
    "indirect.py": "import typo\n",
    "lacking.py": "\nimport no_such_module_for_a_test\n",
    "leaving.py": "\n\nraise SystemExit(3)\n",
}


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("net", r"TypeError: .* \(net.py, line 7\)"),
        ("typo", r"NameError: name 'widht' is not defined \(typo.py, line 3\)"),
        ("syntax", r"SyntaxError: '\(' was never closed \(syntax.py, line 2\)"),
        ("indirect", r"NameError: name 'widht' is not defined \(typo.py, line 3\)"),
        ("lacking", r"ModuleNotFoundError: No module named 'no_such_module_for_a_test' \(lacking.py, line 2\)"),
        ("leaving", r"RuntimeError: raised SystemExit\(3\), which would end the process \(leaving.py, line 3\)"),
    ],
)
def test_an_error_in_a_module_of_the_user_is_said_with_its_line(tmp_path, module, place):
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    does = "failed when it was built" if module == "net" else "cannot be imported"
    options = ["--dataset", "photos", "--detector", "msp", "--model", f"{module}:build"]
    done = oodbench("run", "--in-distribution", "digits", *options, cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(f"oodbench: model '{module}:build' {does}: {place}; fix that line", done.stderr.splitlines()[-1])
    if module != "net":
        done = oodbench("run", "--plugin", f"{module}:Detector", cwd=tmp_path)
        assert done.returncode == 2
        assert re.fullmatch(f"oodbench: --plugin {module}:Detector cannot be imported: {place}; fix that line\n", done.stderr)


def test_a_module_that_is_not_there_has_no_line_to_fix(tmp_path):
    (tmp_path / "net.py").write_text("build = 3\n")
    options = ["run", "--in-distribution", "digits", "--dataset", "photos", "--detector", "msp", "--model"]
    for model, why in (("gone:build", "No module named 'gone'"), ("net:biuld", "module 'net' has no attribute 'biuld'")):
        done = oodbench(*options, model, cwd=tmp_path)
        assert done.stderr.endswith(f"{why}; give module:function, with the module on the Python path\n")
