"""The table of recognition: figures of class probabilities by source and set, and means over them."""

import csv
import io
import json
import re
import shutil

import new_process
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

import oodbench
from oodbench.errors import BadData, UsageError
from oodbench.leaderboard.plots import FORMATS, RECOGNITION, recognition
from oodbench.leaderboard.recognition import COLUMNS, METRICS, gather_recognition, means, render_recognition, summary
from oodbench.results.folder import RunFolder

EXPECTED = [
    *("model", "in_distribution", "source", "dataset", "kind", "level", "seed", "checkpoint"),
    *("n", "accuracy", "ece", "nll", "brier", "aurc", "status", "reason"),
]
SETS = ["digits+noise@3", "digits+noise@5", "digits+haze@3", "photos"]


def row(source, dataset, accuracy, kind="corruption", level=None, **more):
    found = {"model": "net", "in_distribution": "digits", "source": source, "dataset": dataset, "kind": kind, "level": level}
    figures = {"n": 10, "accuracy": accuracy, "ece": 1 - accuracy, "nll": 2.5, "brier": 0.25, "aurc": 0.125}
    return found | {"seed": 0, "checkpoint": "c" * 16, "status": "ok", "reason": ""} | figures | more


def frame(*rows):
    return pd.DataFrame(rows, columns=[*COLUMNS])


@pytest.fixture
def small():
    without = {"status": "failed", "reason": "out of luck", "accuracy": None, "ece": None}
    return frame(
        row("network", "digits", 0.9, "in-distribution"),
        row("network", "digits+haze", 0.8, level=1),
        row("network", "digits+haze", 0.4, level=2),
        row("network", "digits+noise", 0.2, level=1),
        row("network", "c/fog", 0.9, level=1),
        row("duq", "digits", 0.95, "in-distribution"),
        row("duq", "digits+haze", 0.7, level=1),
        row("duq", "digits+haze", 0.0, level=2) | without,
        row("duq", "digits+noise", 0.3, level=1),
        row("duq", "c/fog", 0.6, level=1),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OODBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        out, options = tmp_path_factory.mktemp("recognition") / "run", {"limit": 60, "measure_costs": False}
        return oodbench.run("digits", detectors=["msp", "mc-dropout"], datasets=SETS, out=out, **options)


def test_means_worked_by_hand(small):
    """Over levels, then corruptions of one base, then bases: haze .6 and noise .2 of digits, and fog .9."""
    found = means(small)
    assert found.loc["network"].to_dict() == pytest.approx(
        {
            ("in-distribution", "digits"): 0.9,
            ("corruption", "digits+haze"): 0.6,
            ("corruption", "digits+noise"): 0.2,
            ("corruption", "c/fog"): 0.9,
            ("mean", "corruption"): (0.4 + 0.9) / 2,
        }
    )
    assert found.loc["duq"]["corruption", "digits+haze"] == 0.7  # of the level that has a figure
    assert found.loc["duq"]["mean", "corruption"] == pytest.approx((0.5 + 0.6) / 2)


def test_seeds_are_averaged_first():
    found = means(frame(*(row("network", "digits+haze", a, level=1, seed=seed) for seed, a in enumerate((0.2, 0.6)))))
    assert found.loc["network"].tolist() == [0.4, 0.4]


def test_a_table_worked_by_hand(small):
    lines = render_recognition(small, width=200).splitlines()
    assert lines[0] == "net, recognition, in-distribution digits"
    assert "Accuracy ×100 (higher is better)" in lines[1]
    rows = {line.split()[0]: line.split()[1:] for line in lines if re.match(r"(network|duq) .*\d", line)}
    assert rows["network"] == ["90.0", "60.0", "20.0", "90.0", "65.0"]
    assert rows["duq"] == ["95.0", "70.0", "(1/2)", "30.0", "60.0", "55.0", "(3/4)"]
    assert "duq on digits+haze: out of luck" in lines
    bold = [line for line in render_recognition(small, "md", metric="ece").splitlines() if line.startswith("| duq")]
    assert [cell.strip() for cell in bold[0].split("|")[2:-1]] == [
        "", "**5.0**", "30.0 (1/2)", "**70.0**", "40.0", "45.0 (3/4)",
    ]  # fmt: skip


@pytest.mark.parametrize("format", ["table", "md", "tex", "html", "csv", "json"])
@pytest.mark.parametrize("metric", METRICS)
def test_each_format_shows_each_figure(small, format, metric):
    text = render_recognition(small, format, metric=metric)
    assert "network" in text
    assert text == render_recognition(small, format, metric=metric)
    assert render_recognition(small.iloc[:0], format)


def test_programs_get_all_columns_in_order(finished):
    frame, _ = gather_recognition([finished])
    table = list(csv.DictReader(io.StringIO(render_recognition(frame, "csv"))))
    assert list(table[0]) == EXPECTED == [*COLUMNS]
    rows = json.loads(render_recognition(frame, "json"))
    assert [list(one) for one in rows] == [EXPECTED] * len(table)
    records = {(r.source, r.dataset, r.level): r for r in finished.recognition()}
    assert len(rows) == len(records) == 4 * 4
    for one in rows:
        record = records[one["source"], one["dataset"], one["level"]]
        assert {name: one[name] for name in METRICS} == record.figures.model_dump(include={*METRICS})
        assert (one["n"], one["checkpoint"], one["kind"]) == (60, record.weights_hash, record.kind)
    assert [one["dataset"] for one in rows][:3] == ["digits"] * 3
    scaled = {one["reason"] for one in rows if one["source"] == "network-scaled"}
    assert scaled == {"temperature 0.05, the lowest that is fitted; calibrated on training images, which the network has seen"}
    short = render_recognition(frame, "csv", columns=["source", "aurc"]).splitlines()
    assert short[0] == "source,aurc"


def test_it_is_there_in_python(finished):
    found = finished.frame(table="recognition")
    assert found.columns.tolist() == EXPECTED
    assert set(found.source) == {"network", "network-scaled", "mc-dropout", "mc-dropout-scaled"}
    assert str(finished.table(table="recognition")).startswith("resnet8-digits, recognition, in-distribution digits")
    assert "NLL in nats" in finished.table("nll", table="recognition")._repr_html_()
    with pytest.raises(UsageError, match="unknown recognition metric 'auroc'"):
        finished.table("auroc", table="recognition")
    with pytest.raises(UsageError, match="unknown table 'recogniton'; did you mean 'recognition'"):
        finished.frame("recogniton")


def test_the_command(finished, tmp_path):
    done = new_process.oodbench("leaderboard", finished.path, "--table", "recognition", "--metric", "ece")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "resnet8-digits, recognition, in-distribution digits")
    options = ["--table", "recognition", "--detector", "network", "--dataset", "digits+noise", "--out", tmp_path / "a.csv"]
    new_process.oodbench("leaderboard", finished.path, *options)
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert {(one["source"], one["dataset"], one["level"]) for one in rows} == {
        ("network", "digits+noise", "3"), ("network", "digits+noise", "5"),
    }  # fmt: skip
    for options, says in (
        (["--top", "3"], "--table recognition takes no --top; leave one of the two out"),
        (["--protocol", "per-shift"], "--table recognition takes no --protocol"),
        (["--detector", "knn"], "none of the runs holds the detector 'knn'; the runs hold network, network-scaled, mc-dropout"),
        (["--metric", "auroc"], "unknown recognition metric 'auroc'"),
        (["--kind", "adversarial"], "none of the runs holds the kind 'adversarial'"),
        (["--columns", "costs"], "unknown column 'costs'"),
    ):
        done = new_process.oodbench("leaderboard", finished.path, "--table", "recognition", *options)
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr


