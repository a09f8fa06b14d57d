"""Runs of image quality on databases of a few small images: figures, resume, what fails alone, and what verify finds."""

import csv
import io
import shutil

import numpy as np
import pytest
import torch
from image_files import save_image

import oodbench
from oodbench import registry
from oodbench.datasets.quality.database import load_database
from oodbench.engine.replay import replay
from oodbench.engine.tasks import plan, run_task
from oodbench.errors import UsageError
from oodbench.leaderboard.tasks import render_task
from oodbench.leaderboard.tasks.quality import COLUMNS, quality_frame
from oodbench.paths import require_run_folder
from oodbench.progress import Progress
from oodbench.quality.metric import QualityMetric, load_metric
from oodbench.quality.statistics import figures
from oodbench.results import pass_file
from oodbench.results.bundle import opened, write_bundle
from oodbench.results.folder import RunFolder
from oodbench.results.pass_file import hash_of
from oodbench.results.records import QualityRecord
from oodbench.suites.tasks import QualitySuite

HEIGHT, WIDTH = 12, 16
NOISE = (3, 9, 20, 40)  # of the images of each of three references
DATABASE = "folder:mine"
METRICS = ["psnr", "psnr-ha", "error"]
calls: list[str] = []


class Error(QualityMetric):
    """Mean absolute difference, to a power."""

    higher_is_better = False

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def compare(self, references, distorted):
        calls.append("error")
        return (references.double() - distorted.double()).abs().mean((1, 2, 3)) ** self.power


class Raises(Error):
    """Fails."""

    def compare(self, references, distorted):
        raise ValueError("my own\nfault")


class Exits(Error):
    """Ends the process."""

    def compare(self, references, distorted):
        raise SystemExit(3)


class NotFinite(Error):
    """Gives no number."""

    def compare(self, references, distorted):
        return super().compare(references, distorted) * torch.nan


class WrongShape(Error):
    """Gives a column."""

    def compare(self, references, distorted):
        return super().compare(references, distorted)[:, None]


class OwnScore(Error):
    """Overrides what the harness checks."""

    def score(self, references, distorted):
        return super().compare(references, distorted)[:1].repeat(len(references) + 1)


class Large(Error):
    """Needs more pixels."""

    smallest_side = 64


class Constant(Error):
    """Says the same of all."""

    def compare(self, references, distorted):
        return torch.full((len(references),), 0.5)


class Reads(Error):
    """Reads a file."""

    digest = "a" * 64

    def files(self):
        return {"/somewhere/weights.mat": self.digest}


PLUGINS = {
    "error": Error, "raises": Raises, "exits": Exits, "not-finite": NotFinite, "wrong-shape": WrongShape,
    "own-score": OwnScore, "large": Large, "constant": Constant, "reads": Reads,
}  # fmt: skip


class Heard(Progress):
    """Keeps what a run says, and ends it where it begins with the metric ``until``."""

    def __init__(self, until: str = "") -> None:
        self.lines: list[str] = []
        self.until, self.expected, self.shares = until, 0.0, [0.0]

    def expect(self, units):
        assert self.shares == [0]  # what is expected does not grow, so that the share never falls
        self.expected += units

    def advance(self, units):
        self.shares.append(self.shares[-1] + units / self.expected)

    def say(self, line):
        self.lines.append(line)

    def stage(self, title):
        if self.until and f": {self.until}: " in title:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    calls.clear()
    for name, kind in PLUGINS.items():
        record = registry.Record("quality_metrics", name, f"{__name__}:{kind.__name__}", distribution="other")
        monkeypatch.setitem(registry._added, ("quality_metrics", name), record)


