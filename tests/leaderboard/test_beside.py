"""Measured figures beside published ones and beside another run: what is compared, what stands in, and why some are missing."""

import csv
import io
import json

import pandas as pd
import pytest

import oodbench
from oodbench import cli
from oodbench.errors import BadData, UsageError
from oodbench.leaderboard.aggregate import COLUMNS as CELL
from oodbench.leaderboard.comparison.beside import COLUMNS, NOT_RUN, beside_published, beside_run
from oodbench.leaderboard.comparison.beside_table import render_beside
from oodbench.leaderboard.frame import FACTS
from oodbench.leaderboard.published import read_figures, read_papers

PART = {"sizes": json.dumps({"cifar10 (test)": [4000, 10000], "svhn (test)": [100, 100]})}


def cell(detector, dataset, auroc, protocol="unsupervised", **more):
    of = {"model": "resnet20-cifar10", "in_distribution": "cifar10", "detector": detector, "protocol": protocol}
    of |= {"dataset": dataset, "level": None, "kind": "far-ood", "seed": 0, "status": "ok", "reason": ""}
    of |= {"auroc": auroc, "transfer_from": ""}
    of |= {} if auroc is None else {"auroc_low": auroc - 0.01, "auroc_high": auroc + 0.01}
    of |= {"sizes": "", "attack": "", "non_default": ""}
    return of | more


def frame(*cells):
    return pd.DataFrame(cells).reindex(columns=[*CELL, *FACTS])


def published(*cells, selected=False):
    return beside_published(frame(*cells), read_figures(), read_papers(), selected)


def row(compared, **of):
    rows = compared.rows
    for name, value in of.items():
        rows = rows[rows[name] == value]
    (found,) = rows.to_dict("records")
    return found


def test_measured_published_and_difference():
    compared = published(cell("msp", "svhn", 0.9, **PART), cell("purview", "svhn", 0.8, "per-shift"))
    found = row(compared, file="purview_ood.csv", detector="msp", dataset="svhn", metric="auroc", in_distribution="cifar10")
    assert found["measured"] == 0.9
    assert found["published"] == pytest.approx(0.883)
    assert found["difference"] == pytest.approx(0.017)
    assert (found["low"], found["high"], found["status"]) == (pytest.approx(0.89), pytest.approx(0.91), "ok")
    assert found["stands_in"] == "resnet20-cifar10 for resnet; 4,000 of 10,000 images of cifar10"
    assert found["inside"] == "cifar10 (part)"
    assert found["source"].startswith("Lee, Lehman")
    assert set(COLUMNS) <= {*compared.rows.columns}


def test_every_published_cell_of_the_table_has_a_figure_or_a_reason():
    compared = published(
        cell("msp", "svhn", 0.9),
        cell("odin", "svhn", None, "per-shift", status="failed", reason="ValueError: no"),
        cell("purview", "svhn", None, "per-shift", status="skipped", reason="svhn is not there; fetch it"),
        cell("lid", "photos", 0.9, "transfer", transfer_from="svhn"),
        cell("purview", "lsun-resize", 0.7, "transfer", transfer_from="svhn"),
    )
    rows = compared.rows[compared.rows["file"] == "purview_ood.csv"]
    assert len(rows) == 90 + 9  # purview under two protocols, on three sets in three metrics
    of = {"file": "purview_ood.csv", "dataset": "svhn", "metric": "auroc"}
    reasons = {
        ("odin", "per-shift"): ("failed", "ValueError: no"),
        ("purview", "per-shift"): ("skipped", "svhn is not there; fetch it"),
        ("purview", "transfer"): (NOT_RUN, "transfer learnt from svhn"),
        ("mahalanobis-pfe", "per-shift"): (NOT_RUN, "no cell under per-shift on svhn"),
    }
    for (detector, protocol), expected in reasons.items():
        found = row(compared, detector=detector, protocol=protocol, **of)
        assert (found["status"], found["reason"]) == expected
        assert found["measured"] != found["measured"]  # NaN
    other = row(
        compared, detector="msp", dataset="tinyimagenet-resize", file=of["file"], metric="auroc", in_distribution="cifar10"
    )
    assert other["reason"] == "the runs do not have tinyimagenet-resize"
    other = row(compared, detector="msp", dataset="cifar10", file=of["file"], metric="auroc")
    assert other["reason"] == "no run of resnet with in-distribution svhn has a cell of this table"
    assert not compared.rows["reason"][compared.rows["status"] != "ok"].eq("").any()
    text = render_beside(compared, width=None)
    assert "– 1 cell failed (odin): ValueError: no" in text
    assert "the runs do not have tinyimagenet-resize" in text
    assert "(odin): no cell under per-shift on lsun-resize" in text


