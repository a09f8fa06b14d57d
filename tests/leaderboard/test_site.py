"""``oodbench publish``: a site says what runs say, whoever named what is in it. ``tests/site`` opens it in a browser."""

import csv
import errno
import html
import io
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from new_process import oodbench as oodbench_command
from PIL import Image
from run_folders import detection_record

import oodbench
from oodbench import Source, registry
from oodbench.errors import BadData, CannotWrite, UsageError
from oodbench.leaderboard.formats import render
from oodbench.leaderboard.gather import gather
from oodbench.leaderboard.plots.cost import pareto_front
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.leaderboard.site.about import papers
from oodbench.leaderboard.site.board import boards
from oodbench.leaderboard.site.pages import Names
from oodbench.leaderboard.site.publish import site_files
from oodbench.leaderboard.site.report import report
from oodbench.leaderboard.site.thumbnails import Thumbnails, misses
from oodbench.progress import Progress
from oodbench.results import json_files
from oodbench.results.bundle import write_bundle
from oodbench.results.folder import RunFolder
from oodbench.results.pass_file import hash_of
from oodbench.results.recompute import figures_of
from oodbench.results.records import cost_key
from oodbench.results.site import differing, remove_site, replace_site
from oodbench.suite import PROTOCOLS

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "a"
    oodbench.run(detectors=["msp", "knn", "gradcon-vae", "pixels"], datasets=["photos", "digits+noise", "digits+grey-level"],
                 parameters={"gradcon-vae": {"epochs": 1}}, limit=40, out=out)  # fmt: skip
    return out


@pytest.fixture(scope="module")
def site(run_path, tmp_path_factory):
    return oodbench.publish(run_path, tmp_path_factory.mktemp("site") / "site").parent


class Tables(HTMLParser):
    """The texts of the cells of all tables, row by row."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def made(path, *cells):
    """A run folder of cells, (fields of the record, whether it has figures)."""
    folder, random = RunFolder(path), np.random.default_rng(0)
    with folder.locked():
        folder.check_settings({}, suite={"name": "made"}, provenance={"device": "cpu"})
        for fields, ok in cells:
            if not ok:
                folder.write([detection_record(**{"status": "failed", "reason": f"ValueError: {HOSTILE}"} | fields)], {})
                continue
            arrays = {"in_scores": random.normal(size=30), "out_scores": random.normal(size=30) + 1}
            names = {role: hash_of(array) for role, array in arrays.items()}
            figures = figures_of(arrays, 0, "far-ood")
            record = detection_record(**fields, n_in=30, n_out=30, metrics=figures.metrics, arrays=names)
            folder.write([record], {names[role]: array for role, array in arrays.items()})
    return folder


def test_pages_show_the_figures_of_the_records(run_path, site):
    for record in RunFolder(run_path).records():
        rows = Tables((site / "detectors" / f"{record.detector}.html").read_text()).rows
        figure = 1 - record.metrics.fpr95 if record.kind == "benign" else record.metrics.auroc
        shown = [row[2] for row in rows if row[0] == record.set_name and row[1] == record.kind]
        assert any(text.split()[0] == f"{100 * figure:.1f}" for text in shown), record.place
        if record.kind != "benign":
            interval = f"[{100 * record.metrics.auroc_low:.1f}, {100 * record.metrics.auroc_high:.1f}]"
            assert any(interval in text for text in shown)
        page = (site / "sets" / f"{Names('sets')(record.dataset).removeprefix('sets/')}").read_text()
        assert f"{100 * figure:.1f}" in page


def test_the_first_page_says_what_each_protocol_is(site):
    page = (site / "index.html").read_text()
    assert [protocol for protocol in PROTOCOLS if f"Under <i>{protocol}</i>" not in page] == []


def test_the_first_page_shows_the_means_of_the_leaderboard(run_path, site):
    frame, _ = gather([RunFolder(run_path)], intervals="auroc")
    (board,) = boards(frame, StoredScores([RunFolder(run_path)]))
    rows = Tables((site / "index.html").read_text()).rows
    for place, row in enumerate(board.rows):
        means = [column.heading.texts[place] for column in board.first.columns if column.is_mean]
        assert [row.detector, *means, *row.cost] in rows
    text = render(frame, "md")
    for column in board.first.columns:
        assert all(figure in text for figure in column.heading.texts)


def test_the_order_of_each_column_is_that_of_its_figures(run_path):
    frame, _ = gather([RunFolder(run_path)], intervals="auroc")
    (board,) = boards(frame, StoredScores([RunFolder(run_path)]))
    for name, metric in board.metrics.items():
        higher = name not in ("fpr95", "detection_error")
        for column in metric.columns:
            in_order = sorted(range(len(board.rows)), key=column.order.ranks.__getitem__)
            texts = [column.heading.texts[place] for place in in_order]
            figures = [float(text.split()[0]) for text in texts if text not in ("", "–")]
            best_first = higher and "benign" not in (column.heading.group, column.name)
            assert figures == sorted(figures, reverse=best_first)
            assert all(text in ("", "–") for text in texts[len(figures) :])
            assert (column.order.higher, column.order.measured) == (best_first, len(figures))


def test_the_same_runs_give_the_same_bytes(run_path, site, tmp_path):
    shutil.copytree(run_path, tmp_path / "elsewhere" / "a")
    again = oodbench.publish(tmp_path / "elsewhere" / "a", tmp_path / "again").parent
    assert files_of(again) == files_of(site)


def test_no_page_names_a_path_of_the_machine_or_asks_for_anything_elsewhere(run_path, site):
    for name, content in files_of(site).items():
        if name.endswith((".html", ".js", ".css")):
            text = content.decode()
            assert str(run_path.parent) not in text
            assert not re.search(r"""(src|href)=["'](https?:)?//|url\(|@import""", text), name


