"""Leaderboards from small frames: means and counts worked by hand, every format read back, hostile names."""

import csv
import io
import json
import re
import subprocess
import sys

import pandas as pd
import pytest

from oodbench import leaderboard
from oodbench.errors import BadData, UsageError
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import COLUMNS, base, means, pivot, tally
from oodbench.leaderboard.brief import brief
from oodbench.leaderboard.formats import render

FORMATS = ("table", "md", "csv", "json", "tex")
PEOPLE = ("table", "md", "tex")


def cell(detector, dataset, auroc, kind="far-ood", level=None, status="ok", reason="", **more):
    row = {"model": "net", "in_distribution": "digits", "detector": detector, "protocol": "unsupervised", "seed": 0}
    row |= {"dataset": dataset, "kind": kind, "level": level, "status": status, "reason": reason}
    if status == "ok":
        row |= {"n_in": 100, "n_out": 50, "auroc": auroc, "fpr95": 1 - auroc, "ms_per_image": 2.0, "overhead": 1.5}
    return row | more


def frame(*cells):
    return pd.DataFrame(cells).reindex(columns=list(COLUMNS))


@pytest.fixture
def small():
    """Two near, two far, two corruptions of one base and an attack; energy failed on one far set and one level."""
    cells = []
    for detector, shift in (("msp", 0.0), ("energy", 0.05)):
        cells += [
            cell(detector, "near-a", 0.60 + shift, "near-ood"),
            cell(detector, "near-b", 0.70 + shift, "near-ood"),
            cell(detector, "far-a", 0.80 + shift),
            cell(detector, "digits+haze", 0.50 + shift, "corruption", 1),
            cell(detector, "digits+haze", 0.60 + shift, "corruption", 2),
            cell(detector, "digits+snow", 0.90 + shift, "corruption", 1),
            cell(detector, "digits+pgd", 0.40 + shift, "adversarial"),
        ]
    cells.append(cell("msp", "far-b", 0.90))
    cells.append(cell("energy", "far-b", None, status="failed", reason="ValueError: no"))
    cells[11] = cell("energy", "digits+haze", None, "corruption", 2, status="skipped", reason="not there")
    return frame(*cells)


def test_means_worked_by_hand(small):
    found = means(small).set_index("detector")
    # msp: near .65; far .85; haze .55, snow .90, so corruption .725, one set; attack .40.
    # All: (.6 + .7 + .8 + .9 + .725 + .4) / 6. Eight cells.
    msp = found.loc["msp"]
    expected = {"near-ood": 0.65, "far-ood": 0.85, "corruption": 0.725, "adversarial": 0.4, "all": 4.125 / 6}
    assert msp[list(expected)].to_dict() == pytest.approx(expected)
    cells = {"near-ood": 2, "far-ood": 2, "corruption": 3, "adversarial": 1, "all": 8}
    for kind, count in cells.items():
        assert (msp[f"{kind} cells"], msp[f"{kind} expected"]) == (count, count)
    # energy: far-b and haze@2 are missing: haze .55, snow .95; all (.65 + .75 + .85 + .75 + .45) / 5 of six cells.
    energy = found.loc["energy"]
    expected = {"near-ood": 0.7, "far-ood": 0.85, "corruption": 0.75, "adversarial": 0.45, "all": 3.45 / 5}
    assert energy[list(expected)].to_dict() == pytest.approx(expected)
    assert {kind: energy[f"{kind} cells"] for kind in cells} == {**cells, "far-ood": 1, "corruption": 2, "all": 6}
    assert {kind: energy[f"{kind} expected"] for kind in cells} == cells
    assert list(found.index) == ["msp", "energy"]  # .69 of six cells never comes before .6875 of all eight
    assert list(found.columns[:2]) == ["model", "in_distribution"]


