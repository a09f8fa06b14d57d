"""Rows beyond a detector's own: variants, transfer from one shift, training of one's own, class probabilities, changes."""

import re

import numpy as np
import pytest
import torch
from run_folders import figures, record_of

import oodbench
from oodbench import batching, protocols, registry
from oodbench.calibration import evaluate_probabilities
from oodbench.datasets.load import load_dataset
from oodbench.engine.plan import plan
from oodbench.engine.replay import replay
from oodbench.errors import UsageError
from oodbench.heads import Logistic
from oodbench.leaderboard.aggregate import means
from oodbench.leaderboard.notes import DRAWN_ONCE
from oodbench.results.folder import RunFolder
from oodbench.suite import Suite, TestSet

SETS = ["digits-heldout", "digits+noise@1", "digits+noise@5", "photos"]


class Trains(oodbench.Detector):
    """Distances to a trained centre: both columns, then each; its softmax is the network's, cooled."""

    name = "trains"
    signals = ("images", "logits")
    variants = ("near", "far")
    trained: list[int] = []  # noqa: RUF012

    def __init__(self, epochs=9, fails=False):
        self.epochs, self.fails = epochs, fails

    def prepare(self, train_set, classifier, progress):
        if self.fails:
            raise RuntimeError("out of luck")
        Trains.trained.append(self.epochs)
        self.centre_ = next(train_set.probes(classifier, self.signals)).images.double().mean(0).flatten()

    def probabilities(self, probe):
        return (2 * probe.logits).softmax(1)

    def statistics(self, probe):
        distance = (probe.images.double().flatten(1) - self.centre_).abs()
        near, far = distance.mean(1), distance.max(1).values
        return torch.stack([near + far, near, far], 1)


class Learns(oodbench.Detector):
    """Mean and spread of the pixels, weighed by a logistic regression where there is a shift."""

    name = "learns"
    signals = ("images",)
    shift_head = "logistic"
    unsupervised_head = "standardised-square"

    def statistics(self, probe):
        pixels = probe.images.double().flatten(1)
        return torch.stack([pixels.mean(1), pixels.std(1)], 1)


class LearnsAndShows(Learns):
    """What ``learns`` has, and the spread alone."""

    name = "learns-and-shows"
    variants = ("spread",)

    def statistics(self, probe):
        columns = super().statistics(probe)
        return torch.cat([columns, columns[:, 1:]], 1)


class WrongHeads(Learns):
    """Its shift head learns nothing from a shift."""

    name = "wrong-heads"
    shift_head = "standardised-sum"


class WrongVariants(Trains):
    """One column too few."""

    name = "wrong-variants"
    variants = ("near", "far", "further")


class NoProbabilities(Learns):
    """Its probabilities do not sum to one."""

    name = "no-probabilities"

    def probabilities(self, probe):
        return torch.ones(len(probe), 8)


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    kinds = {kind.name: kind for kind in (Trains, Learns, LearnsAndShows, WrongHeads, WrongVariants, NoProbabilities)}
    monkeypatch.setattr(registry, "_added", {})
    monkeypatch.setattr(Trains, "trained", [])
    for name in kinds:
        registry._added["detectors", name] = registry.Record("detectors", name, f"tests:{name}", distribution="tests")
    resolve = registry.resolve
    monkeypatch.setattr(registry, "resolve", lambda target: kinds.get(target.removeprefix("tests:")) or resolve(target))


def suite(**changes):
    sets = [TestSet(name="digits+noise", levels=[1, 5]), TestSet(name="digits-heldout"), TestSet(name="photos")]
    given = {"name": "s", "model": "resnet8-digits", "in_distribution": "digits", "batch_size": 64, "sets": sets}
    return Suite(**given | {"detectors": ["learns", "msp"], "protocols": ["unsupervised", "per-shift", "transfer"]} | changes)


def run(out, chosen=None, **options):
    return oodbench.run(chosen or suite(), out=out, **{"limit": 80, "measure_costs": False, "device": "cpu"} | options)


def found_in(folder, row, protocol, dataset, level=None):
    """The record of a row on a set, and its arrays."""
    record = record_of(folder, row, protocol, dataset if level is None else f"{dataset}@{level}")
    return record, folder.arrays(record)


