"""Pictures: what they show is what the tables and the stored scores say, and names fit and are not taken for formulas."""

import re
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

import oodbench
from oodbench import cli
from oodbench.errors import BadData, UsageError
from oodbench.leaderboard import means
from oodbench.leaderboard.aggregate import COLUMNS, CONTROLS
from oodbench.leaderboard.gather import gather
from oodbench.leaderboard.plots import FORMATS, KINDS, draw, figure
from oodbench.leaderboard.plots.picture import fitted, folded, width_of
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.results.folder import RunFolder
from oodbench.results.ranks import critical_difference

HOSTILE = "$\\frac{1}{0}$ _<script>alert(1)</script>\x1b--&\u202e" + "long" * 30
SETS = ["digits-heldout", "photos", "digits+noise@1", "digits+noise@5", "digits+grey-level"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OODBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        options = {"detectors": ["msp", "knn", "pixels"], "datasets": SETS, "limit": 60}
        return oodbench.run("digits", out=tmp_path_factory.mktemp("plots") / "run", **options)


@pytest.fixture(scope="module")
def run(finished):
    """The frame of a run, and its scores."""
    return gather([finished])[0], StoredScores([finished])


def cell(detector="msp", dataset="photos", **more):
    row = {"model": "net", "in_distribution": "digits", "detector": detector, "protocol": "unsupervised", "seed": 0}
    row |= {"dataset": dataset, "kind": "far-ood", "level": None, "auroc": 0.9, "auroc_low": 0.85, "auroc_high": 0.94}
    return row | {"n_in": 10, "n_out": 10, "ms_per_image": 1.5, "overhead": 2.0, "status": "ok", "reason": ""} | more


def frame(*cells):
    return pd.DataFrame(cells).reindex(columns=list(COLUMNS))


class Drawn:
    """Scores for any cell."""

    def of(self, cell):
        return np.arange(10.0), np.arange(10.0) + 5


def texts_of(picture):
    """The texts that are drawn; matplotlib keeps labels of ticks beyond the ends of an axis, and draws none of these."""
    picture.draw_without_rendering()
    beyond = set()
    for axes in picture.axes:
        for axis, place in ((axes.xaxis, 0), (axes.yaxis, 1)):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]
            beyond |= {text for text in ticks if not low <= text.get_position()[place] <= high}
    return [text for text in picture.findobj(Text) if text.get_text() and text.get_visible() and text not in beyond]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", FORMATS)
def test_files_repeat_themselves(run, kind, format, monkeypatch):
    found, scores = run
    before = found.copy()
    first = draw(kind, found, format, scores)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")  # matplotlib would write this date
    assert draw(kind, found, format, scores) == first
    assert first.startswith({"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF"}[format])
    pd.testing.assert_frame_equal(found, before)


def test_fonts_of_pdf_files_are_those_that_publishers_take(run):
    assert b"/Type3" not in draw("bars", run[0], "pdf")


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_is_in_the_picture_and_none_is_a_formula(run, kind):
    levels = [{"dataset": f"digits+{HOSTILE}", "kind": "corruption", "level": level} for level in (1, 2)]
    cells = [cell(name, **of, model=HOSTILE) for name in (HOSTILE, "mc-dropout:mutual-information", "pixels") for of in levels]
    for found, scores in (run, (frame(*cells), Drawn())):
        picture = figure(kind, found, scores)
        for text in texts_of(picture):
            box = text.get_window_extent()
            assert picture.bbox.x0 <= box.x0, text
            assert box.x1 <= picture.bbox.x1, text
            assert picture.bbox.y0 <= box.y0, text
            assert box.y1 <= picture.bbox.y1, text
            assert not text.get_parse_math() or "$" not in text.get_text()
            assert not set(text.get_text()) & set("\x1b\u202e")


@pytest.mark.parametrize("kind", KINDS)
def test_texts_do_not_overlap(run, kind):
    texts = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure(kind, *run))]
    pairs = [(a, b) for place, (a, one) in enumerate(texts) for b, other in texts[:place] if _share(one, other)]
    assert pairs == []


