"""``oodbench verify``: what a run says follows from its scores, and any change of its files is named."""

import io
import json
import re
import shutil
from dataclasses import replace

import new_process
import numpy as np
import pytest
from PIL import Image
from run_folders import detection_record, files

import oodbench
from oodbench.calibration import recognition_figures
from oodbench.errors import UsageError
from oodbench.leaderboard.site.report import report
from oodbench.paths import write_atomically
from oodbench.results import json_files, pass_file, verify
from oodbench.results.facts import CorruptionRecord
from oodbench.results.folder import SEVERITY, SHARED, RunFolder
from oodbench.results.pass_file import hash_of
from oodbench.results.study import RANKS, StudyFolder

SETS = ["photos", "uniform", "digits+noise@1", "digits+noise@3"]
MSP = ("msp", "unsupervised")
PROTOCOLS = ["unsupervised", "per-shift", "transfer"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "run"
    options = {
        "detectors": ["msp", "pixels", "mc-dropout"],
        "datasets": SETS,
        "protocols": PROTOCOLS,
        "limit": 60,
        "measure_costs": False,
    }
    folder = oodbench.run("digits", out=path, **options)
    folder.write_costs({"key": {"ms_per_image": 1.0, "overhead": 2.0, "peak_memory_mb": None}})
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, "png")
    write_atomically(folder.path / SEVERITY, picture.getvalue())
    report([folder])
    return folder.path


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory):
    """A run with a set on which the network makes mistakes."""
    options = {"detectors": ["mc-dropout"], "datasets": ["digits+haze@3"], "limit": 60, "measure_costs": False}
    return oodbench.run("digits", out=tmp_path_factory.mktemp("verify") / "mistaken", **options).path


@pytest.fixture
def folder(whole, tmp_path):
    return RunFolder(shutil.copytree(whole, tmp_path / "run"))


def problems(folder: RunFolder) -> list[str]:
    found = oodbench.verify(folder.path)
    assert found.ok == (not found.problems)
    return found.problems


def forge(folder: RunFolder, of: str, place: tuple[str, str], arrays=None, /, **changes) -> None:
    """Change a record, or arrays of it by role, and write the file as oodbench would."""
    path = folder.passes_path / f"{of}.safetensors"
    records, stored, settings = pass_file.read_records(path), pass_file.read_arrays(path), pass_file.read_settings(path)
    for number, record in enumerate(records):
        if record.place == place:
            new = {role: edit(folder.arrays(record)[role].copy()) for role, edit in (arrays or {}).items()}
            roles = record.arrays | {role: hash_of(array) for role, array in new.items()}
            records[number] = record.model_copy(update={"arrays": roles} | changes)
            stored |= {hash_of(array): array for array in new.values()}
    used = {name for record in records for name in record.arrays.values()}
    pass_file.write(path, records, {name: array for name, array in stored.items() if name in used}, settings)


def test_a_run_agrees_with_itself(folder):
    found = oodbench.verify(folder.path)
    assert (found.ok, found.problems) == (True, [])
    records = list(folder.records())
    assert {record.protocol for record in records} == set(PROTOCOLS)
    records += folder.recognition()
    assert (found.records, found.figures) == (len(records), sum(record.status == "ok" for record in records))


def test_several_processes_find_what_one_finds(folder, monkeypatch):
    forge(folder, "photos", MSP, {}, n_in=7)
    forge(folder, "uniform", MSP, {}, n_out=7)
    found = problems(folder)
    monkeypatch.setattr(verify, "MANY", 1)
    assert problems(folder) == found
    assert len(found) == 2


def test_every_flipped_bit_is_noticed(folder):
    before, random = files(folder), np.random.default_rng(0)
    names = [name for name, content in before.items() if content]
    assert {
        "run.json",
        "costs.json",
        "severity.png",
        f"shared/{SHARED}",
        "passes/digits.safetensors",
        "report/site.json",
        "report/index.html",
    } <= {*names}
    for number in range(200):
        name = names[number % len(names)]
        damaged = bytearray(before[name])
        damaged[random.integers(len(damaged))] ^= 1 << random.integers(8)
        (folder.path / name).write_bytes(damaged)
        assert any(name in problem for problem in problems(folder)), (name, number)
        (folder.path / name).write_bytes(before[name])
    assert not problems(folder)