# Variants


def test_variants_are_rows_of_their_own_over_one_fit(tmp_path):
    chosen = suite(detectors=["trains", "msp"], protocols=["unsupervised", "per-shift"], sets=[TestSet(name="photos")])
    lines = plan(chosen, limit=80)
    assert [line for line in lines if line.startswith("detector")] == [
        f"detector  {row}: unsupervised" for row in ("trains", "trains:near", "trains:far", "msp")
    ]
    assert lines[-1] == "4 cells"
    folder = run(tmp_path / "run", chosen, measure_costs=True)
    frame = folder.frame().set_index("detector")
    assert set(frame.index) == {"trains", "trains:near", "trains:far", "msp"}
    assert set(frame.status) == {"ok"}
    assert Trains.trained == [9]
    own, near, far = (
        found_in(folder, row, "unsupervised", "photos")[1]["out_scores"] for row in ("trains", "trains:near", "trains:far")
    )
    np.testing.assert_allclose(own, near + far)
    assert (near != far).all()
    assert frame.loc[["trains", "trains:near", "trains:far"], "overhead"].nunique() == 1  # measured once
    assert len(folder.costs()) == 2
    classifier, train = oodbench.load_model("resnet8-digits"), load_dataset("digits", split="train")
    detector = oodbench.load_detector("trains").fit(classifier, train, train.labels)
    shown = protocols.limited(load_dataset("photos", size=8), 80, 0)
    np.testing.assert_allclose(detector.score(classifier, shown), own, rtol=1e-6)


def test_a_variant_is_no_column_of_its_detectors_heads(tmp_path):
    chosen = suite(
        detectors=["learns", "learns-and-shows"], sets=[TestSet(name="photos")], protocols=["unsupervised", "per-shift"]
    )
    folder = run(tmp_path / "run", chosen)
    assert set(folder.frame().status) == {"ok"}
    for protocol in chosen.protocols:
        own, beside = (found_in(folder, row, protocol, "photos") for row in ("learns", "learns-and-shows"))
        np.testing.assert_array_equal(own[1]["out_scores"], beside[1]["out_scores"])
        assert own[0].head == beside[0].head
    record, arrays = found_in(folder, "learns-and-shows:spread", "unsupervised", "photos")
    assert record.head == "identity"
    shown = protocols.limited(load_dataset("photos", size=8), 80, 0)
    np.testing.assert_allclose(arrays["out_scores"], (shown.images.double() / 255).flatten(1).std(1), rtol=1e-6)
    assert not replay(tmp_path / "run", 5).problems


def test_a_variant_is_asked_for_by_its_detector(tmp_path):
    with pytest.raises(UsageError, match="'trains:near' is a row of trains, not a detector; use 'trains', which gives"):
        run(tmp_path / "run", suite(protocols=["unsupervised"]), detectors=["trains:near"])
    with pytest.raises(UsageError, match="unknown detector 'trans:near'"):
        run(tmp_path / "run", suite(protocols=["unsupervised"]), detectors=["trans:near"])


def test_wrong_declarations_are_reasons(tmp_path):
    chosen = suite(detectors=["wrong-heads", "wrong-variants", "no-probabilities"], protocols=["unsupervised"])
    folder = run(tmp_path / "run", chosen, datasets=["photos"])
    reasons = folder.frame().set_index("detector").reason
    assert "'standardised-sum' cannot be its shift_head; name one of choose, logistic" in reasons["wrong-heads"]
    assert (
        "gave 3 columns per setting; it must return columns of its own and then one for each of its variants"
        in reasons["wrong-variants"]
    )
    assert "do not sum to 1" in reasons["no-probabilities"]
    assert set(folder.frame().status) == {"failed"}


# Training of one's own


