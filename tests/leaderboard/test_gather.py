"""Run folders gathered to one frame and its notes: no row mixes networks or transfers, and what must be said is said once."""

import csv
import io
import json

import pytest

from oodbench.api import Results
from oodbench.leaderboard.aggregate import COLUMNS
from oodbench.leaderboard.formats import render
from oodbench.leaderboard.gather import gather
from oodbench.results.records import DetectionRecord


@pytest.fixture
def folder(tmp_path):
    """folder(cells, name, **settings) -> a run folder of these cells."""

    def make(cells, name="run", weights="0123456789", **settings):
        found = Results(tmp_path / name)
        settings |= {"weights": weights, "in-distribution images": "feed"}
        found.path.mkdir(exist_ok=True)
        with found.locked():
            found.check_settings(settings)
            for name in dict.fromkeys(cell.set_name for cell in cells):
                found.write([cell for cell in cells if cell.set_name == name], {})
        return found

    return make


def cell(detector, auroc=0.5, protocol="unsupervised", dataset="a", **more):
    of = {"model": "net", "weights_hash": "", "in_distribution": "digits", "in_fingerprint": "", "train_fingerprint": ""}
    of |= {"parameters": {}, "level": None, "kind": "far-ood", "fingerprint": "", "seed": 0, "status": "ok"}
    of |= {"sizes": {"digits (test)": (5, 10)}, "metrics": {"auroc": auroc}}
    return DetectionRecord(**of | {"detector": detector, "protocol": protocol, "dataset": dataset} | more)


def test_one_name_for_two_networks_is_told_apart(folder):
    found, notes = gather([folder([cell("msp", 0.5)], "one"), folder([cell("msp", 0.7)], "two", weights="abcdef0123")])
    assert found.model.tolist() == ["net #012345", "net #abcdef"]
    assert found.in_distribution.tolist() == ["digits", "digits"]
    assert list(found.columns) == list(COLUMNS)
    assert notes == ["Parts of official sets, so not the whole sets' figures: digits (test) 5 of 10 images."]


def test_one_name_for_two_makings_of_a_set_is_told_apart(folder):
    weak, strong = (
        cell("msp", auroc, dataset="digits+pgd", fingerprint=made) for auroc, made in ((0.6, "aaaaaa1"), (0.9, "bbbbbb1"))
    )
    same = cell("msp", dataset="photos", fingerprint="cccccc1")
    missing = cell("knn", dataset="digits+pgd", status="skipped", metrics=None)
    found, _ = gather([folder([weak, same], "one"), folder([strong, same, missing], "two")])
    assert dict(zip(found.dataset, found.auroc.fillna(0), strict=True)) == {
        "digits+pgd #aaaaaa": 0.6, "photos": 0.5, "digits+pgd #bbbbbb": 0.9, "digits+pgd": 0,
    }  # fmt: skip


def test_what_a_transfer_learnt_from_is_said_and_two_are_told_apart(folder):
    one = folder([cell("x", protocol="transfer", transfer_from="b")], "one", transfer_from="b")
    found, notes = gather([one])
    assert found.protocol.tolist() == ["transfer"]
    assert notes[0] == "transfer: heads learnt from b alone, which has no cell there and no part in the means."
    two = folder([cell("x", protocol="transfer", transfer_from="c")], "two", transfer_from="c")
    found, notes = gather([one, two, folder([cell("x")], "plain")])
    assert found.protocol.tolist() == ["transfer from b", "transfer from c", "unsupervised"]
    assert notes[1].startswith("transfer: heads learnt from c alone")
    assert notes[1].endswith(f" ({two.path})")


def test_one_name_for_two_settings_of_a_detector_is_told_apart(folder):
    """Only where it is the same network and in-distribution set, and by what differs."""
    far, farther = ({"changed": {"k": [k, 50]}} for k in (200, 500))
    one = folder([cell("knn", 0.5), cell("msp", 0.6)], "one")
    two = folder([cell("knn", 0.7, **far), cell("knn", 0.8, **far, dataset="b")], "two")
    three = folder([cell("knn", 0.9, **farther)], "three")
    found, _ = gather([one, two, three])
    assert found.detector.tolist() == ["knn", "msp", "knn (k=200)", "knn (k=200)", "knn (k=500)"]
    assert found.auroc.tolist() == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert set(gather([two])[0].detector) == {"knn"}
    other = folder([cell("knn", 0.7, **far, in_distribution="letters")], "other")
    assert set(gather([one, other])[0].detector) == {"knn", "msp"}