@pytest.mark.parametrize("name", ["study.json", RANKS, SEVERITY, "report/index.html", "report/site.json"])
def test_the_files_of_a_study_are_checked_too(whole, tmp_path, name):
    study = StudyFolder(tmp_path / "study")
    study.begin("study", "", ["seed"], ["a"])
    shutil.copytree(whole, study.path / "a")
    study.note("a", "")
    for picture in (RANKS, SEVERITY):
        shutil.copy(whole / SEVERITY, study.path / picture)
    report(study.runs())
    assert oodbench.verify(study.path).ok
    content = (study.path / name).read_bytes()
    (study.path / name).write_bytes(content.replace(b"\n", b" ", 1) if name.endswith(".json") else content[:-1] + b"x")
    assert [str(study.path / name) in problem for problem in oodbench.verify(study.path).problems] == [True]


def test_every_byte_of_a_header_counts(folder):
    """What names, types and shapes of arrays take, and the blanks behind them."""
    path = folder.passes_path / "photos.safetensors"
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    for place in [*range(0, end, 7), *range(end - 20, end)]:
        for bit in (1, 2, 32):
            damaged = bytearray(content)
            damaged[place] ^= bit
            path.write_bytes(damaged)
            assert any(str(path) in problem for problem in problems(folder)), (place, bit)


def moved(rows: np.ndarray) -> np.ndarray:
    rows[0] += 1
    return rows


FOG = CorruptionRecord(corruption="fog", level=1, origin="official")
EDITS = {
    "a count": ({"n_in": 7}, None, "n_in is 7, but its scores give "),
    "a score": ({}, {"in_scores": lambda scores: scores + np.eye(1, len(scores))[0] * 9}, r"metrics\.\w+ is "),
    "no figure": ({"metrics": None}, None, r"metrics\.auroc is None, but its scores give"),
    "a network": ({"weights_hash": "0" * 16}, None, "its weights_hash is 0000000000000000, but that of the run is "),
    "a seed": ({"seed": 1}, None, "its seed is 1, but that of the run is 0"),
    "a detector": ({"detector": "knn"}, None, "knn on photos .*: the settings of the run do not list its detector"),
    "a protocol": ({"protocol": "oracle"}, None, "oracle is not a protocol"),
    "parameters": ({"parameters": {"k": 3}}, None, "its parameters are {'k': 3}, but those of the run are {}"),
    "an input": ({"fingerprint": "0" * 16}, None, "photos.safetensors holds records of images that differ"),
    "code": ({"code": "0" * 16}, None, "has figures of 2 versions of its code"),
    "a level": (
        {"corruption": CorruptionRecord(corruption="fog", level=1, origin="official")},
        None,
        "its corruption is not the one that its name says",
    ),
    "a status": ({"status": "failed"}, None, "is failed, but has n_in, n_out, metrics"),
    "scores that are missing": ({}, {"out_scores": lambda scores: scores[1:]}, "has 59 images of photos, but its sizes say 60"),
    "scores that are rows": ({}, {"out_scores": lambda scores: np.arange(60)}, "out_scores is not what oodbench stores"),
    "infinite scores": ({}, {"out_scores": lambda scores: scores * np.inf}, "out_scores is not what oodbench stores"),
}


