"""Run folders gathered to one frame and its notes: no row mixes networks or transfers, and every note is given once."""

import csv
import io
import json
import re
from types import SimpleNamespace

import pandas as pd
import pytest
from run_folders import detection_record

import oodbench
from oodbench.api import Results
from oodbench.leaderboard import gather as gathering
from oodbench.leaderboard.aggregate import COLUMNS, QUALIFIERS, means, pivot, unique_cells
from oodbench.leaderboard.brief import brief
from oodbench.leaderboard.formats import render
from oodbench.leaderboard.frame import FACTS
from oodbench.leaderboard.labels import labelled
from oodbench.leaderboard.notes import DRAWN_ONCE, LOOK_ALIKES, Cue, Missing, Remark, table_notes
from oodbench.leaderboard.sentences import sentence
from oodbench.leaderboard.severity import curves
from oodbench.results.json_files import Manifest
from oodbench.results.records import cost_key
from oodbench.suites.load import load_suite


def row(detector, auroc=0.5, protocol="unsupervised", dataset="a", **more):
    """One row of a run's frame; facts other than text are written as JSON."""
    of = {"model": "net", "in_distribution": "digits", "detector": detector, "protocol": protocol, "dataset": dataset}
    of |= {"kind": "far-ood", "level": None, "seed": 0, "status": "ok", "reason": "", "auroc": auroc}
    of |= {"weights": "0123456789", "in_fingerprint": "feed", "fingerprint": "", "transfer_from": "", "auroc_clean": None}
    of |= {"train_fingerprint": "ace"}
    of |= {"non_default": {}, "attack": {}, "calibration": {}, "sizes": {"digits (test)": (5, 10)}} | more
    facts = {key: json.dumps(value, sort_keys=True) if value else "" for key, value in of.items() if isinstance(value, dict)}
    return of | facts


@pytest.fixture
def gather(monkeypatch):
    """gather(run=[rows], other=[rows]) -> the frame with labels, and the notes in words."""

    def gather(**runs):
        frame, notes = gather.raw(**runs)
        return labelled(frame), list(map(sentence, notes))

    def raw(**runs):
        folders = [
            SimpleNamespace(path=n, name=n, study=None, rows=rows, manifest=lambda: Manifest(settings={}))
            for n, rows in runs.items()
        ]
        return gathering.gather(folders)

    gather.raw = raw
    monkeypatch.setattr(gathering, "frame_of", lambda folder: pd.DataFrame(folder.rows).reindex(columns=[*COLUMNS, *FACTS]))
    return gather


@pytest.fixture
def folder(tmp_path):
    """folder(cells) -> a run folder of these cells."""

    def make(cells):
        found = Results(tmp_path / "run")
        with found.locked():
            found.check_settings({})
            for name in dict.fromkeys(cell.set_name for cell in cells):
                found.write([cell for cell in cells if cell.set_name == name], {})
        return found

    return make


def record(detector, dataset="a", **more):
    figures = oodbench.evaluate([0.0, 1.0], [0.0, 1.0])
    return detection_record(**{"detector": detector, "dataset": dataset, "metrics": figures} | more)


def test_one_name_for_two_networks_is_told_apart(gather):
    runs = {"one": [row("msp", 0.5)], "two": [row("msp", 0.7, weights="abcdef0123")]}
    found, notes = gather(**runs)
    assert found.model.tolist() == ["net #012345", "net #abcdef"]
    assert found.in_distribution.tolist() == ["digits", "digits"]
    assert list(found.columns) == list(COLUMNS)
    assert notes == ["Parts of official sets, so not the whole sets' figures: digits (test) 5 of 10 images."]
    raw, _ = gather.raw(**runs)
    assert (raw.model.tolist(), raw.network.tolist()) == (["net", "net"], ["0123456789", "abcdef0123"])
    assert list(raw.columns) == [*COLUMNS, *QUALIFIERS.values()]
    assert means(raw)[["model", "network", "all"]].values.tolist() == [["net", "0123456789", 0.5], ["net", "abcdef0123", 0.7]]
    for format in ("table", "md", "csv", "json"):
        assert "net #abcdef" in render(raw, format)