def test_a_bundle_gives_the_site_of_its_run(run_path, site, tmp_path):
    write_bundle(run_path, tmp_path / "a.zip")
    other = files_of(oodbench.publish(tmp_path / "a.zip", tmp_path / "site").parent)
    assert other == files_of(site)


def test_runs_of_one_name_are_kept_apart_and_one_run_counts_once(run_path, site, tmp_path, monkeypatch):
    shutil.copytree(run_path, tmp_path / "a", ignore=shutil.ignore_patterns("digits+noise@*"))
    both = oodbench.publish((path for path in (run_path, tmp_path / "a")), tmp_path / "both").parent
    assert {path.name for path in (both / "runs").iterdir()} == {"a.html", "a-2.html"}
    for name, path in (("a", run_path), ("a-2", tmp_path / "a")):
        assert f"bundles/{name}.zip" in (both / f"runs/{name}.html").read_text()
        assert oodbench.verify(both / f"bundles/{name}.zip").records == oodbench.verify(path).records
    monkeypatch.chdir(run_path)
    assert files_of(oodbench.publish([run_path, "../a", "."], tmp_path / "once").parent) == files_of(site)


def test_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no run"):
        oodbench.publish([], tmp_path / "site")


@pytest.mark.parametrize("edit", ["figure", "bundle"])
def test_what_does_not_verify_is_not_published(run_path, tmp_path, edit):
    shutil.copytree(run_path, run := tmp_path / "run")
    if edit == "bundle":
        write_bundle(run, run := tmp_path / "run.zip")
        run.write_bytes(run.read_bytes()[:-1] + b"x")
    else:
        path = run / "run.json"
        path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(BadData, match=r"does not verify|is refused"):
        oodbench.publish(run, tmp_path / "site")
    done = oodbench_command("publish", run, "--out", tmp_path / "site")
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("oodbench: ")] == done.stderr.splitlines()[-1:]
    assert not (tmp_path / "site").exists()


def test_a_run_without_figures_is_refused(tmp_path):
    folder = made(tmp_path / "empty")
    with pytest.raises(BadData, match="no cells yet"):
        dict(site_files([folder], "none"))


def test_hostile_names_are_text(tmp_path):
    bidi = "\u202egnp.exe"
    cells = [({"detector": HOSTILE, "dataset": f"photos{HOSTILE}{bidi}"}, True), ({"detector": "pixels"}, True),
             ({"detector": "'\"><img src=x onerror=alert(1)>"}, False)]  # fmt: skip
    made_files = dict(site_files([made(tmp_path / "run", *cells)], f"Title {HOSTILE}"))
    assert any(path.startswith("detectors/script-alert") for path in made_files)
    for path, content in made_files.items():
        assert re.fullmatch(r"([a-z]+/)?[a-z0-9._-]+", path)
        if path.endswith(".html"):
            text = content.decode()
            assert HOSTILE not in text
            assert "<img src=x" not in text
            assert bidi[0] not in text
            assert html.escape(HOSTILE) in text
        elif path.endswith(".js"):
            assert bidi[0].encode() not in content
    index = made_files["index.html"].decode()
    assert "ValueError" in "".join(content.decode() for path, content in made_files.items() if path.startswith("detectors/img"))
    assert f"<h1>Title {html.escape(HOSTILE)}</h1>" in index