def make_database(folder, deviations=True):
    """3 references and 4 images of each, with scores."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(3):
        reference = random.integers(60, 200, (3, HEIGHT, WIDTH)).astype(np.uint8)
        save_image(folder / f"{number}.png", reference)
        for noise in NOISE:
            image = (reference + random.normal(0, noise, reference.shape)).clip(0, 255).astype(np.uint8)
            save_image(folder / f"{number}-{noise}.png", image)
            rows.append(f"{number}-{noise}.png,{number}.png,{5 - noise / 10 + random.normal(0, 0.3):.3f},0.2")
    (folder / "scores.csv").write_text("\n".join(["image,reference,mos,deviation", *rows]))


@pytest.fixture
def root(tmp_path):
    make_database(tmp_path / "data" / "mine")
    return tmp_path / "data"


def quality(root, out, metrics=METRICS, databases=(DATABASE,), progress=None, parameters=None, **options):
    suite = QualitySuite(name="mine", metrics=list(metrics), databases=list(databases), parameters=parameters or {})
    return RunFolder(run_task(suite, out=out, data=root, progress=progress, **options))


def records(folder):
    return {(record.metric, record.database): record for record in folder.of_task(QualityRecord)}


def told(folder):
    """Everything but time and provenance."""
    apart = {"ms_per_image", "provenance"}
    return {place: record.model_dump(exclude=apart) for place, record in records(folder).items()}


def one(folder, metric="error", database=DATABASE):
    return records(folder)[metric, database]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, and its data."""
    path = tmp_path_factory.mktemp("quality")
    make_database(path / "data" / "mine")
    with pytest.MonkeyPatch.context() as patch:
        record = registry.Record("quality_metrics", "error", f"{__name__}:Error", distribution="other")
        patch.setitem(registry._added, ("quality_metrics", "error"), record)
        return quality(path / "data", path / "run"), path / "data"


@pytest.mark.parametrize("name", METRICS)
def test_figures_are_those_of_the_metrics_own_values(whole, name):
    folder, root = whole
    record, database, metric = one(folder, name), load_database(DATABASE, data=root), load_metric(name)
    pairs = [(database.references[of], database.distorted[row]) for row, of in enumerate(database.reference_of)]
    values = np.concatenate([metric.score(reference[None], image[None]).numpy() for reference, image in pairs])
    arrays = folder.arrays(record)
    np.testing.assert_allclose(arrays["values"], values, rtol=1e-12)
    given = {"deviations": database.deviations, "groups": database.reference_of}
    given["values_higher_is_better"] = name != "error"
    assert record.figures == figures(arrays["values"], database.scores, **given)
    assert record.line == figures(arrays["values"], database.scores, mapping="line", **given)
    assert (record.status, record.n, record.size, record.score) == ("ok", 12, (12, None), "MOS")
    assert record.figures.srcc > 0.9
    assert 0 <= record.figures.outlier_ratio <= 1
    assert record.ms_per_image > 0


@pytest.mark.parametrize("until", METRICS)
def test_a_run_that_is_ended_resumes_with_equal_records(whole, tmp_path, until):
    complete, root = whole
    with pytest.raises(KeyboardInterrupt):
        quality(root, tmp_path / "run", progress=Heard(until))
    done = METRICS[: METRICS.index(until)]
    assert [record.metric for record in RunFolder(tmp_path / "run").of_task(QualityRecord)] == done
    heard = Heard()
    folder = quality(root, tmp_path / "run", progress=heard)
    assert heard.shares[-1] == pytest.approx(1)
    assert told(folder) == told(complete)
    assert any("already done" in line for line in heard.lines) == bool(done)
    calls.clear()
    before = {path: path.read_bytes() for path in folder.pass_files()}
    assert told(quality(root, tmp_path / "run")) == told(complete)
    assert calls == []
    assert {path: path.read_bytes() for path in folder.pass_files()} == before


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("raises", "failed", "ValueError: my own fault"),
        ("exits", "failed", "SystemExit(3)"),
        ("not-finite", "failed", "its value for 0-3.png is nan; leave out that image or the metric"),
        ("wrong-shape", "failed", "compare gave torch.float64 (12, 1) for 12 images"),
        ("own-score", "failed", "own-score gave shape (13,), not one finite value per image (12,)"),
        ("constant", "failed", "all 12 values of the metric are 0.5"),
        ("large", "skipped", "compares images of at least 64 pixels per side, and these have 12x16"),
    ],
)
def test_a_metric_that_cannot_be_computed_is_alone(root, tmp_path, name, status, says):
    heard = Heard()
    folder = quality(root, tmp_path / "run", [name, "error"], progress=heard)
    found = one(folder, name)
    assert (found.status, found.figures, found.arrays) == (status, None, {})
    assert says in found.reason
    assert not found.reason.startswith(f"{name}: ")
    assert "\n" not in found.reason
    (line,) = [line for line in heard.lines if found.reason in line]
    assert line.startswith(name)
    assert one(folder).status == "ok"
    assert oodbench.verify(folder.path).ok