def test_a_run_with_nothing_left_to_do_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "cache"))
    oodbench.load_model("resnet8-digits")
    chosen = suite(detectors=["trains", "msp"], protocols=["unsupervised"])
    before = figures(run(tmp_path / "run", chosen, datasets=["photos"]))
    assert Trains.trained == [9]
    for file in (tmp_path / "cache" / "prepared").iterdir():
        file.unlink()
    assert figures(run(tmp_path / "run", chosen, datasets=["photos"])) == before
    run(tmp_path / "run", chosen, datasets=["photos", "digits-heldout"], detectors=["msp"])  # others have work left
    assert Trains.trained == [9]
    again = run(tmp_path / "again", chosen, datasets=["photos"])
    assert Trains.trained == [9, 9]
    assert figures(again) == before
    from_cache = run(tmp_path / "from-cache", chosen, datasets=["photos"])
    assert Trains.trained == [9, 9]
    assert figures(from_cache) == before


def test_a_training_that_fails_fails_alone(tmp_path):
    chosen = suite(detectors=["trains", "msp"], protocols=["unsupervised"], parameters={"trains": {"fails": True}})
    frame = run(tmp_path / "run", chosen, datasets=["photos"]).frame().set_index("detector")
    assert frame.status.to_dict() == {"trains": "failed", "trains:near": "failed", "trains:far": "failed", "msp": "ok"}
    assert re.fullmatch(r"RuntimeError: out of luck \((.*/)?test_rows\.py, line \d+\)", frame.reason["trains:near"])


def test_what_was_changed_is_in_the_row(tmp_path):
    chosen = suite(detectors=["trains", "odin"], protocols=["unsupervised", "per-shift"], parameters={"trains": {"epochs": 2}})
    folder = run(tmp_path / "run", chosen, datasets=["photos"], parameters={"odin": {"epsilon": 0.002, "temperature": 1000.0}})
    frame = folder.frame().set_index(["detector", "protocol"])
    assert frame.reason["trains", "unsupervised"] == frame.reason["trains:far", "unsupervised"]
    assert frame.reason["trains", "unsupervised"] == f"epochs 2 (default 9); {DRAWN_ONCE}"
    assert frame.reason["odin", "unsupervised"] == "epsilon 0.002 (default 0.0014)"
    assert frame.reason["odin", "per-shift"] == ""  # chosen there
    assert found_in(folder, "trains", "unsupervised", "photos")[0].non_default == {"epochs": (2, 9)}


@pytest.mark.parametrize("caches", [True, False])
def test_rows_say_that_networks_come_from_one_seed_unless_files_hold_them(tmp_path, monkeypatch, caches):
    monkeypatch.setattr(Trains, "caches", caches)
    chosen = suite(detectors=["trains", "learns", "msp"], protocols=["unsupervised", "per-shift"])
    folder = run(tmp_path / "run", chosen, datasets=["photos"])
    drawn = {record.place for record in folder.records() if record.drawn_once}
    assert drawn == ({(f"trains{variant}", "unsupervised") for variant in ("", ":near", ":far")} if caches else set())
    frame = folder.frame().set_index(["detector", "protocol"])
    assert {*frame.index[frame.reason == DRAWN_ONCE]} == drawn


def test_a_setting_that_is_not_used_is_not_in_the_row_even_if_the_grid_leaves_no_choice(tmp_path):
    chosen = suite(detectors=["knn"], protocols=["unsupervised", "per-shift"], parameters={"knn": {"k": 5, "ks": [3]}})
    folder = run(tmp_path / "run", chosen, datasets=["photos"])
    (alone, _), (learnt, _) = (found_in(folder, "knn", protocol, "photos") for protocol in ("unsupervised", "per-shift"))
    assert (alone.setting, learnt.setting) == ({"k": 5}, {"k": 3})
    assert alone.non_default["k"] == (5, 50)
    assert [*learnt.non_default] == ["ks"]


# Class probabilities


def test_class_probabilities_are_judged_beside_the_networks(tmp_path):
    chosen = suite(detectors=["trains", "msp"], protocols=["unsupervised"])
    folder = run(tmp_path / "run", chosen, datasets=["photos"])
    inside = protocols.limited(load_dataset("digits"), 80, 0)
    classifier = oodbench.load_model("resnet8-digits")
    logits = torch.cat([classifier(batch) for _, batch in batching.batches(inside, classifier, [np.arange(80)])]).double()
    own, network = (evaluate_probabilities((t * logits).softmax(1).numpy(), inside.labels.numpy()) for t in (2, 1))
    for row in ("trains", "trains:near"):
        found = found_in(folder, row, "unsupervised", "photos")[0].calibration
        assert found.detector.model_dump() == pytest.approx(own.model_dump(), rel=1e-4)
        assert found.network.model_dump() == pytest.approx(network.model_dump(), rel=1e-4)
    assert found_in(folder, "msp", "unsupervised", "photos")[0].calibration is None