def test_a_run_ends_with_a_line_of_it(finished):
    frame, _ = gather_recognition([finished])
    of_network = frame[frame.source == "network"]
    noise = of_network[of_network.kind == "corruption"].groupby("dataset")[["accuracy", "ece"]].mean().mean()
    inside = of_network[of_network.kind == "in-distribution"].iloc[0]
    assert summary(frame) == (
        f"resnet8-digits: accuracy {100 * inside.accuracy:.1f} % and ECE {100 * inside.ece:.1f} % on digits,"
        f" accuracy {100 * noise.accuracy:.1f} % and ECE {100 * noise.ece:.1f} % on average over corruptions"
    )
    assert summary(frame[frame.kind == "in-distribution"]).endswith("% on digits")
    assert summary(frame[frame.source == "mc-dropout"]) == summary(frame.iloc[:0]) == ""


def test_the_output_of_a_run_has_the_line(tmp_path):
    options = ["--detector", "msp", "--dataset", "digits+haze@3", "--limit", "40", "--no-costs", "--out", tmp_path / "run"]
    lines = new_process.oodbench("run", *options).stdout.splitlines()
    line = summary(gather_recognition([RunFolder(tmp_path / "run")])[0])
    assert "on average over corruptions" in line
    assert line in " ".join(" ".join(lines).split())
    assert lines[-1] == str(tmp_path / "run")


def test_several_runs(finished, tmp_path):
    copy = RunFolder(shutil.copytree(finished.path, tmp_path / "copy"))
    both, _ = gather_recognition([finished, copy])
    assert render_recognition(both, "md") == render_recognition(gather_recognition([copy])[0], "md")
    labelled, _ = gather_recognition([finished, copy], labels={copy.path: "mine"})
    titles = [line for line in render_recognition(labelled, "md").splitlines() if line.startswith("###")]
    assert titles == [f"### {name}, recognition, in-distribution digits" for name in ("resnet8-digits", "mine")]
    other = frame(
        row("network", "digits", 0.9, "in-distribution"), row("network", "digits", 0.8, "in-distribution", checkpoint="d")
    )
    titles = [line for line in render_recognition(other, "md").splitlines() if line.startswith("###")]
    assert titles == [f"### net #{name}, recognition, in-distribution digits" for name in ("cccccc", "d")]


# Pictures