def test_a_metric_that_hangs_ends_with_the_limit(root, tmp_path, monkeypatch):
    import time

    monkeypatch.setattr(Raises, "compare", lambda self, references, distorted: time.sleep(60))
    folder = quality(root, tmp_path / "run", ["raises", "error"], cell_timeout=0.5)
    assert one(folder, "raises").status == "failed"
    assert "one call of raises" in one(folder, "raises").reason
    assert one(folder).status == "ok"


def test_missing_and_damaged_databases_are_alone(root, tmp_path):
    shutil.copytree(root / "mine", root / "torn")
    (root / "torn" / "1-9.png").write_bytes((root / "torn" / "1-9.png").read_bytes()[:60])
    shutil.copytree(root / "mine", root / "short")
    (root / "short" / "scores.csv").write_text("image,reference\n")
    heard = Heard()
    databases = ["tid2013", "folder:torn", "folder:short", "folder:none", DATABASE]
    folder = quality(root, tmp_path / "run", ["error"], databases, progress=heard)
    found = {record.database: record for record in folder.of_task(QualityRecord)}
    statuses = {name: found[name].status for name in databases}
    assert statuses == {
        "tid2013": "skipped", "folder:torn": "failed", "folder:short": "failed", "folder:none": "skipped", DATABASE: "ok",
    }  # fmt: skip
    for name, says in {"tid2013": "tid2013 is missing", "folder:torn": "1-9.png", "folder:short": "scores.csv"}.items():
        assert says in found[name].reason
        assert len([line for line in heard.lines if found[name].reason in line]) == 1
    assert oodbench.verify(folder.path).ok
    both = quality(root, tmp_path / "both", ["error", "raises", "psnr"], ["tid2013", DATABASE])
    lines = render_task("quality", [both], width=None).splitlines()
    notes = [line for line in lines if line.startswith("–")]
    assert [note.partition(": ")[0] for note in notes] == ["– raises failed", "– all 3 metrics skipped"]
    assert "\n- all 3 metrics skipped: tid2013 is missing" in render_task("quality", [both], "md")
    shutil.move(root / "mine", root / "away")
    assert one(quality(root, tmp_path / "run", ["error"])).status == "ok"  # what is finished is not lost


def test_changed_content_voids_records(root, tmp_path):
    first = told(quality(root, tmp_path / "run"))
    table = root / "mine" / "scores.csv"
    table.write_text(table.read_text().replace("0-3.png,0.png,", "0-3.png,0.png,1"))
    heard = Heard()
    second = told(quality(root, tmp_path / "run", progress=heard))
    assert len([line for line in heard.lines if f"{DATABASE} has changed since: its earlier records are void" in line]) == 1
    for place, record in second.items():
        assert record["fingerprint"] != first[place]["fingerprint"]
        assert record["figures"] != first[place]["figures"]