RECOGNITION = {  # of the network after temperature scaling, on digits+noise@3
    "a count": ({"n": 7}, None, "n is 7, but its probabilities give 60"),
    "no figure": ({"figures": None}, None, r"figures\.\w+ is None, but its probabilities give"),
    "a probability": (
        {},
        {"probabilities": lambda of: of + np.array([0, 0, 0, 0.1])},
        "row 0 of its probabilities cannot come from",
    ),
    "a confidence": ({}, {"probabilities": lambda of: of * [0.5, 1, 1, 1]}, "row 0 of its probabilities cannot come from"),
    "an answer": ({}, {"probabilities": lambda of: of * [1, 0, 1, 1]}, "it is correct on other images than network"),
    "half an answer": ({}, {"probabilities": lambda of: of * [1, 0.5, 1, 1]}, "row 0 of its probabilities cannot come from"),
    "fewer images": ({}, {"probabilities": lambda of: of[1:]}, r"has 59 images of digits\+noise@3, but its sizes say 60"),
    "fewer columns": ({}, {"probabilities": lambda of: of[:, 1:]}, r"probabilities is not what oodbench stores .*\(60, 3\)"),
    "infinite values": ({}, {"probabilities": lambda of: of * np.inf}, "row 0 of its probabilities cannot come from"),
    "no array": ({"arrays": {}}, None, "stores nothing in place of probabilities"),
    "a temperature": ({"temperature": 3.0}, None, "network-scaled has several temperatures"),
    "no temperature": ({"temperature": None}, None, "its temperature is None"),
    "an impossible temperature": ({"temperature": -1.0}, None, "its temperature is -1.0"),
    "calibration": ({"calibrated_on": "validation"}, None, "calibrated on validation, but the run calibrates it on training"),
    "a source": ({"source": "knn"}, None, "its detector is none, but its source is knn"),
    "a detector": ({"source": "knn", "detector": "knn"}, None, "the settings of the run do not list its detector"),
    "a kind": ({"kind": "in-distribution"}, None, r"digits\+noise@3 is not the in-distribution set"),
    "a network": ({"weights_hash": "0" * 16}, None, "its weights_hash is 0000000000000000, but that of the run is "),
    "an input": ({"fingerprint": "0" * 16}, None, r"digits\+noise@3.safetensors holds records of images that differ"),
    "a status": ({"status": "skipped"}, None, "is skipped, but has n, figures, temperature"),
}


@pytest.mark.parametrize("edit", RECOGNITION)
def test_an_edit_of_recognition_is_named(folder, edit):
    changes, arrays, says = RECOGNITION[edit]
    forge(folder, "digits+noise@3", ("network-scaled", "recognition"), arrays, **changes)
    found = problems(folder)
    assert any(re.search(says, problem) for problem in found), found


@pytest.mark.parametrize("source", ["network", "mc-dropout"])
def test_a_temperature_that_probabilities_contradict_is_named(mistaken, tmp_path, source):
    """Also where all sets have the same one, and where figures follow from what is stored."""
    folder, name = RunFolder(shutil.copytree(mistaken, tmp_path / "run")), "digits+haze@3"
    assert problems(folder) == []
    place, says = (f"{source}-scaled", "recognition"), f"{source}-scaled on {name} (recognition): its temperature is"
    (found,) = {one.temperature for one in folder.recognition() if one.place == place}
    for each in ("digits", name):
        forge(folder, each, place, temperature=2 * found)
    assert problems(folder) == [f"{says} {2 * found:g}, but its probabilities are scaled by {found:g}"]
    for each in ("digits", name):
        forge(folder, each, place, temperature=found)
    assert problems(folder) == []
    (unscaled,) = (one for one in folder.recognition() if (one.source, one.set_name) == (source, name))
    images = folder.arrays(unscaled)["probabilities"]
    forge(folder, name, place, {"probabilities": lambda _: images}, figures=recognition_figures(images))
    assert problems(folder) == [f"{says} {found:g}, but its probabilities are scaled by 1"]


def test_an_edit_of_a_scaled_detector_is_named(folder):
    place = ("mc-dropout-scaled", "recognition")
    for changes, says in (
        ({"source": "knn-scaled"}, "its detector is mc-dropout, but its source is knn-scaled"),
        ({"temperature": None}, "its temperature is None"),
        ({"temperature": 0.0}, "its temperature is 0.0"),
        ({"temperature": 3.0}, "mc-dropout-scaled has several temperatures"),
        ({"calibrated_on": ""}, "calibrated on nothing, but the run calibrates it on training"),
    ):
        (before,) = (one for one in folder.recognition() if (one.place, one.set_name) == (place, "digits+noise@3"))
        forge(folder, "digits+noise@3", place, **changes)
        found = problems(folder)
        assert any(says in problem for problem in found), found
        now = (changes.get("source", place[0]), "recognition")
        forge(folder, "digits+noise@3", now, **{name: getattr(before, name) for name in changes})
    assert problems(folder) == []
    forge(folder, "digits+noise@3", place, {"probabilities": lambda of: of * [1, 0, 1, 1]})
    assert any("it is correct on other images than mc-dropout" in problem for problem in problems(folder))