def test_one_name_for_two_in_distribution_sets_is_told_apart(gather):
    """By the test images, not by the negatives that an attack left of them."""
    attacked = row("msp", dataset="digits+pgd", kind="adversarial", in_fingerprint="cafe")
    found, _ = gather(one=[attacked, row("msp")], two=[row("msp")])
    assert set(found.in_distribution) == {"digits"}
    found, _ = gather(one=[attacked, row("msp")], two=[row("msp", dataset="b", in_fingerprint="beef")])
    assert found.in_distribution.tolist() == ["digits #feed", "digits #feed", "digits #beef"]


def test_runs_fitted_on_other_training_images_are_told_apart(gather):
    """Of the same test images, and also where no detector is in both."""
    one, two = [row("knn", train_fingerprint="abcdefgh")], [row("vim", train_fingerprint="01234567")]
    assert set(gather(one=one, again=one)[0].in_distribution) == {"digits"}
    assert gather(one=one, two=two)[0].in_distribution.tolist() == [
        "digits (training images #abcdef)",
        "digits (training images #012345)",
    ]
    found, _ = gather(one=one, two=two, three=[row("msp", in_fingerprint="beef", train_fingerprint="abcdefgh")])
    assert found.in_distribution.tolist() == [
        "digits (#feed, training images #abcdef)",
        "digits (#feed, training images #012345)",
        "digits #beef",
    ]
    seeds, _ = gather(one=one, two=[row("knn", train_fingerprint="01234567", seed=1)])
    assert set(seeds.in_distribution) == {"digits (training images #abcdef)", "digits (training images #012345)"}


def test_headings_say_in_which_options_runs_differ(gather):
    one, two = {"about": {"limit": 300, "seed": 0}}, {"about": {"limit": None, "seed": 0}, "in_fingerprint": "beef"}
    found, _ = gather(one=[row("msp", **one)], two=[row("msp", **two)])
    assert found.in_distribution.tolist() == ["digits (limit 300)", "digits (no limit)"]
    three = {"about": {"limit": 300, "seed": 1}, "in_fingerprint": "cafe"}
    raw, _ = gather.raw(one=[row("msp", **one)], two=[row("msp", **two)], three=[row("msp", **three)])
    titles = re.findall("in-distribution (.*)", render(raw, "md", columns="sets"))
    assert titles == ["digits (limit 300, seed 0)", "digits (no limit, seed 0)", "digits (limit 300, seed 1)"]
    given, own = {"about": {"weights": "b_1.pth"}, "weights": "fedcba"}, {"about": {"weights": None}}
    raw, _ = gather.raw(one=[row("msp", **own)], two=[row("msp", **given)])
    for format, name in (
        ("table", "net (weights b_1.pth)"),
        ("md", r"net (weights b\_1.pth)"),
        ("tex", r"net (weights b\_1.pth)"),
    ):
        text = render(raw, format)
        assert name in text
        assert "net (default weights)" in text
    assert brief(raw).splitlines()[0].startswith("net (default weights), in-distribution digits")
    # Hashes stay where the options are the same, or not known.
    found, _ = gather(one=[row("msp", **given)], two=[row("msp", **given | {"weights": "abcdef"})])
    assert found.model.tolist() == ["net #fedcba", "net #abcdef"]
    found, _ = gather(one=[row("msp", **own)], two=[row("msp", weights="abcdef")])
    assert found.model.tolist() == ["net #012345", "net #abcdef"]


