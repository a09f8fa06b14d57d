"""Sites of other tasks than detection. ``tests/site`` opens one in a browser."""

import html
import re

import numpy as np
import pandas as pd
import pytest

import oodbench
from oodbench.errors import BadData
from oodbench.leaderboard.site.publish import site_files, title_of
from oodbench.leaderboard.site.tasks import HIGH, STEP, WIDE, section
from oodbench.leaderboard.tasks.quality import quality_frame
from oodbench.results.folder import RunFolder
from oodbench.results.records import ActiveLearningRecord

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Runs of a table of scores that are limited to 12 and 20 images; one of its two metrics fails."""
    place, random = tmp_path_factory.mktemp("scored"), np.random.default_rng(0)
    pd.DataFrame({"dmos": random.random(30), "good": random.random(30), "flat": 1.0}).to_csv(place / "t.csv", index=False)
    (place / "s.toml").write_text(f'task = "quality"\nmetrics = ["all"]\ndatabases = ["scores:{place}/t.csv"]\n')
    folders = [RunFolder(oodbench.run(place / "s.toml", limit=limit, out=place / f"{limit}").path) for limit in (12, 20)]
    for folder in folders:
        folder.name = folder.path.name
    return folders


def labelled(path, *strategies, **about):
    """A run of active learning with one round that is done and one that failed, of made-up strategies."""
    folder = RunFolder(path)
    folder.name = path.name
    fields = {"seed": 0, "fingerprint": "f", "model": "net", "in_distribution": "digits", "features": "feed-forward"}
    fields |= {"dataset": "digits", "protocol": "gauss", "rules": {"rounds": 1}} | about
    with folder.locked():
        folder.check_settings({"task": "active-learning", "limit": 40}, suite={"name": "made"}, provenance={"device": "cpu"})
        for place, strategy in enumerate(strategies):
            end = {"labelled": 9, "n": 40, "accuracy": 0.5 + place / 100, "accuracy_low": 0.4, "accuracy_high": 0.7}
            done = ActiveLearningRecord(**fields, strategy=strategy, round=0, status="ok", **end)
            failed = ActiveLearningRecord(**fields, strategy=strategy, round=1, status="failed", reason=HOSTILE)
            for record in (done, failed):
                folder.write([record], {})
    return folder


def test_a_title_names_each_task_once():
    assert title_of({"quality": []}) == "Image quality"
    assert title_of(["active-learning", "detection"]) == "Out-of-distribution detection and active learning"
    both = "Image quality and active learning"
    assert title_of(["active-learning", "quality", "quality"]) == title_of(["quality", "active-learning"]) == both


def test_metrics_without_figures_stand_with_the_others_of_their_run(scored):
    frame = quality_frame(scored)
    names = {f"scores:t.csv ({count} images)" for count in (12, 20)}
    assert set(frame[frame["metric"] == "flat"]["database"]) == set(frame["database"]) == names
    parts = section("quality", scored).parts
    assert [[chart.name for chart in part.mappings] for part in parts] == [["good"], ["good"]]
    assert [part.mappings[0].mapped.images for part in parts] == [12, 20]
    assert all(len(part.table.notes) == 1 and "flat failed" in str(part.table.notes[0]) for part in parts)
    assert "(DMOS, lower is better)" in parts[0].caption


def test_the_page_of_a_run_names_its_databases_and_what_failed(scored):
    page = dict(site_files(scored[:1]))["runs/12.html"].decode()
    assert "12 of 30 images" in page
    assert re.search(r'<th scope="row"><span>flat</span></th><td class="text">failed</td><td>1</td>', page)


def test_points_and_line_of_a_mapping_are_inside_of_its_axes(scored):
    (chart,) = section("quality", scored[:1]).parts[0].mappings
    places = np.array(re.findall(r"M(\d+) (\d+)h0", chart.points), float)
    assert len(places) == 12
    line = np.array(re.findall(r"([\d.]+) ([\d.]+)", chart.line), float)
    for found in (places, line):
        assert (found >= 0).all()
        assert (found <= [240, 150]).all()
    highest = chart.mapped.values.argmax()
    assert places[:, 0].max() == places[highest, 0]
    assert np.corrcoef(places[:, 1], chart.mapped.scores)[0, 1] < -0.99  # upwards


def test_long_names_of_axes_are_shortened(tmp_path):
    pd.DataFrame({"mos": range(30), "m" * 300: np.random.default_rng(0).random(30)}).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "s.toml").write_text(f'task = "quality"\nmetrics = ["all"]\ndatabases = ["scores:{tmp_path}/t.csv"]\n')
    run = oodbench.run(tmp_path / "s.toml", out=tmp_path / "run")
    page = dict(site_files([RunFolder(run.path)]))["index.html"].decode()
    axes = re.findall(r'<text class="axis"[^>]*>(.*?)</text>', page)
    assert axes == [f"<title>{'m' * 300}</title>{'m' * 33}…", "MOS"]


def test_hostile_names_of_strategies_are_text(tmp_path):
    bidi = "\u202egnp.exe"
    folder = labelled(tmp_path / f"run{HOSTILE[:8]}", HOSTILE, f"=1+1{bidi}", model=HOSTILE, dataset=HOSTILE, features=HOSTILE)
    files = dict(site_files([folder]))
    for path, content in files.items():
        assert re.fullmatch(r"([a-z]+/)?[a-z0-9._-]+", path)
        if path.endswith(".html"):
            text = content.decode()
            assert HOSTILE not in text
            assert bidi[0] not in text
            assert html.escape(HOSTILE) in text
            assert "<script" not in text  # no table here needs one
    assert b",'=1+1" in files["downloads/active-learning.csv"]


def test_curves_of_one_round_and_of_many_strategies_fit(tmp_path):
    names = [f"strategy-{place}" for place in range(18)]
    found = section("active-learning", [labelled(tmp_path / "run", *names)])
    ((chart,),) = (part.curves for part in found.parts)
    assert [curve.name for curve in chart.curves] == names[::-1]  # the best first
    assert len({curve.look for curve in chart.curves}) == len(names)
    heights = np.array([curve.name_at for curve in chart.curves])
    assert (np.diff(heights) >= STEP - 1e-9).all()
    assert heights.max() <= HIGH
    x, y, text = chart.curves[0].points[-1]
    assert 0 < x < WIDE
    assert 0 < y < HIGH
    assert text == "strategy-17, 9 labelled images: 67.0"
    assert chart.remark == "One seed; bands: 95 % intervals over test images."
    assert found.notes == ["Limited to 40 images of each test set: run."]


def test_names_of_very_many_strategies_stay_beside_their_chart(tmp_path):
    (part,) = section("active-learning", [labelled(tmp_path / "run", *map(str, range(45)))]).parts
    heights = np.array([curve.name_at for curve in part.curves[0].curves])
    assert (np.diff(heights) > 0).all()
    assert heights.min() >= 0
    assert heights.max() <= HIGH


def test_a_run_without_records_is_refused(tmp_path):
    with pytest.raises(BadData, match="empty has no records yet"):
        dict(site_files([labelled(tmp_path / "empty")]))