def test_an_edited_figure_of_recognition_is_named(folder):
    for name in ("accuracy", "ece", "nll", "brier", "aurc", "excess_aurc"):
        (record,) = (r for r in folder.recognition() if r.set_name == "digits" and r.source == "network")
        edited = record.figures.model_copy(update={name: getattr(record.figures, name) + 1e-6})
        forge(folder, "digits", record.place, figures=edited)
        assert any(f"figures.{name} is " in problem for problem in problems(folder)), name
        forge(folder, "digits", record.place, figures=record.figures)
    assert problems(folder) == []
    forge(folder, "digits", ("network", "recognition"), kind="corruption", fingerprint="0" * 16)
    assert any("digits is the in-distribution set" in problem for problem in problems(folder))
    assert any("but that of the run's in-distribution images is" in problem for problem in problems(folder))


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_named(folder, edit):
    changes, arrays, says = EDITS[edit]
    forge(folder, "photos", MSP, arrays, **changes)
    found = problems(folder)
    assert any(re.search(says, problem) for problem in found), found


def test_a_figure_that_was_edited_a_little_is_named(folder):
    record = next(r for r in folder.records() if r.place == ("msp", "unsupervised") and r.set_name == "photos")
    forge(folder, "photos", MSP, metrics=replace(record.metrics, auroc=record.metrics.auroc + 1e-6))
    (problem,) = problems(folder)
    assert problem.startswith("msp on photos (unsupervised): metrics.auroc is ")


@pytest.mark.parametrize("protocol", ["per-shift", "transfer"])
def test_a_split_that_leaks_is_named(folder, protocol):
    """One image is learnt from in place of another, and tested too."""
    of = "digits+noise@1" if protocol == "transfer" else "photos"
    forge(folder, of, ("pixels", protocol), {"in_fit": moved})
    says = "learns from other images" if protocol == "transfer" else "its split does not hold each in-distribution image once"
    assert any(problem.startswith(f"pixels on {of} ({protocol}): {says}") for problem in problems(folder))


@pytest.mark.parametrize("role", ["in_fit", "in_choose", "out_fit", "out_choose"])
def test_a_test_image_among_those_that_were_learnt_from_is_named(folder, role):
    """It is planted in the stored split, and nothing is taken away."""
    of, side = "digits+noise@1", role.partition("_")[0]
    record = next(r for r in folder.records() if r.place == ("pixels", "per-shift") and r.set_name == of)
    tested = folder.arrays(record)[f"{side}_test"][0]
    forge(folder, of, ("pixels", "per-shift"), {role: lambda rows: np.append(rows, tested)})
    assert any(problem.startswith(f"pixels on {of} (per-shift): ") for problem in problems(folder))


def test_a_learnt_image_among_those_that_transfer_tests_is_named(folder):
    of = "digits+noise@1"
    record = next(r for r in folder.records() if r.place == ("pixels", "transfer") and r.set_name == of)
    learnt = folder.arrays(record)["in_fit"][0]

    def planted(rows):
        rows[0] = learnt
        return rows

    forge(folder, of, ("pixels", "transfer"), {"in_test": planted})
    assert any("tests 1 image that its head learnt from" in problem for problem in problems(folder))


def test_an_image_under_two_numbers_leaks(folder):
    """Rows are apart, but two of them are one image."""
    of = "digits+noise@1"
    record = next(r for r in folder.records() if r.place == ("pixels", "per-shift") and r.set_name == of)
    arrays = folder.arrays(record)
    learnt, tested = arrays["in_fit"][0], arrays["in_test"][0]

    def same(base):
        base[tested] = base[learnt]
        return base

    forge(folder, of, ("pixels", "per-shift"), {"in_base": same})
    assert any("tests 1 image that its head learnt from" in problem for problem in problems(folder))


def test_files_of_other_runs_are_named(folder, tmp_path):
    options = {"detectors": ["msp"], "datasets": ["photos"], "limit": 60, "measure_costs": False, "seed": 1}
    other = oodbench.run("digits", out=tmp_path / "other", **options)
    shutil.copy(other.passes_path / "photos.safetensors", folder.passes_path)
    found = problems(folder)
    assert any("photos.safetensors belongs to a run with other settings than run.json" in problem for problem in found)
    (folder.passes_path / "photos.safetensors").rename(folder.passes_path / "uniform.safetensors")
    assert any("uniform.safetensors holds records of photos; rename it" in problem for problem in problems(folder))