def test_what_stands_in_is_marked_in_the_heading():
    changed = {"kind": "corruption", "level": 2}
    attack = {"kind": "adversarial", "attack": json.dumps({"settings": {"filtered": False}})}
    compared = published(
        cell("purview", "cifar10+noise", 0.9, **changed),
        cell("purview", "folder:svhn-digits", 0.8),
        cell("purview", "cifar10+fgsm", 0.7, sizes=json.dumps({"cifar10+fgsm (test)": [10, 10000]}), **attack),
        cell("purview", "cifar10+bim", 0.7, **attack | {"attack": json.dumps({"settings": {"filtered": True}})}),
    )
    headings = set(compared.rows["heading"])
    assert {
        "cifar10+noise@2 (generated)",
        "svhn-digits (for svhn)",
        "cifar10+fgsm (part, unfiltered)",
        "cifar10+bim",
    } <= headings
    for format in ("table", "md", "tex", "html"):
        text = render_beside(compared, format, width=None).replace(r"\_", "_")
        assert "resnet20-cifar10 for resnet" in text
        assert "(generated)" in text
    found = row(compared, heading="cifar10+noise@2 (generated)", detector="purview")
    assert found["stands_in"] == "resnet20-cifar10 for resnet; cifar10+noise for cifar10c/gaussian_noise"
    official = published(cell("purview", "cifar10c/gaussian_noise", 0.9, **changed))
    assert row(official, dataset="cifar10c/gaussian_noise", level=2, detector="purview")["stands_in"].count("for") == 1
    same = published(cell("msp", "svhn", 0.9, model="resnet18"))
    assert row(same, file="introspective_ood.csv", dataset="svhn", detector="msp", metric="auroc")["stands_in"] == ""


def test_a_mean_over_sets_is_beside_the_mean_of_the_same_sets():
    near = [cell("energy", "cifar100", 0.8), cell("energy", "tinyimagenet", 0.9)]
    found = row(published(*near), file="openood_cifar10.csv", detector="energy", dataset="near-ood")
    assert (found["measured"], found["published"]) == (pytest.approx(0.85), pytest.approx(0.8758))
    assert found["heading"] == "near-ood (for tinyimagenet:disjoint)"
    assert "87.6 ±0.5" in render_beside(published(*near), width=None)
    far = row(published(*near, cell("msp", "svhn", 0.5)), file="openood_cifar10.csv", detector="energy", dataset="far-ood")
    assert (far["status"], far["reason"]) == (NOT_RUN, "the runs do not have folder:mnist, textures, places365")
    seeds = [cell("energy", name, value + seed / 10, seed=seed) for seed in (0, 1) for name, value in SETS_OF_TWO]
    assert row(published(*seeds), detector="energy", dataset="near-ood")["measured"] == pytest.approx(0.75)


SETS_OF_TWO = (("cifar100", 0.6), ("tinyimagenet", 0.8))


def test_means_over_seeds_have_their_spread():
    seeds = [cell("msp", "svhn", auroc, seed=seed, checkpoint="c") for seed, auroc in enumerate((0.88, 0.90, 0.92))]
    compared = published(*seeds, cell("purview", "svhn", 0.8, "per-shift", checkpoint="c"))
    of = {"file": "purview_ood.csv", "dataset": "svhn", "metric": "auroc", "in_distribution": "cifar10"}
    assert row(compared, detector="msp", **of)["measured_spread"] == pytest.approx(0.02)
    assert pd.isna(row(compared, detector="purview", **of)["measured_spread"])
    assert "| 90.0 ±2.0 |" in " ".join(render_beside(compared, "md").split())


def test_hyper_parameters_tell_rows_of_one_detector_apart():
    of = {"in_distribution": "cifar10:airplane", "model": "any-net"}
    free = cell(
        "gradcon:recon", "cifar10:not-airplane", 0.6, non_default=json.dumps({"alpha": [0, 0.03], "epochs": [5, 9]}), **of
    )
    bound = cell("gradcon:recon", "cifar10:not-airplane", 0.7, non_default=json.dumps({"epochs": [5, 9]}), **of)
    compared = published(free, bound)
    rows = compared.rows[(compared.rows["status"] == "ok")].set_index("settings")
    assert rows["measured"].to_dict() == {'{"alpha": "0"}': 0.6, "": 0.7}
    assert rows["published"].to_dict() == {'{"alpha": "0"}': 0.682, "": 0.659}
    text = render_beside(compared, width=None)
    assert "gradcon:recon (alpha=0)" in text
    assert "in-distribution cifar10:airplane" in text
    several = render_beside(published(bound, bound | {"in_distribution": "cifar10:cat"}), "md")
    assert "cifar10:airplane: cifar10:not-airplane measured" in several  # one table for all classes
    assert several.count("gradcon-classes:") == 1


def test_detectors_without_a_network_are_compared():
    inside = {"model": "", "in_distribution": "cifar10:airplane"}
    compared = published(cell("gradcon:grad", "cifar10:not-airplane", 0.7, **inside))
    text = render_beside(compared, "md")
    assert "### gradcon-classes: no network" in text
    assert "| 70.0 | 75.2 | -5.2 |" in " ".join(text.split())


