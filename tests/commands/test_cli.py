"""The command line, as a user meets it: in a process of its own, by exit code and by what it prints."""

import contextlib
import csv
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from new_process import oodbench

from oodbench.api import run
from oodbench.datasets.formats.cifar_pickle import read_pickle
from oodbench.detectors import TABLE as DETECTORS
from oodbench.registry import FAMILIES
from oodbench.suites.load import load_study, suite_names
from oodbench.suites.tasks import TASKS, load_task_suite, task_of

ROOT = Path(__file__).parents[2]
OODBENCH = [sys.executable, "-P", "-m", "oodbench.cli"]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A small run of the embedded suite, once for this module."""
    folder = tmp_path_factory.mktemp("cli")
    options = ["--limit", 60, "--detector", "msp", "--detector", "pixels", "--dataset", "photos", "--dataset", "digits+noise"]
    cache = str(tmp_path_factory.getbasetemp() / "cache")
    return oodbench("run", *options, "--out", folder / "run", OODBENCH_CACHE=cache), folder / "run"


def test_run_ends_with_the_leaderboard_and_the_run_folder(small_run):
    done, folder = small_run
    assert done.returncode == 0, done.stderr
    lines = done.stdout.rstrip().splitlines()
    assert lines[-1] == str(folder)
    assert "AUROC ×100" in done.stdout
    assert "pixels (control)" in done.stdout
    assert f"All rows, sets and notes: oodbench leaderboard {folder}" in lines
    assert len(lines) <= 45
    assert "photos: 500 images" not in done.stdout  # progress goes to standard error
    assert "photos: 60 images" in done.stderr


def test_a_level_is_its_own_cell_and_the_name_goes_without_it(small_run):
    _, folder = small_run
    rows = json.loads(oodbench("leaderboard", folder, "--format", "json").stdout)
    noise = [row for row in rows if row["dataset"] == "digits+noise" and row["detector"] == "msp"]
    assert sorted(row["level"] for row in noise) == [1, 2, 3, 4, 5]
    assert {row["kind"] for row in noise} == {"corruption"}
    assert {row["status"] for row in rows} == {"ok"}


@pytest.mark.parametrize("form", ["table", "md", "csv", "json", "tex"])
def test_leaderboard_in_every_format(small_run, tmp_path, form):
    _, folder = small_run
    piped = oodbench("leaderboard", folder, "--format", form)
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout.strip()
    if form == "csv":
        assert len(list(csv.DictReader(io.StringIO(piped.stdout)))) == 2 * 6 + 6 + 5  # unsupervised, per-shift, transfer
    if form in ("json", "md"):  # the one without notes below, the other with them
        written = oodbench("leaderboard", folder, "--format", form, "--out", tmp_path / "out")
        assert written.returncode == 0, written.stderr
        assert (tmp_path / "out").read_text().split() == piped.stdout.split()


@pytest.mark.parametrize(
    ("detector", "protocol", "why"),
    [
        ("msp", "per-shift", "msp: no row under per-shift, where only detectors that learn from a shift have one"),
        ("pixels", "transfer", "transfer  learns from photos"),
    ],
)
def test_a_run_without_rows_says_so(tmp_path, detector, protocol, why):
    options = ["--detector", detector, "--protocol", protocol, "--dataset", "photos", "--limit", 40, "--out", tmp_path / "run"]
    done = oodbench("run", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("No cells yet; oodbench run --dry-run")
    assert oodbench("leaderboard", tmp_path / "run").stdout == done.stdout.splitlines()[0] + "\n"
    plan = oodbench("run", *options, "--dry-run").stdout
    assert why in plan
    assert plan.endswith("0 cells\n")
    assert (f"{detector}: no row" in done.stderr) == (f"{detector}: no row" in plan)


def test_a_file_is_written_in_the_format_of_its_name(small_run, tmp_path):
    _, folder = small_run
    for name, start in (("a.csv", "model,in_distribution,"), ("a.tex", "% needs booktabs"), ("a.txt", "resnet8-digits, in-")):
        assert oodbench("leaderboard", folder, "--out", tmp_path / name).returncode == 0
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(start), name
    assert oodbench("leaderboard", folder, "--format", "json", "--out", tmp_path / "b.csv").returncode == 0
    assert (tmp_path / "b.csv").read_text(encoding="utf-8").startswith("[\n")


def test_images_of_the_user_are_recognised_by_their_path(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.txt").touch()
    for path, message in (
        ("mine", "folder:mine for a folder of images"),
        ("mine.txt", "imglist:mine.txt for a list of images"),
    ):
        done = oodbench("run", "--dataset", path, cwd=tmp_path)
        assert done.returncode == 2
        assert f"unknown dataset '{path}'; write {message}" in done.stderr
    assert "unknown dataset 'xxx" in oodbench("run", "--dataset", "x" * 300, cwd=tmp_path).stderr


def test_a_second_run_finds_everything_done(small_run):
    _, folder = small_run
    options = ["--limit", 60, "--detector", "msp", "--dataset", "photos", "--out", folder]
    again = oodbench("run", *options)
    assert again.returncode == 0, again.stderr
    assert f"Resuming {folder}: 1 cell already done" in again.stderr
    other = oodbench("run", *options, "--seed", 5)
    assert other.returncode == 2
    assert "seed = 0, not 5" in other.stderr


def test_missing_sets_are_listed_and_strict_minds_them(tmp_path):
    options = ["--limit", 20, "--detector", "msp", "--dataset", "photos", "--dataset", "folder:none", "--data", tmp_path]
    done = oodbench("run", *options, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "none") in done.stdout
    strict = oodbench("run", *options, "--out", tmp_path / "run", "--strict")
    assert strict.returncode == 1


def test_a_run_that_measures_nothing_exits_with_1(tmp_path):
    done = oodbench("run", "--detector", "msp", "--dataset", "folder:none", "--data", tmp_path, "--out", tmp_path / "run")
    assert done.returncode == 1, done.stderr
    assert str(tmp_path / "none") in done.stdout


def test_costs_are_left_out_on_request(tmp_path):
    options = ["--limit", 20, "--detector", "msp", "--dataset", "photos", "--out", tmp_path / "run"]
    assert oodbench("run", *options, "--no-costs").returncode == 0
    assert not (tmp_path / "run" / "costs.json").exists()
    assert oodbench("run", *options).returncode == 0
    assert (tmp_path / "run" / "costs.json").exists()
    assert oodbench("run", *options, "--no-costs").returncode == 0
    assert (tmp_path / "run" / "costs.json").exists()


def test_all_stands_for_every_detector(tmp_path):
    (tmp_path / "mine.toml").write_text('in_distribution = "digits"\ndetectors = "all"\n[[sets]]\nname = "photos"\n')
    for options in (["digits", "--detector", "all"], ["mine.toml"]):
        done = oodbench("run", *options, "--dry-run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        named = {line.split()[1].rstrip(":") for line in done.stdout.splitlines() if line.startswith("detector ")}
        assert named >= set(DETECTORS)


@pytest.mark.parametrize("dataset", ["curetsr/Haze@3+pgd", "folder:./none/"])
def test_strict_minds_every_form_of_a_name(tmp_path, dataset):
    """An attack on a part at a level, and other spellings of a folder, once did not count."""
    options = ["--limit", 20, "--detector", "msp", "--dataset", dataset, "--data", tmp_path, "--out", tmp_path / "run"]
    assert oodbench("run", *options, "--strict").returncode == 1


def test_dry_run_says_what_would_run_and_writes_nothing(tmp_path):
    done = oodbench("run", "--dry-run", "--limit", 30, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "outside   digits+noise@5 (corruption), 30 images" in done.stdout
    assert "detector  odin: unsupervised, per-shift" in done.stdout
    assert done.stdout.rstrip().endswith("3,063 cells")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--model", "resnet18"], "no weights for resnet18: looked for"),
        (["--weights", "none.pth"], "weights file none.pth does"),
    ],
)
def test_dry_run_says_that_weights_are_missing(tmp_path, options, why):
    command = ["run", *options, "--detector", "msp", "--dataset", "photos", "--limit", 30, "--data", tmp_path]
    planned, done = oodbench(*command, "--dry-run", cwd=tmp_path), oodbench(*command, cwd=tmp_path)
    (line,) = [line for line in planned.stdout.splitlines() if line.startswith("fails")]
    assert why in line
    assert (planned.returncode, done.returncode) == (0, 1)
    assert done.stderr.splitlines()[-1] == f"oodbench: {line.removeprefix('fails').strip()}"


def test_a_plugin_from_the_working_folder(tmp_path):
    (tmp_path / "brightness.py").write_text(
        textwrap.dedent('''
        import oodbench

        class Brightness(oodbench.Detector):
            """Mean of the pixels."""

            def statistics(self, probe):
                return probe.images.mean((1, 2, 3))
        ''')
    )
    options = ["--plugin", "brightness:Brightness", "--dataset", "photos", "--limit", 30, "--detector", "msp", "--out", "run"]
    done = oodbench("run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "brightness" in done.stdout
    broken = oodbench("run", "--plugin", "brightness:Darkness", *options[2:], "--fresh", cwd=tmp_path)
    assert broken.returncode == 2
    assert "brightness:Darkness" in broken.stderr
    assert "Traceback" not in broken.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run", "--detector", "enregy"], 2, "unknown detector 'enregy'; did you mean 'energy'? (oodbench list detectors)"),
        (
            ["run", "--detector", "gradcon:recon"],
            2,
            "'gradcon:recon' is a row of gradcon, not a detector; use 'gradcon'",
        ),
        (["run", "--detector", "KNN"], 2, "unknown detector 'KNN'; did you mean 'knn'?"),
        (
            ["run", "--detector", "msp, knn"],
            2,
            "unknown detector 'msp, knn'; repeat the option (--detector msp --detector knn); in a suite, give ['msp', 'knn']",
        ),
        (["run", "digit"], 2, "did you mean 'digits'?"),
        (["run", "nowhere.toml"], 2, "suite file nowhere.toml does not exist"),
        (["run", "--param", "knn.k"], 2, "--param takes DETECTOR.NAME=VALUE, not 'knn.k'"),
        (["run", "--limit", "0"], 2, "--limit"),
        (["run", "--workers", 10**30], 2, f"workers is {10**30}; give a number of processes from 0 to 1,024"),
        (["run", "--seed", 10**30], 2, "seed takes at most 9223372036854775807, not 1"),
        (["run", "--device", "cuda"], None, "cuda"),
        (["run", "cifar10", "--data", "nowhere"], 1, "cifar10"),
        (["run", "--protocol", "per-shfit"], 2, "did you mean 'per-shift'?"),
        (["run", "--dataset", "photo"], 2, "unknown dataset 'photo'; did you mean 'photos'?"),
        (["run", "--model", "resnet8-digit"], 2, "did you mean 'resnet8-digits'?"),
        (
            ["run", "--device", "gpu"],
            2,
            "unknown device 'gpu'; give auto, cpu, or an accelerator that PyTorch knows",
        ),
        (["run", "--param", "knn.kk=3"], 2, "unknown parameter 'kk' of knn; did you mean 'k'? (it has: k, ks)"),
        (["run", "--param", "knn.k=many", "--detector", "knn"], 2, "knn: k = 'many'; give a whole number of at least 1"),
        (["leaderboard", "nowhere"], 2, "nowhere does not exist; name a folder"),
        (["fit", "knm", "--dataset", "digits", "--out", "f"], 2, "did you mean 'knn'?"),
        (["fit", "knn", "--dataset", "digits", "--out", "f"], 2, "knn needs a network; name one with --model"),
        (["fit", "knn", "--dataset", "digits", "--model", "resnet8-digits", "--out", "."], 2, "--out . is a folder"),
        (["fit", "msp", "--dataset", "digits", "--out", "f", "--false-alarms", "5"], 2, "give a share between 0 and 1"),
        (
            ["fit", "pixels", "--dataset", "digits", "--out", "f", "--size", 10**30],
            2,
            f"size is {10**30}; give a number of pixels",
        ),
        (["score", "nowhere", "image.png"], 1, "no such file: nowhere; make one with oodbench fit"),
        (["list", "detector"], 2, "detectors"),
        (["train", "resnet20-cifar1", "--dataset", "digits", "--out", "w.safetensors"], 2, "did you mean 'resnet20-cifar10'"),
        (
            ["train", "resnet18", "--dataset", "digits", "--out", "w.safetensors", "--recipe", "resnet"],
            2,
            "unknown recipe 'resnet'; did you mean 'resnet-cifar'? (known: openood, standard, resnet-cifar, densenet-cifar, ",
        ),
    ],
)
def test_wrong_usage_is_one_line_with_the_remedy(tmp_path, arguments, code, says):
    import torch

    if code is None:
        if torch.cuda.is_available():
            pytest.skip("CUDA is here: asking for it is no error")
        code = 1
    done = oodbench(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_debug_shows_the_traceback(tmp_path):
    done = oodbench("leaderboard", "nowhere", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr


def test_a_suite_file_with_a_wrong_key_names_it(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'in_distribution = "digits"\ndetectors = ["msp"]\nsest = []\n[[sets]]\nname = "photos"\n'
    )
    done = oodbench("run", "mine.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert "sest" in done.stderr


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("size", f"size is {10**30}; give a number of pixels up to 4,096"),
        ("validation", "images; set apart at most 288"),
        ("seed", "seed takes at most 9223372036854775807, not 1"),
        ("batch_size", None),  # any number of images is a batch, if there are fewer
    ],
)
def test_huge_numbers_in_a_suite(tmp_path, key, says):
    (tmp_path / "mine.toml").write_text(
        f'in_distribution = "digits"\ndetectors = ["pixels"]\n{key} = {10**30}\n[[sets]]\nname = "photos"\nfirst = {10**30}\n'
    )
    done = oodbench("run", "mine.toml", "--limit", 10**30, cwd=tmp_path)
    assert done.returncode == (0 if says is None else 2), done.stderr
    assert "OverflowError" not in done.stderr
    assert says is None or says in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("family", [*(name.replace("_", "-") for name in FAMILIES), "suites"])
def test_list_as_text_and_as_json(family):
    done = oodbench("list", family)
    rows = json.loads(oodbench("list", family, "--json").stdout)
    assert done.returncode == 0
    assert rows
    assert all(row["name"] in done.stdout and row["summary"] for row in rows)
    patterns = {
        "models": ["timm:NAME", "torchvision:NAME", "module:function", "denoised:NAME"],
        "datasets": ["folder:PATH", "imglist:FILE"],
    }
    patterns = patterns.get(family, [])
    assert [row["name"] for row in rows][-len(patterns) or len(rows) :] == patterns


def test_list_fits_a_terminal_and_pipes_whole_lines():
    import pty

    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(OODBENCH[0], [*OODBENCH, "list", "detectors"], os.environ | {"COLUMNS": "80"})
    shown = b""
    with contextlib.suppress(OSError):  # what a terminal gives when its process has ended
        while part := os.read(terminal, 65536):
            shown += part
    assert os.waitpid(child, 0)[1] == 0
    lines = shown.decode().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "Cut to the width of the terminal; whole: oodbench list detectors --json"
    assert [line.split()[0] for line in lines[2:-1]] == list(DETECTORS)
    piped = oodbench("list", "detectors", COLUMNS="80").stdout.splitlines()
    assert len(piped) == len(lines) - 1
    assert "…" not in "".join(piped)


def test_top_limits_the_rows_for_people(small_run):
    _, folder = small_run
    found = oodbench("leaderboard", folder, "--top", 1)
    assert found.returncode == 0, found.stderr
    assert "pixels (control)" in found.stdout
    assert oodbench("leaderboard", folder, "--top", 0).returncode == 2


def test_list_check_imports_every_builtin():
    for family in FAMILIES:
        done = oodbench("list", family.replace("_", "-"), "--check", "--json")
        assert done.returncode == 0, done.stdout
        assert not [row for row in json.loads(done.stdout) if row["error"]]


def test_list_of_suites_tells_their_tasks():
    rows = {row["name"]: row for row in json.loads(oodbench("list", "suites", "--json").stdout)}
    assert list(rows) == suite_names()
    for name, row in rows.items():
        of_task = row["task"] != "detection"
        title = load_task_suite(name).title if of_task else load_study(name).title
        assert (row["task"], row["summary"]) == (task_of(name), title)
    assert {row["task"] for row in rows.values()} == {"detection", *TASKS}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["list", "detectors"],
        ["run", "--detector", "enregy"],
        ["run", "--dataset", "photo"],
        ["run", "--model", "resnet"],
        ["run", "--protocol", "none"],
        ["run", "--device", "cpu", "--protocol", "none"],
        ["run", "--param", "knn.kk=3"],
        ["leaderboard", "nowhere"],
        ["check", "enregy"],
        ["check", "knn", "--param", "knn.kk=3"],
        ["fit", "enregy", "--dataset", "digits", "--out", "f"],
        ["fit", "-h"],
        ["score", "nowhere", "image.png"],
        ["train", "resnet", "--dataset", "digits", "--out", "w.safetensors"],
    ],
)
def test_answers_without_importing_anything_heavy(arguments):
    code = (
        "import sys\nfrom oodbench.cli import main\n"
        f"sys.argv = ['oodbench', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'pandas', 'sklearn', 'matplotlib', 'scipy', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.rstrip().splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGINT, 130, "oodbench: interrupted; repeat the command to resume"),
        (signal.SIGTERM, 143, "oodbench: ended by SIGTERM; repeat the command to resume"),
        (signal.SIGHUP, 129, "oodbench: ended by SIGHUP; repeat the command to resume"),
    ],
)
def test_a_signal_that_ends_a_run_says_how_to_go_on(tmp_path, number, code, says):
    options = ["--limit", "60", "--dataset", "photos", "--dataset", "digits+noise", "--out", str(tmp_path / "run")]
    detectors = ["--detector", "msp", "--detector", "odin", "--detector", "mahalanobis-pfe"]  # costs are measured for seconds
    process = subprocess.Popen(
        [*OODBENCH, "run", *options, *detectors],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a shell's background jobs ignore SIGINT
    )
    while not list((tmp_path / "run" / "passes").glob("*.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    if number != signal.SIGINT:
        process.send_signal(number)  # as some do: once to the process, once to its group
    _, errors = process.communicate()
    assert process.returncode == code
    assert errors.decode().splitlines()[-1] == says
    assert "Traceback" not in errors.decode()


def test_a_model_from_the_working_folder(tmp_path):
    (tmp_path / "mymodel.py").write_text(
        "from torch import nn\n\n\ndef flat():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8))\n"
    )
    options = ["--detector", "msp", "--detector", "mahalanobis-fe", "--dataset", "photos", "--limit", 30, "--out", "run"]
    done = oodbench("run", "--model", "mymodel:flat", *options, "--protocol", "unsupervised", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "its layers are not known" in done.stdout  # skipped with the reason
    asked_for_less = oodbench("run", "--model", "mymodel:flat", *options[:2], *options[4:], "--strict", cwd=tmp_path)
    assert asked_for_less.returncode == 0, asked_for_less.stderr  # the skipped cell of before is not asked for


def test_a_suite_from_elsewhere_runs_its_code_only_when_told(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'model = "mymodel:flat"\nin_distribution = "digits"\ndetectors = ["pixels"]\nprotocols = ["unsupervised"]\n'
        '[[sets]]\nname = "photos"\n'
    )
    here = tmp_path / "here"
    here.mkdir()
    (here / "mymodel.py").write_text(
        "from pathlib import Path\n\nfrom torch import nn\n\nPath('imported').touch()\n\n\n"
        "def flat():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8))\n"
    )
    options = ["--limit", 30, "--out", "run"]
    for more in ([], ["--model", "resnet8-digits"], ["--dry-run"]):
        done = oodbench("run", "../mine.toml", *options, *more, cwd=here)
        assert done.returncode == (0 if more else 2), done.stderr
        says = "mymodel:flat is code, which a suite outside the working folder may not name"
        assert more or says in done.stderr
        assert ("--dry-run" in more) == (f"\nfails     suite ../mine.toml: model: {says}" in done.stdout)
        assert not (here / "imported").exists()
    for trusted in (["--trust-model"], ["--model", "resnet8-digits"]):
        assert "\nfails" not in oodbench("run", "../mine.toml", *options, *trusted, "--dry-run", cwd=here).stdout
    assert not (here / "imported").exists()
    done = oodbench("run", "../mine.toml", *options, "--trust-model", "--fresh", cwd=here)
    assert done.returncode == 0, done.stderr
    assert (here / "imported").exists()


def test_train_writes_weights_that_a_run_takes(tmp_path):
    weights = tmp_path / "w.safetensors"
    options = ["--dataset", "digits", "--epochs", 1, "--out", weights, "--learning-rate", 0.05]
    done = oodbench("train", "resnet8-digits", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1] == str(weights)
    card = json.loads((tmp_path / "w.card.json").read_text())
    assert (card["recipe"]["name"], card["recipe"]["epochs"], card["recipe"]["lr"]) == ("openood", 1, 0.05)
    assert (card["test"]["set"], card["test"]["images"]) == ("digits", 577)
    assert 0 < card["test"]["accuracy"] < 1
    small = ["--detector", "msp", "--dataset", "photos", "--no-costs", "--limit"]
    runs = {"run": [*small, 20, "--weights", weights], "own": [*small, 20], "more": [*small, 30]}
    for name, given in runs.items():
        used = oodbench("run", *given, "--out", tmp_path / name)
        assert used.returncode == 0, used.stderr
    text = oodbench("leaderboard", *(tmp_path / name for name in runs)).stdout
    assert "resnet8-digits (weights w.safetensors), in-distribution digits (limit 20)\n" in text
    assert "resnet8-digits (default weights), in-distribution digits (limit 20)\n" in text
    assert "resnet8-digits (default weights), in-distribution digits (limit 30)\n" in text


def test_the_real_suite_has_all_its_sets(data_root, tmp_path):
    """Three detectors, of which the control learns from shifts: what a set needs does not depend on the detector."""
    detectors = ["--detector", "msp", "--detector", "energy", "--detector", "pixels"]
    done = oodbench("run", "cifar10", "--data", data_root, "--out", tmp_path / "run", "--limit", 30, *detectors)
    assert done.returncode == 0, done.stderr
    rows = json.loads(oodbench("leaderboard", tmp_path / "run", "--format", "json").stdout)
    assert {row["status"] for row in rows} == {"ok"}
    suite = tomllib.loads((ROOT / "bench" / "suites" / "cifar10.toml").read_text())
    benign = 5  # from which nothing is learnt
    sets = sum(len(one.get("levels", [0])) for one in suite["sets"]) - benign
    by_protocol = {"unsupervised": 3 * (sets + benign), "per-shift": sets, "transfer": sets - 1}
    assert Counter(row["protocol"] for row in rows) == by_protocol
    for text in (done.stdout, oodbench("leaderboard", tmp_path / "run", "--format", "md").stdout):
        assert "Parts of official sets" in text
        assert "cifar10 (test) 30 of 10,000 images" in " ".join(text.split())
        assert "cifar10 (train) 8,000 of 50,000 images" in " ".join(text.split())
    energy = [row["auroc"] for row in rows if row["detector"] == "energy" and row["kind"] in ("near-ood", "far-ood")]
    assert len(energy) == 8
    assert sum(energy) / 8 > 0.85  # on the whole sets .90
    assert (tmp_path / "run" / "costs.json").exists()


def test_the_real_suite_has_all_its_detectors(data_root, tmp_path):
    """One set, the one that transfer learns from, and a piece of a training batch: a detector needs no more than these."""
    data = tmp_path / "data"
    (data / "cifar-10-batches-py").mkdir(parents=True)
    for name in ("batches.meta", "test_batch"):
        shutil.copy(data_root / "cifar-10-batches-py" / name, data / "cifar-10-batches-py")
    batch = read_pickle(data_root / "cifar-10-batches-py" / "data_batch_1")
    first = {"data": batch["data"][:500], "labels": batch["labels"][:500]}
    (data / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(first, protocol=2))
    for name in ("cifar-100-python", "svhn-digits", "models"):
        (data / name).symlink_to(data_root / name, target_is_directory=True)
    trained = {"gradcon": 1, "gradcon-vae": 1, "duq": 2, "introspective": 2}
    short = {name: {"epochs": epochs} for name, epochs in trained.items()}
    options = {"limit": 40, "measure_costs": False}  # costs would take most of the time
    results = run("cifar10", data=data, out=tmp_path / "run", datasets=["cifar100"], parameters=short, **options)
    frame = results.frame()
    assert set(frame["status"]) == {"ok"}
    # 30 detectors and 12 variants of them, of which 8 learn from a shift.
    assert Counter(frame["protocol"]) == {"unsupervised": 30 + 12, "per-shift": 13, "transfer": 13}


def in_shell(redirection: str, *arguments, **options) -> subprocess.CompletedProcess:
    """The command with redirected streams, as a shell starts it."""
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *OODBENCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.mark.skipif(os.name == "nt", reason="there is no sh")
@pytest.mark.parametrize(("arguments", "code"), [(["list", "detectors"], 1), (["run", "nosuite"], 2), (["--help"], 1)])
def test_closed_standard_output(arguments, code):
    done = in_shell(">&-", *arguments)
    assert done.returncode == code
    why = "unknown suite 'nosuite'" if code == 2 else "cannot write to standard output: it is closed; redirect it"
    assert done.stderr.startswith(f"oodbench: {why}")
    assert done.stderr.count("\n") == 1
    assert in_shell(">&- 2>&-", *arguments).returncode == code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments",
    [["list", "suites"], ["--help"], ["leaderboard", "RUN"], ["leaderboard", "RUN", "--format", "csv"]],
)
def test_full_standard_output(small_run, arguments, unbuffered):
    """What fits into the buffer fails only when it is flushed, and what does not fit at once."""
    arguments = [small_run[1] if argument == "RUN" else argument for argument in arguments]
    done = in_shell(">/dev/full", *arguments, env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("oodbench: cannot write to standard output: No space left on device; ")
    assert "Error" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_run_whose_log_is_full_goes_on(tmp_path):
    options = ["--detector", "pixels", "--dataset", "photos", "--limit", 20, "--out", tmp_path / "run"]
    done = in_shell("2>/dev/full", "run", *options)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run")
    assert in_shell("2>/dev/full", "run", "nosuite").returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="there is no sh")
def test_a_reader_that_leaves_ends_the_command_quietly():
    script = '{ "$@"; echo $? >&2; } | :'  # the reader is gone before the command writes
    done = subprocess.run(["sh", "-c", script, "sh", *OODBENCH, "list", "detectors"], capture_output=True, text=True)
    assert done.stderr == "1\n"


LONG = "x" * 300  # file systems take 255 characters


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--detector", "pixels", "--dataset", "photos", "--out", LONG], f"cannot write to {LONG}: File name too long"),
        (["run", "--detector", "pixels", "--seed", 0, "--seed", 1, "--out", LONG], f"{LONG}/seed-0: File name too long"),
        (
            ["run", "--detector", "msp", "--dataset", "photos", "--weights", LONG],
            f"{LONG}: File name too long; choose a shorter",
        ),
        (["run", f"{LONG}.toml"], f"{LONG}.toml: File name too long; choose a shorter name"),
        (["leaderboard", LONG], f"{LONG}: File name too long; choose a shorter name"),
        (["score", LONG, "image.png"], f"{LONG}: File name too long; choose a shorter name"),
    ],
)
def test_a_name_that_is_too_long_takes_one_line(tmp_path, arguments, says):
    done = oodbench(*arguments, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert done.stderr.splitlines()[-1].startswith(f"oodbench: {says}")
    assert "Error:" not in done.stderr


PLUGINS = """
import numpy as np

