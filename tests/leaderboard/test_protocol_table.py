"""The protocols in one row: figures on the samples that all have in common, gains of heads, and leads over the control."""

import json
from functools import reduce

import pytest

import oodbench
from oodbench import cli
from oodbench.errors import BadData, UsageError
from oodbench.leaderboard.gather import gather
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.leaderboard.protocol_table import COLUMNS, protocol_rows, render_protocols
from oodbench.leaderboard.selection import select
from oodbench.metrics import auroc
from oodbench.results.statistics import difference

SETS = ["photos", "uniform", "digits+noise@1", "digits+noise@5", "digits+grey-level"]
PROTOCOLS = ("unsupervised", "per-shift", "transfer")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OODBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        options = {"detectors": ["msp", "knn", "pixels"], "datasets": SETS, "limit": 120, "measure_costs": False}
        return oodbench.run("digits", out=tmp_path_factory.mktemp("protocols") / "run", **options)


@pytest.fixture(scope="module")
def rows(finished):
    return protocol_rows(gather([finished])[0], StoredScores([finished])).set_index(["detector", "protocol"])


def common(finished, dataset):
    """The scores of knn and pixels under each protocol on the samples that all protocols have, in one order."""
    found = {(d, p): finished.scores(d, dataset, p) for d in ("knn", "pixels") for p in PROTOCOLS}
    shared = reduce(lambda one, other: one.intersection(other), (scores.index for scores in found.values()))
    return {key: scores.loc[shared.sort_values()] for key, scores in found.items()}


def test_figures_are_of_the_samples_that_all_protocols_have(finished, rows):
    for protocol in PROTOCOLS:
        by_set = {}
        for dataset in ("uniform", "digits+noise@1", "digits+noise@5"):
            scores = common(finished, dataset)["knn", protocol]["score"]
            by_set[dataset] = auroc(scores.loc["in"], scores.loc["out"])
        wanted = (by_set["uniform"] + (by_set["digits+noise@1"] + by_set["digits+noise@5"]) / 2) / 2
        assert rows.loc[("knn", protocol), "auroc"] == pytest.approx(wanted, abs=1e-12)
    assert set(rows["cells"]) == {3}
    assert set(rows["sets"]) == {2}
    whole = finished.frame().set_index(["detector", "protocol", "dataset"])["n_in"]
    assert len(common(finished, "uniform")["knn", "transfer"].loc["in"]) < whole[("knn", "unsupervised", "uniform")]


def test_gains_and_leads_are_paired_differences(finished):
    frame, _ = gather([finished], keep=lambda frame: select(frame, datasets=["photos", "uniform"]))
    rows = protocol_rows(frame, StoredScores([finished])).set_index(["detector", "protocol"])
    scores = common(finished, "uniform")

    def apart(first, second):
        sides = [tuple(scores[key]["score"].loc[side] for side in ("in", "out")) for key in (first, second)]
        return difference(*sides)

    for column, protocol, other in (
        ("gain", "per-shift", ("knn", "unsupervised")),
        ("gain", "transfer", ("knn", "unsupervised")),
        ("lead", "transfer", ("pixels", "transfer")),
    ):
        slow, row = apart(("knn", protocol), other), rows.loc[("knn", protocol)]
        assert row[column] == pytest.approx(slow.auroc, abs=1e-12)
        if slow.low > -1:  # else both are without an error
            assert row[f"{column}_high"] - row[f"{column}_low"] == pytest.approx(slow.high - slow.low, rel=0.02)
    assert rows.loc[("knn", "unsupervised"), ["gain", "gain_low"]].isna().all()
    assert rows.loc[("pixels", "per-shift"), ["lead", "lead_low"]].isna().all()


def test_each_detector_has_one_row(finished):
    frame, notes = gather([finished])
    text = render_protocols(frame, StoredScores([finished]), width=None, notes=notes)
    table = text[text.index("---") : text.rindex("---")]
    assert [line.split()[0] for line in table.splitlines() if line.startswith(("msp", "knn", "pixels"))].count("knn") == 1
    assert "the mean over 3 cells of 2 sets" in text
    assert "Left out, because not every protocol has it: photos." in text
    for format, wanted in (("md", "| knn"), ("tex", " knn "), ("html", ">knn<")):
        assert wanted in render_protocols(frame, StoredScores([finished]), format)
    found = json.loads(render_protocols(frame, StoredScores([finished]), "json"))
    assert list(found[0]) == list(COLUMNS)
    assert {(row["detector"], row["protocol"]) for row in found} == {
        ("msp", "unsupervised"), *((name, protocol) for name in ("knn", "pixels") for protocol in PROTOCOLS),
    }  # fmt: skip


def test_without_the_control_there_are_no_leads(finished):
    frame, _ = gather([finished], keep=lambda frame: select(frame, detectors=["knn"]))
    assert "lead over" not in render_protocols(frame, StoredScores([finished]))


def test_what_cannot_be_compared(finished):
    scores = StoredScores([finished])
    one, _ = gather([finished], keep=lambda frame: select(frame, protocols=["unsupervised"]))
    with pytest.raises(BadData, match="these cells are of one protocol"):
        protocol_rows(one, scores)
    source, _ = gather([finished], keep=lambda frame: select(frame, datasets=["photos", "digits+noise@1"]))
    apart = source[(source["dataset"] == "photos") | (source["protocol"] == "transfer")]
    with pytest.raises(BadData, match="no test samples in common"):
        protocol_rows(apart, scores)
    with pytest.raises(UsageError, match="no parts to show"):
        render_protocols(source, scores, columns=["sets"])


def test_the_command(finished, capsys, monkeypatch):
    def run(*options):
        monkeypatch.setattr("sys.argv", ["oodbench", "leaderboard", str(finished.path), "--table", "protocols", *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return end.value.code, shown.out, shown.err

    code, text, _ = run()
    assert code in (None, 0)
    assert "minus unsupervised" in text
    for options, says in (
        (["--plot", "bars"], "--table protocols takes no --plot"),
        (["--metric", "fpr95"], "--table protocols takes no --metric"),
        (["--interval"], "--table protocols takes no --interval"),
        (["--beside", str(finished.path)], "--beside takes no --table"),
    ):
        code, _, error = run(*options)
        assert (code, says in error) == (2, True)