def test_changed_files_of_a_metric_void_its_record(root, tmp_path, monkeypatch):
    first = one(quality(root, tmp_path / "run", ["reads"]), "reads")
    assert first.files == {"weights.mat": "a" * 64}
    calls.clear()
    quality(root, tmp_path / "run", ["reads"])
    assert calls == []
    monkeypatch.setattr(Reads, "digest", "b" * 64)
    second = one(quality(root, tmp_path / "run", ["reads"]), "reads")
    assert calls
    assert second.files == {"weights.mat": "b" * 64}


def test_limit_draws_by_reference(root, tmp_path):
    folder = quality(root, tmp_path / "run", ["error"], limit=6)
    arrays, record = folder.arrays(one(folder)), one(folder)
    assert np.bincount(arrays["groups"]).tolist() == [2, 2, 2]
    assert (record.n, record.size) == (6, (12, None))
    database = load_database(DATABASE, data=root)
    assert set(arrays["scores"]) <= set(database.scores)
    again = quality(root, tmp_path / "again", ["error"], limit=6)
    assert told(again) == told(folder)
    with pytest.raises(UsageError, match="limit = 6, not None"):
        quality(root, tmp_path / "run", ["error"])
    few = one(quality(root, tmp_path / "few", ["error"], limit=4))
    assert few.status == "failed"
    assert "4" in few.reason


def test_images_of_different_sizes_are_compared_with_their_own_reference(root, tmp_path):
    before = RunFolder(quality(root, tmp_path / "run", ["error"]).path)
    values = before.arrays(one(before))["values"]
    random = np.random.default_rng(1)
    large = random.integers(60, 200, (3, 30, 20)).astype(np.uint8)
    save_image(root / "mine" / "large.png", large)
    save_image(root / "mine" / "large-1.png", large + 7)
    lines = (root / "mine" / "scores.csv").read_text().splitlines()
    (root / "mine" / "scores.csv").write_text("\n".join([*lines[:5], "large-1.png,large.png,4.5,0.1", *lines[5:]]))
    after = quality(root, tmp_path / "larger", ["error"])
    np.testing.assert_allclose(np.delete(after.arrays(one(after))["values"], 4), values, rtol=1e-12)
    assert after.arrays(one(after))["values"][4] == pytest.approx(7)


def test_a_table_of_values_needs_no_images(root, tmp_path):
    rows = [f"{row % 2},{row + row % 3},{row**1.5},{-row}" for row in range(12)]
    (root / "values.csv").write_text("\n".join(["reference,mos,mine,psnr", *rows]))
    folder = quality(root, tmp_path / "run", ["all"], ["scores:values.csv"])
    found = {record.metric: record for record in folder.of_task(QualityRecord)}
    assert {name: record.status for name, record in found.items()} == {"mine": "ok", "psnr": "ok"}
    scores, groups = np.arange(12) + np.arange(12) % 3, np.arange(12) % 2
    assert found["mine"].figures == figures([row**1.5 for row in range(12)], scores, groups=groups)
    assert found["psnr"].figures.srcc < 0
    assert found["mine"].ms_per_image is None
    assert oodbench.verify(folder.path).ok
    other = quality(root, tmp_path / "other", ["mine", "error"], ["scores:values.csv"])
    assert one(other, "mine", "scores:values.csv").status == "ok"
    absent = one(other, "error", "scores:values.csv")
    assert absent.status == "skipped"
    assert absent.reason.startswith("scores:values.csv has no images, only values of mine, psnr; add a column error")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metrics": ["pnsr"]}, "unknown quality metric 'pnsr'; did you mean 'psnr'?"),
        ({"databases": [DATABASE, "tid2031"]}, "unknown quality database 'tid2031'; did you mean 'tid2013'?"),
        ({"databases": ["folder:"]}, "folder needs a folder"),
        ({"parameters": {"error": {"powr": 2}}}, "unknown parameter 'powr' of error; did you mean 'power'?"),
        ({"parameters": {"eror": {"power": 2}}}, "unknown quality metric 'eror'; did you mean 'error'?"),
    ],
)
def test_unknown_names_are_the_callers_errors(root, tmp_path, changes, says):
    with pytest.raises(UsageError) as raised:
        quality(root, tmp_path / "run", **changes)
    assert says in str(raised.value)
    assert calls == []


