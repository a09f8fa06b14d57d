"""The selection of a leaderboard: cells by name, columns, order and names of runs, from Python and from the command."""

import csv
import io
import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
from run_folders import detection_record

import oodbench
from oodbench import cli
from oodbench.api import Results
from oodbench.errors import BadData, UsageError
from oodbench.leaderboard import render, select
from oodbench.leaderboard.aggregate import COLUMNS, ENDS
from oodbench.leaderboard.gather import gather
from oodbench.leaderboard.notes import Disagreement, Machines
from oodbench.leaderboard.sentences import sentence
from oodbench.results.intervals import intervals
from oodbench.results.pass_file import hash_of
from oodbench.results.records import cost_key

SETS = {"photos": "far-ood", "digits+haze@1": "corruption", "digits+haze@2": "corruption", "near": "near-ood"}


def record(detector, dataset, auroc, **more):
    name, _, level = dataset.partition("@")
    metrics = oodbench.evaluate([0.0] * 4 + [1.0] * 4, [0.0, 1.0])
    metrics = metrics.__class__(**vars(metrics) | {"auroc": auroc, "fpr95": 1 - auroc})
    of = {"detector": detector, "dataset": name, "level": int(level) if level else None, "kind": SETS[dataset]}
    return detection_record(**of | {"metrics": metrics, "n_in": 8, "n_out": 2} | more)


@pytest.fixture
def run(tmp_path):
    """run(name, records, machine) -> a run folder, each detector of which costs the length of its name in milliseconds."""

    def run(name, records, machine="cpu (x)"):
        found = Results(tmp_path / name)
        with found.locked():
            found.check_settings({}, provenance={"device": machine, "threads": 1 + ("x" in machine)} if machine else {})
            for of in dict.fromkeys(one.set_name for one in records):
                found.write([one for one in records if one.set_name == of], {})
            costs = {cost_key(one.detector, {}, None): float(len(one.detector)) for one in records}
            found.write_costs({k: {"ms_per_image": ms, "overhead": ms, "peak_memory_mb": None} for k, ms in costs.items()})
        return found

    return run


@pytest.fixture
def several(run):
    records = [record("msp", name, 0.6) for name in SETS] + [record("gradcon", name, 0.7) for name in SETS]
    records += [record("gradcon", name, 0.8, variant="recon") for name in ("photos", "near")]
    return run("several", [*records, record("msp", "photos", 0.9, protocol="transfer", transfer_from="near")])


def chosen(frame, **options):
    found = select(frame, **options)
    levels = found["level"].map(lambda level: "" if pd.isna(level) else f"@{level:.0f}")
    return sorted(set(found["detector"])), sorted(set(found["dataset"] + levels)), sorted(set(found["protocol"]))


def test_cells_are_selected_by_each_name(several):
    frame = several.frame()
    assert len(select(frame)) == len(frame)
    assert chosen(frame, detectors="gradcon")[0] == ["gradcon", "gradcon:recon"]
    assert chosen(frame, detectors=["gradcon:recon", "msp"])[0] == ["gradcon:recon", "msp"]
    assert chosen(frame, datasets="digits+haze")[1] == ["digits+haze@1", "digits+haze@2"]
    assert chosen(frame, datasets=["digits+haze@2", "near"])[1] == ["digits+haze@2", "near"]
    assert chosen(frame, kinds=["far-ood", "near-ood"])[1] == ["near", "photos"]
    assert chosen(frame, protocols="transfer", detectors="msp") == (["msp"], ["photos"], ["transfer"])
    assert select(frame, datasets="near").index.isin(frame.index[frame["dataset"] == "near"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detectors": "gradcn"}, "unknown detector 'gradcn'; did you mean 'gradcon'? (the runs hold msp, gradcon)"),
        ({"detectors": "gradcon:rcon"}, "unknown detector 'gradcon:rcon'; did you mean 'gradcon:recon'?"),
        ({"detectors": "energy"}, "none of the runs holds the detector 'energy'; the runs hold msp, gradcon"),
        ({"detectors": "msp,gradcon"}, "repeat the option (--detector msp --detector gradcon)"),
        ({"datasets": "phtos"}, "unknown dataset 'phtos'; did you mean 'photos'? (the runs hold digits+haze, near, photos)"),
        ({"datasets": "digits+haze@5"}, "none of the runs holds the dataset 'digits+haze@5'; the runs hold"),
        ({"kinds": "far"}, "unknown kind 'far'; did you mean 'far-ood'?"),
        ({"kinds": "benign"}, "none of the runs holds the kind 'benign'; the runs hold corruption, near-ood, far-ood"),
        ({"protocols": "transfr"}, "unknown protocol 'transfr'; did you mean 'transfer'? (the runs hold"),
        ({"protocols": "per-shift"}, "none of the runs holds the protocol 'per-shift'; the runs hold"),
        ({"datasets": "near", "protocols": "transfer"}, "no cell is of dataset near and protocol transfer; leave one of"),
    ],
)
def test_a_name_that_no_run_holds_is_an_error_that_names_what_they_hold(several, options, message):
    with pytest.raises(UsageError) as raised:
        select(several.frame(), **options)
    assert message in str(raised.value)