# Transfer


@pytest.fixture(scope="module")
def transferred(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OODBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr(registry, "_added", {})
        registry._added["detectors", "learns"] = registry.Record("detectors", "learns", "tests:learns")
        resolve = registry.resolve
        patch.setattr(registry, "resolve", lambda target: Learns if target == "tests:learns" else resolve(target))
        return run(tmp_path_factory.mktemp("transferred") / "run", suite(transfer_from="digits+noise@5"))


def test_transfer_tests_on_all_sets_but_the_one_that_it_learns_from(transferred):
    frame = transferred.frame()
    rows = frame[frame.protocol == "transfer"]
    assert set(zip(rows.detector, rows.dataset, rows.level.fillna(0), strict=True)) == {
        ("learns", "digits+noise", 1), ("learns", "digits-heldout", 0), ("learns", "photos", 0)
    }  # fmt: skip
    assert set(frame.status) == {"ok"}
    found, _ = found_in(transferred, "learns", "transfer", "photos")
    assert (found.transfer_from, found.head) == ("digits+noise@5", "logistic")
    assert len(found.transfer_fingerprint) == 16
    assert plan(suite(transfer_from="digits+noise@5"), limit=80)[-1] == f"{len(frame)} cells"


def test_transfer_learns_on_the_validation_part_and_tests_on_no_copy_of_it(transferred):
    inside = protocols.limited(load_dataset("digits"), 80, 0)
    source = protocols.limited(load_dataset("digits+noise@5"), 80, 0)
    learnt = protocols.per_shift(inside, source, 0)
    for dataset, level, size in (("photos", None, 80), ("digits-heldout", None, 80), ("digits+noise", 1, 40)):
        _, arrays = found_in(transferred, "learns", "transfer", dataset, level)
        for name in ("in_fit", "in_choose", "in_test", "out_fit", "out_choose"):
            np.testing.assert_array_equal(arrays[name], getattr(learnt, name))
        assert len(arrays["out_scores"]) == len(arrays["out_test"]) == size
    _, arrays = found_in(transferred, "learns", "transfer", "digits+noise", 1)
    mild = protocols.limited(load_dataset("digits+noise@1"), 80, 0)
    learnt_bases = {*inside.base_index[learnt.in_validation].tolist(), *source.base_index[learnt.out_validation].tolist()}
    assert not learnt_bases & set(mild.base_index[arrays["out_test"]].tolist())
    assert not learnt_bases & set(inside.base_index[arrays["in_test"]].tolist())

    # The scores again, from nothing but pixels and the head.
    def columns(images, rows):
        pixels = images.read(rows).double().flatten(1).float().div(255).double()
        return torch.stack([pixels.mean(1), pixels.std(1)], 1).numpy()[:, None]

    head = Logistic()
    head.fit((columns(inside, learnt.in_fit), columns(source, learnt.out_fit)), (np.empty(0), np.empty(0)), "tnr95")
    np.testing.assert_allclose(arrays["out_scores"], head.score(columns(mild, arrays["out_test"])), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(arrays["in_scores"], head.score(columns(inside, arrays["in_test"])), rtol=1e-4, atol=1e-6)


def test_transfer_resumes_bit_by_bit(transferred, tmp_path):
    whole = figures(transferred)
    chosen = suite(transfer_from="digits+noise@5")
    folder = run(tmp_path / "run", chosen)
    assert figures(folder) == whole
    for kept in ("photos", "digits+noise@5", "nothing"):  # whatever is there, the rest comes out alike
        for path in folder.passes_path.glob("*.safetensors"):
            if kept not in path.name:
                path.unlink()
        assert figures(run(tmp_path / "run", chosen)) == whole


def test_fewer_sets_still_transfer_from_the_same(transferred, tmp_path):
    folder = run(tmp_path / "run", suite(transfer_from="digits+noise@5"), datasets=["photos"])
    found = figures(folder)
    assert set(folder.frame().dataset) == {"photos"}
    assert len(found) == 2 + 1 + 1
    assert {name: figures(transferred)[name] for name in found} == found
    other = run(tmp_path / "other", suite(transfer_from="digits+noise@5", protocols=["transfer"]), datasets=["photos"])
    assert other.frame().protocol.tolist() == ["transfer"]
    with pytest.raises(UsageError, match=r"transfer_from = digits\+noise@5, not photos"):
        run(tmp_path / "run", suite(transfer_from="photos"))


def test_a_source_that_cannot_be_read_is_the_reason_of_its_cells_alone(tmp_path):
    sets = [TestSet(name="photos"), TestSet(name="folder:nowhere")]
    chosen = suite(sets=sets, transfer_from="folder:nowhere")
    frame = run(tmp_path / "run", chosen, data=tmp_path, detectors=["learns"]).frame().set_index(["protocol", "dataset"])
    assert frame.status["transfer", "photos"] == "skipped"
    assert frame.reason["transfer", "photos"].startswith("transfer learns from folder:nowhere: ")
    assert str(tmp_path / "nowhere") in frame.reason["transfer", "photos"]
    assert frame.status["per-shift", "photos"] == frame.status["unsupervised", "photos"] == "ok"
    assert ("transfer", "folder:nowhere") not in frame.index
    assert frame.status["unsupervised", "folder:nowhere"] == "skipped"


def test_a_source_too_small_to_learn_from_is_a_reason(tmp_path):
    chosen = suite(transfer_from="photos", protocols=["unsupervised", "transfer"])
    frame = run(tmp_path / "run", chosen, limit=6, detectors=["learns"]).frame().set_index(["protocol", "dataset", "level"])
    transfer = frame.xs("transfer")
    assert set(transfer.status) == {"skipped"}
    assert "transfer learns from photos: per-shift needs 8 images per side" in transfer.reason.iloc[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "suite s: transfer needs transfer_from, the name of one of its sets to learn from"),
        ({"transfer_from": "photo"}, "suite s: transfer_from: unknown set 'photo'; did you mean 'photos'?"),
        (
            {"transfer_from": "photos", "sets": [TestSet(name="photos", kind="benign")]},
            "transfer_from: nothing can be learnt from photos, which is benign",
        ),
        ({"transfer_from": "digits+noise"}, "its sets are digits+noise@1, digits+noise@5, digits-heldout, photos"),
    ],
)
def test_transfer_from_must_be_one_of_the_sets(tmp_path, changes, message):
    with pytest.raises(UsageError) as raised:
        run(tmp_path / "run", suite(**changes))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
    assert isinstance(
        run(tmp_path / "run", suite(protocols=["unsupervised"], detectors=["msp"]), datasets=["photos"]), RunFolder
    )


def test_nothing_is_learnt_from_a_benign_change(tmp_path):
    """Its false alarms are counted at the threshold of the in-distribution images, under unsupervised only."""
    chosen = suite(transfer_from="digits+noise@5", sets=[*suite().sets, TestSet(name="digits+pixel-shift")])
    folder = run(tmp_path / "run", chosen)
    rows = folder.frame().query("kind == 'benign'")[["detector", "protocol"]].to_numpy().tolist()
    assert sorted(rows) == [["learns", "unsupervised"], ["msp", "unsupervised"]]
    record, arrays = found_in(folder, "msp", "unsupervised", "digits+pixel-shift")
    threshold = np.sort(arrays["in_scores"])[75]  # the 76th of 80 images: 95 % are at most that
    alarms = (arrays["out_scores"] > threshold).mean()
    assert record.metrics.fpr95 == pytest.approx(1 - alarms)
    assert record.look_alikes == 0
    table = means(folder.frame()).set_index(["detector", "protocol"])
    assert table.loc[("msp", "unsupervised"), "benign"] == pytest.approx(alarms)
    assert plan(chosen, limit=80)[-1] == f"{len(folder.frame())} cells"