def slow_bins(images):
    """Count, accuracy and mean confidence of each of 15 bins, one image after another."""
    found = [[] for _ in range(15)]
    for confidence, right, *_ in images:
        found[max(0, int(np.ceil(confidence * 15 - 1e-12)) - 1)].append((confidence, right))
    return [(len(of), np.mean([r for _, r in of]), np.mean([c for c, _ in of])) if of else (0, None, None) for of in found]


def test_reliability_shows_each_bin(finished):
    options = {"detectors": "mc-dropout", "datasets": "digits+noise"}
    picture = finished.plot("reliability", **options)
    (record,) = (r for r in finished.recognition() if (r.source, r.set_name) == ("mc-dropout", "digits+noise@5"))
    expected = slow_bins(finished.arrays(record)["probabilities"])
    above, below = picture.axes
    assert [bar.get_height() for bar in below.patches] == [count for count, _, _ in expected]
    shown = [bar.get_height() for bar in above.patches]
    for (count, accuracy, confidence), height, line in zip(expected, shown, above.collections[0].get_segments(), strict=True):
        if count:
            assert height == pytest.approx(100 * accuracy)
            assert line[0][1] == pytest.approx(100 * confidence)
        else:
            assert np.isnan(height)
    texts = " ".join(text.get_text() for text in picture.findobj(Text))
    assert f"on digits+noise@5, ECE {100 * record.figures.ece:.1f}" in texts.replace("\n", " ")
    gap = sum(count * abs(accuracy - confidence) for count, accuracy, confidence in expected if count) / 60
    assert gap == pytest.approx(record.figures.ece)
    title = " ".join(text.get_text() for text in finished.plot("reliability").findobj(Text))
    assert "network of resnet8-digits on digits, ECE" in title


def test_generalization_leads_from_the_network_to_introspective():
    rows = [row("network", "digits+haze", 0.5, level=1), row("introspective", "digits+haze", 0.75, level=1, ece=0.125)]
    rows += [one | {"model": "other", "accuracy": 0.25} for one in rows] + [row("network", "digits", 1.0, "in-distribution")]
    picture = recognition.figure("generalization", frame(*rows), [])
    (axes,) = picture.axes
    assert [(text.xy, text.get_position()) for text in axes.texts] == [
        ((75, 12.5), (50, 50)), ((25, 12.5), (25, 50)),
    ]  # fmt: skip
    names = [text.get_text() for text in picture.texts]
    assert {"net on digits", "other on digits"} <= {*names}
    with pytest.raises(BadData, match="no run has figures of network and introspective on corruptions"):
        recognition.figure("generalization", frame(*rows[:1]), [])


@pytest.mark.parametrize("kind", RECOGNITION)
def test_pictures_repeat_themselves_and_hold_their_texts(finished, kind):
    found, _ = gather_recognition([finished])
    if kind == "generalization":
        found.loc[found.source == "mc-dropout", "source"] = "introspective"
    for format in FORMATS:
        assert recognition.draw(kind, found, format, [finished]) == recognition.draw(kind, found, format, [finished])
    picture = recognition.figure(kind, found, [finished])
    for text in picture.texts:
        box = text.get_window_extent()
        assert picture.bbox.x0 <= box.x0, text
        assert box.x1 <= picture.bbox.x1, text
    with pytest.raises(UsageError, match="unknown picture format 'gif'"):
        recognition.draw(kind, found, "gif", [finished])


def test_the_command_draws_them(finished, tmp_path):
    out = tmp_path / "picture.svg"
    options = ["--plot", "reliability", "--detector", "network-scaled", "--out", out]
    done = new_process.oodbench("leaderboard", finished.path, *options)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, str(out))
    assert b"<svg" in out.read_bytes()
    done = new_process.oodbench("leaderboard", finished.path, "--plot", "generalization", "--out", out)
    assert (done.returncode, "no run has figures of network and introspective" in done.stderr) == (1, True)
    for options in (["--table", "recognition", "--plot", "bars"], ["--plot", "reliability", "--top", "3"]):
        assert new_process.oodbench("leaderboard", finished.path, *options).returncode == 2


def test_there_is_no_picture_of_nothing(small):
    with pytest.raises(BadData, match="no source of class probabilities has figures"):
        recognition.figure("reliability", small[small.status == "failed"], [])
    with pytest.raises(BadData, match="network on digits: its run folder stores no class probabilities"):
        recognition.figure("reliability", small, [])
    with pytest.raises(UsageError, match="unknown recognition picture 'bars'"):
        recognition.figure("bars", small, [])


def test_names_of_plugins_are_harmless():
    hostile = frame(row("=cmd|x", "digits", 0.5, "in-distribution", reason="<i>|\n"))
    assert "'=cmd|x" in render_recognition(hostile, "csv")
    assert "<i>" not in render_recognition(hostile, "html")
    assert r"=cmd\|x" in render_recognition(hostile, "md")


def test_wrong_usage_gets_one_line(small):
    with pytest.raises(BadData, match="the frame lacks the columns checkpoint; take it from frame"):
        render_recognition(small.drop(columns="checkpoint"))
    with pytest.raises(UsageError, match="unknown format 'xml'"):
        render_recognition(small, "xml")
