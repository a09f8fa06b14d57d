"""Studies: several runs of one suite, and what is made of them together."""

import json
import re
import shutil

import numpy as np
import pytest
from matplotlib.text import Text
from new_process import oodbench as command
from safetensors.torch import load_file, save_file

import oodbench
from oodbench.api import StudyResults
from oodbench.errors import BadData, MissingData, OodbenchError, UsageError
from oodbench.leaderboard.aggregate import tally, unique_cells
from oodbench.leaderboard.gather import gather
from oodbench.leaderboard.paired import SetOfCells
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.models.weights import SHIPPED
from oodbench.progress import Progress
from oodbench.results.folder import RunFolder
from oodbench.results.study import StudyFolder, run_folders

FEW = {"detectors": ["msp", "pixels"], "datasets": ["uniform", "digits+noise"], "limit": 40, "measure_costs": False}
FIGURES = ["detector", "protocol", "dataset", "level", "auroc", "fpr95", "n_in", "n_out"]


class Heard(Progress):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of three networks, which differ, and of one of them again."""
    folder = tmp_path_factory.mktemp("weights")
    state = load_file(SHIPPED["resnet8-digits"])
    for number, name in enumerate("abc"):
        scaled = {key: value * (1 + number / 20) if "linear" in key else value for key, value in state.items()}
        save_file(scaled, folder / f"{name}.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "copy.safetensors")
    return folder


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return oodbench.run("digits", seed=[0, 1], out=tmp_path_factory.mktemp("study") / "of-seeds", **FEW)


def test_each_run_of_a_study_is_that_run_alone(seeds, tmp_path):
    assert isinstance(seeds, StudyResults)
    assert list(seeds.results) == ["seed-0", "seed-1"]
    alone = oodbench.run("digits", seed=1, out=tmp_path / "alone", **FEW).frame()
    assert seeds.results["seed-1"].frame()[FIGURES].equals(alone[FIGURES])
    assert seeds.frame().groupby("seed").size().tolist() == [len(alone)] * 2


def test_its_table_shows_means_and_standard_deviations_over_seeds(seeds):
    frame = seeds.frame()
    mine = frame[(frame["detector"] == "pixels") & (frame["protocol"] == "unsupervised") & (frame["dataset"] == "uniform")]
    mean, deviation = mine["auroc"].mean(), np.std(mine["auroc"], ddof=1)
    assert len(mine) == 2
    noisy = frame[(frame["detector"] == "msp") & (frame["protocol"] == "unsupervised") & (frame["dataset"] == "digits+noise")]
    of_seed = noisy.groupby("seed")["auroc"].mean()
    text = str(seeds.table())
    assert "Means of 2 seeds, ± their standard deviation." in text
    assert f"{100 * mean:.1f} ±{100 * deviation:.1f}" in text
    assert f"{100 * of_seed.mean():.1f} ±{100 * np.std(of_seed, ddof=1):.1f}" in text
    assert "±" in seeds._repr_html_()


def test_a_study_keeps_its_table_beside_a_run_of_another_limit(seeds, tmp_path):
    other = oodbench.run("digits", out=tmp_path / "other", **FEW | {"limit": 20})
    alone = tally(gather(run_folders(seeds.path))[0])
    frame, _ = gather([*run_folders(seeds.path), RunFolder(other.path)])
    assert frame[["network", "images"]].drop_duplicates()["images"].tolist() == ["limit 40", "limit 20"]
    both = tally(frame)
    of_study = both.values.index.get_level_values("images") == "limit 40"
    np.testing.assert_array_equal(both.values[of_study].to_numpy(), alone.values.to_numpy())
    np.testing.assert_array_equal(both.spread[of_study].to_numpy(), alone.spread.to_numpy())


def test_checkpoints_are_means_in_a_study_and_rows_apart_otherwise(weights, tmp_path):
    files = [weights / f"{name}.safetensors" for name in "abc"]
    study = oodbench.run("digits", weights=files, out=tmp_path / "study", **FEW)
    folders = run_folders(study.path)
    frame, _ = gather(folders)
    found = tally(frame)
    assert frame["checkpoint"].nunique() == 3
    assert len(found.values) == 4  # msp, and pixels under three protocols
    assert found.spread.loc[found.values.index.get_level_values("detector") == "msp"].notna().all(axis=None)
    assert "Means of 3 checkpoints" in str(study.table())
    noisy = unique_cells(frame).query("detector == 'msp' and dataset == 'digits+noise'").to_dict("records")
    compared = SetOfCells(noisy, StoredScores(folders)).pulls(noisy, {})
    assert len(noisy) == 15  # five levels of each checkpoint
    assert compared.figure == pytest.approx(np.mean([cell["auroc"] for cell in noisy]), abs=1e-12)
    title = " ".join(text.get_text() for text in study.plot("reliability").findobj(Text))
    assert re.search(r"network of resnet8-digits on digits, checkpoint [0-9a-f]{6}, ECE", " ".join(title.split()))
    loose, _ = gather([RunFolder(folder.path) for folder in folders])
    assert len(tally(loose).values) == 12
    assert tally(loose).spread.isna().all(axis=None)
    both, _ = gather([*folders, RunFolder(folders[0].path)])
    assert set(both["network"].unique()) == {"study study", frame["checkpoint"].iloc[0]}
    assert oodbench.verify(study.path).ok
    assert oodbench.verify(study.path).records == len(frame) + len(study.frame("recognition"))


def test_two_files_of_one_network_are_refused_before_anything_runs(weights, tmp_path):
    files = [weights / "a.safetensors", weights / "b.safetensors", weights / "copy.safetensors"]
    with pytest.raises(UsageError, match=r"a\.safetensors and .*copy\.safetensors hold the same weights, so they are not two"):
        oodbench.run("digits", weights=files, out=tmp_path / "study", **FEW)
    assert not (tmp_path / "study").exists()


def test_a_checkpoint_of_another_network_is_refused_before_anything_runs(weights, tmp_path):
    save_file({"x": load_file(weights / "a.safetensors")["linear.weight"]}, tmp_path / "other.safetensors")
    with pytest.raises(BadData, match=r"other\.safetensors does not fit resnet8-digits"):
        oodbench.run("digits", weights=[weights / "a.safetensors", tmp_path / "other.safetensors"], out=tmp_path / "s", **FEW)
    assert not (tmp_path / "s").exists()


def test_a_run_without_weights_is_reported_and_the_others_run(weights, tmp_path):
    options = ["--detector", "msp", "--dataset", "uniform", "--limit", 40, "--no-costs", "--out", tmp_path / "study"]
    files = ["--weights", weights / "a.safetensors", "--weights", tmp_path / "no.pth", "--weights", weights / "b.safetensors"]
    done = command("run", "digits", *files, *options)
    assert done.returncode == 1
    assert "run 2 of 3: no" in done.stderr
    assert "no.pth does not exist" in done.stderr
    assert "Means of 2 checkpoints" in done.stdout
    assert "no, a run of the study: weights file" in " ".join(done.stdout.split())
    assert done.stdout.splitlines()[-1] == str(tmp_path / "study")
    table = command("leaderboard", tmp_path / "study")
    assert table.returncode == 0
    assert "no, a run of the study: weights file" in " ".join(table.stdout.split())
    shutil.copy(weights / "c.safetensors", tmp_path / "no.pth")
    (tmp_path / "no.safetensors").write_bytes((tmp_path / "no.pth").read_bytes())
    files[3] = tmp_path / "no.safetensors"
    again = command("run", "digits", *files, *options)
    assert again.returncode == 0, again.stderr
    assert "Means of 3 checkpoints" in again.stdout
    assert again.stderr.count("already done") == 2


def test_no_run_that_can_start_is_an_error(tmp_path):
    with pytest.raises(MissingData, match="none of 2 runs could start: weights file"):
        oodbench.run("digits", weights=[tmp_path / "a.pth", tmp_path / "b.pth"], out=tmp_path / "study", **FEW)
    assert not (tmp_path / "study").exists()
    StudyFolder(tmp_path / "study").begin("digits", "", ["seeds"], ["seed-0", "seed-1"])  # and the process was killed
    with pytest.raises(BadData, match="has no run yet"):
        oodbench.open_study(tmp_path / "study").table()


def test_a_study_grows_by_further_seeds(seeds, tmp_path):
    shutil.copytree(seeds.path, tmp_path / "study")
    heard = Heard()
    more = oodbench.run("digits", seed=[1, 2], out=tmp_path / "study", progress=heard, **FEW)
    assert list(more.results) == ["seed-0", "seed-1", "seed-2"]
    assert sum("already done" in line for line in heard.lines) == 1


def test_runs_and_studies_do_not_share_a_folder(seeds, tmp_path):
    with pytest.raises(UsageError, match=r"holds a study of several runs; to add to it, give several values"):
        oodbench.run("digits", seed=0, out=seeds.path, **FEW)
    with pytest.raises(UsageError, match="holds a run, not a study of several"):
        oodbench.run("digits", seed=[0, 1], out=seeds.path / "seed-0", **FEW)
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"is not a study and holds letters\.txt"):
        oodbench.run("digits", seed=[0, 1], out=tmp_path, **FEW)
    with pytest.raises(UsageError, match="holds a study of digits, not uniform-only"):
        StudyFolder(seeds.path).begin("uniform-only", "", ["seed"], ["a"])
    with pytest.raises(UsageError, match="holds a study of seed, not weights and seed; choose another folder with --out"):
        StudyFolder(seeds.path).begin("digits", "", ["weights", "seed"], ["a"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is a file; name a folder with --out"):
        oodbench.run("digits", seed=[0, 1], out=tmp_path / "file", **FEW)
    with pytest.raises(UsageError, match="holds several runs; name one of the folders in it"):
        oodbench.open_run(seeds.path)
    with pytest.raises(UsageError, match="is not a study"):
        oodbench.open_study(seeds.path / "seed-0")


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "a/b", ".."])
def test_a_study_names_only_folders_of_its_own(seeds, tmp_path, name):
    shutil.copytree(seeds.path, tmp_path / "study")
    found = json.loads((tmp_path / "study" / "study.json").read_text())
    found["runs"] = {name: ""}
    del found["sha256"]
    (tmp_path / "study" / "study.json").write_text(json.dumps(found))
    with pytest.raises(BadData, match=r"study\.json is not what oodbench writes"):
        oodbench.open_study(tmp_path / "study")


def test_a_damaged_study_file_is_named(seeds, tmp_path):
    shutil.copytree(seeds.path, tmp_path / "study")
    text = (tmp_path / "study" / "study.json").read_text()
    (tmp_path / "study" / "study.json").write_text(text.replace("seed-1", "seed-2"))
    done = command("leaderboard", tmp_path / "study")
    assert (done.returncode, done.stdout) == (1, "")
    assert "study.json is damaged, or was edited" in done.stderr
    heard = Heard()
    again = oodbench.run("digits", seed=[0, 1], out=tmp_path / "study", progress=heard, **FEW)
    assert any("study.json is damaged, or was edited" in line for line in heard.lines)
    assert sum("already done" in line for line in heard.lines) == 2
    (tmp_path / "study" / "study.json").unlink()
    again = oodbench.run("digits", seed=[0, 1], out=tmp_path / "study", **FEW)
    assert list(again.results) == ["seed-0", "seed-1"]
    assert again.missing() == {}


def test_a_run_that_is_not_finished_is_named(seeds, tmp_path):
    shutil.copytree(seeds.path, tmp_path / "study")

    class Interrupts(Progress):
        def say(self, line):
            if line == "run 2 of 3: seed-5":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        oodbench.run("digits", seed=[0, 5, 6], out=tmp_path / "study", progress=Interrupts(), **FEW)
    study = oodbench.open_study(tmp_path / "study")
    assert list(study.missing()) == ["seed-5", "seed-6"]
    StudyFolder(study.path).note("seed-1", "not finished, so means are over fewer runs; run the study again")
    shown = " ".join(str(study.table()).split())
    assert "seed-5, a run of the study: not run; run the study again" in shown
    assert "seed-1, a run of the study: not finished" in shown


def test_a_study_too_large_for_the_disk_is_refused_before_it_starts(tmp_path, monkeypatch):
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OodbenchError, match=r"2 runs will take about \d+ kB, and 1 kB are free there"):
        oodbench.run("digits", seed=[0, 1], out=tmp_path / "study", **FEW)


def test_the_size_on_disk_is_about_what_was_said(seeds):
    heard = Heard()
    oodbench.run("digits", seed=[0, 1], out=seeds.path, progress=heard, **FEW)
    said = next(line for line in heard.lines if "on disk" in line)
    kilobytes = int(said.split(" kB")[0].split()[-1])
    written = sum(path.stat().st_size for path in seeds.path.rglob("*") if path.is_file()) / 1000
    assert kilobytes / 2 < written < 2 * kilobytes


def test_the_plan_of_a_study_names_all_runs(tmp_path):
    done = command("run", "digits", "--seed", 0, "--seed", 1, "--limit", 40, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    first, *_, last = done.stdout.splitlines()
    assert (first, last) == ("study     runs/digits-study, 2 runs; this is seed-0", "also      seed-1")
    assert "disk      about " in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_plan_of_a_study_says_which_weights_are_missing(weights, tmp_path):
    files = ["--weights", weights / "a.safetensors", "--weights", tmp_path / "no.pth"]
    done = command("run", "digits", *files, "--limit", 40, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith(f"also      no, fails: weights file {tmp_path / 'no.pth'} does not exist")


def test_another_set_stands_in_for_a_missing_one(tmp_path):
    file = tmp_path / "stand-in.toml"
    file.write_text(
        'in_distribution = "digits"\ndetectors = ["pixels"]\n[[sets]]\nname = "cifar10c/fog"\nlevels = [1, 2]\n'
        'otherwise = "digits+haze"\n[[sets]]\nname = "uniform"\notherwise = "photos"\n'
    )
    heard = Heard()
    results = oodbench.run(file, out=tmp_path / "run", data=tmp_path, limit=40, measure_costs=False, progress=heard)
    frame = results.frame()
    assert "cifar10c/fog is missing: digits+haze stands in for it" in heard.lines
    assert sorted(frame["dataset"].unique()) == ["digits+haze", "uniform"]
    assert (frame["status"] == "ok").all()


def test_a_class_that_the_set_lacks_is_found_before_anything_runs(tmp_path):
    file = tmp_path / "classes.toml"
    file.write_text(
        'in_distribution = "digits"\nnormal_class = [3, 42]\nprotocols = ["unsupervised"]\ndetectors = ["pixels"]\n[[sets]]\n'
        'name = "digits:not-{normal_class}"\nkind = "anomaly"\n'
    )
    with pytest.raises(UsageError, match="unknown class '42' of digits"):
        oodbench.run(file, out=tmp_path / "study", limit=40, measure_costs=False)
    assert not (tmp_path / "study").exists()
