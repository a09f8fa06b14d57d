"""Rows that are not distinguishable from the best: means of AUROCs on the same images, and what tables print in bold."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import oodbench
from oodbench.leaderboard.aggregate import COLUMNS, ROW, SET, tally, unique_cells
from oodbench.leaderboard.formats import render
from oodbench.leaderboard.gather import gather
from oodbench.leaderboard.paired import MeanOfSets, SetOfCells, set_weights
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.metrics import auroc
from oodbench.results.folder import RunFolder
from oodbench.results.statistics import deviation, p_value

SETS = ["digits-heldout", "photos", "digits+noise@1", "digits+noise@5", "digits+haze@2", "digits+cw"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OODBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        options = {"detectors": ["msp", "energy", "knn", "pixels"], "datasets": SETS, "limit": 80, "measure_costs": False}
        return oodbench.run("digits", out=tmp_path_factory.mktemp("ties") / "run", **options)


def of_row(cells, detector, protocol="unsupervised", **of):
    chosen = cells[(cells["detector"] == detector) & (cells["protocol"] == protocol)]
    for name, value in of.items():
        chosen = chosen[chosen[name] == value]
    return chosen.to_dict("records")


def test_one_cell_is_compared_as_the_paired_test_does(finished):
    cells, scores = unique_cells(gather([finished])[0]), StoredScores([finished])
    for dataset, name in (("digits-heldout", "digits-heldout"), ("digits+haze", "digits+haze@2")):
        for protocol in ("unsupervised", "per-shift"):
            first, second = (of_row(cells, detector, protocol, dataset=dataset) for detector in ("knn", "pixels"))
            layout = SetOfCells(first, scores)
            pulls = [layout.pulls(of, {}) for of in (first, second)]
            found, spread = MeanOfSets([layout], [1.0]).difference(*([one] for one in pulls))
            slow = finished.difference("knn", "pixels", name, protocol)
            assert found == pytest.approx(slow.auroc, abs=1e-12)
            # Without copies that test divides by the images of either side less one, this one by all images less one.
            assert p_value(found, spread) == pytest.approx(slow.p, rel=1e-6 if "+" in name else 0.02, abs=1e-9)


def test_the_figure_of_pulls_is_the_figure_of_the_table(finished):
    cells, scores = unique_cells(gather([finished])[0]), StoredScores([finished])
    found = tally(cells).values
    for key in found.index[found.index.get_level_values("protocol") == "per-shift"]:
        mine = cells[(cells[ROW] == list(key)).all(axis=1)]
        sets = [tuple(of) for of in mine[SET].drop_duplicates().to_numpy()]
        pulls = []
        for of in sets:
            rows = mine[(mine[SET] == list(of)).all(axis=1)].to_dict("records")
            pulls.append(SetOfCells(rows, scores).pulls(rows, {}))
            assert pulls[-1].figure == pytest.approx(found.loc[key, of], abs=1e-12)
        mean = sum(weight * one.figure for weight, one in zip(set_weights(sets), pulls, strict=True))
        assert mean == pytest.approx(found.loc[key, ("mean", "all", "")], abs=1e-12)


class Made:
    """Scores of cells that are made up: two levels of a corruption of 60 images, against these images, and a set apart."""

    def __init__(self, rng, lead=0.0):
        self.scores = {}
        for detector in ("a", "b"):
            plain = rng.normal(size=60)
            image = 0.5 * plain  # what an image adds to the scores of its copies
            for level in (1.0, 2.0):
                shifted = image + rng.normal(size=60) + level / 2 + lead * (detector == "a")
                self.scores[detector, "c+haze", level] = plain, shifted
            self.scores[detector, "apart", None] = plain, rng.normal(size=50) + 1 + lead * (detector == "a")

    def cells(self, detector, dataset):
        levels = (1.0, 2.0) if "+" in dataset else (None,)
        return [{"detector": detector, "dataset": dataset, "level": level, "seed": 0, "checkpoint": ""} for level in levels]

    def record(self, cell):
        return SimpleNamespace(
            in_fingerprint="i", fingerprint=cell["dataset"], n_in=60, n_out=50, arrays={"in_scores": cell["detector"]}
        )

    def arrays(self, cell, roles=(), known=()):
        inside, outside = self.scores[cell["detector"], cell["dataset"], cell["level"]]
        found = {"in_scores": inside, "out_scores": outside}
        return found | ({"in_base": np.arange(60), "out_base": np.arange(60)} if "+" in cell["dataset"] else {})

    def difference(self, datasets):
        layouts = [SetOfCells(self.cells("a", dataset), self) for dataset in datasets]
        of = [[layout.pulls(self.cells(d, name), {}) for layout, name in zip(layouts, datasets, strict=True)] for d in "ab"]
        return MeanOfSets(layouts, [1 / len(datasets)] * len(datasets)).difference(*of)


def test_the_spread_of_a_mean_is_that_of_resampled_images():
    """Drawing in-distribution images with all their copies, and the other images of the set apart."""
    made = Made(np.random.default_rng(1), lead=0.4)
    found, spread = made.difference(["c+haze", "apart"])
    rng, drawn = np.random.default_rng(2), []
    for _ in range(2000):
        rows, own = rng.integers(60, size=60), rng.integers(50, size=50)
        of = {}
        for detector in "ab":
            levels = [auroc(a[rows], b[rows]) for a, b in (made.scores[detector, "c+haze", level] for level in (1.0, 2.0))]
            inside, outside = made.scores[detector, "apart", None]
            of[detector] = (sum(levels) / 2 + auroc(inside[rows], outside[own])) / 2
        drawn.append(of["a"] - of["b"])
    assert found == pytest.approx(np.mean(drawn), abs=0.01)
    assert spread == pytest.approx(np.std(drawn), rel=0.08)


def test_means_of_equal_detectors_differ_in_five_percent_of_draws():
    rng = np.random.default_rng(3)
    found = sum(p_value(*Made(rng).difference(["c+haze", "apart"])) < 0.05 for _ in range(1000))
    assert 0.03 <= found / 1000 <= 0.07


def test_other_images_are_not_compared():
    made = Made(np.random.default_rng(4))
    layout = SetOfCells(made.cells("a", "c+haze"), made)
    assert layout.pulls(made.cells("b", "c+haze")[:1], {}) is None
    record = made.record
    made.record = lambda cell: SimpleNamespace(**vars(record(cell)) | {"n_in": 59 if cell["detector"] == "b" else 60})
    assert layout.pulls(made.cells("b", "c+haze"), {}) is None
    assert layout.pulls(made.cells("a", "c+haze"), {}) is not None


def test_groups_of_which_nothing_is_known_are_added():
    assert deviation([np.array([1.0, -1.0]), np.array([2.0, -2.0])]) == pytest.approx(2 + 4)


def test_bold_is_the_best_and_what_does_not_differ(finished):
    frame, notes = gather([finished])
    scores = StoredScores([finished])
    alone, tested = (render(frame, "md", scores=of, columns=["sets", "means"]) for of in (None, scores))
    assert "whether others differ from it was not tested" in alone
    assert "not distinguishable from it at 5 %" in tested
    assert tested.count("**") > alone.count("**")
    bold = [re.findall(r"\| \*\*([\d.]+)", text) for text in (alone, tested)]
    assert set(bold[0]) <= set(bold[1])
    # By hand, in the column of one cell: Holm of the tests of all others against the best.
    cells = frame[(frame["dataset"] == "photos") & (frame["protocol"] == "unsupervised") & (frame["detector"] != "pixels")]
    best = cells.loc[cells["auroc"].idxmax(), "detector"]
    others = [name for name in cells["detector"] if name != best]
    p_values = sorted((finished.difference(best, name, "photos").p, name) for name in others)
    alike, rejecting = {best}, True
    for place, (p, name) in enumerate(p_values):
        rejecting = rejecting and p * (len(p_values) - place) < 0.05
        alike |= set() if rejecting else {name}
    lines = [line.split("|") for line in tested.splitlines() if re.match(r"\| (detector|msp|energy|knn) ", line)]
    place = next(n for n, text in enumerate(lines[0]) if "photos" in text)
    shown = {line[1].strip() for line in lines if "unsupervised" in line[2] and "**" in line[place]}
    assert shown == alike
    assert "pixels" not in shown
    assert render(frame, "table", scores=scores, notes=notes) == render(frame, "table", notes=notes)  # shows no bold
    for metric in ("fpr95", "aupr_out"):
        assert "was not tested" in render(frame, "md", metric=metric, scores=scores)
    assert "<b>" in finished.table()._repr_html_()


def test_without_scores_the_caption_says_why(finished, tmp_path):
    frame, _ = gather([finished])
    alone = render(frame, "md")
    gone = render(frame.assign(wall_seconds=-1.0), "md", scores=StoredScores([finished]))
    assert "was not tested (" in gone
    assert "its run folder stores no scores of this figure; run it again)." in gone
    assert gone.count("**") == alone.count("**")
    (tmp_path / "cells").mkdir()  # as an older oodbench wrote it
    (tmp_path / "cells" / "a.safetensors").touch()
    old = render(frame, "md", scores=StoredScores([RunFolder(tmp_path)]))
    assert "with one file per cell; \\`oodbench run\\` with the same options" in old
    assert render(pd.DataFrame(columns=list(COLUMNS)), "md", scores=StoredScores([finished]))