def _share(one, other):
    """Whether texts overlap by more than a sixth of the height of one, which has room for descenders."""
    wide, high = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
    return wide > 0 and high > min(one.height, other.height) / 6


def test_long_names_are_folded_and_then_shortened():
    assert folded("mc-dropout:mutual-information", 1.5, 7.5) == ["mc-dropout:mutual-", "information"]
    assert folded("resnet8, in-distribution digits", 1.15, 7.5) == ["resnet8,", "in-distribution digits"]
    assert fitted("knn", 1) == "knn"
    for line in [fitted("m" * 99, 1.0), *folded("long-" * 99, 1.0), *folded("m" * 99, 1.0)]:
        assert width_of(line) <= 1.0
    assert folded("long-" * 99, 1.0)[-1].endswith("…")


# Bars


def test_bars_are_means_with_the_mean_of_intervals(run):
    found, _ = run
    picture = figure("bars", found)
    panel = picture.axes[0]
    table = means(found[found["protocol"] == "unsupervised"]).set_index("detector")["all"]
    names = [text.get_text() for text in panel.get_yticklabels()]
    assert names == [f"{name} (control)" if name == "pixels" else name for name in table.index]
    assert [50 + bar.get_width() for bar in panel.patches] == pytest.approx((100 * table).tolist())
    lows = means(found.assign(auroc=found["auroc_low"])[found["protocol"] == "unsupervised"]).set_index("detector")["all"]
    ends = [float(bars.get_segments()[0][:, 0].min()) for bars in panel.collections]
    assert ends == pytest.approx([100 * lows[name] for name in table.index])
    hatched = [bool(bar.get_hatch()) for bar in panel.patches]
    assert hatched == [name == "pixels (control)" for name in names]


def test_bars_of_one_set_name_it_and_mark_rows_that_lack_cells():
    (panel,) = figure("bars", frame(cell())).axes
    assert panel.get_xlabel() == "AUROC ×100, on photos"
    picture = figure("bars", frame(cell(), cell("knn"), cell("knn", "svhn")))
    shown = [text.get_text() for text in texts_of(picture)]
    assert "90.0*" in shown
    assert "90.0" in shown
    assert any("fewer cells" in text for text in shown)


def test_the_best_ten_and_the_controls():
    cells = [cell(f"d{number:02}", auroc=0.99 - number / 100) for number in range(15)]
    found = frame(*cells, cell("pixels", auroc=0.2, auroc_low=0.1, auroc_high=0.3))
    for top, expected in ((None, 10), (3, 3)):
        (panel,) = figure("bars", found, top=top).axes
        names = [text.get_text() for text in panel.get_yticklabels()]
        assert names == [*(f"d{number:02}" for number in range(expected)), "pixels (control)"]
        assert panel.get_xlim() == (10, 100)  # below chance too


# ROC curves and histograms


def test_curves_enclose_the_area_of_the_table(run):
    found, scores = run
    panels = figure("roc", found, scores).axes
    rows = found[(found["dataset"] == "digits-heldout") & (found["protocol"] == "unsupervised")]
    lines = [line for line in panels[0].lines if line.get_linewidth() == 0.9]
    areas = [np.trapezoid(line.get_ydata(), line.get_xdata()) / 1e4 for line in lines]
    assert sorted(areas) == pytest.approx(sorted(rows["auroc"]))
    legend = [text.get_text() for text in texts_of(panels[0].figure)]
    for _, row in rows.iterrows():
        assert any(text.startswith(row["detector"]) and text.endswith(f" {100 * row['auroc']:.1f}") for text in legend)


def test_roc_shows_the_first_set_that_is_left(run):
    found, scores = run
    noisy = found[found["dataset"] == "digits+noise"]
    titles = [" ".join(text.get_text() for text in texts_of(figure("roc", part, scores))) for part in (found, noisy)]
    assert "against digits-heldout" in titles[0]
    assert "digits+noise@5" in titles[1]  # of a corruption, its highest level