from oodbench.active_learning import Strategy
from oodbench.datasets.digits import digits
from oodbench.datasets.quality.photos import load
from oodbench.quality.metric import QualityMetric


class Newest(Strategy):
    def select(self, pool, count, random):
        return np.arange(len(pool))[-count:]


class Error(QualityMetric):
    higher_is_better = False

    def compare(self, references, distorted):
        return (references.double() - distorted.double()).abs().mean((1, 2, 3))


def tiles(path, *, data):
    return load(path, data=data)


def numbers(root, split):
    return digits(root, split)
"""


def test_plugins_of_every_family_run_from_the_working_folder(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGINS)
    add = {name: ["--plugin", f"mine:{name}"] for name in ("Newest", "Error", "tiles", "numbers")}
    few = ["--limit", "24", "--no-report", "--out", "run"]
    done = oodbench(
        "run", "photos-quality", *add["Error"], *add["tiles"], "--metric", "psnr", "--dataset", "tiles", *few, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiles, image quality\n")
    rows = [line.split()[0] for line in done.stdout.splitlines() if re.match("error|psnr", line)]
    assert list(dict.fromkeys(rows)) == ["error", "psnr"]  # in a narrow terminal the columns take two tables
    suite = ["run", "digits-active", "--dry-run", *add["Newest"], *add["numbers"]]
    planned = oodbench(*suite, "--dataset", "numbers", "--strategy", "random", cwd=tmp_path)
    assert "tested on numbers, " in planned.stdout, planned.stderr
    assert re.findall("strategy  (.*?) ", planned.stdout) == ["random", "newest"]
    unused = oodbench(*suite, cwd=tmp_path)
    assert unused.returncode == 2
    assert "--plugin adds the dataset numbers, which this run does not use; add --dataset numbers" in unused.stderr
    planned = oodbench("run", "digits", "--dry-run", *add["numbers"], "--dataset", "numbers", cwd=tmp_path)
    assert "outside   numbers " in planned.stdout, planned.stderr
    assert "numbers: " in oodbench("check", *add["numbers"], cwd=tmp_path).stdout


def test_a_network_of_active_learning_is_found_in_the_working_folder_and_needs_trust_elsewhere(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "net.py").write_text("def build(num_classes=10):\n    raise RuntimeError('imported')\n")
    suite = 'task = "active-learning"\nmodel = "net:build"\nin_distribution = "digits"\nstrategies = ["random"]\nrounds = 1\n'
    for name in ("here", "."):
        (tmp_path / name / "own.toml").write_text(f"{suite}start = 32\nquery = 32\n")
    run = ["run", "--no-report", "--out", tmp_path / "run"]
    assert "RuntimeError: imported (net.py, line 2)" in oodbench(*run, "own.toml", cwd=tmp_path / "here").stderr
    refused = oodbench(*run, "../own.toml", cwd=tmp_path / "here")
    assert refused.returncode == 2
    assert "model: net:build is code, which a suite outside the working folder may not name" in refused.stderr
    assert "imported (net.py" in oodbench(*run, "../own.toml", "--trust-model", cwd=tmp_path / "here").stderr
    assert not (tmp_path / "run").exists()
