"""Figures of image quality beside published ones, and which metrics of a table are as good as the best."""

import numpy as np
import pandas as pd
import pytest

import oodbench
from oodbench.leaderboard.comparison.beside_tasks import beside_published, render_beside
from oodbench.leaderboard.tasks.quality import quality_frame, tables
from oodbench.results.folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Made values of two metrics on 300 images of a table that is called like TID2013; one falls where scores rise."""
    place, random = tmp_path_factory.mktemp("quality"), np.random.default_rng(0)
    score = random.uniform(1, 7, 300)
    made = {"mos": score, "fsimc": score + random.normal(0, 0.5, 300), "persim": -score + random.normal(0, 2, 300)}
    made["sr-sim"] = made["fsimc"] + random.normal(0, 0.05, 300)
    pd.DataFrame(made).to_csv(place / "tid2013.csv", index=False)
    suite = place / "quality.toml"
    suite.write_text(f'task = "quality"\nmetrics = ["all"]\ndatabases = ["scores:{place / "tid2013.csv"}"]\n')
    return RunFolder(oodbench.run(suite, out=place / "run").path)


def test_each_published_figure_is_measured_or_has_its_reason(run):
    rows = beside_published("quality", [run])
    assert set(rows["status"]) == {"ok", "not run"}
    assert (rows["reason"].fillna("") != "").equals(rows["status"] != "ok")
    found = rows[(rows["metric"] == "persim") & (rows["database"] == "tid2013") & (rows["status"] == "ok")]
    own = quality_frame([run]).query("metric == 'persim' and mapping == 'line'").iloc[0]
    assert own["srcc"] < 0  # papers publish the magnitude
    assert found.set_index("figure").loc["srcc", "line"] == -own["srcc"]
    text = render_beside("quality", [run])
    assert "published figures not run: no run of multi" in text
    assert "tid2013 was run without iw-ssim" in text


def test_correlations_that_are_not_significantly_lower_than_the_best_are_marked(run):
    (table,) = tables(quality_frame([run]))
    metrics = table.labels[0].texts
    marked = {column.lines[0]: {metrics[row] for row in column.best} for column in table.sets}
    assert marked["PLCC"] == marked["SRCC"] == {"fsimc", "sr-sim"}
    assert len(marked["RMSE"]) == 1
