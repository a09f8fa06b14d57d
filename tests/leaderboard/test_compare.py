"""``oodbench compare``: what moved from one run to another, and what is noise."""

import json

import numpy as np
import pandas as pd
import pytest
from run_folders import detection_record

import oodbench
from oodbench import cli
from oodbench.errors import BadData, UsageError
from oodbench.leaderboard.comparison.compare import COLUMNS
from oodbench.leaderboard.comparison.compare_table import render_comparison
from oodbench.results.folder import RunFolder
from oodbench.results.pass_file import hash_of
from oodbench.results.recompute import figures_of
from oodbench.results.records import cost_key
from oodbench.results.statistics import difference


def made(path, *cells, costs=None, **provenance):
    """A run folder of cells: (fields of the record, arrays by role, or None where it has no figures)."""
    folder = RunFolder(path)
    with folder.locked():
        folder.check_settings({}, suite={"name": "made"}, provenance={"device": "cpu"} | provenance)
        for fields, arrays in cells:
            if arrays is None:
                folder.write([detection_record(**fields | {"status": "failed", "reason": "ValueError: no"})], {})
                continue
            figures = figures_of(arrays, 0, "far-ood")
            names = {role: hash_of(array) for role, array in arrays.items()}
            counts = {"n_in": len(arrays["in_scores"]), "n_out": len(arrays["out_scores"])}
            record = detection_record(**fields, **counts, metrics=figures.metrics, arrays=names)
            folder.write([record], {names[role]: array for role, array in arrays.items()})
        if costs:
            folder.write_costs({cost_key(name, {}, None): of for name, of in costs.items()})
    return path


def scores(seed=0, n=1000, gap=1.5, **more):
    random = np.random.default_rng(seed)
    return {"in_scores": random.normal(size=n), "out_scores": random.normal(size=n) + gap} | more


def noisier(arrays, by, seed=1):
    """The same samples with noise on their scores."""
    random = np.random.default_rng(seed)
    return {role: array + by * random.normal(size=len(array)) for role, array in arrays.items()}


def verdicts(compared):
    return dict(zip(compared.rows["dataset"], compared.rows["verdict"], strict=True))


def test_a_fall_of_2_points_on_1000_and_1000_images_is_found(tmp_path):
    before = scores()
    after = noisier(before, 0.45)
    one, other = made(tmp_path / "one", ({}, before)), made(tmp_path / "other", ({}, after))
    compared = oodbench.compare(one, other)
    row = compared.rows.iloc[0]
    assert -0.03 < row["difference"] < -0.015
    assert (row["verdict"], row["basis"], row["n_in"], row["n_out"]) == ("regressed", "pairs", 1000, 1000)
    assert not compared.ok
    wanted = difference((after["in_scores"], after["out_scores"]), (before["in_scores"], before["out_scores"]))
    found = (row["difference"], row["low"], row["high"], row["p"])
    assert found == pytest.approx((wanted.auroc, wanted.low, wanted.high, wanted.p), rel=1e-12)
    assert verdicts(oodbench.compare(other, one)) == {"photos": "improved"}
    tolerant = oodbench.compare(one, other, tolerance=0.03)
    assert (verdicts(tolerant), tolerant.ok) == ({"photos": "within tolerance"}, True)


def test_noise_is_found_to_be_noise(tmp_path):
    """Of 300 cells whose scores got as much noise on both sides, none regresses: Holm's bound holds for all together."""
    cells = [({"dataset": f"set{n}"}, scores(n, 200)) for n in range(300)]
    one, other = (
        made(tmp_path / str(side), *((of, noisier(arrays, 0.5, 1000 * side + n)) for n, (of, arrays) in enumerate(cells)))
        for side in (1, 2)
    )
    compared = oodbench.compare(one, other)
    assert compared.rows["verdict"].value_counts().to_dict() == {"within noise": 300}
    assert (compared.rows["difference"] != 0).all()


def test_a_run_is_equal_to_itself(tmp_path):
    one = made(tmp_path / "one", ({}, scores()), ({"dataset": "uniform"}, None))
    compared = oodbench.compare(one, one)
    assert (verdicts(compared), compared.ok, compared.differs) == ({"photos": "equal", "uniform": "without figures"}, True, [])
    assert "Without figures on both sides: msp on uniform." in render_comparison(compared)
    assert "nothing judged to have moved" in render_comparison(compared)


def test_what_is_new_gone_lost_and_found(tmp_path):
    a, b, c, d, e = ({"dataset": name} for name in "abcde")
    one = made(tmp_path / "one", (a, scores()), (b, scores()), (c, None), (e, scores()))
    other = made(tmp_path / "other", (b, None), (c, scores()), (d, scores()), (e, scores()))
    compared = oodbench.compare(one, other)
    assert verdicts(compared) == {"a": "gone", "b": "lost", "c": "found", "d": "new", "e": "equal"}
    assert compared.regressions["dataset"].tolist() == ["b"]
    text = render_comparison(compared)
    for says in (
        "Only the first run has 1 cell: msp on a.",
        "Only the second run has 1 cell: msp on d.",
        "Lost: msp on b: ValueError: no",
    ):
        assert says in text