def test_options_take_the_place_of_the_suites_own():
    suite = QualitySuite(metrics=["psnr"], databases=["photos"], parameters={"error": {"power": 2}})
    given = {"--metric": ["error"], "--dataset": ["tid2013"], "--param": {"error": {"power": 3}}, "--seed": [5]}
    changed = suite.override(given)
    assert (changed.metrics, changed.databases, changed.seed) == (["error"], ["tid2013"], 5)
    assert changed.parameters == {"error": {"power": 3}}
    with pytest.raises(UsageError, match="a suite of the task quality takes no --detector"):
        suite.override({"--detector": ["msp"]})
    with pytest.raises(UsageError, match="takes --seed once"):
        suite.override({"--seed": [1, 2]})


def test_parameters_are_told_and_decide(root, tmp_path):
    folder = quality(root, tmp_path / "run", ["error"], parameters={"error": {"power": 3}})
    record = one(folder)
    assert record.parameters == {"power": 3}
    assert record.non_default == {"power": (3, 1.0)}
    with pytest.raises(UsageError, match="parameters of error"):
        quality(root, tmp_path / "run", ["error"], parameters={"error": {"power": 2}})


def test_a_plan_says_what_would_run(root, tmp_path):
    suite = QualitySuite(name="mine", metrics=METRICS, databases=[DATABASE, "tid2013"])
    lines = plan(suite, out=tmp_path / "run", data=root, limit=6)
    assert f"database  {DATABASE}, 12 images, limited to 6" in lines
    assert any(line.startswith("database  tid2013, skipped: tid2013 is missing") for line in lines)
    assert not (tmp_path / "run").exists()
    lines = plan(suite.model_copy(update={"metrics": ["psnr", "unique", "psnr"]}), out=None, data=root, limit=6)
    assert lines[-2] == "metrics   psnr"
    assert lines[-1].startswith("metric    unique, skipped: looked for")
    with pytest.raises(UsageError, match="unknown quality database"):
        plan(suite.model_copy(update={"databases": ["tid"]}), out=None, data=root, limit=None)


def forge(folder, arrays=(), **changes):
    """Change the record of ``error``, or its arrays by role, and write the file as a run would."""
    (path,) = folder.pass_files()
    found, stored, settings = pass_file.read_records(path), pass_file.read_arrays(path), pass_file.read_settings(path)
    for number, record in enumerate(found):
        if record.metric == "error":
            new = {role: edit(folder.arrays(record)[role].copy()) for role, edit in dict(arrays).items()}
            roles = record.arrays | {role: hash_of(array) for role, array in new.items()}
            found[number] = record.model_copy(update={"arrays": roles} | changes)
            stored |= {hash_of(array): array for array in new.values()}
    used = {name for record in found for name in record.arrays.values()}
    pass_file.write(path, found, {name: array for name, array in stored.items() if name in used}, settings)


def shifted(array):
    array[3] += 1
    return array


@pytest.mark.parametrize(
    ("arrays", "changes", "says"),
    [
        ({"values": shifted}, {}, "figures.rmse is"),
        ({"scores": shifted}, {}, "figures.plcc is"),
        ({"groups": lambda groups: groups[::-1].copy()}, {}, "figures.rmse_low is"),
        ({"deviations": lambda deviations: deviations / 50}, {}, "figures.outlier_ratio is"),
        ({"values": lambda values: values[:-1]}, {}, "its arrays differ in length"),
        ({"values": lambda values: values * np.nan}, {}, "values is not what oodbench stores"),
        ({}, {"higher_is_better": True}, "figures.srcc is"),
        ({}, {"score_higher_is_better": False}, "figures.krcc is"),
        ({}, {"n": 11}, "n is 11"),
        ({}, {"seed": 1}, "its seed is 1, but that of the run is 0"),
        ({}, {"line": None}, "line.rmse is None"),
    ],
)
def test_verify_finds_what_does_not_follow(whole, tmp_path, arrays, changes, says):
    folder = RunFolder(shutil.copytree(whole[0].path, tmp_path / "run"))
    assert oodbench.verify(folder.path).ok
    forge(folder, arrays, **changes)
    problems = oodbench.verify(folder.path).problems
    assert any(says in problem for problem in problems), problems
    assert all("error" in problem for problem in problems)