def test_histograms_hold_every_image(run):
    found, scores = run
    best = means(found[(found["protocol"] == "unsupervised") & ~found["detector"].isin(CONTROLS)])["detector"][0]
    picture = figure("hist", found, scores)
    titles = [axes.get_title(loc="left").rpartition(" ")[0] for axes in picture.axes]
    assert titles == ["digits-heldout", "photos", "digits+noise@5", "digits+grey-level"]
    for axes in picture.axes:
        assert [sum(patch.get_data().values) for patch in axes.patches] == pytest.approx([100, 100])
    rows = found[(found["dataset"] == "photos") & (found["detector"] == best) & (found["protocol"] == "unsupervised")]
    in_scores, out_scores = scores.of(rows.iloc[0])
    assert oodbench.evaluate(in_scores, out_scores).auroc == rows.iloc[0]["auroc"]
    threshold = picture.axes[1].lines[0].get_xdata()[0]
    assert (in_scores <= threshold).mean() >= 0.95


def test_histograms_of_a_control_are_drawn_only_if_it_is_alone():
    control, detector = cell("pixels", auroc=0.99), cell("msp", auroc=0.8)
    for cells, name in (((control, detector), "msp"), ((control,), "pixels (control)")):
        assert f"{name}, unsupervised" in [text.get_text() for text in texts_of(figure("hist", frame(*cells), Drawn()))]


def test_equal_scores_have_a_histogram():
    class Equal:
        def of(self, cell):
            return np.zeros(5), np.zeros(7)

    (axes,) = figure("hist", frame(cell()), Equal()).axes
    assert axes.get_xlim() == (-0.5, 0.5)


def test_scores_are_those_of_the_run_that_counts(finished, tmp_path):
    """Cells of several runs are told apart, and the last one counts."""
    other = oodbench.run(
        "digits", detectors=["msp"], datasets=["photos"], limit=50, out=tmp_path / "other", measure_costs=False
    )
    folders = [finished, RunFolder(other.path)]
    scores, (found, _) = StoredScores(folders), gather(folders)
    rows = found[(found["dataset"] == "photos") & (found["detector"] == "msp") & (found["protocol"] == "unsupervised")]
    assert [len(scores.of(row)[0]) for _, row in rows.iterrows()] == [60, 50]


# Cost


def test_cost_is_time_against_the_mean(run):
    found, _ = run
    panel = figure("cost", found).axes[0]
    rows = found[found["protocol"] == "unsupervised"]
    table = means(rows).set_index("detector")["all"]
    cost = rows.groupby("detector")["ms_per_image"].median()
    points = [tuple(points.get_offsets()[0]) for points in panel.collections]
    assert points == [pytest.approx((cost[name], 100 * table[name])) for name in table.index]
    assert panel.get_xscale() == "log"
    assert "ms" in panel.get_xlabel()


# What is missing


@pytest.mark.parametrize(
    ("kind", "found", "says"),
    [
        ("bars", frame(cell(status="failed", auroc=None)), "no cell has a figure"),
        ("cost", frame(cell(ms_per_image=None)), "no costs were measured; run again without --no-costs"),
        ("hist", frame(cell(status="failed", auroc=None)), "no cell has scores"),
        ("roc", frame(cell(status="failed", auroc=None)), "no cell has scores"),
        ("severity", frame(cell()), "no corruption has figures at two levels"),
    ],
)
def test_a_picture_of_nothing_gets_one_line(kind, found, says):
    for cells in (found, found.iloc[:0]):
        with pytest.raises(BadData, match=says) as raised:
            figure(kind, cells, Drawn())
        assert "\n" not in str(raised.value)


def test_without_scores_the_remedy_is_named(run):
    found, _ = run
    for kind in ("hist", "roc"):
        with pytest.raises(UsageError, match="need the scores of a run"):
            figure(kind, found)
        with pytest.raises(BadData, match="stores no scores of this figure; run it again"):
            figure(kind, found, StoredScores([]))
    with pytest.raises(UsageError, match="unknown picture 'bar'; did you mean 'bars'"):
        figure("bar", found)


