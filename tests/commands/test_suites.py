"""Suite files as a user writes them: shown, started with ``oodbench init``, and wrong."""

import os
import re
import subprocess
import sys
import tomllib

import pytest
from new_process import oodbench

from oodbench.errors import UsageError
from oodbench.suite import Suite, TestSet
from oodbench.suites.load import load_study, load_suite, read_study, suite_names
from oodbench.suites.tasks import DETECTION, load_task_suite, task_of


@pytest.mark.parametrize("name", suite_names())
def test_a_suite_that_is_shown_is_a_suite_file(tmp_path, name):
    shown = oodbench("list", "suites", "--show", name)
    assert shown.returncode == 0, shown.stderr
    file = tmp_path / f"{name}.toml"
    file.write_text(shown.stdout, encoding="utf-8")
    load = load_study if task_of(name) == DETECTION else load_task_suite
    assert load(file) == load(name)
    assert "# " in shown.stdout
    assert oodbench("list", "suites", "--show", file).stdout == shown.stdout


def test_only_sound_suites_are_shown(tmp_path):
    (tmp_path / "code.toml").write_text('in_distribution = "digits"\nmodel = "no:such"\ndetectors = 3\nsets = []\n')
    wrong = oodbench("list", "suites", "--show", tmp_path / "code.toml")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "detectors" in wrong.stderr
    (tmp_path / "task.toml").write_text('task = "quality"\nmetrics = []\ndatabases = ["photos"]\n')
    wrong = oodbench("list", "suites", "--show", tmp_path / "task.toml")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "metrics" in wrong.stderr
    unknown = oodbench("list", "suites", "--show", "digit")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "unknown suite 'digit'; did you mean 'digits'?" in unknown.stderr
    other = oodbench("list", "models", "--show", "digits")
    assert other.returncode == 2
    assert "write oodbench list suites --show digits" in other.stderr
    assert "write oodbench list suites --show NAME" in oodbench("list", "models", "--show", "resnet18").stderr
    for option in ("--json", "--check"):
        refused = oodbench("list", "suites", "--show", "digits", option)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"--show prints a suite as TOML; leave out {option}" in refused.stderr


GIVEN = ["--in-distribution", "folder:my data", "--model", "net:build", "--dataset", 'folder:a"b', "--dataset", "digits+haze"]