def test_tables_show_the_parts_that_are_asked_for(several):
    frame = several.frame()
    head = {name: part for part, name in (("sets", "photos"), ("means", "4 cells"), ("costs", "ms/image"))}
    for part in head.values():
        for format in ("table", "md", "tex"):
            text = render(frame, format, columns=part)
            assert {of for name, of in head.items() if name in text} == {part}, (format, part)
    assert "In means over sets" not in render(frame, columns="sets")
    assert "Overhead" not in render(frame, columns=["sets", "means"])
    text = render(frame, columns="severity")
    assert text.startswith("Severity: net")
    assert "photos" not in text
    with pytest.raises(
        UsageError, match=r"unknown column 'mean'; did you mean 'means'\? \(this format has sets, means, costs, se"
    ):
        render(frame, columns="mean")
    with pytest.raises(UsageError, match="unknown column 'severity'"):
        render(frame, columns="severity", metric="fpr95")
    with pytest.raises(BadData, match="no corruption has figures at two levels"):
        render(select(frame, datasets="photos"), columns="severity")


def test_files_hold_the_columns_that_are_asked_for_in_their_order(several):
    frame = several.frame()
    text = render(frame, "csv", columns=["auroc", "level", "detector"])
    assert text.splitlines()[:2] == ["auroc,level,detector", "0.6,1,msp"]
    rows = json.loads(render(frame, "json", columns="dataset", sort="detector"))
    assert [list(row) for row in rows] == [["dataset"]] * len(frame)
    with pytest.raises(UsageError, match="unknown column 'aurok'; did you mean 'auroc'"):
        render(frame, "csv", columns=["aurok"])
    with pytest.raises(UsageError, match="unknown metric 'fpr'; did you mean 'fpr95'"):
        render(frame, "csv", metric="fpr")


@pytest.mark.parametrize(
    ("sort", "expected", "caption"),
    [
        ("mean", ["gradcon", "msp", "gradcon:recon"], "best mean over all sets first"),
        ("detector", ["gradcon", "gradcon:recon", "msp"], "sorted by name"),
        ("overhead", ["msp", "gradcon", "gradcon:recon"], "lowest cost first"),
        ("photos", ["gradcon:recon", "gradcon", "msp"], "best on photos first"),
        ("corruption", ["gradcon", "msp", "gradcon:recon"], "best mean over corruption sets first"),
    ],
)
def test_rows_are_sorted_as_asked(several, sort, expected, caption):
    frame = select(several.frame(), protocols="unsupervised")
    text = render(frame, "md", sort=sort)
    assert re.findall(r"^\| ([a-z:]+) +\| unsupervised", text.partition("### Severity")[0], re.MULTILINE) == expected
    assert caption in text
    of_file = [row["detector"] for row in json.loads(render(frame, "json", sort=sort))]
    assert list(dict.fromkeys(of_file)) == expected
    with pytest.raises(UsageError, match="unknown order 'photo'; did you mean 'photos'"):
        render(frame, sort="photo")