def test_corruptions_weigh_as_one_set_however_many_cells():
    many = [cell("msp", f"digits+{name}", 0.9, "corruption", level) for name in "abcdefgh" for level in range(1, 6)]
    found = means(frame(cell("msp", "far", 0.5), *many)).iloc[0]
    assert found["all"] == pytest.approx(0.7)
    assert found["all cells"] == 41
    other_base = means(frame(cell("msp", "far", 0.5), *many, cell("msp", "cifar10c/fog", 0.3, "corruption", 1))).iloc[0]
    assert other_base["all"] == pytest.approx((0.5 + 0.9 + 0.3) / 3)


@pytest.mark.parametrize(
    ("kind", "dataset", "expected"),
    [
        ("corruption", "cifar10+haze", "cifar10"),
        ("corruption", "cifar10c/fog", "cifar10c"),
        ("corruption", "curetsr/Haze", "curetsr"),
        ("corruption", "cifar10:airplane+haze", "cifar10:airplane"),
        ("corruption", "folder:a/b+haze", "folder:a/b"),
        ("corruption", "folder:a/b", "folder:a/b"),
        ("corruption", "mine", "mine"),
        ("adversarial", "cifar10+pgd", "cifar10"),
        ("adversarial", "mine", "mine"),
        ("far-ood", "folder:a/b", "folder:a/b"),
    ],
)
def test_base(kind, dataset, expected):
    assert base(kind, dataset) == expected


def test_seeds_are_averaged_first():
    found = means(frame(cell("msp", "a", 0.5), cell("msp", "a", 0.7, seed=1), cell("msp", "b", 0.9))).iloc[0]
    assert found["all"] == pytest.approx((0.6 + 0.9) / 2)
    assert found["all cells"] == 3


def test_the_spread_over_seeds_stands_in_the_row():
    draws = [cell("draws", "a", value, seed=seed) for seed, value in enumerate((0.70, 0.80, 0.90))]
    draws += [cell("draws", "b", value, seed=seed) for seed, value in enumerate((0.60, 0.70))]  # no third
    fixed = [cell("fixed", "a", 0.75, seed=seed) for seed in range(3)] + [cell("once", "a", 0.5)]
    found = tally(frame(*draws, *fixed)).spread.reset_index("detector").set_index("detector")
    assert found.loc["draws", ("far-ood", "a", "")] == pytest.approx(0.1)
    assert found.loc["draws", ("far-ood", "b", "")] == pytest.approx(0.1 / 2**0.5)
    assert found.loc["draws", ("mean", "all", "")] == pytest.approx(0.1 / 2**0.5)  # of the seeds with both sets: .65, .75
    assert found.loc["fixed", ("mean", "all", "")] == 0
    assert pd.isna(found.loc["once", ("mean", "all", "")])
    text = render(frame(*draws, *fixed), "md")
    assert "Means of 3 seeds, ± their standard deviation." in text
    assert "80.0 ±10.0" in text
    assert "75.0 ±0.0" in text
    assert "±" not in render(frame(cell("msp", "a", 0.5)), "md")


def test_pivot(small):
    found = pivot(small)
    assert found.index.names == ["model", "in_distribution", "protocol", "detector"]
    assert list(found.columns) == [
        ("near-ood", "near-a"),
        ("near-ood", "near-b"),
        ("far-ood", "far-a"),
        ("far-ood", "far-b"),
        ("corruption", "digits+haze"),
        ("corruption", "digits+snow"),
        ("adversarial", "digits+pgd"),
        *(("mean", kind) for kind in ("near-ood", "far-ood", "corruption", "adversarial", "all")),
        *(("cells", kind) for kind in ("near-ood", "far-ood", "corruption", "adversarial", "all")),
        ("cost", "ms_per_image"),
        ("cost", "overhead"),
    ]
    msp = found.loc[("net", "digits", "unsupervised", "msp")]
    assert msp[("corruption", "digits+haze")] == pytest.approx(0.55)
    assert (msp[("cells", "all")], msp[("cost", "ms_per_image")], msp[("cost", "overhead")]) == (8, 2.0, 1.5)
    assert pd.isna(found.loc[("net", "digits", "unsupervised", "energy"), ("far-ood", "far-b")])