def test_what_another_seed_moved_is_not_judged(tmp_path):
    one = made(tmp_path / "one", ({}, scores()), ({"dataset": "uniform"}, scores(3)))
    other = made(tmp_path / "other", ({"seed": 1}, scores(gap=0)), ({"dataset": "uniform", "seed": 1}, scores(3)))
    compared = oodbench.compare(one, other)
    assert (verdicts(compared), compared.ok) == ({"photos": "other seed", "uniform": "equal"}, True)
    assert compared.differs == ["seed: 0, then 1"]
    assert "Not judged: 1 cell that moved between different seeds" in render_comparison(compared)


def test_other_images_are_compared_by_intervals(tmp_path):
    one = made(tmp_path / "one", ({}, scores(0)))
    for seed, gap, verdict in ((5, 1.5, "within noise"), (6, 1.2, "regressed")):
        other = made(tmp_path / f"other{seed}", ({"fingerprint": "g"}, scores(seed, gap=gap)))
        row = oodbench.compare(one, other).rows.iloc[0]
        assert (row["verdict"], row["basis"]) == (verdict, "intervals (other images of the set)")
        assert row["difference"] == row["second"] - row["first"]
        assert row["low"] < row["difference"] < row["high"]


def test_common_samples_alone_are_paired(tmp_path):
    """Rows of the split tell which samples are one."""
    whole, rows = scores(n=400), np.arange(400)

    def part(kept, changed):
        split = dict.fromkeys(("in_test", "out_test"), kept)
        return {role: array[kept] for role, array in noisier(whole, changed).items()} | split

    fields = {"protocol": "per-shift"}
    one, other = (
        made(tmp_path / name, (fields, part(*of))) for name, of in (("one", (rows[:300], 0)), ("other", (rows[100:], 0.3)))
    )
    row = oodbench.compare(one, other).rows.iloc[0]
    common, moved = rows[100:300], noisier(whole, 0.3)
    wanted = difference(*((of["in_scores"][common], of["out_scores"][common]) for of in (moved, whole)))
    assert (row["n_in"], row["n_out"], row["basis"]) == (200, 200, "pairs")
    assert (row["difference"], row["p"]) == pytest.approx((wanted.auroc, wanted.p), rel=1e-12)