def test_arrays_that_nobody_uses_are_named(folder):
    path = folder.passes_path / "photos.safetensors"
    stored, stray = pass_file.read_arrays(path), np.arange(3)
    pass_file.write(path, pass_file.read_records(path), stored | {hash_of(stray): stray}, pass_file.read_settings(path))
    (problem,) = problems(folder)
    assert problem == f"{path} holds arrays that no record uses ({hash_of(stray)})"


def test_lost_files_are_named(folder):
    (folder.path / "shared" / SHARED).unlink()
    assert any("lacks the arrays of in_scores" in problem for problem in problems(folder))
    (folder.path / "run.json").unlink()
    assert any("has no run.json" in problem for problem in problems(folder))


def test_json_that_was_laid_out_again_is_named(folder):
    for name in ("run.json", "costs.json"):
        path = folder.path / name
        before = path.read_bytes()
        path.write_text(json.dumps(json.loads(before)))
        assert problems(folder) == [f"{path} is not laid out as oodbench writes it, so it was edited"]
        path.write_bytes(before)


def test_a_run_without_checksums_is_not_believed(folder):
    path = folder.path / "run.json"
    about = json.loads(path.read_bytes())
    del about[json_files.CHECKSUM]
    path.write_text(json.dumps(about, indent=1, sort_keys=True))
    assert problems(folder) == [f"{path} is not laid out as oodbench writes it, so it was edited"]


def test_the_slow_check_of_leaks_agrees(folder):
    """Every pair of images, one learnt from and one tested."""
    for record in folder.records():
        if record.protocol == "per-shift" and record.status == "ok":
            arrays = folder.arrays(record)
            apart = {"in": np.arange(60), "out": 60 + np.arange(60)}
            images = {side: arrays.get(f"{side}_base", rows) for side, rows in apart.items()}
            for learnt in verify.LEARNT:
                for tested in verify.TESTED:
                    one, other = (images[role.partition("_")[0]][arrays[role]] for role in (learnt, tested))
                    assert not any(a == b for a in one for b in other)


def test_something_else_is_not_a_run(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is not a run folder"):
        oodbench.verify(tmp_path)


def test_no_run_of_an_older_oodbench_is_recomputed(tmp_path, folder):
    record = detection_record(scoring_version=0)
    pass_file.write(folder.passes_path / "photos.safetensors", [record], {}, folder.manifest().settings)
    assert any("an older oodbench did not store what its figures need" in problem for problem in problems(folder))


def test_the_command(folder):
    done = new_process.oodbench("verify", folder.path)
    records = len([*folder.records(), *folder.recognition()])
    assert (done.returncode, done.stdout.splitlines()[-1].partition(": ")[0]) == (0, str(folder.path))
    assert done.stdout.endswith(": all agree with their scores\n")
    assert f"{records} records" in done.stdout
    forge(folder, "photos", MSP, n_in=7)
    done = new_process.oodbench("verify", folder.path)
    assert done.returncode == 1
    assert done.stdout.startswith("msp on photos (unsupervised): n_in is 7, but its scores give 60\n")
    assert done.stdout.endswith(": 1 problem\n")
    told = json.loads(new_process.oodbench("verify", folder.path, "--json").stdout)
    assert (told["ok"], told["records"], len(told["problems"])) == (False, records, 1)
    assert told["unread"] == 0
    for edited in folder.pass_files():
        edited.write_bytes(b"edited")
    done = new_process.oodbench("verify", folder.path)
    first, *_, last = done.stdout.splitlines()
    assert first.startswith(f"{folder.pass_files()[0]} is damaged, or not a file of oodbench")
    count = len(folder.pass_files())
    assert last == f"{folder.path}: 0 records, 0 with figures, {count} files that cannot be read: {count} problems"


def test_transfer_without_base_rows_learns_from_rows_behind_the_tested_ones(folder):
    """Such as the last in-distribution image, which is then not tested."""
    record = next(r for r in folder.records() if r.protocol == "transfer" and r.status == "ok" and "in_base" not in r.arrays)
    forge(folder, record.set_name, record.place, {"in_test": lambda rows: rows[:1], "in_scores": lambda scores: scores[:1]})
    found = problems(folder)
    assert any("n_in is " in problem for problem in found)
    assert not any("IndexError" in problem for problem in found)


def test_without_run_json_records_are_not_accused(folder):
    (folder.path / "run.json").write_text("{")
    (problem,) = problems(folder)
    assert "run.json cannot be read" in problem