def test_rows_are_sorted_by_protocol_then_mean_then_name():
    cells = [cell(name, "a", value) for name, value in (("b", 0.5), ("a", 0.5), ("c", 0.9))]
    cells += [cell("none", "a", None, status="skipped", reason="no")]
    cells += [cell("c", "a", 0.1, protocol="per-shift"), cell("z", "a", 0.99, protocol="transfer")]
    ordered = [("unsupervised", n) for n in ("c", "a", "b", "none")] + [("per-shift", "c"), ("transfer", "z")]
    for rows in (cells, cells[::-1]):
        assert [row[2:] for row in pivot(frame(*rows)).index] == ordered
    lower_is_better = [row[3] for row in pivot(frame(*cells), metric="fpr95").index]
    assert lower_is_better[:4] == ["c", "a", "b", "none"]


def test_a_row_that_lacks_sets_never_comes_before_whole_ones():
    cells = [cell("whole", name, 0.6) for name in "abcd"] + [cell("half", name, 0.9) for name in "ab"]
    cells += [
        cell("one", "a", 0.95),
        cell("broken", "a", None, status="failed", reason="no"),
        cell("control", "e", 0.1, "benign"),
    ]
    assert [row[3] for row in pivot(frame(*cells)).index] == ["whole", "one", "half", "broken", "control"]
    found = tally(frame(*cells), sort="b").values.index.get_level_values("detector")
    assert found.tolist() == ["half", "whole", "broken", "control", "one"]  # half is whole on b
    assert tally(frame(*cells), sort="detector").values.index.get_level_values("detector").tolist() == sorted(found)


def test_table_of_a_terminal_worked_by_hand(small):
    cost = {"ms_per_image": 12.34, "overhead": 1.5}
    per_shift = [cell("msp", "near-a", 0.9, "near-ood", protocol="per-shift", **cost)]
    found = render(pd.concat([small, frame(*per_shift)]), width=None)
    table = found[found.index("---") : found.rindex("---") + 3].splitlines()
    rows = [re.split(r"  +", line.strip()) for line in table]
    assert [" ".join(row) for row in rows[1:4]] == [
        "near-ood far-ood corruption adversarial mean cost",
        "digits+ digits+ all sets near-ood far-ood corruption adversarial",
        "detector protocol near-a near-b far-a far-b haze snow digits+pgd"
        " 8 cells 2 cells 2 cells 3 cells 1 cell ms/image overhead",
    ]
    assert rows[5][-7:] == ["68.8", "65.0", "85.0", "72.5", "40.0", "2.00", "1.50×"]
    assert " ".join(rows[6]) == (
        "energy unsupervised 65.0 75.0 85.0 – 55.0 (1/2) 95.0 45.0 69.0 (6/8) 70.0 85.0 (1/2) 75.0 (2/3) 45.0 2.00 1.50×"
    )
    assert set(table[7]) == {"-", " "}  # a line where the protocol changes
    assert rows[8] == ["msp", "per-shift", "90.0", "90.0 (1/8)", "90.0 (1/2)", "12.3", "1.50×"]
    assert "Blank: not run." in found
    assert "– 1 cell failed (energy): ValueError: no" in found
    assert "– 1 cell skipped (energy): not there" in found


def test_what_nobody_has_is_said_in_the_heading():
    rows = [cell(name, "a", 0.5) for name in ("x", "y")]
    rows += [cell(name, "b", None, status="skipped", reason="b is not there; fetch it") for name in ("x", "y")]
    found = render(frame(*rows))
    assert "1 of 2 cells" in found
    assert "(1/2)" not in found
    assert found.count("b is not there; fetch it") == 1
    assert "– 2 cells skipped (b): b is not there" in found


def test_nothing_but_failures_still_makes_a_table():
    rows = [cell(f"d{i}", s, None, status="failed", reason="bang") for i in range(5) for s in "abcdef"]
    for format in FORMATS:
        text = render(frame(*rows), format)
        assert "d4" in text
        assert "bang" in text
    assert "0 of 6 cells" in render(frame(*rows))
    assert "30 cells failed (d0, d1, d2 and 2 more): bang" in render(frame(*rows))