def test_one_name_for_two_makings_of_a_set_is_told_apart(gather):
    weak, strong = (
        row("msp", auroc, dataset="digits+pgd", fingerprint=made) for auroc, made in ((0.6, "aaaaaa1"), (0.9, "bbbbbb1"))
    )
    same = row("msp", dataset="photos", fingerprint="cccccc1")
    missing = row("knn", None, dataset="digits+pgd", status="skipped")
    found, _ = gather(one=[weak, same], two=[strong, same, missing])
    assert dict(zip(found.dataset, found.auroc.fillna(0), strict=True)) == {
        "digits+pgd #aaaaaa": 0.6, "photos": 0.5, "digits+pgd #bbbbbb": 0.9, "digits+pgd": 0,
    }  # fmt: skip


def test_two_makings_of_a_corruption_are_two_curves_of_one_corruption(gather):
    haze = {"dataset": "digits+haze", "kind": "corruption"}
    runs = {
        name: [row("msp", auroc + level / 10, level=level, fingerprint=f"{name}{level}", **haze) for level in (1, 2)]
        for name, auroc in (("one", 0.5), ("two", 0.6))
    }
    raw, _ = gather.raw(**runs)
    assert curves(raw).reset_index()["corruption"].tolist() == ["haze"] * len(curves(raw))
    assert sorted(curves(raw)[1].dropna()) == pytest.approx([0.6, 0.7])
    assert "1 corruption of digits" in render(raw)
    assert pivot(raw).columns.names == ["group", "name", "content"]
    assert means(raw)["all"].tolist() == pytest.approx([0.7])


def test_what_a_transfer_learnt_from_is_noted_and_two_are_told_apart(gather):
    one = [row("x", protocol="transfer", transfer_from="b")]
    found, notes = gather(one=one)
    assert found.protocol.tolist() == ["transfer"]
    assert notes[0] == "transfer: heads learnt from b alone, which has no cell there and is not part of the means."
    runs = {"one": one, "two": [row("x", 0.7, protocol="transfer", transfer_from="c", dataset="b")], "plain": [row("x")]}
    found, notes = gather(**runs)
    assert found.protocol.tolist() == ["transfer from b", "transfer from c", "unsupervised"]
    assert notes[1].startswith("transfer: heads learnt from c alone")
    assert notes[1].endswith(" (two)")
    raw, _ = gather.raw(**runs)
    assert raw.protocol.tolist() == ["transfer", "transfer", "unsupervised"]
    rows = means(raw).set_index("source")
    assert rows["all expected"].to_dict() == {"": 2, "b": 1, "c": 1}  # each transfer has places of its own
    assert "transfer from c" in render(raw)


def test_one_name_for_two_settings_of_a_detector_is_told_apart(gather):
    """Only where it is the same network and in-distribution set, and by what differs."""
    far, farther = ({"non_default": {"k": [k, 50]}} for k in (200, 500))
    one = [row("knn", 0.5), row("msp", 0.6)]
    two = [row("knn", 0.7, **far), row("knn", 0.8, **far, dataset="b")]
    found, _ = gather(one=one, two=two, three=[row("knn", 0.9, **farther)])
    assert found.detector.tolist() == ["knn", "msp", "knn (k=200)", "knn (k=200)", "knn (k=500)"]
    assert found.auroc.tolist() == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert set(gather(two=two)[0].detector) == {"knn"}
    assert set(gather(one=one, other=[row("knn", 0.7, **far, in_distribution="letters")])[0].detector) == {"knn", "msp"}


def test_what_a_suite_changed_is_noted_once(folder):
    lowered = {"parameters": {"epochs": 5}, "non_default": {"epochs": [5, 1000], "alpha": [0.5, 0.03]}}
    cells = [record("gradcon", variant=v, dataset=s, **lowered) for v in ("", "recon") for s in "ab"]
    cells.append(record("gradcon", dataset="c", status="failed", reason="no", **lowered))
    found = folder(cells).frame()
    remark = "alpha 0.5 (default 0.03), epochs 5 (default 1000)"
    assert sorted(found.reason) == [remark] * 4 + ["no"]
    assert set(found.detector) == {"gradcon", "gradcon:recon"}
    text = render(found, width=None)
    assert text.count(f"gradcon, gradcon:recon: {remark}") == 1
    assert "– 1 cell failed (gradcon): no" in text
    assert remark in {row["reason"] for row in json.loads(render(found, "json"))}
    assert remark in {row["reason"] for row in csv.DictReader(io.StringIO(render(found, "csv")))}