@pytest.mark.parametrize("fingerprint", ["f", "g"])
def test_copies_of_one_image_count_once(tmp_path, fingerprint):
    """Each image ten times says no more than each once."""
    few, numbers = scores(n=60), np.repeat(np.arange(60), 10)
    bases = {"in_base": numbers, "out_base": numbers + 60}
    after = noisier(few, 0.6)
    single, tenfold = [], []
    for name, arrays, of in (("one", few, {}), ("other", after, {"fingerprint": fingerprint})):
        single.append(made(tmp_path / f"single-{name}", (of, arrays)))
        tenfold.append(
            made(tmp_path / f"tenfold-{name}", (of, {role: np.repeat(array, 10) for role, array in arrays.items()} | bases))
        )
    alone, copied = (oodbench.compare(*pair).rows.iloc[0] for pair in (single, tenfold))
    assert copied["difference"] == pytest.approx(alone["difference"])
    assert copied["high"] - copied["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.02)


def test_costs_that_moved_are_shown_with_their_machines(tmp_path):
    cost = {"ms_per_image": 1.0, "overhead": 2.0, "peak_memory_mb": None, "ms_per_image_spread": 0.1, "overhead_spread": 0.1}
    one = made(tmp_path / "one", ({}, scores()), ({"detector": "knn"}, scores()), costs={"msp": cost, "knn": cost})
    slower = {"msp": cost | {"overhead": 3.0}, "knn": cost | {"overhead": 2.3}}
    other = made(tmp_path / "other", ({}, scores()), ({"detector": "knn"}, scores()), costs=slower, device="cuda")
    compared = oodbench.compare(one, other)
    assert dict(zip(compared.costs["detector"], compared.costs["moved"], strict=True)) == {"knn": False, "msp": True}
    text = render_comparison(compared, "md")
    assert "| msp | 2× | 3× | 1.50 |" in " ".join(text.split())
    assert "The runs differ in machine: cpu, then cuda." in text
    assert compared.ok


def test_benign_sets_are_not_compared(tmp_path):
    benign = {"dataset": "digits+grey-level", "kind": "benign"}
    one = made(tmp_path / "one", ({}, scores()), (benign, scores(1)))
    compared = oodbench.compare(one, made(tmp_path / "other", ({}, scores()), (benign, scores(2))))
    assert (verdicts(compared), compared.left_out) == ({"photos": "equal"}, 1)


def test_recognition_that_both_have_is_not_compared(tmp_path):
    options = {"detectors": ["msp"], "datasets": ["digits+noise@1"], "limit": 40, "measure_costs": False}
    run = oodbench.run("digits", out=tmp_path / "run", **options)
    (record,) = RunFolder(run.path).records()
    without = made(tmp_path / "without", (record.model_dump(exclude={"metrics", "arrays", "n_in", "n_out"}), scores()))
    says = "Not compared: accuracy and calibration of class probabilities"
    assert says in render_comparison(oodbench.compare(run.path, run.path))
    assert says not in render_comparison(oodbench.compare(run.path, without))


def test_what_cannot_be_compared_is_said_in_one_line(tmp_path):
    one, other = made(tmp_path / "one", ({}, scores())), made(tmp_path / "other", ({"dataset": "uniform"}, scores()))
    with pytest.raises(UsageError, match="have no cell in common; compare runs of the same sets and detectors"):
        oodbench.compare(one, other)
    with pytest.raises(UsageError, match="tolerance is 2; give a difference of AUROC from 0 to 1"):
        oodbench.compare(one, one, tolerance=2)
    with pytest.raises(UsageError, match="none does not exist"):
        oodbench.compare(one, tmp_path / "none")
    (tmp_path / "bad.zip").write_bytes(b"PK")
    with pytest.raises(BadData, match=r"bad\.zip is refused"):
        oodbench.compare(one, tmp_path / "bad.zip")


def test_studies_are_matched_by_run_and_never_with_a_run(tmp_path):
    options = {"detectors": ["msp"], "datasets": ["photos"], "limit": 40, "measure_costs": False}
    study = oodbench.run("digits", out=tmp_path / "study", seed=[0, 1], **options).path
    alone = oodbench.run("digits", out=tmp_path / "alone", **options).path
    compared = oodbench.compare(study, study)
    assert compared.rows["run"].tolist() == ["seed-0", "seed-1"]
    assert set(compared.rows["verdict"]) == {"equal"}
    with pytest.raises(UsageError, match=r"alone is a run, but .*study is a study; compare two runs, or two studies"):
        oodbench.compare(alone, study)


@pytest.mark.parametrize("format", ["table", "md", "csv", "json", "tex", "html"])
def test_the_command_writes_each_format_and_exits_with_1(tmp_path, monkeypatch, capsys, format):
    before = scores()
    one, other = made(tmp_path / "one", ({}, before)), made(tmp_path / "other", ({}, noisier(before, 0.45)))

    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["oodbench", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return exit.value.code or 0, capsys.readouterr().out

    code, text = command(one, other, "--format", format)
    assert code == 1
    assert "regressed" in text
    if format == "json":
        assert list(json.loads(text)[0]) == list(COLUMNS)
    code, text = command(one, one, "--format", format, "--all", "--out", tmp_path / "out.txt")
    assert (code, text) == (0, f"{tmp_path / 'out.txt'}\n")
    assert "equal" in (tmp_path / "out.txt").read_text()


def quality(place, values, **options):
    """A run of image quality on a table of values; scores are the same each time."""
    place.mkdir()
    scores = np.random.default_rng(9).normal(size=len(values["m"]))
    pd.DataFrame({"mos": scores, **values}).to_csv(place / "t.csv", index=False)
    (place / "s.toml").write_text(f'task = "quality"\nmetrics = {[*values]}\ndatabases = ["scores:{place}/t.csv"]\n')
    return oodbench.run(place / "s.toml", out=place / "run", **options).path


def test_noise_of_a_correlation_near_zero_has_both_signs(tmp_path):
    """The standard error of Spearman's correlation of N independent pairs is 1/√(N − 1); of its magnitude it is 40 % less."""
    random = np.random.default_rng(0)
    runs = [quality(tmp_path / name, {"m": random.normal(size=150)}) for name in ("one", "other")]
    row = oodbench.compare(*runs).rows.iloc[0]
    assert row["verdict"] == "within noise"
    assert (row["high"] - row["low"]) / 2 / 1.96 == pytest.approx(np.sqrt(2 / 149), rel=0.15)


def test_parts_of_a_database_that_other_seeds_drew_are_not_judged(tmp_path):
    values = {"m": np.arange(60.0) ** 2, "broken": np.full(60, 3.0)}
    parts = [quality(tmp_path / f"part{seed}", values, seed=seed, limit=30) for seed in (0, 1)]
    compared = oodbench.compare(*parts)
    assert compared.rows.set_index("detector")["verdict"].to_dict() == {"m": "other seed", "broken": "without figures"}
    assert "seed: 0, then 1" in compared.differs
    text = " ".join(render_comparison(compared).split())
    assert "The runs differ in seed: 0, then 1." in text
    assert "2 cells: 1 other seed, 1 without figures." in text
    assert "A seed changes which images are drawn. Compare" in text
    whole = [quality(tmp_path / f"whole{seed}", values, seed=seed) for seed in (0, 1)]
    assert oodbench.compare(*whole).rows.set_index("detector")["verdict"]["m"] == "equal"
    assert "images: 30 of 60 images, then all 60 images" in oodbench.compare(parts[0], whole[0]).differs