@pytest.mark.parametrize("width", [60, 100, 160])
def test_table_fits_the_terminal(small, width):
    found = render(small, width=width)
    assert max(map(len, found.splitlines())) <= width
    for value in ("65.0", "45.0", "69.0 (6/8)", "1.50×"):
        assert value in found
    assert found.count("energy  ") == found.count("detector  ")  # each block names its rows again


def test_control_is_marked_and_cues_are_named():
    rows = [cell("msp", "a", 0.7), cell("msp", "folder:b", 0.8), cell("pixels", "a", 0.95), cell("pixels", "folder:b", 0.85)]
    for format in PEOPLE:
        found = render(frame(*rows), format)
        assert "pixels (control)" in found
        assert re.search(r"AUROC (×|\$\\times\$)100 is 90 or more on a \(95\.0\): simple image", " ".join(found.split()))
    assert "simple image statistics" not in render(frame(*rows[:2], cell("pixels", "a", 0.89)))
    assert "**95.0**" not in render(frame(*rows), "md")  # the control is no contender
    assert "**70.0**" in render(frame(*rows), "md")


def test_best_is_bold_within_each_protocol_and_needs_all_its_cells():
    rows = [cell("x", "a", 0.5), cell("x", "b", 0.5), cell("y", "a", 0.9), cell("y", "b", None, status="failed", reason="no")]
    rows += [cell("x", "a", 0.3, protocol="per-shift"), cell("x", "b", 0.2, protocol="per-shift")]
    found = render(frame(*rows), "md")
    assert "90.0 (1/2)" in found
    assert "**90.0 (1/2)**" not in found
    assert re.findall(r"\*\*([\d.]+)\*\*", found) == ["50.0", "50.0", "50.0", "90.0", "30.0", "20.0", "25.0", "25.0"]
    lower = render(frame(*rows), "md", metric="fpr95")
    assert re.findall(r"\*\*([\d.]+)\*\*", lower) == ["50.0", "50.0", "50.0", "10.0", "70.0", "80.0", "75.0", "75.0"]
    assert r"\textbf{50.0}" in render(frame(*rows), "tex")


def test_cells_of_several_runs_count_once():
    found = frame(cell("x", "a", 0.5), cell("x", "a", 0.7))
    assert means(found)["all"].tolist() == [0.7]
    assert means(found)["all cells"].tolist() == [1]
    assert "1 cell left out, because a later run holds the same; the last run counts." in render(found)
    assert len(json.loads(render(found, "json"))) == 2


def test_each_model_has_its_own_table():
    rows = [cell("x", "a", 0.5), cell("x", "b", 0.5, model="other"), cell("x", "a", 0.5, in_distribution="letters")]
    found = render(frame(*rows))
    titles = ("net, in-distribution digits", "other, in-distribution digits", "net, in-distribution letters")
    assert [found.count(title) for title in titles] == [1, 1, 1]
    assert "Blank" not in found  # what another model was run on is no gap


def test_json_reads_back(small):
    text = render(small, "json")
    assert "NaN" not in text
    found = json.loads(text, parse_constant=pytest.fail)
    assert [list(row) for row in found] == [list(COLUMNS)] * len(small)
    assert found[0]["auroc"] == 0.6
    assert (found[0]["level"], found[3]["level"], found[0]["n_in"]) == (None, 1, 100)
    assert isinstance(found[3]["level"], int)
    missing = found[11]
    assert (missing["auroc"], missing["n_in"], missing["status"], missing["reason"]) == (None, None, "skipped", "not there")
    assert json.loads(render(frame(cell("x", "a", 0.5, wall_seconds=float("inf"))), "json"))[0]["wall_seconds"] is None