def test_the_command_draws_each_kind(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        monkeypatch.setattr(sys, "argv", ["oodbench", "leaderboard", str(finished.path), "--plot", kind])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
        assert capsys.readouterr().out == f"{kind}.png\n"
        assert (tmp_path / f"{kind}.png").read_bytes() == draw(kind, *_of(finished))


def _of(finished):
    return gather([finished])[0], "png", StoredScores([finished])


# Critical differences


def ranked(sets, detectors=30, noise=0.02):
    """Detectors of which each is better than the next one, on sets of which corruptions and attacks count once a base."""
    rng, cells = np.random.default_rng(0), []
    kinds = [{"dataset": f"far-{number}"} for number in range(sets - 2)]
    kinds += [{"dataset": f"digits+{name}", "kind": "corruption", "level": 1} for name in ("haze", "snow", "noise")]
    kinds += [{"dataset": f"digits+{name}", "kind": "adversarial"} for name in ("pgd", "cw")]
    for number in range(detectors):
        of = ({"auroc": 0.95 - number / 100 + rng.normal(0, noise)} | kind for kind in kinds)
        cells += [cell(f"detector-{number:02}", **one) for one in of]
    return frame(*cells)


def drawn_texts(picture):
    return [text.get_text() for text in texts_of(picture)]


def bars_of(picture):
    """First and last row of each bar beside the plot."""
    axes = picture.axes[0]
    lines = [line for line in axes.lines if line.get_linewidth() == 1.6]
    return [tuple(round(float(y)) for y in line.get_ydata()) for line in lines]


def test_ranks_are_of_independent_sets():
    picture = figure("cd", ranked(8, noise=0))
    texts = drawn_texts(picture)
    assert "unsupervised, 8 independent sets" in texts  # six, all corruptions of digits, and all attacks on it
    names = [text.get_text() for text in picture.axes[0].get_yticklabels()]
    assert names == [f"detector-{number:02} {number + 1:.1f}" for number in range(30)]
    difference = critical_difference(30, 8)
    assert any(f"Critical difference {difference:.1f} between 30 rows." in text for text in texts)
    reach = int(np.ceil(difference)) - 1
    assert bars_of(picture) == [(first, first + reach) for first in range(30 - reach)]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts_of(picture)]
    assert not [(a, b) for place, (a, one) in enumerate(boxes) for b, other in boxes[:place] if _share(one, other)]


def test_with_few_sets_nothing_is_said_of_differences():
    picture = figure("cd", ranked(5))
    assert any("Fewer than 6 independent sets" in text for text in drawn_texts(picture))
    assert bars_of(picture) == []
    assert not re.search(r"ritical difference \d", " ".join(drawn_texts(picture)))
    assert bars_of(figure("cd", ranked(6, noise=0))) != []


def test_equal_detectors_have_no_bars():
    rng = np.random.default_rng(1)
    cells = [cell(f"d{n}", dataset=f"s{m}", auroc=rng.uniform()) for n in range(5) for m in range(8)]
    picture = figure("cd", frame(*cells))
    assert any("Friedman's test finds no difference" in text for text in drawn_texts(picture))
    assert bars_of(picture) == []


def test_rows_that_lack_sets_are_named():
    found = ranked(8, detectors=4)
    lacking = (found["detector"] == "detector-01") & (found["dataset"] == "digits+snow")
    found.loc[lacking, ["auroc", "status"]] = np.nan, "failed"
    control = [cell("pixels", dataset, kind=kind) for dataset, kind in found[["dataset", "kind"]].drop_duplicates().to_numpy()]
    picture = figure(
        "cd", pd.concat([found, frame(*control).assign(level=lambda of: of["kind"].eq("corruption").map({True: 1}))])
    )
    said = " ".join(drawn_texts(picture))
    assert "Left out: pixels (control)." in said
    assert "no figure: detector-01." in said
    assert len(picture.axes[0].get_yticklabels()) == 3
    with pytest.raises(BadData, match="no protocol has two rows with figures on all sets"):
        figure("cd", frame(cell("msp"), cell("pixels")))
