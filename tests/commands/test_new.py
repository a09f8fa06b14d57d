"""``oodbench new``: what it writes installs, appears, and passes its own tests at once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from oodbench import cli
from oodbench.errors import UsageError

PIP = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]


def new(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["oodbench", "new", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return int(exit.value.code or 0)


LISTED = {
    "detector": "detectors",
    "dataset": "datasets",
    "strategy": "strategies",
    "quality-metric": "quality-metrics",
    "quality-database": "quality-databases",
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("detector", "class-mean"),
        ("dataset", "class"),
        ("strategy", "gini"),
        ("quality-metric", "mean-error"),
        ("quality-database", "textures"),
    ],
)
def test_a_new_package_installs_appears_and_passes_its_tests(kind, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert new(monkeypatch, kind, name, "--license", "mit", "--author", "A. Person") == 0
    *files, folder = capsys.readouterr().out.splitlines()
    assert folder == f"oodbench-{name}"
    assert {Path(file).name for file in files} >= {"pyproject.toml", "README.md", "LICENSE", ".gitignore", "test.yml"}
    assert "Copyright (c) A. Person" in Path(folder, "LICENSE").read_text()

    def run(*command: str, cwd: str = ".") -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "install", *PIP, "--target", str(tmp_path / "site"), f"./{folder}")
    listed = run(sys.executable, "-m", "oodbench.cli", "list", LISTED[kind], "--json")
    assert f'"oodbench_{name.replace("-", "_")}"' in listed  # as installers spell it
    tested = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    assert re.search(r"\d+ passed", tested)
    assert "failed" not in tested
    assert "warning" not in tested
    if kind not in ("detector", "dataset"):
        return
    line = ["run", f"--{kind}", name, *(["--dataset", "photos"] if kind == "detector" else ["--detector", "msp"])]
    run(sys.executable, "-m", "oodbench.cli", *line, "--limit", "40", "--no-costs", "--out", "run")
    owner = f"oodbench_{name.replace('-', '_')} 0.1.0"
    for page in (f"{kind}s/{name}.html".replace("dataset", "set"), "runs/run.html"):
        assert f"<dd>{owner}</dd>" in Path("run/report", page).read_text(), page


def test_the_licence_may_be_that_of_oodbench_or_left_to_the_author(tmp_path, monkeypatch):
    assert new(monkeypatch, "detector", "one", "--out", tmp_path / "one") == 0
    assert "Apache License" in (tmp_path / "one" / "LICENSE").read_text()
    assert 'license = "Apache-2.0"' in (tmp_path / "one" / "pyproject.toml").read_text()
    assert new(monkeypatch, "detector", "two", "--out", tmp_path / "two", "--license", "none") == 0
    assert not (tmp_path / "two" / "LICENSE").exists()
    assert "license" not in (tmp_path / "two" / "pyproject.toml").read_text()


def test_a_new_leaderboard_verifies_and_renders_bundles(tmp_path, monkeypatch):
    assert new(monkeypatch, "leaderboard", "my-board", "--out", tmp_path / "board") == 0
    check = (tmp_path / "board" / ".github" / "workflows" / "check.yml").read_text()
    render = (tmp_path / "board" / ".github" / "workflows" / "render.yml").read_text()
    assert 'oodbench verify "$bundle"' in check
    import oodbench
    from oodbench.results.bundle import write_bundle

    options = {"detectors": ["msp"], "datasets": ["photos"], "limit": 40, "measure_costs": False}
    path = oodbench.run("digits", out=tmp_path / "run", **options).path
    write_bundle(path, tmp_path / "board" / "bundles" / "mine.zip")
    commands = re.findall(r"run: oodbench (.*)", render)
    assert [command.split()[0] for command in commands] == ["leaderboard", "publish"]
    monkeypatch.chdir(tmp_path / "board")
    for command in commands:
        monkeypatch.setattr("sys.argv", ["oodbench", *command.replace("bundles/*.zip", "bundles/mine.zip").split()])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        assert not exit.value.code
    assert "| msp" in Path("LEADERBOARD.md").read_text()
    assert Path("docs/detectors/msp.html").exists()


def test_what_cannot_be_written_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    wrong = {
        ("detector", "msp"): "there is already a detector called msp (oodbench list detectors); choose another name",
        ("dataset", "photos"): "there is already a data set called photos",
        ("strategy", "badge"): "there is already a strategy called badge (oodbench list strategies)",
        ("quality-metric", "psnr"): "there is already a quality metric called psnr (oodbench list quality-metrics)",
        ("quality-database", "photos"): "there is already a quality database called photos",
        ("detector", "../x"): "'../x' is not a name of lower-case letters, digits and hyphens, such as class-mean",
        ("detector", "mine", "--out", tmp_path / "full"): "already exists; name another folder with --out",
    }
    for arguments, says in wrong.items():
        assert new(monkeypatch, *arguments) == UsageError.exit_code
        assert says in capsys.readouterr().err