@pytest.mark.parametrize("forged", [5, [1], {"photos": 5}, {"photos": {"licence": [HOSTILE]}}])
def test_facts_of_a_forged_run_are_data(tmp_path, forged):
    folder = made(tmp_path / "run", ({}, True))
    folder.add_provenance(sources=forged, plugins=forged, model_card=forged, accuracy=forged)
    for path, content in site_files([folder], "forged"):
        assert not path.endswith(".html") or HOSTILE not in content.decode()


def test_pages_name_the_packages_of_the_runs(tmp_path):
    folders = []
    for version in ("1.0", "1.1"):
        folders.append(folder := made(tmp_path / version, ({"detector": "theirs", "dataset": "set-of-theirs"}, True)))
        folder.add_provenance(plugins={"theirs": f"their-package {version}", "set-of-theirs": "their-sets 2.0"})
    pages = dict(site_files(folders, "theirs"))
    assert "<dd>their-package 1.0, their-package 1.1</dd>" in pages["detectors/theirs.html"].decode()
    assert "<dd>their-sets 2.0</dd>" in pages["sets/set-of-theirs.html"].decode()


def test_names_of_folders_need_not_be_text(tmp_path):
    """A path that is not UTF-8 has lone surrogates in Python, which pandas cannot keep in Arrow."""
    folders = [made(tmp_path / name, ({}, True)) for name in ("r\udce9", "other")]
    assert len(gather(folders)[0]) == 2
    assert any(path.endswith("-r.html") for path, _ in site_files(folders, "not text"))


def test_names_of_files_are_harmless_and_each_once():
    name_of = Names("detectors")
    names = ["../../etc/passwd", "a/b", "a b", "A b", "", "é", "x" * 500, "con:recon"]
    paths = [name_of(name) for name in names]
    assert len({*paths}) == len(names)
    assert all(re.fullmatch(r"detectors/[a-z0-9-]{1,90}\.html", path) for path in paths)
    assert [name_of(name) for name in names] == paths
    assert [name_of(name) for name in ("rmd++", "rmd")] == ["detectors/rmd-plus-plus.html", "detectors/rmd.html"]


def test_another_site_replaces_its_own_files_alone(tmp_path):
    out = tmp_path / "site"
    replace_site(out, [("index.html", b"1"), ("sets/old.html", b"2")])
    (out / "CNAME").write_text("example.org")
    replace_site(out, [("index.html", b"3"), ("sets/new.html", b"4")])
    assert {*files_of(out)} == {"CNAME", "index.html", "sets/new.html", "site.json"}
    assert (out / "index.html").read_bytes() == b"3"
    with pytest.raises(UsageError, match="CNAME is not part of a site"):
        replace_site(out, [("CNAME", b"5")])
    assert (out / "CNAME").read_text() == "example.org"
    remove_site(out)
    assert {*files_of(out)} == {"CNAME"}


@pytest.mark.parametrize("files_before_the_kill", range(4))
def test_a_site_replaces_what_a_killed_process_left(tmp_path, monkeypatch, files_before_the_kill):
    out, left = tmp_path / "site", [files_before_the_kill]
    replace_site(out, [("index.html", b"1"), ("sets/old.html", b"2")])

    def killed(source, target, replace=os.replace):
        if Path(target).suffix == ".html":
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with suppress(KeyboardInterrupt):
            replace_site(out, [("a.html", b"3"), ("runs/a.html", b"4"), ("runs/b.html", b"5")])
    (out / ".site.abcdefgh.oodbench-part/sets").mkdir(parents=True)
    replace_site(out, [("index.html", b"6"), ("runs/b.html", b"7")])
    assert files_of(out) == files_of(replace_site(tmp_path / "new", [("index.html", b"6"), ("runs/b.html", b"7")]).parent)
    assert {path.name for path in out.iterdir()} == {"index.html", "runs", "site.json"}