def test_a_label_gives_a_run_tables_of_its_own(run):
    one, two = run("one", [record("msp", "photos", 0.6)]), run("two", [record("msp", "photos", 0.7)])
    frame, notes = gather([one, two], labels={two.path: "Ours | 2"})
    text = render(frame, "md", notes=notes)
    assert re.findall("^### (.*)$", text, re.MULTILINE) == [
        "net, in-distribution digits",
        r"Ours \| 2, in-distribution digits",
    ]
    assert frame["auroc"].tolist() == [0.6, 0.7]
    assert "disagree" not in text


def test_cells_on_which_runs_disagree_are_named(run):
    same = [record("knn", "photos", 0.5), record("msp", "digits+haze@1", 0.6)]
    one = run("one", [*same, record("msp", "photos", 0.6), record("gradcon", "near", 0.7)])
    two = run("two", [*same, record("msp", "photos", 0.65), record("gradcon", "near", 0.7001)])
    _, notes = gather([one, two])
    (found,) = (note for note in notes if isinstance(note, Disagreement))
    assert found.about == ("msp (unsupervised) on photos",)
    assert sentence(found) == (
        f"Runs disagree on 1 cell, AUROC ×100: msp (unsupervised) on photos (60.0 in {one.path}, 65.0 in {two.path})."
        " The last run counts; name the runs apart with --label."
    )
    assert not [note for note in gather([one, one])[1] if isinstance(note, Disagreement)]


def test_costs_of_different_machines_are_marked(run):
    one, same = run("one", [record("msp", "photos", 0.6)]), run("same", [record("energy", "photos", 0.6)])
    other = run("other", [record("knn", "photos", 0.5)], machine="cuda (H)")
    frame, notes = gather([one, same])
    assert "machine" not in frame
    assert "3.00×" in render(frame)
    frame, notes = gather([one, same, other])
    (note,) = (note for note in notes if isinstance(note, Machines))
    text = " ".join(render(frame, notes=notes).split())
    assert "3.00 a 3.00× a" in text
    assert "6.00 a 6.00× a" in text
    assert "3.00 b 3.00× b" in text
    assert "they do not compare. a: cpu (x), 2 threads; b: cuda (H), 1 thread." in text
    rows = list(csv.DictReader(io.StringIO(render(frame, "csv"))))
    assert list(rows[0]) == [*COLUMNS, "machine"]
    assert {row["detector"]: row["machine"] for row in rows}["knn"] == "cuda (H), 1 thread"
    assert sentence(note) in text
    _, notes = gather([run("old", [record("vim", "photos", 0.5)], machine=""), other])
    assert sentence(notes[-1]).endswith(" a: an unknown machine; b: cuda (H), 1 thread.")
    kept, notes = gather([one, other], keep=lambda frame: select(frame, detectors="knn"))
    assert kept["detector"].tolist() == ["knn"]
    assert notes == []