def test_csv_reads_back_at_full_precision():
    text = render(frame(cell("x", "a", 1 / 3, level=3), cell("x", "b", None, status="failed", reason='a "b",\r\nc')), "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(text.splitlines()) == 3  # a line a cell
    assert list(rows[0]) == list(COLUMNS)
    assert (float(rows[0]["auroc"]), rows[0]["level"], rows[0]["n_in"]) == (1 / 3, "3", "100")
    assert (rows[1]["auroc"], rows[1]["level"], rows[1]["reason"]) == ("", "", 'a "b", c')


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r\n=1", '=HYPERLINK("http://x","y")'])
def test_csv_holds_no_formula(formula):
    names = {"model": formula, "in_distribution": formula}
    rows = [cell(formula, formula, -0.5, **names), cell("a", "b", None, status="failed", reason=formula)]
    first, second = csv.DictReader(io.StringIO(render(frame(*rows), "csv")))
    shown = f"'{formula.strip()}"
    assert [first[name] for name in ("model", "in_distribution", "detector", "dataset")] == [shown] * 4
    assert second["reason"] == shown
    assert (first["auroc"], second["detector"]) == ("-0.5", "a")
    assert json.loads(render(frame(*rows), "json"))[0]["detector"] == formula


HOSTILE = "x|y\n\x1b[31m`*_$&%#{}~^\\<b>\u202e"


def markdown_cells(line):
    """Cells of a GitHub table's row: split where a bar is not escaped."""
    return re.findall(r"((?:\\.|[^|\\])*)\|", line)[1:]


def test_hostile_names_are_escaped():
    rows = [
        cell(HOSTILE, HOSTILE, 0.5, model=HOSTILE, in_distribution=HOSTILE),
        cell("ok", HOSTILE, None, model=HOSTILE, in_distribution=HOSTILE, status="failed", reason=HOSTILE),
    ]
    for format in PEOPLE:
        text = render(frame(*rows), format)
        assert not set(text) & set("\x1b\u202e\r")
    text = render(frame(*rows), "md")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(markdown_cells(line)) for line in table} == {7}
    assert r"x\|y �\[31m\`\*\_\$\&%#{}\~^\\\<b\>�" in text
    assert "<b>" not in text.replace(r"\<b\>", "")
    text = render(frame(*rows), "tex")
    assert r"x\textbar{}y" in text
    assert r"\$\&\%\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}b\textgreater{}" in text
    for line in text.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == 6
    assert len(render(frame(*rows), "csv").splitlines()) == 3
    assert json.loads(render(frame(*rows), "json"))[0]["detector"] == HOSTILE  # JSON carries it whole


def test_markdown_and_latex_are_whole(small):
    text = render(small, "md")
    assert text.startswith("### net, in-distribution digits\n")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert [len(markdown_cells(line)) for line in table] == [16] * 4 + [5] * 4  # and severity
    assert "- 1 cell failed (energy): ValueError: no" in text
    text = render(small, "tex")
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\hline")] == [1, 1, 1, 0]
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in rows} == {15}
    assert len(rows) == 3


def test_long_and_number_like_names():
    found = render(frame(cell("1e5", "a", 0.5), cell("d" * 100, "b" * 100, 0.5)), width=100)
    assert "1e5" in found
    assert list(map(len, re.findall("^d{2,}", found, re.MULTILINE))) == [40, 40, 20] * 2  # in both blocks
    assert list(map(len, re.findall("b{2,}$", found, re.MULTILINE))) == [20] * 5
    assert "…" not in found
    for width in (60, 80, 100):
        assert max(map(len, render(frame(cell("d" * 100, "b" * 100, 0.5)), width=width).splitlines())) <= width
    assert "d" * 100 in render(frame(cell("d" * 100, "a", 0.5)), "md")
    assert escape.shortened("a\tb") == "a b"


@pytest.mark.parametrize("format", FORMATS)
def test_empty_frame(format):
    text = render(frame(), format)
    if format == "json":
        assert json.loads(text) == []
    elif format == "csv":
        assert text == ",".join(COLUMNS) + "\n"
    else:
        assert "No cells yet" in text