def test_verify_finds_a_changed_figure(whole, tmp_path):
    from dataclasses import replace

    folder = RunFolder(shutil.copytree(whole[0].path, tmp_path / "run"))
    of = one(folder).figures
    forge(folder, figures=replace(of, krcc_high=of.krcc_high + 1e-6))
    (problem,) = oodbench.verify(folder.path).problems
    assert "figures.krcc_high is" in problem


def test_a_bundle_holds_the_run(whole, tmp_path):
    folder, _ = whole
    checked = write_bundle(folder.path, tmp_path / "mine.zip")
    assert (checked.records, checked.figures) == (3, 3)
    path = opened(tmp_path / "mine.zip")
    require_run_folder(path)
    assert told(RunFolder(path)) == told(folder)


def test_a_replay_is_refused(whole):
    with pytest.raises(UsageError, match="run is a run of quality, and --replay is for runs of detection; leave it out"):
        replay(whole[0].path, 3)


def test_the_table_as_csv_has_each_record_under_both_mappings(whole):
    folder, _ = whole
    rows = list(csv.DictReader(io.StringIO(render_task("quality", [folder], "csv"))))
    assert list(rows[0]) == [*COLUMNS]
    assert [(row["metric"], row["mapping"]) for row in rows] == [(m, of) for m in METRICS for of in ("logistic", "line")]
    for row in rows:
        record = one(folder, row["metric"])
        of = record.figures if row["mapping"] == "logistic" else record.line
        for name in ("outlier_ratio", "rmse", "plcc", "srcc", "krcc", "srcc_low", "krcc_high"):
            assert float(row[name]) == pytest.approx(getattr(of, name), rel=1e-12)
        assert (row["database"], row["status"], float(row["n"]), row["reason"]) == (DATABASE, "ok", 12, "")
    frame = quality_frame([folder, folder])
    assert len(frame) == len(rows)
    text = render_task("quality", [folder])
    assert [line.split()[0] for line in text.splitlines() if line.startswith(tuple(METRICS))] == sorted(
        METRICS, key=lambda name: -one(folder, name).figures.srcc
    )


def test_a_database_that_is_named_twice_is_refused_with_what_to_do(root, tmp_path):
    for databases, says in {
        ("photos", "photos"): "databases names photos twice; remove one",
        ("folder:a/x", "folder:b/x"): "two databases are called folder:x in results; rename a file or folder",
    }.items():
        with pytest.raises(UsageError, match=says):
            plan(QualitySuite(metrics=["psnr"], databases=list(databases)), out=None, data=root, limit=None)
    suite = QualitySuite(metrics=["psnr"], databases=["photos"])
    given = suite.override({"--dataset": ["photos", "photos"], "--metric": ["ssim", "psnr", "ssim"]})  # as --detector does
    assert (given.databases, given.metrics) == (["photos"], ["ssim", "psnr"])


def test_progress_counts_images(tmp_path):
    """Also where a table has all values, and however many images a database has."""
    for name, count in (("a", 10), ("b", 30)):
        rows = [f"{number},{number % 7},{number % 3}" for number in range(count)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["mos,m1,m2", *rows]))
    heard = Heard()
    quality(None, tmp_path / "run", ["all"], [f"scores:{tmp_path}/{name}.csv" for name in "ab"], progress=heard)
    assert heard.expected == 80
    assert heard.shares == pytest.approx([0, 10 / 80, 20 / 80, 50 / 80, 1])