def leaderboard(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["oodbench", "leaderboard", *map(str, options)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_the_command_selects_alike(several, run, monkeypatch, capsys):
    options = "--detector gradcon --dataset photos --dataset near --kind near-ood --protocol unsupervised"
    file = "--format csv --columns detector --columns fpr95"
    assert leaderboard(monkeypatch, several.path, *options.split(), *file.split()) == 0
    out = capsys.readouterr().out
    kept = select(several.frame(), detectors="gradcon", datasets=["photos", "near"], kinds="near-ood", protocols="unsupervised")
    assert out == render(kept, "csv", columns=["detector", "fpr95"])
    assert out.splitlines()[0] == "detector,fpr95"
    assert [line.split(",")[0] for line in out.splitlines()[1:]] == ["gradcon", "gradcon:recon"]
    table = ["--metric", "fpr95", "--columns", "sets", "--sort", "detector", "--label", f"{several.path}/=Ours"]
    assert leaderboard(monkeypatch, several.path, *table) == 0
    out = capsys.readouterr().out
    assert out.startswith("Ours, in-distribution digits\nFPR95 ×100 (lower is better), sorted by name.")
    for wrong in ("nowhere=Ours", str(several.path), f"{several.path}="):
        assert leaderboard(monkeypatch, several.path, "--label", wrong) == 2
        assert "--label takes RUN=NAME, where RUN is one of" in capsys.readouterr().err
    assert leaderboard(monkeypatch, several.path, "--detector", "knn") == 2
    assert "none of the runs holds the detector 'knn'; the runs hold msp, gradcon" in capsys.readouterr().err


def scored(name, level=None, kind="far-ood", **more):
    """A record and its arrays by hash."""
    random = np.random.default_rng(len(name))
    arrays = {"in_scores": random.normal(size=40), "out_scores": random.normal(1, 1, 30)}
    figures = {"metrics": oodbench.evaluate(**arrays), "arrays": {role: hash_of(of) for role, of in arrays.items()}}
    of = detection_record(dataset=name, level=level, kind=kind, n_in=40, n_out=30, **figures | more)
    return of, {hash_of(array): array for array in arrays.values()}, arrays


@pytest.fixture
def with_scores(tmp_path):
    """Run folder with one far set, two levels of haze, a benign set and a skipped set; and the scores by set."""
    found = Results(tmp_path / "scored")
    cells = [
        scored("far"),
        *(scored("digits+haze", level, "corruption") for level in (1, 2)),
        scored("digits+shift", kind="benign"),
    ]
    with found.locked():
        found.check_settings({})
        for record, arrays, _ in cells:
            found.write([record], arrays)
        found.write([detection_record(dataset="gone", status="skipped", reason="no")], {})
    return found, {record.set_name: arrays for record, _, arrays in cells}


def test_files_hold_all_intervals(with_scores):
    folder, scores = with_scores
    frame, _ = gather([folder], intervals="all")
    for row in json.loads(render(frame, "json")):
        name = row["dataset"] if row["level"] is None else f"{row['dataset']}@{row['level']}"
        found = {figure: (row[f"{figure}_low"], row[f"{figure}_high"]) for figure in ("aupr_out", "aupr_in", "fpr95")}
        assert list(row)[-6:] == list(ENDS)
        assert found == (intervals(*scores[name].values()) if name in scores else dict.fromkeys(found, (None, None)))
    assert render(frame, "csv", columns="fpr95_high").splitlines()[0] == "fpr95_high"
    plain, _ = gather([folder])
    assert render(plain, "csv").splitlines()[0] == ",".join(COLUMNS)


@pytest.mark.parametrize("metric", ["auroc", "aupr_out", "aupr_in", "fpr95"])
@pytest.mark.parametrize("format", ["table", "md", "tex"])
def test_tables_show_the_intervals_of_single_cells(with_scores, metric, format):
    folder, scores = with_scores
    frame, _ = gather([folder], intervals=metric)
    text = render(frame, format, metric=metric, intervals=True).replace("\\", "")
    value = oodbench.evaluate(*scores["far"].values())
    low, high = (value.auroc_low, value.auroc_high) if metric == "auroc" else intervals(*scores["far"].values())[metric]
    assert f"{100 * getattr(value, metric):.1f} [{100 * low:.1f}, {100 * high:.1f}]" in text
    shift = scores["digits+shift"].values()
    low, high = intervals(*shift)["fpr95"]
    assert f"{100 - 100 * oodbench.evaluate(*shift).fpr95:.1f} [{100 - 100 * high:.1f}, {100 - 100 * low:.1f}]" in text
    assert len(re.findall(r"\d \[", text)) == 2  # means and figures over levels have none
    assert "In brackets: 95 % intervals" in " ".join(text.split())
    assert "[" not in render(frame, "table", metric=metric)


def test_an_interval_that_there_is_not_is_an_error(with_scores, monkeypatch, capsys):
    folder, _ = with_scores
    assert leaderboard(monkeypatch, folder.path, "--interval", "--metric", "detection_error") == 2
    assert "detection_error has no interval; choose one of auroc, aupr_out, aupr_in, fpr95" in capsys.readouterr().err
    assert leaderboard(monkeypatch, folder.path, "--interval", "--format", "csv", "--columns", "fpr95_low") == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    with pytest.raises(BadData, match="the frame lacks the columns fpr95_low; take it from gather with intervals='fpr95'"):
        render(folder.frame(), metric="fpr95", intervals=True)