def test_without_a_counterpart_one_line_says_what_has_one():
    with pytest.raises(UsageError, match=r"no published figure .*purview-ood \(cifar10, svhn\);.*openood-cifar10 \(cifar10\)$"):
        published(cell("msp", "photos", 0.9, in_distribution="digits"))
    with pytest.raises(BadData, match="no AUPR of the in-distribution side is compared here; choose another figure"):
        render_beside(published(cell("msp", "svhn", 0.9)), metric="aupr_in")


def test_selected_cells_are_compared_alone():
    compared = published(cell("msp", "svhn", 0.9), cell("odin", "svhn", None, status="failed", reason="no"), selected=True)
    assert set(compared.rows["status"]) == {"ok", "failed"}


def test_another_run_matches_by_name_or_the_only_network():
    mine = frame(cell("msp", "a", 0.9), cell("knn", "a", 0.8))
    theirs = frame(cell("msp", "a", 0.7, model="other-net"), cell("odin", "a", 0.6, model="other-net"))
    compared = beside_run(mine, theirs, "runs/b")
    found = row(compared, detector="msp", metric="auroc")
    assert (found["measured"], found["other"], found["difference"]) == (0.9, 0.7, pytest.approx(0.2))
    assert found["stands_in"] == "resnet20-cifar10 for other-net"
    assert row(compared, detector="odin", metric="auroc")["reason"] == "no cell under unsupervised on a"
    assert set(compared.rows["detector"]) == {"msp", "odin"}
    two = pd.concat([theirs, theirs.assign(model="third")])
    with pytest.raises(UsageError, match="runs/b and these runs have no cell in common"):
        beside_run(mine, two, "runs/b")
    with pytest.raises(UsageError, match="no cell in common"):
        beside_run(mine, theirs.assign(kind="benign"), "runs/b")


def test_tables_beside_a_run_show_means_over_levels():
    levels = [cell("msp", "a+haze", 0.5 + level / 10, kind="corruption", level=level) for level in (1, 2, 3)]
    other = [cell("msp", "a+haze", 0.6, kind="corruption", level=level) for level in (1, 2, 3)]
    text = render_beside(beside_run(frame(*levels), frame(*other), "runs/b"), width=None)
    assert "+10.0" in text
    assert "a+haze@1" not in text
    hardly = render_beside(beside_run(frame(cell("msp", "a", 0.6)), frame(cell("msp", "a", 0.6001)), "runs/b"), width=None)
    assert "+0.0" in hardly
    assert "-0.0" not in hardly
    text = render_beside(beside_run(frame(*levels[:2]), frame(*other), "runs/b"), width=None)
    assert "the runs do not have a+haze@3" in text


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    options = {"detectors": ["msp", "pixels"], "datasets": ["digits-heldout", "digits+noise@1"], "limit": 40}
    for seed in (0, 1):
        oodbench.run("digits", out=folder / f"s{seed}", seed=seed, measure_costs=False, **options)
    return folder / "s0", folder / "s1"


def run(capsys, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["oodbench", "leaderboard", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr()
    return end.value.code, shown.out, shown.err


def test_the_command_compares_runs_in_each_format(runs, capsys, monkeypatch, tmp_path):
    for format in ("table", "md", "csv", "json", "tex", "html"):
        code, text, _ = run(capsys, monkeypatch, runs[0], "--beside", runs[1], "--format", format, "--interval")
        assert code in (None, 0)
        assert "digits-heldout" in text
        if format == "json":
            found = json.loads(text)
        if format == "csv":
            rows = list(csv.DictReader(io.StringIO(text)))
    assert list(found[0]) == list(rows[0]) == ["other" if name == "published" else name for name in COLUMNS]
    frames = [oodbench.open_run(folder).frame() for folder in runs]
    (one,) = (
        of for of in found if (of["detector"], of["metric"], of["level"], of["protocol"]) == ("pixels", "auroc", 1, "per-shift")
    )
    values = [of[(of.detector == "pixels") & (of.level == 1) & (of.protocol == "per-shift")].auroc.item() for of in frames]
    assert (one["measured"], one["other"], one["difference"]) == (*values, values[0] - values[1])


def test_the_command_says_what_it_cannot_do(runs, capsys, monkeypatch, tmp_path):
    for options, says in (
        (["--beside", "published"], "no published figure belongs to a cell of these runs"),
        (["--beside", tmp_path], "is not a run folder"),
        (["--beside", runs[1], "--top", "3"], "--beside takes no --top"),
        (["--beside", runs[1], "--plot", "bars"], "--beside takes no --plot"),
        (["--beside", runs[1], "--columns", "sets"], "comparisons have no parts"),
        (["--beside", runs[1], "--columns", "auroc", "--format", "csv"], "unknown column 'auroc'"),
    ):
        code, _, error = run(capsys, monkeypatch, runs[0], *options)
        assert code != 0
        assert says in error
        assert error.count("\n") == 1