def test_processes_write_one_site_one_after_the_other(tmp_path):
    sites = [[(f"{folder}/{n}.html", letter * n) for folder in ("runs", "sets") for n in range(40)] for letter in (b"a", b"b")]
    children = []
    for site in sites:
        if not (child := os.fork()):
            try:
                for _ in range(5):
                    replace_site(tmp_path / "site", [("index.html", site[1][1]), *site])
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert differing(tmp_path / "site") == []


def test_a_site_that_another_process_begins_meanwhile_is_replaced(tmp_path, monkeypatch):
    glob = Path.glob

    def after_another(self, pattern):
        monkeypatch.setattr(Path, "glob", glob)
        replace_site(tmp_path / "site", [("index.html", b"1"), ("runs/a.html", b"1")])
        return glob(self, pattern)

    monkeypatch.setattr(Path, "glob", after_another)
    replace_site(tmp_path / "site", [("index.html", b"2")])
    assert (tmp_path / "site" / "index.html").read_bytes() == b"2"
    assert differing(tmp_path / "site") == []


def test_a_site_that_cannot_be_made_leaves_no_folder(tmp_path):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CannotWrite, match="No space left"):
        replace_site(tmp_path / "site", [("index.html", b"1"), ("bundles/a.zip", full)])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_a_folder_of_something_else_is_refused(tmp_path, there):
    out = tmp_path / "site"
    if there == "file":
        out.write_text("mine")
    elif there == "folder":
        out.mkdir()
        (out / "thesis.tex").write_text("mine")
    else:
        (tmp_path / "real").mkdir()
        out.symlink_to(tmp_path / "real")
    with pytest.raises((UsageError, BadData), match="site"):
        replace_site(out, [("index.html", b"1")])
    assert "mine" in (out.read_text() if there == "file" else (out / "thesis.tex").read_text() if there == "folder" else "mine")
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith("part")] == []


def test_a_name_that_no_folder_can_have_is_refused(tmp_path):
    with pytest.raises(UsageError, match="too long a name"):
        replace_site(tmp_path / ("x" * 300), [("index.html", b"1")])


def test_downloads_hold_every_cell(run_path, site):
    frame, _ = gather([RunFolder(run_path)], intervals="auroc")
    rows = list(csv.DictReader(io.StringIO((site / "downloads/leaderboard.csv").read_text())))
    listed = json.loads((site / "downloads/leaderboard.json").read_text())
    typed = pd.read_parquet(site / "downloads/leaderboard.parquet")
    assert len(rows) == len(listed) == len(typed) == len(frame)
    np.testing.assert_array_equal(typed["auroc"].astype(float), frame["auroc"].astype(float))
    assert typed["n_in"].tolist() == frame["n_in"].tolist()
    assert [row["detector"] for row in listed] == typed["detector"].tolist()
    assert "\\toprule" in (site / "downloads/leaderboard.tex").read_text()
    assert re.search(r"\| (\*\*)?knn.*\| unsupervised \|", (site / "downloads/leaderboard.md").read_text())
    bibliography = (site / "downloads/papers.bib").read_text()
    assert [key in bibliography for key in ("hendrycks2017baseline", "sun2022knn", "alpaydin1998digits", "liu2020energy")] == [
        True, True, True, False,
    ]  # fmt: skip
    bundle = site / "bundles/a.zip"
    assert oodbench.verify(bundle).ok


def test_every_detector_and_set_has_its_paper():
    known = papers()
    for family in ("detectors", "datasets"):
        ours = [record.name for record in registry.records(family).values() if record.distribution == "oodbench"]
        without = {"photos", "uniform"} if family == "datasets" else set()  # no paper is about them
        assert {name for name in ours if name not in known} <= without
    assert all(re.fullmatch(r"@[a-z]+\{[a-z0-9]+,\n(  [a-z]+ = \{.*\},?\n)+\}", entry) for entry in known.values())


def test_the_pareto_front_is_what_nothing_beats():
    random = np.random.default_rng(0)
    points = np.round(random.random((60, 2)), 1)  # with ties
    apart = [place % 7 == 0 for place in range(60)]
    front = pareto_front(points, apart)
    others = [points[place] for place in range(60) if not apart[place]]
    beaten = [any(one[0] <= x and one[1] >= y and (one[0] < x or one[1] > y) for one in others) for x, y in points]
    assert {tuple(points[place]) for place in front} == {tuple(points[p]) for p in range(60) if not beaten[p] and not apart[p]}
    assert [points[place, 0] for place in front] == sorted({points[place, 0] for place in front})


