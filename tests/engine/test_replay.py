"""``oodbench verify --replay``: whether the scores of a run follow from its images and its network."""

import json
import shutil

import numpy as np
import pytest

import oodbench
from oodbench import cli
from oodbench.engine.replay import replay
from oodbench.errors import UsageError
from oodbench.models.train import train
from oodbench.results import bundle, json_files, pass_file
from oodbench.results.folder import RunFolder
from oodbench.results.pass_file import hash_of
from oodbench.results.recompute import figures_of

DETECTORS = [
    "msp",
    "knn",
    "odin",
    "gradcon",
    "pixels",
]  # whose scores need logits, training images, a gradient, training, nothing
SETS = ["photos", "digits+noise@3", "digits+fgsm", "digits+pixel-shift", "digits+misclassified"]
OPTIONS = {"datasets": SETS, "protocols": ["unsupervised", "per-shift"], "limit": 60, "measure_costs": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("replay") / "run"
    return oodbench.run("digits", detectors=DETECTORS, parameters={"gradcon": {"epochs": 1}}, out=out, **OPTIONS).path


def forged(run, tmp_path, set_name="photos", row="msp"):
    """A copy in which one score of each anomalous image was made up, with figures that follow from it."""
    folder = RunFolder(shutil.copytree(run, tmp_path / "forged"))
    path = folder.passes_path / f"{set_name}.safetensors"
    records, stored, settings = pass_file.read_records(path), pass_file.read_arrays(path), pass_file.read_settings(path)
    for place, record in enumerate(records):
        if record.place == (row, "unsupervised"):
            arrays = folder.arrays(record)
            arrays["out_scores"] = arrays["out_scores"] + 0.01
            name = hash_of(arrays["out_scores"])
            stored[name] = arrays["out_scores"]
            figures = figures_of(arrays, record.seed, record.kind)
            changes = {"arrays": record.arrays | {"out_scores": name}, "metrics": figures.metrics}
            records[place] = record.model_copy(update=changes)
    used = {name for record in records for name in record.arrays.values()}
    pass_file.write(path, records, {name: array for name, array in stored.items() if name in used}, settings)
    return folder.path


def test_a_run_is_scored_again_as_it_was(run):
    found = replay(run, 25)
    assert (found.ok, found.problems, found.left_out) == (True, [], [])
    assert list(found.detectors) == DETECTORS
    assert sorted(found.sets) == sorted(SETS[:4])
    rows = len(DETECTORS) + 2  # gradcon has two variants
    assert found.scores == 2 * 25 * rows * 4
    assert found.largest < 0.1
    assert found.tolerances == {"msp": 1e-4, "knn": 1e-4, "odin": 1e-2, "gradcon": 1e-4, "pixels": 1e-4}


def test_scores_that_were_made_up_are_named(run, tmp_path):
    path = forged(run, tmp_path)
    assert oodbench.verify(path).ok
    found = replay(path, 5, detectors=["msp", "knn"])
    (problem,) = found.problems
    assert problem.startswith("msp on photos: 5 of 5 scores of anomalous images differ; row ")
    assert not found.ok
    assert replay(path, 5, detectors=["knn"]).ok


def test_the_draw_is_another_each_time_and_can_be_repeated(run):
    options = {"detectors": ["msp"], "datasets": ["photos"]}
    seeds = {replay(run, 1, **options).seed for _ in range(3)}
    assert len(seeds) == 3
    assert replay(run, 3, seed=7, **options) == replay(run, 3, seed=7, **options)


def test_a_bundle_and_a_study_are_replayed(run, tmp_path):
    bundle.write_bundle(run, tmp_path / "run.zip")
    assert replay(tmp_path / "run.zip", 2, detectors=["msp"], datasets=["photos"]).scores == 4
    options = OPTIONS | {"datasets": ["photos"]}
    study = oodbench.run("digits", detectors=["msp"], seed=[0, 1], out=tmp_path / "study", **options).path
    assert replay(study, 2).scores == 8


def test_other_weights_are_named_and_those_of_the_run_are_found(tmp_path, monkeypatch):
    weights = tmp_path / "mine.safetensors"
    train("resnet8-digits", oodbench.load_dataset("digits", split="train"), out=weights, epochs=1, progress=False)
    options = OPTIONS | {"detectors": ["msp"], "datasets": ["photos"]}
    path = oodbench.run("digits", weights=weights, out=tmp_path / "run", **options).path
    found = replay(path, 2)
    assert (found.ok, found.scores) == (False, 0)
    assert found.problems == [f"{path}: the weights here are not those of the run; name its own with --weights"]
    assert replay(path, 2, weights=weights).ok
    monkeypatch.chdir(tmp_path)
    assert replay(path, 2).ok


def test_what_trains_is_not_replayed_in_another_environment(run, tmp_path):
    path = shutil.copytree(run, tmp_path / "elsewhere")
    manifest = RunFolder(path).manifest()
    elsewhere = manifest.provenance | {"threads": 99, "device": "cuda:0 (a GPU)"}
    json_files.write(path / "run.json", manifest.model_copy(update={"provenance": elsewhere}).model_dump(mode="json"))
    found = replay(path, 2, detectors=["msp", "gradcon"], datasets=["photos"])
    assert list(found.detectors) == ["msp"]
    assert found.left_out == [
        "gradcon: it trains networks, which would get other weights here (device: cuda:0 (a GPU) in the run,"
        f" {manifest.provenance['device']} here)"
    ]
    assert found.tolerances == {"msp": 1e-2}


def test_wrong_use_says_what_to_do(run, tmp_path):
    with pytest.raises(UsageError, match="cannot replay 0 images; give at least 1"):
        replay(run, 0)
    with pytest.raises(UsageError, match="has no unsupervised scores of vim; it has those of gradcon, knn, msp, odin, pixels"):
        replay(run, 1, detectors=["vim"])
    path = shutil.copytree(run, tmp_path / "code")
    manifest = RunFolder(path).manifest()
    suite = manifest.suite | {"model": "os:getcwd"}
    json_files.write(path / "run.json", manifest.model_copy(update={"suite": suite}).model_dump(mode="json"))
    with pytest.raises(UsageError, match="names the model os:getcwd, which is code; if you trust it, use --trust-model"):
        replay(path, 1)


def test_the_command_prints_and_exits(run, tmp_path, monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["oodbench", "verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return exit.value.code or 0, capsys.readouterr()

    few = ("--detector", "msp", "--dataset", "photos", "--replay", 3, "--seed", 0)
    code, printed = command(run, *few)
    assert code == 0
    assert printed.out.endswith("replayed with --seed 0: 6 scores, 1 detector, 1 set: all agree\n")
    code, printed = command(forged(run, tmp_path), *few, "--json")
    about = json.loads(printed.out)
    assert (code, about["ok"], about["problems"]) == (1, False, [])
    assert np.isclose(about["replay"]["scores"], 6)
    assert "scores of anomalous images differ" in about["replay"]["problems"][0]
    code, printed = command(run, "--detector", "msp")
    assert code == UsageError.exit_code
    assert "--detector is for --replay; add --replay N, or leave it out" in printed.err