def test_wrong_usage_gets_one_line(small):
    with pytest.raises(UsageError, match="unknown format 'jsn'; did you mean 'json'"):
        render(small, "jsn")
    with pytest.raises(UsageError, match="unknown metric 'auroch'; did you mean 'auroc'"):
        render(small, metric="auroch")
    for format in FORMATS:
        with pytest.raises(BadData, match="lacks the columns reason"):
            render(small.drop(columns="reason"), format)


def test_rendering_changes_nothing_and_repeats_itself(small):
    before = small.copy()
    for format in FORMATS:
        assert render(small, format) == render(small, format)
        assert render(small, format).endswith("\n")
    pd.testing.assert_frame_equal(small, before)


def test_package_is_lazy():
    assert leaderboard.render is render
    assert set(leaderboard.__all__) <= set(dir(leaderboard))
    with pytest.raises(AttributeError, match="no attribute 'rendr'"):
        leaderboard.rendr  # noqa: B018
    code = "import sys, oodbench.leaderboard; assert not {'pandas', 'numpy', 'tabulate'} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_a_transfer_is_whole_without_the_set_that_it_learnt_from():
    rows = [cell(name, s, 0.9 if name == "x" else 0.8) for name in "xy" for s in "abc"]
    rows += [cell(name, s, 0.7 if name == "x" else 0.6, protocol="transfer") for name in "xy" for s in "bc"]
    found = means(frame(*rows)).set_index(["protocol", "detector"])
    assert found.loc[("transfer", "x"), ["all", "all cells", "all expected"]].tolist() == pytest.approx([0.7, 2, 2])
    assert found.loc[("unsupervised", "x"), ["all cells", "all expected"]].tolist() == [3, 3]
    text = render(frame(*rows), "md")
    assert "(2/3)" not in text
    assert text.count("**70.0**") == 4  # the best transfer, on two sets and in both means
    assert "Blank: not run, or what transfer learnt from." in text
    rows[-1] |= {"status": "failed", "auroc": None, "reason": "no"}
    assert "60.0 (1/2)" in render(frame(*rows), "md")


def test_attacks_on_one_base_weigh_as_one_set():
    attacks = [cell("msp", f"digits+{name}", 0.9, "adversarial") for name in ("fgsm", "pgd", "cw")]
    found = means(frame(cell("msp", "far", 0.5), *attacks)).iloc[0]
    assert (found["all"], found["adversarial"]) == (pytest.approx(0.7), pytest.approx(0.9))
    haze = cell("msp", "digits+haze", 0.1, "corruption", 1)
    assert means(frame(cell("msp", "far", 0.5), *attacks, haze)).iloc[0]["all"] == pytest.approx((0.5 + 0.9 + 0.1) / 3)
    text = " ".join(render(frame(*attacks, haze)).split())
    assert "In means over sets all corruptions of one base and all attacks on one base count as one set." in text
    assert "In means over sets all attacks on one base count as one set." in " ".join(render(frame(*attacks)).split())