def test_a_page_says_where_a_detector_is_worse_than_the_control(tmp_path):
    names = ("msp", "knn", "pixels", "vim")
    folder = made(tmp_path / "run", *(({"detector": name}, True) for name in names))
    auroc = {record.detector: record.metrics.auroc for record in folder.records()}
    pages = dict(site_files([folder], "with a control"))
    worse = {name: auroc[name] < auroc["pixels"] for name in names if name != "pixels"}
    assert {*worse.values()} == {True, False}
    for name, expected in worse.items():
        page = pages[f"detectors/{name}.html"].decode()
        assert ("Worse than the control <i>pixels</i> on photos, where its figures are bold." in page) == expected
        assert ("Not worse than the control <i>pixels</i> on any set." in page) == (not expected)
    alone = dict(site_files([made(tmp_path / "alone", ({}, True))], "without"))["detectors/msp.html"].decode()
    assert "than the control" not in alone


def test_the_page_of_a_detector_begins_with_itself_though_a_variant_is_better(tmp_path):
    variants = ("gradcon-vae:reconstruction", "gradcon-vae", "gradcon-vae:gradient")
    folder = made(tmp_path / "run", *(({"detector": name}, True) for name in variants))
    auroc = {record.detector: record.metrics.auroc for record in folder.records()}
    assert auroc["gradcon-vae"] < max(auroc.values())
    page = dict(site_files([folder], "variants"))["detectors/gradcon-vae.html"].decode()
    first, *others = re.findall(r"(?<=<h2>)gradcon-vae(?::\w+)?", page)
    assert first == "gradcon-vae"
    assert sorted(others) == ["gradcon-vae:gradient", "gradcon-vae:reconstruction"]


def test_controls_alone_have_a_chart_without_a_front(tmp_path):
    names, cost = ("pixels", "untrained"), {"ms_per_image": 1.0, "overhead": 2.0, "peak_memory_mb": None}
    folder = made(tmp_path / "run", *(({"detector": name}, True) for name in names))
    folder.write_costs({cost_key(name, {}, None): cost for name in names})
    page = dict(site_files([folder], "controls"))["index.html"].decode()
    assert page.count('<circle class="control"') == 2
    assert '<path class="front" d=""/>' in page


def test_the_report_of_the_working_folder_has_its_name(tmp_path, monkeypatch):
    made(tmp_path / "mine", ({}, True))
    monkeypatch.chdir(tmp_path / "mine")
    page = report([RunFolder(Path())])
    assert "<h1>Out-of-distribution detection: mine</h1>" in page.read_text()
    assert (tmp_path / "mine/report/runs/mine.html").exists()


def test_a_run_ends_with_a_report_that_verify_reads(tmp_path):
    out = tmp_path / "run"
    line = ["run", "--detector", "msp", "--dataset", "photos", "--limit", 20, "--out", out, "--no-costs"]
    assert oodbench_command(*line).stdout.splitlines()[-2:] == [f"Report: {out / 'report/index.html'}", str(out)]
    assert "Not verified" in (out / "report/runs/run.html").read_text()
    assert oodbench.verify(out).ok
    written = (out / "report/site.json").stat().st_mtime_ns
    assert oodbench_command(*line).stdout.splitlines()[-2:] == [f"Report: {out / 'report/index.html'}", str(out)]
    assert (out / "report/site.json").stat().st_mtime_ns == written, "nothing has changed"
    oodbench_command(*line, "--detector", "energy")
    assert "energy" in (out / "report/index.html").read_text()
    page = out / "report/sets/photos.html"
    page.write_text(page.read_text().replace("AUROC", "AUROG"))
    assert ["photos.html" in problem for problem in oodbench.verify(out).problems] == [True]
    oodbench_command(*line)
    assert oodbench.verify(out).ok
    (out / "report/site.json").write_text("{")
    assert not oodbench.verify(out).ok
    assert "no report is written" in oodbench_command(*line).stderr
    shutil.rmtree(out / "report")
    (out / "report").write_text("mine")
    done = oodbench_command(*line)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, str(out))
    assert "no report is written" in done.stderr
    (out / "report").unlink()
    oodbench_command(*line)
    assert oodbench_command(*line, "--no-report").returncode == 0
    assert not (out / "report").exists()


