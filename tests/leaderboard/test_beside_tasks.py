"""Figures of image quality beside published ones, and which metrics of a table are as good as the best."""

import csv
import io
import json

import numpy as np
import pandas as pd
import pytest

import oodbench
from oodbench.datasets.quality.table import read_table
from oodbench.errors import BadData, UsageError
from oodbench.leaderboard.comparison.beside_tasks import beside_published, render_beside
from oodbench.leaderboard.tasks.quality import quality_frame, render_quality, tables
from oodbench.results.folder import RunFolder
from oodbench.results.records import QualityRecord


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
    assert "published figures): no run of multi" in text
    assert "tid2013 was run without iw-ssim" in text


def test_correlations_that_are_not_significantly_lower_than_the_best_are_marked(run):
    (table,) = tables(quality_frame([run]))
    metrics = table.labels[0].texts
    marked = {column.lines[0]: {metrics[row] for row in column.best} for column in table.sets}
    assert marked["PLCC"] == marked["SRCC"] == {"fsimc", "sr-sim"}
    assert len(marked["RMSE"]) == 1


def test_a_table_that_cannot_be_read_fails_alone_and_keeps_its_folder_private(tmp_path):
    score = np.arange(20.0)
    pd.DataFrame({"mos": score, "m": score**2}).to_csv(tmp_path / "index.csv")  # pandas writes its index first
    pd.DataFrame({"mos": score, "dmos": score, "m": score}).to_csv(tmp_path / "both.csv", index=False)
    pd.DataFrame({"mos": score, "m": score * 1e300}).to_csv(tmp_path / "huge.csv", index=False)
    names = [f"scores:{tmp_path / name}.csv" for name in ("index", "both", "huge", "absent")]
    (tmp_path / "s.toml").write_text(f'task = "quality"\nmetrics = ["m"]\ndatabases = {names}\n')
    folder = RunFolder(oodbench.run(tmp_path / "s.toml", out=tmp_path / "run").path)
    found = {record.database: record for record in folder.of_task(QualityRecord)}
    assert {name: record.status for name, record in found.items()} == {
        "scores:index.csv": "ok", "scores:both.csv": "failed", "scores:huge.csv": "failed", "scores:absent.csv": "skipped",
    }  # fmt: skip
    assert found["scores:both.csv"].reason.startswith("both.csv has columns mos and dmos")
    assert "reach 1.9e+301, and their squares overflow" in found["scores:huge.csv"].reason
    assert not [file for file in folder.path.rglob("*") if file.is_file() and str(tmp_path).encode() in file.read_bytes()]
    plain, marked = (render_quality(quality_frame([folder]), format) for format in ("table", "md"))
    assert "Bold" not in plain
    assert marked.count("Bold") == 1
    assert plain.count("No metric has figures.") == 3


def test_parts_of_a_database_are_told_and_kept_apart(tmp_path):
    rng = np.random.default_rng(0)
    made = pd.DataFrame({"mos": rng.random(30), "m": rng.random(30)})
    for name, count in (("a", 30), ("b", 20)):
        (tmp_path / name).mkdir()
        made[:count].to_csv(tmp_path / name / "t.csv", index=False)
    suite = tmp_path / "s.toml"
    folders = []
    for name, limit in (("a", None), ("b", None), ("a", 12)):
        suite.write_text(f'task = "quality"\nmetrics = ["m"]\ndatabases = ["scores:{tmp_path / name}/t.csv"]\n')
        folders.append(RunFolder(oodbench.run(suite, limit=limit, out=tmp_path / f"{name}-{limit}").path))
    frame = quality_frame(folders)
    assert set(frame["database"]) == {f"scores:t.csv ({count} images)" for count in (30, 20, 12)}
    text = render_quality(frame)
    assert "Agreement with the scores of 30 images" in text
    assert "Agreement with the scores of 12 of 30 images" in text
    assert set(quality_frame(folders[:1])["database"]) == {"scores:t.csv"}
    suite.write_text(f'task = "quality"\nmetrics = ["m"]\ndatabases = ["scores:{tmp_path}/a/t.csv"]\n')
    same, other = (
        RunFolder(oodbench.run(suite, limit=limit, seed=seed, out=tmp_path / f"more-{seed}").path)
        for limit, seed in ((1000, 0), (12, 1))
    )
    assert set(quality_frame([folders[0], same])["database"]) == {"scores:t.csv"}  # a limit that limits nothing
    assert quality_frame([folders[2], other])["database"].nunique() == 2  # each seed draws other images
    larger = RunFolder(oodbench.run(suite, limit=20, out=tmp_path / "larger").path)
    assert set(quality_frame([folders[2], larger])["database"]) == {"scores:t.csv (12 images)", "scores:t.csv (20 images)"}


def test_messages_keep_the_paths_of_folders_that_the_user_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.toml").write_text('task = "quality"\nmetrics = ["psnr"]\ndatabases = ["folder:some/none"]\n')
    folder = RunFolder(oodbench.run(tmp_path / "s.toml", out=tmp_path / "run").path)
    (record,) = folder.of_task(QualityRecord)
    assert "some/none" in record.reason


def test_a_column_without_a_name_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("mos,,m\n1,2,3\n")
    with pytest.raises(BadData, match="column 2 has no name; give it one in the header, or remove the column"):
        read_table(tmp_path / "t.csv")


def test_counts_are_whole_numbers_in_csv_and_json(run):
    frame = quality_frame([run])
    (row, *_) = csv.DictReader(io.StringIO(render_quality(frame, "csv")))
    assert (row["n"], row["database_size"]) == ("300", "300")
    assert json.loads(render_quality(frame, "json"))[0]["database_size"] == 300
    (row, *_) = csv.DictReader(io.StringIO(render_quality(frame.assign(database="=1+1"), "csv")))
    assert row["database"] == "'=1+1"  # no formula in a spreadsheet


def test_runs_without_published_figures_are_told_what_has_some(tmp_path):
    pd.DataFrame({"mos": np.arange(20.0), "m": np.arange(20.0)}).to_csv(tmp_path / "own.csv", index=False)
    (tmp_path / "s.toml").write_text(f'task = "quality"\nmetrics = ["m"]\ndatabases = ["scores:{tmp_path}/own.csv"]\n')
    folder = RunFolder(oodbench.run(tmp_path / "s.toml", out=tmp_path / "run").path)
    with pytest.raises(UsageError, match=r"belongs to these runs; runs on multi and tid2013 have some \(docs/tasks.md\)"):
        beside_published("quality", [folder])