def test_what_a_suite_changed_is_said_once(folder):
    lowered = {"parameters": {"epochs": 5}, "changed": {"epochs": [5, 1000], "alpha": [0.5, 0.03]}}
    cells = [cell("gradcon", variant=v, dataset=s, **lowered) for v in ("", "recon") for s in "ab"]
    cells.append(cell("gradcon", dataset="c", status="failed", reason="no", **lowered))
    found = folder(cells).frame()
    remark = "alpha 0.5 (default 0.03), epochs 5 (default 1000)"
    assert sorted(found.reason) == [remark] * 4 + ["no"]
    assert set(found.detector) == {"gradcon", "gradcon:recon"}
    text = render(found, width=None)
    assert text.count(f"gradcon, gradcon:recon: {remark}") == 1
    assert "– 1 cell failed (gradcon): no" in text
    assert remark in {row["reason"] for row in json.loads(render(found, "json"))}
    assert remark in {row["reason"] for row in csv.DictReader(io.StringIO(render(found, "csv")))}


def test_a_variant_costs_what_its_detector_costs(folder):
    from oodbench.results.records import cost_key

    found = folder([cell("gradcon", variant=v) for v in ("", "recon")])
    found.write_costs({cost_key("gradcon", {}, None): {"ms_per_image": 2.0, "overhead": 3.0, "peak_memory_mb": None}})
    assert found.frame().overhead.tolist() == [3, 3]


def test_probabilities_of_a_detectors_own_are_said_once(folder):
    extras = {"accuracy": 0.91, "ece": 0.0312, "nll": 1.25, "brier": 0.1}
    network = {f"network_{name}": value / 2 for name, value in extras.items()}
    cells = [cell("introspective", dataset=s, extras=extras | network) for s in "ab"] + [cell("own", extras=extras)]
    _, notes = gather([folder(cells)])
    assert notes[:2] == [
        "introspective, its own class probabilities: accuracy .910 (network .455), ECE .031 (network .016),"
        " NLL 1.250 (network .625), Brier score .100 (network .050)",
        "own, its own class probabilities: accuracy .910, ECE .031, NLL 1.250, Brier score .100",
    ]


def test_an_attack_says_how_strong_it_was(folder):
    pgd = {
        "kind": "adversarial",
        "dataset": "digits+pgd",
        "made": {"success_rate": 0.998, "mean_l2": 1.625, "mean_linf": 0.03137},
    }
    cw = {
        "kind": "adversarial",
        "dataset": "digits+cw",
        "made": {"success_rate": 1.0, "kept": 1577, "settings": {"filtered": True}},
    }
    _, notes = gather([folder([cell(name, **of) for name in ("msp", "knn") for of in (pgd, cw)] + [cell("msp")])])
    assert notes[0] == (
        "Attacks are made against the network, not against the detectors; they fool it on so many of the images that it had"
        " right: digits+cw 100.0 % (1,577 images kept); digits+pgd 99.8 % (mean L2 1.625, mean L∞ .031)."
    )
    assert len(notes) == 2  # and the parts of official sets


def test_figures_against_clean_negatives_alone_are_summed_up(folder):
    of = {"kind": "adversarial", "dataset": "digits+cw"}
    cells = [cell("msp", 0.9, extras={"auroc_clean": 0.88}, **of), cell("knn", 0.7, extras={"auroc_clean": 0.75}, **of)]
    cells.append(cell("lid", status="failed", reason="no", **of | {"metrics": None}))
    _, notes = gather([folder(cells)])
    assert notes[0] == (
        "digits+cw: negatives are clean images and their noisy twins. Against the clean ones alone AUROC ×100 moves by"
        " +1.5 in the mean of 2 rows, most for knn (unsupervised): 70.0 to 75.0."
    )