def test_images_are_shown_where_they_are_those_of_the_run_and_the_licence_allows_it(run_path, tmp_path):
    out = oodbench.publish(run_path, tmp_path / "site", data=[tmp_path], bundles=False).parent
    names = {path.name for path in (out / "images").iterdir()}
    assert {"photos.png", "digits-noise.png", "photos-1.png"} <= names
    page = (out / "sets/digits-noise.html").read_text()
    assert "CC BY 4.0" in page
    assert "Hardest images" in page
    folder = RunFolder(run_path)
    thumbnails = Thumbnails([folder], [tmp_path], Progress())
    assert len(thumbnails.of("photos")) == 40
    thumbnails._stored["photos"] = {"another"}
    with pytest.raises(BadData, match="not those of the run"):
        thumbnails.of("photos")
    photos = thumbnails._images["photos"]
    for licence, allowed in (("CC BY-NC 4.0", False), ("", False), ("research use only", False), ("CC0 1.0", True)):
        thumbnails._images["photos"] = replace(photos, source=Source(licence=licence))
        with pytest.raises(BadData, match="not those" if allowed else "its licence"):
            thumbnails.of("photos")


@pytest.mark.parametrize(("name", "first"), [("photos", np.argmin), ("digits+grey-level", np.argmax)])
def test_the_hardest_image_comes_first(run_path, tmp_path, name, first):
    """The least anomalous one, but of a benign change the most anomalous one."""
    folder = RunFolder(run_path)
    thumbnails, scores = Thumbnails([folder], [tmp_path], Progress()), StoredScores([folder])
    frame, _ = gather([folder])
    cell = frame[(frame["dataset"] == name) & (frame["detector"] == "knn") & (frame["protocol"] == "unsupervised")].iloc[0]
    strip = misses("images/knn.png", cell.to_dict(), name, thumbnails, scores)
    (image,) = thumbnails.of(name).read([first(scores.arrays(cell)["out_scores"])]).numpy()
    shown = np.atleast_3d(Image.open(io.BytesIO(strip.png)))
    factor = (shown.shape[0] - 2) // image.shape[1]
    np.testing.assert_array_equal(shown[:-2:factor, : factor * image.shape[2] : factor].transpose(2, 0, 1), image)


def test_images_need_no_detector_of_the_run(run_path, tmp_path):
    shutil.copytree(run_path, tmp_path / "run")
    manifest = json_files.read_manifest(path := tmp_path / "run/run.json", "")
    manifest.suite |= {"detectors": ["not-installed"], "model": "not_installed:build"}
    json_files.write(path, manifest.model_dump())
    assert len(Thumbnails([RunFolder(tmp_path / "run")], [tmp_path], Progress()).of("photos")) == 40


@pytest.mark.parametrize("forged", ["suite", "limit", "absent"])
def test_a_run_whose_sets_are_not_here_has_no_images(run_path, tmp_path, forged):
    shutil.copytree(run_path, tmp_path / "run")
    manifest = json_files.read_manifest(path := tmp_path / "run/run.json", "")
    if forged == "limit":
        manifest.settings["limit"] = "many"
    else:
        manifest.suite["in_distribution"] = ["digits"] if forged == "suite" else "folder:absent"
    json_files.write(path, manifest.model_dump())
    said = []
    progress = Progress()
    progress.say = said.append
    thumbnails = Thumbnails([RunFolder(tmp_path / "run"), RunFolder(run_path)], [tmp_path], progress)
    assert len(thumbnails.of("photos")) == 40
    alone = Thumbnails([RunFolder(tmp_path / "run")], [tmp_path], Progress())
    with pytest.raises(BadData, match="not those of the run" if forged == "limit" else "was not found"):
        alone.of("photos")
    assert [line.startswith("no images of ") for line in said] == ([] if forged == "limit" else [True])


def test_a_run_says_where_its_sets_come_from(run_path):
    sources = RunFolder(run_path).manifest().provenance["sources"]
    assert sources["digits"]["licence"] == "CC BY 4.0"
    assert {*sources} == {"digits", "photos"}