def test_sets_stand_in_the_order_of_the_suite(tmp_path):
    suite = load_suite("digits").override(datasets=["uniform", "digits+haze@2", "photos", "digits-heldout"])
    found = Results(tmp_path / "run")
    levels = {"digits+haze": 2}
    with found.locked():
        found.check_settings({}, suite=suite.model_dump(mode="json"))
        for name in ("photos", "a-set-of-an-earlier-run", "uniform", "digits+haze", "digits-heldout"):
            found.write([record("msp", name, level=levels.get(name)), record("knn", name, level=levels.get(name))], {})
    order = ["uniform", "digits+haze", "photos", "digits-heldout", "a-set-of-an-earlier-run"]
    assert found.frame()["dataset"].unique().tolist() == order
    raw, _ = gathering.gather([found])
    assert raw["dataset"].tolist() == [name for name in order for _ in range(2)]
    assert [name for _, name, _ in pivot(raw).columns[:5]] == order


def remarks(rows):
    cells = unique_cells(pd.DataFrame(rows).reindex(columns=list(COLUMNS)))
    return table_notes(cells, cells)


def test_what_one_seed_gave_is_noted_where_no_spread_shows_it(folder):
    rows = [record("duq", drawn_once=True), record("gradcon", drawn_once=True, non_default={"k": [2, 1]}), record("msp")]
    found = folder(rows).frame()
    assert found.reason.tolist() == [DRAWN_ONCE, f"k 2 (default 1); {DRAWN_ONCE}", ""]
    text = render(found, width=None)
    assert text.count(f"duq, gradcon: {DRAWN_ONCE}") == text.count(DRAWN_ONCE) == 1
    of_two = [row("duq", reason=DRAWN_ONCE, seed=seed) for seed in (0, 1)]
    of_one = [row("gradcon", reason=DRAWN_ONCE), row("duq", reason=f"k 2 (default 1); {DRAWN_ONCE}", protocol="transfer")]
    assert remarks(of_two) == []
    assert remarks(of_two + of_one) == [Remark(("duq", "gradcon"), DRAWN_ONCE), Remark(("duq",), "k 2 (default 1)")]


def test_look_alikes_stand_in_each_row_and_below_the_tables_by_set(folder):
    found = folder([record("msp", look_alikes=60), record("knn")]).frame()
    assert found.reason.tolist() == [f"60 {LOOK_ALIKES}", ""]
    text = render(found, width=None)
    assert LOOK_ALIKES not in text


def test_a_variant_costs_what_its_detector_costs(folder):
    found = folder([record("gradcon", variant=v) for v in ("", "recon")])
    found.write_costs({cost_key("gradcon", {}, None): {"ms_per_image": 2.0, "overhead": 3.0, "peak_memory_mb": None}})
    assert found.frame().overhead.tolist() == [3, 3]


def test_probabilities_of_a_detectors_own_are_noted_once(gather):
    figures = {"accuracy": 0.91, "ece": 0.0312, "nll": 1.25, "brier": 0.1}
    network = {f"network_{name}": value / 2 for name, value in figures.items()}
    rows = [row("introspective", dataset=s, calibration=figures | network) for s in "ab"] + [row("own", calibration=figures)]
    _, notes = gather(run=rows)
    assert notes[:2] == [
        "introspective, its own class probabilities: accuracy .910 (network .455), ECE .031 (network .016),"
        " NLL 1.250 (network .625), Brier score .100 (network .050)",
        "own, its own class probabilities: accuracy .910, ECE .031, NLL 1.250, Brier score .100",
    ]