@pytest.mark.parametrize("metric", ["auroc", "fpr95", "aupr_out"])
def test_benign_changes_show_false_alarms_and_are_no_part_of_the_mean(metric):
    rows = [cell(name, "far", 0.7 + shift, aupr_out=0.9) for name, shift in (("a", 0.1), ("pixels", 0), ("b", 0))]
    for name, rates in (("a", (0.30, 0.10)), ("b", (0.02, 0.08)), ("pixels", (0.95, 0.97))):
        both = zip(("digits+jpeg-95", "digits+pixel-shift"), rates, strict=True)
        rows += [cell(name, of, 0.5, "benign", fpr95=1 - rate) for of, rate in both]
    rows.append(cell("a", "far", 0.9, protocol="per-shift", aupr_out=0.9))
    found = means(frame(*rows), metric).set_index(["detector", "protocol"])
    assert found.loc[("a", "unsupervised"), "benign"] == pytest.approx(0.2)
    assert found.loc[("a", "unsupervised"), "all"] == pytest.approx({"auroc": 0.8, "fpr95": 0.2, "aupr_out": 0.9}[metric])
    assert found.loc[("a", "unsupervised"), ["all cells", "all expected", "benign cells"]].tolist() == [1, 1, 2]
    assert found.loc[("a", "per-shift"), ["all cells", "all expected", "benign cells"]].tolist() == [1, 1, 0]
    text = render(frame(*rows), "md", metric=metric)
    assert "Benign: false alarms ×100" in text
    assert "not part of means over sets" in text
    head, _, *lines = [line for line in text.splitlines() if line.startswith("|")]
    place = [part.strip() for part in head.split("|")].index("mean benign 2 cells")
    shown = [(line.split("|")[1].strip(), line.split("|")[place].strip()) for line in lines]
    assert sorted(shown) == [("a", ""), ("a", "20.0"), ("b", "**5.0**"), ("pixels (control)", "96.0")]
    assert "its AUROC ×100 is 90 or more" not in text  # a false alarm is no cue
    assert "benign: false alarms ×100" in brief(frame(*rows))
    assert "alarms" not in render(frame(cell("a", "far", 0.7)), "md") + brief(frame(cell("a", "far", 0.7)))


@pytest.fixture
def wide():
    """As many sets as the whole benchmark: two near, six far, eight corruptions and six attacks."""
    cells = []
    for name in ("mahalanobis-pfe", "pixels"):
        cells += [cell(name, f"near-{i}", 0.6, "near-ood") for i in range(2)]
        cells += [cell(name, f"some-far-{i}", 0.6) for i in range(6)]
        cells += [cell(name, f"cifar10+corrupted-{i}", 0.6, "corruption", level) for i in range(8) for level in (1, 2)]
        cells += [cell(name, f"cifar10+attack{i}", 0.6, "adversarial") for i in range(6)]
    return frame(*cells)


@pytest.mark.parametrize("width", [100, 130, 160])
def test_a_split_table_begins_with_means_and_keeps_kinds_together(wide, width):
    text = render(wide, width=width)
    assert max(map(len, text.splitlines())) <= width
    blocks = [block for block in text[: text.index("Severity")].split("\n\n") if "mahalanobis-pfe" in block]
    kinds = [block[block.index("--  ") :].splitlines()[1].split() for block in blocks]
    assert [kind for block in kinds for kind in block][:2] == ["mean", "cost"]
    costs = [block for block in blocks if "ms/image" in block or "overhead" in block]
    assert len(costs) == 1  # both columns together
    assert "all sets" in blocks[0]
    assert [kind for block in kinds for kind in block].count("adversarial") == 1  # six columns side by side
    names = ["".join(column) for column in _headings(blocks)]
    assert [name.removeprefix("far-ood") for name in names if "some-far" in name] == [f"some-far-{i}" for i in range(6)]
    assert [name.removeprefix("adversarial") for name in names if "attack" in name] == [f"cifar10+attack{i}" for i in range(6)]


def _headings(blocks):
    """The heading of each column, its lines put together."""
    for block in blocks:
        rule, *lines = block[block.index("---") :].splitlines()
        heading = lines[1 : next(i for i, line in enumerate(lines) if line.startswith("---"))]
        for found in re.finditer("-+", rule):
            yield [line[found.start() : found.end()].strip() for line in heading]


def test_markdown_and_latex_split_wide_tables(wide):
    text = render(wide, "md")
    tables = [part.splitlines() for part in text[: text.index("### Severity")].split("\n\n") if part.startswith("|")]
    assert all(len(markdown_cells(table[0])) <= 16 for table in tables)
    assert "mean all sets 30 cells" in tables[0][0]
    sets = [name for table in tables for name in markdown_cells(table[0]) if "cifar10" in name]
    assert len(sets) == len(set(sets)) == 14
    text = render(wide, "tex")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == len(tables)
    assert text.count("continued.") == len(tables) - 1
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == len(tables)
