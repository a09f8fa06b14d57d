"""Results in Python: opened again without a run, as tables and pictures in a notebook, and score by score."""

import sys
import types
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from run_folders import arrays_of, files, record_of

import oodbench
from oodbench.api import Results, Table
from oodbench.errors import BadData, OodbenchError, UsageError
from oodbench.leaderboard.aggregate import COLUMNS
from oodbench.leaderboard.formats import render
from oodbench.progress import Notebook, Progress, shown_in_notebooks

SETS = ["digits-heldout", "photos", "digits+noise@1", "digits+noise@5", "digits+fgsm"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OODBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        options = {"detectors": ["msp", "knn", "pixels"], "datasets": SETS, "limit": 60, "measure_costs": False}
        return oodbench.run("digits", out=tmp_path_factory.mktemp("results") / "run", **options)


# Opening a run


def test_a_run_is_opened_without_running(finished):
    before = files(finished)
    opened = oodbench.open_run(str(finished.path))
    assert isinstance(opened, Results)
    pd.testing.assert_frame_equal(opened.frame(), finished.frame())
    assert files(opened) == before
    assert repr(opened) == f"Results({str(finished.path)!r})"


def test_what_is_not_a_run_is_refused(finished, tmp_path):
    with pytest.raises(UsageError, match="missing does not exist; name a folder that `oodbench run` wrote"):
        oodbench.open_run(tmp_path / "missing")
    with pytest.raises(UsageError, match="is not a run folder"):
        oodbench.open_run(tmp_path)
    (tmp_path / "passes").mkdir()
    with pytest.raises(BadData, match=r"has no run\.json"):
        oodbench.open_run(tmp_path)


def test_damaged_costs_warn_at_the_line_that_asks(folder):
    (folder.path / "costs.json").write_text("{")
    results = oodbench.open_run(folder.path)
    for ask in (lambda: results.frame(), lambda: results.table(), lambda: results.plot()):
        with pytest.warns(UserWarning, match="until then they are left out") as told:
            ask()
        assert {one.filename for one in told} == {__file__}


# Tables


class Parsed(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_a_table_is_text_and_html(finished):
    table = finished.table()
    assert isinstance(table, Table)
    assert str(table) == repr(table)
    assert "mahalanobis" not in str(table)
    parsed = Parsed(table._repr_html_())
    for row in str(table).splitlines():
        if row.startswith(("msp", "knn", "pixels")):
            assert row.split()[0] in parsed.text
    assert {tag for tag, _ in parsed.tags} <= {
        "h4",
        "p",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "br",
        "b",
        "ul",
        "li",
    }
    assert "AUROC" in parsed.text
    assert str(finished.table("fpr95")) != str(table)
    assert len(str(finished.table(top=1)).splitlines()) < len(str(table).splitlines())
    assert finished._repr_html_() == finished.table(top=10)._repr_html_()
    with pytest.raises(UsageError, match="unknown metric 'auroq'; did you mean 'auroc'"):
        finished.table("auroq")


def test_names_are_text_in_html():
    hostile = "<script>alert(1)</script>\"'&\x1b\u202e<img src=x onerror=alert(1)>"
    row = dict.fromkeys(COLUMNS) | {
        "model": hostile, "in_distribution": hostile, "detector": hostile, "protocol": "unsupervised", "dataset": hostile,
        "kind": hostile, "seed": 0, "auroc": 0.5, "status": "ok", "reason": hostile,
    }  # fmt: skip
    failed = row | {"dataset": "other", "status": "failed", "auroc": None}
    parsed = Parsed(render(pd.DataFrame([row, failed]), "html"))
    assert not {tag for tag, _ in parsed.tags} & {"script", "img", "a"}
    assert not [attrs for _, attrs in parsed.tags if set(attrs) - {"style"}]
    assert "<script>alert(1)</script>" in parsed.text
    assert not set(parsed.text) & set("\x1b\u202e")


# Pictures


def test_a_picture_is_a_figure_that_shows_itself(finished, tmp_path):
    picture = finished.plot()
    assert isinstance(picture, Figure)
    assert picture._repr_png_().startswith(b"\x89PNG\r\n")
    picture.savefig(tmp_path / "a.pdf")
    picture.savefig(tmp_path / "b.pdf")
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_a_picture_of_what_is_asked_for(finished):
    (panel,) = finished.plot("bars", protocols="unsupervised", detectors=["msp", "knn"]).axes
    assert {text.get_text() for text in panel.get_yticklabels()} == {"msp", "knn"}
    titles = [axes.get_title(loc="left") for axes in finished.plot("hist", datasets=["digits+noise@1", "photos"]).axes]
    assert [title.rpartition(" ")[0] for title in titles] == ["photos", "digits+noise@1"]
    for option, name in (("detectors", "mps"), ("datasets", "foto"), ("protocols", "per shift")):
        with pytest.raises(UsageError, match=f"unknown {option[:-1]} '{name}'"):
            finished.plot(**{option: [name]})
    with pytest.raises(BadData, match="no costs were measured"):
        finished.plot("cost")


# Scores


@pytest.mark.parametrize("protocol", ["unsupervised", "per-shift"])
@pytest.mark.parametrize("dataset", ["photos", "digits+noise@5", "digits+fgsm"])
def test_scores_are_those_that_figures_are_computed_from(finished, dataset, protocol):
    found = finished.scores("knn", dataset, protocol)
    arrays, record = arrays_of(finished, "knn", protocol, dataset), record_of(finished, "knn", protocol, dataset)
    inside, outside = found.loc["in"], found.loc["out"]
    assert np.array_equal(inside["score"], arrays["in_scores"])
    assert np.array_equal(outside["score"], arrays["out_scores"])
    assert oodbench.evaluate(inside["score"], outside["score"]).auroc == record.metrics.auroc
    assert found.dtypes.tolist() == [np.float64, np.int64]
    if protocol == "per-shift":
        assert inside.index.tolist() == arrays["in_test"].tolist()
    else:
        assert inside.index.tolist() == list(range(len(inside)))
    assert found.index.is_unique


def test_images_of_one_origin_have_one_number(finished):
    noisy = finished.scores("msp", "digits+noise@5")
    assert set(noisy.loc["out", "image"]) <= set(noisy.loc["in", "image"])
    photos = finished.scores("msp", "photos")
    assert photos["image"].is_unique


def test_scores_of_two_detectors_pair(finished):
    for protocol in ("unsupervised", "per-shift"):
        knn, pixels = (finished.scores(name, "photos", protocol) for name in ("knn", "pixels"))
        assert knn.index.equals(pixels.index)
        assert (knn["image"] == pixels["image"]).all()
        assert (knn["score"] != pixels["score"]).any()


def test_a_cell_without_scores_says_why(finished):
    for names, says in (
        (("mps", "photos"), "unknown detector 'mps'; did you mean 'msp'"),
        (("msp", "foto"), "unknown dataset 'foto'; did you mean 'photos'"),
        (("msp", "digits+noise"), "unknown dataset 'digits\\+noise'; did you mean 'digits\\+noise@"),
        (("msp", "photos", "pershift"), "unknown protocol 'pershift'; did you mean 'per-shift'"),
        (("msp", "photos", "per-shift"), "does not hold msp on photos under per-shift"),
    ):
        with pytest.raises(OodbenchError, match=says) as raised:
            finished.scores(*names)
        assert "\n" not in str(raised.value)


# Progress in a notebook


def test_the_line_of_a_notebook(monkeypatch, capsys):
    shown, now = [], [100.0]
    monkeypatch.setattr("oodbench.progress.time.monotonic", lambda: now[0])
    progress = Notebook(shown.append)
    progress.expect(100)
    for _ in range(50):
        now[0] += 1.0
        progress.advance(1)
        now[0] += 0.1
        progress.advance(0)  # too soon to show again
    assert len(shown) == 51
    assert shown[-1].split("  ") == ["████████████░░░░░░░░░░░░", "50%", "0:55, 0:55 remaining", "starting"]
    now[0] += 10
    progress.stage("photos:\n60 images")
    assert shown[-1].endswith("photos: 60 images")
    progress.say("two\nlines")
    assert capsys.readouterr().out == "two lines\n"
    progress.end("done")
    assert shown[-1] == "done after 1:05"


def test_progress_is_shown_in_a_notebook_only(monkeypatch):
    @shown_in_notebooks
    def call(progress=None, fails=False):
        if fails:
            raise BadData("no")
        return progress

    shown = []
    display = types.ModuleType("IPython.display")
    display.display = lambda data, raw, display_id: types.SimpleNamespace(update=lambda data, raw: shown.append(data))
    ipython = types.ModuleType("IPython")
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    for shell in (None, object()):  # a script that imported IPython, and IPython on a terminal
        ipython.get_ipython = lambda shell=shell: shell
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        assert call() is None
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    quiet = Progress()
    assert call(progress=quiet) is quiet
    assert shown == []
    assert isinstance(call(), Notebook)
    assert shown[-1] == {"text/plain": "done after 0:00"}
    with pytest.raises(BadData):
        call(fails=True)
    assert shown[-1] == {"text/plain": "stopped after 0:00"}