def test_init_writes_what_the_options_say_with_comments(tmp_path):
    more = ["--detector", "msp", "--detector", "knn", "--protocol", "transfer", "--protocol", "unsupervised", "--size", 24]
    done = oodbench("init", *GIVEN, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["Check what it would run: oodbench run 'my data.toml' --dry-run", "my data.toml"]
    text = (tmp_path / "my data.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text) == {
        "title": 'folder:my data against folder:a"b, digits+haze',
        "model": "net:build",
        "in_distribution": "folder:my data",
        "size": 24,
        "protocols": ["transfer", "unsupervised"],
        "transfer_from": 'folder:a"b',
        "detectors": ["msp", "knn"],
        "sets": [{"name": 'folder:a"b'}, {"name": "digits+haze", "levels": [1, 2, 3, 4, 5]}],
    }
    keys = set(re.findall(r"^(?:# )?(\w+) = ", text, re.MULTILINE))
    assert keys > {"weights", "validation"}
    assert keys - Suite.model_fields.keys() - TestSet.model_fields.keys() == {"k"}  # of knn


def test_what_init_writes_runs(tmp_path):
    done = oodbench("init", "--yes", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "my-digits.toml"
    planned = oodbench("run", "my-digits.toml", "--dry-run", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "folder    runs/my-digits" in planned.stdout
    assert "outside   digits+noise@5 (corruption), 577 images" in planned.stdout
    before = (tmp_path / "my-digits.toml").read_text()
    (tmp_path / "my-digits.toml").write_text("mine")
    refused = oodbench("init", "my-digits.toml", "--yes", cwd=tmp_path)
    assert refused.returncode == 2
    assert "my-digits.toml exists; name another file, or replace it with --force" in refused.stderr
    assert (tmp_path / "my-digits.toml").read_text() == "mine"
    assert oodbench("init", "--yes", "--force", cwd=tmp_path).returncode == 0
    assert (tmp_path / "my-digits.toml").read_text() == before


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "give --in-distribution, --model, --dataset, --detector, --protocol too, or --yes"),
        (
            ["--yes", "--protocol", "validation"],
            "the protocol validation chooses on a set that is not tested; add --validation-set NAME",
        ),
        (["--yes", "--validation-set", "photos"], "--validation-set is for the protocol validation; add --protocol validation"),
        (
            ["--yes", "--protocol", "validation", "--validation-set", "uniform"],
            "validation_set: uniform (test) is also tested, as uniform",
        ),
        (GIVEN, "init can ask on a terminal only; give --detector, --protocol too, or --yes for their defaults"),
        (["--in-distribution", "folder:x", "--yes"], "folder:x has no default network; give --model NAME"),
        (["--yes", "--detector", "mps"], "unknown detector 'mps'; did you mean 'msp'?"),
        (["--yes", "--dataset", "digits+nosie"], "unknown change or attack 'nosie'; did you mean 'noise'?"),
        (["--yes", "--in-distribution", "digits+haze@1"], "in-distribution images are used without corruption"),
        (["--yes", "--protocol", "per_shift"], "unknown protocol 'per_shift'; did you mean 'per-shift'?"),
        (["--yes", "--transfer-from", "uniform"], "add --protocol transfer"),
        (["--yes", "--size", "big"], "--size takes a whole number of pixels, such as 224, not 'big'"),
        (["--yes", "--weights", "gone.pt"], "weights file gone.pt does not exist"),
        (["suite.txt", "--yes"], "the name of a suite file ends in .toml"),
    ],
)
def test_init_names_what_is_missing_or_wrong(tmp_path, options, why):
    done = oodbench("init", *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no pseudo-terminals")
def test_init_asks_on_a_terminal_until_answers_are_right(tmp_path):
    import pty

    answers = [
        "folder:mydata",
        "resnet18",
        "gone.pt",
        "",
        "x",
        "32",
        "folder:other",
        "mps",
        "msp, pixels",
        "transfer",
        "gone",
        "",
    ]
    leader, terminal = pty.openpty()
    with os.fdopen(leader, "w") as typed:
        typed.write("".join(f"{answer}\n" for answer in answers))
        typed.flush()
        command = [sys.executable, "-P", "-m", "oodbench.cli", "init"]
        done = subprocess.run(command, stdin=terminal, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    os.close(terminal)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "mydata.toml"
    for question in ("File of its weights", "Pixels per side", "Detectors", "Set that"):
        assert done.stderr.count(question) == 2
    assert "Detectors, separated by commas [all]:Error: unknown detector 'mps'; did you mean 'msp'?" in done.stderr
    suite = load_suite(tmp_path / "mydata.toml")
    assert (suite.model, suite.size, suite.detectors) == ("resnet18", 32, ["msp", "pixels"])
    assert suite.transfer_from == "folder:other"


def test_a_suite_names_the_weights_of_its_model(tmp_path):
    text = (
        'in_distribution = "digits"\nmodel = "resnet18"\nweights = "gone.pt"\ndetectors = ["msp"]\n[[sets]]\nname = "photos"\n'
    )
    (tmp_path / "it.toml").write_text(text)
    planned = oodbench("run", "it.toml", "--dry-run", cwd=tmp_path)
    assert "fails     weights file gone.pt does not exist" in planned.stdout
    assert "gone.pt" in oodbench("run", "it.toml", cwd=tmp_path).stderr
    other = oodbench("run", "it.toml", "--model", "resnet8-digits", "--no-costs", "--limit", 40, cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    suite = load_suite(tmp_path / "it.toml")
    assert suite.override(batch_size=1).weights == "gone.pt"
    assert "weights" not in suite.recorded()


SOUND = 'in_distribution = "digits"\ndetectors = ["msp"]\n'
SET = '[[sets]]\nname = "photos"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f'in_distribution = "digits"\ndetector = ["msp"]\n{SET}', "unknown key 'detector'; did you mean 'detectors'? (name, "),
        (f"{SOUND}{SET}level = [1]\n", "unknown key 'level'; did you mean 'levels'? (name, kind, levels, "),
        (SOUND, "sets is missing; add [[sets]], each with a name"),
        (f'detectors = "all"\n{SET}', "in_distribution is missing; add in_distribution = …"),
        (f"{SOUND}[[sets]]\nfirst = 3\n", "name of set 1 is missing; add name = …"),
        (
            f'in_distribution = "digits"\ndetectors = ["msp"]\nprotocols = "transfer"\n{SET}',
            'protocols takes a list, not "transfer"; write protocols = ["transfer"]',
        ),
        (f"{SOUND}sets = []\n", "sets is empty; name at least one"),
        (f'in_distribution = "digits"\ndetectors = []\n{SET}', "detectors is empty; name at least one"),
        (f'{SOUND}protocols = ["transfer", "transfer"]\n{SET}', "protocols names transfer twice; remove one"),
        (f'{SOUND}sets = ["photos"]\n', 'set 1 takes a table, not "photos"; write [[sets]] above the name of each set'),
        (f'{SOUND}[sets]\nname = "photos"\n', 'sets takes a list, not {"name": "photos"}; write [[sets]] above'),
        (f'{SOUND}{SET}kind = "nearood"\n', "unknown kind 'nearood' of set photos; did you mean 'near-ood'? (near-ood, "),
        (f"{SOUND}{SET}kind = 3\n", "kind of set photos takes 'near-ood', 'far-ood', "),
        (f'{SOUND}{SET}levels = ["a"]\n', 'item 1 of levels of set photos takes a whole number, not "a"'),
        (f"{SOUND}{SET}first = 0\n", "first of set photos takes at least 1, not 0"),
        (f"{SOUND}[parameters]\nknn = 3\n{SET}", "knn of parameters takes a table, not 3"),
        (f"{SOUND}title = 2020-01-01\n{SET}", 'title takes a text in quotes, not "2020-01-01"'),
    ],
)
def test_what_is_wrong_in_a_suite_file_is_said_with_its_key(text, says):
    with pytest.raises(UsageError, match=f"^suite it.toml: {re.escape(says)}") as raised:
        read_study(text, "it.toml")
    assert not re.search("Input|Field|Extra|valid ", str(raised.value))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('in_distribution = "digits"\ndetectors = ["msp"]\nprotocols = []\nsets = [{name = "uniform"}]\n', "protocols"),
        (
            'in_distribution = "digits"\ndetectors = ["msp"]\nsets = [{name = "uniform", levels = []}]\n',
            "levels of set uniform",
        ),
        (f'{SOUND}sets = [{{name = "digits+haze", levels = []}}]\n', "levels of set digits+haze"),
        (f"{SOUND}sets = [3, {{name = 3, levels = 3}}, {{levels = []}}]\n", "levels of set 3"),
        (
            'task = "active-learning"\nmodel = "m"\nin_distribution = "digits"\nstrategies = ["random"]\ntest_sets = []\n',
            "test_sets",
        ),
        ('task = "active-learning"\nmodel = "m"\nin_distribution = "digits"\nstrategies = ["random"]\nseeds = []\n', "seeds"),
    ],
    ids=["protocols", "levels", "levels of haze", "levels beside wrong types", "test_sets", "seeds"],
)
def test_an_empty_list_is_refused_where_a_default_would_replace_it(tmp_path, text, what):
    (file := tmp_path / "own.toml").write_text(text)
    load = load_study if task_of(file) == DETECTION else load_task_suite
    with pytest.raises(UsageError, match=f"suite .*own.toml: {re.escape(what)} is empty; name at least one, or leave it out"):
        load(file)
