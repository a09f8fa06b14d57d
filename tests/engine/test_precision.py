"""Forward passes of a lower precision: which detectors they serve, what they change, and that results never mix."""

import numpy as np
import pytest
import torch
from heard import Heard

import oodbench
from oodbench.engine.loaded_suite import LoadedSuite
from oodbench.engine.network import NO_NETWORK
from oodbench.engine.plan import plan
from oodbench.engine.replay import replay
from oodbench.errors import UsageError
from oodbench.leaderboard.gather import gather
from oodbench.leaderboard.notes import PrecisionNote
from oodbench.models.device import precision_on
from oodbench.probe import Probe
from oodbench.progress import Progress
from oodbench.results.folder import RunFolder
from oodbench.results.precision import KEY, PrecisionShift, stored
from oodbench.suites.load import load_suite

DETECTORS = ["msp", "knn", "odin", "pixels", "ash", "mahalanobis-fe"]
OPTIONS = {"detectors": DETECTORS, "datasets": ["photos"], "protocols": ["unsupervised"], "limit": 60, "measure_costs": False}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a run in each precision, and what both say."""
    place, heard = tmp_path_factory.mktemp("runs"), Heard()
    for name, precision in (("full", None), ("bf16", "bf16")):
        oodbench.run("digits", out=place / name, precision=precision, progress=heard, device="cpu", **OPTIONS)
    return RunFolder(place / "full"), RunFolder(place / "bf16"), heard


def scores(folder):
    return {record.detector: folder.arrays(record)["out_scores"] for record in folder.records()}


def test_only_forward_passes_without_gradients_change(runs):
    full, low = map(scores, runs[:2])
    assert full.keys() == low.keys() == set(DETECTORS)
    for name in DETECTORS:
        same = np.array_equal(full[name], low[name])
        assert same == (name in ("odin", "pixels")), name
        assert np.corrcoef(low[name], full[name])[0, 1] > 0.9, name
    said = [line for line in runs[2].lines if "forward passes in" in line]
    assert said == ["forward passes in bf16 for 4 detectors; float32 for odin, pixels"]


def test_the_shift_of_auroc_is_measured_and_shown(runs):
    full, low, heard = runs
    shift = stored(low.manifest().provenance)
    assert (shift.precision, shift.images, sorted(shift.auroc)) == ("bf16", 1000, ["ash", "knn", "mahalanobis-fe", "msp"])
    before, after = ({record.detector: record.metrics.auroc for record in folder.records()} for folder in (full, low))
    for name, of in shift.auroc.items():  # all 60 images, so these are the figures of the two runs
        assert of["photos"] == pytest.approx((before[name], after[name]), abs=1e-9), name
    assert shift.sentence() in heard.lines
    assert stored(full.manifest().provenance) is None
    _, notes = gather([low])
    assert [note.said for note in notes if isinstance(note, PrecisionNote)] == [shift.sentence()]
    assert "AUROC minus that in float32" in str(oodbench.open_run(low.path).table())


def test_the_largest_shift_comes_first():
    auroc = {"a": {"x": (0.9, 0.9)}, "b": {"x": (0.9, 0.91), "y": (0.8, 0.79)}}
    assert PrecisionShift(precision="fp16", images=9, auroc=auroc).sentence() == (
        "Forward passes in fp16. AUROC minus that in float32, in points, mean over sets and largest, on at most 9 images of"
        " each side: b +0.00 (at most 1.00), a +0.00 (at most 0.00)."
    )


@pytest.mark.parametrize("auroc", [{}, {"a": {}}, {"a": {"x": (0.5, float("nan"))}}, {"a": {"x": (0.5, 2)}}, 3])
def test_shifts_that_no_run_writes_are_none(auroc):
    assert stored({KEY: {"precision": "bf16", "images": 9, "auroc": auroc}}) is None
    assert stored({KEY: {"precision": "bf16", "images": 9, "auroc": {"a": {"x": (0.5, 0.6)}}}})


def test_tables_keep_runs_of_both_precisions_apart(runs):
    frame, _ = gather(runs[:2])
    assert sorted(set(frame["network"])) == ["precision bf16", "precision float32"]


def test_a_run_folder_holds_one_precision(runs):
    low, heard = runs[1], Heard()
    oodbench.run("digits", out=low.path, precision="bf16", progress=heard, device="cpu", **OPTIONS)
    assert any("6 cells already done" in line for line in heard.lines)
    assert not [stage for stage in heard.stages if "float32" in stage]
    for other in (None, "fp16"):
        with pytest.raises(UsageError, match="precision"):
            oodbench.run("digits", out=low.path, precision=other, device="cpu", **OPTIONS)


def test_scores_of_a_lower_precision_are_replayed(runs):
    found = replay(runs[1].path, 10, device="cpu")
    assert found.ok, found.lines()


def test_workers_compute_in_it_too(runs, tmp_path):
    folder = oodbench.run("digits", out=tmp_path, precision="bf16", executor="processes:1", device="cpu", **OPTIONS)
    here, there = scores(RunFolder(folder.path)), scores(runs[1])
    for name, values in here.items():
        assert np.array_equal(values, there[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_probe_gives_the_dtype_of_the_network(classifier, dtype):
    images, seen = torch.rand(5, 3, 8, 8), []
    classifier.module.linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    full = Probe(classifier, images, {"logits"})
    low = Probe(classifier, images, {"logits", "features", "layers", "maps", "edited"}, precision=dtype)
    with low.mode():
        edited = low.edited(0, lambda maps: seen.append(maps.dtype) or maps * 2)
        given = [low.features, *low.layers, *low.maps]
        assert {one.dtype for one in given} == {torch.float32}
        assert low.logits.dtype == edited.dtype == torch.float64
        assert seen == [torch.float32, dtype, dtype]
        assert not torch.equal(low.logits, full.logits)
        torch.testing.assert_close(low.logits, full.logits, rtol=0.05, atol=0.05)
    assert not torch.is_autocast_enabled("cpu")


def test_what_a_device_cannot_do_is_refused(monkeypatch):
    cpu = torch.device("cpu")
    assert precision_on(cpu, "bf16") == torch.bfloat16
    assert precision_on(cpu, "float32") is None
    with pytest.raises(UsageError, match=r"meta cannot compute in bf16 .*; leave out --precision"):
        precision_on(torch.device("meta"), "bf16")
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda one, other: one)
    with pytest.raises(UsageError, match="cpu has no mixed precision in fp16; leave out --precision"):
        precision_on(cpu, "fp16")
    with pytest.raises(UsageError, match="unknown precision 'bf61'; did you mean 'bf16'"):
        oodbench.run("digits", precision="bf61")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_that_autocast_does_not_lower_is_refused(make_classifier, dtype):
    suite = load_suite("digits").override(detectors=["msp", "odin"], datasets=["photos"], precision="bf16")
    loaded = LoadedSuite(suite, Progress(), network=NO_NETWORK._replace(classifier=make_classifier(dtype=dtype)))
    with pytest.raises(UsageError, match=rf"is for networks in float32, and .* is in {str(dtype)[6:]}; convert it"):
        loaded.precision  # noqa: B018
    assert "precision forward passes in bf16 for 1 detector; float32 for odin" in plan(suite)