def test_an_attack_says_how_strong_it_was(gather):
    kind = {"kind": "adversarial"}
    cw = {"dataset": "digits+cw", "attack": {"success_rate": 1.0, "kept": 1577, "settings": {"filtered": True}}}
    pgd = {"dataset": "digits+pgd", "attack": {"success_rate": 0.998, "mean_l2": 1.625, "mean_linf": 0.03137}}
    _, notes = gather(run=[row(name, **kind, **of) for name in ("msp", "knn") for of in (cw, pgd)] + [row("msp")])
    assert notes[0] == (
        "Attacks are made against the network, not against the detectors. Share of correctly classified images on which an"
        " attack fools it: digits+cw 100.0 % (1,577 images kept); digits+pgd 99.8 % (mean L2 1.625, mean L∞ .031)."
    )
    assert len(notes) == 2  # and the parts of official sets


def test_figures_against_clean_negatives_alone_are_summed_up(gather):
    of = {"kind": "adversarial", "dataset": "digits+cw"}
    rows = [row("msp", 0.9, auroc_clean=0.88, **of), row("knn", 0.7, auroc_clean=0.75, **of)]
    rows.append(row("lid", None, status="failed", reason="no", **of))
    _, notes = gather(run=rows)
    assert notes[0] == (
        "digits+cw: negatives are clean images and their noisy twins. Against the clean ones alone AUROC ×100 moves by"
        " +1.5 on average over 2 rows, most for knn (unsupervised): 70.0 to 75.0."
    )


def test_parts_of_official_sets_are_named_once_by_what_they_are_made_from(gather):
    sizes = dict.fromkeys(("cifar10+haze@1 (test)", "cifar10+pgd (test)"), (7, 10_000))
    sizes |= {"digits (test)": (5, 5), "mine (test)": (3, None)}
    _, notes = gather(run=[row("msp", sizes=sizes), row("knn", sizes={"photos (test)": (1_000, 2_000)})])
    assert notes == [
        "Parts of official sets, so not the whole sets' figures: corruptions and attacks of cifar10 (test) 7 of 10,000 images;"
        " photos (test) 1,000 of 2,000 images."
    ]


def test_notes_are_data_before_they_are_words():
    missing = Missing(("a", "b"), "skipped", "not there", 3)
    assert sentence(missing) == "3 cells skipped (a, b): not there"
    assert sentence(Remark(("x",), "epochs 5 (default 10)")) == "x: epochs 5 (default 10)"
    assert "on a (95.0):" in sentence(Cue(("folder:a",), "transfer", (0.95,), 2))
    assert sentence("as it is") == "as it is"
    assert "– 3 cells skipped" in render(pd.DataFrame([row("msp")]).reindex(columns=list(COLUMNS)), notes=[missing])
    assert "- 3 cells skipped" in render(pd.DataFrame([row("msp")]).reindex(columns=list(COLUMNS)), "md", notes=[missing])


def test_seeds_that_drew_other_test_images_are_one_table(gather):
    """With --limit or validation each seed tests on images of its own, but as many."""
    runs = {f"s{seed}": [row("msp", 0.5 + seed / 10, seed=seed, in_fingerprint=f"{seed}", n_in=100)] for seed in range(3)}
    frame, _ = gather(**runs)
    assert set(frame["in_distribution"]) == {"digits"}
    other, _ = gather(**runs, more=[row("msp", 0.5, seed=3, in_fingerprint="3", n_in=200)])
    assert other["in_distribution"].nunique() == 4
    same_seed, _ = gather(**runs, more=[row("msp", 0.5, seed=2, in_fingerprint="3", n_in=100)])
    assert same_seed["in_distribution"].nunique() == 3
