"""The engine: every pairing becomes a cell, nothing is computed twice, a kill loses nothing, a failure is a row."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from heard import Heard
from run_folders import arrays_of, figures, record_of

import oodbench
from oodbench import protocols, registry
from oodbench.classifier import Classifier
from oodbench.datasets.load import load_dataset
from oodbench.engine.loaded_suite import LoadedSuite
from oodbench.errors import BadData, MissingData, OodbenchError, Unsuitable, UsageError
from oodbench.progress import Progress
from oodbench.results.folder import RunFolder
from oodbench.suite import Suite, TestSet

SETS = ["digits-heldout", "digits+noise@5"]
FAST = ["msp", "knn", "mahalanobis-fe", "pixels"]


class NotANumber(oodbench.Detector):
    """NaN on every third image."""

    name = "not-a-number"

    def statistics(self, probe):
        return torch.where(torch.arange(len(probe)) % 3 == 0, torch.nan, 1.0)


class Constant(oodbench.Detector):
    """The same score for all, up to rounding."""

    name = "constant"

    def statistics(self, probe):
        return 3 + 2e-7 * (torch.arange(len(probe)) % 2)


class Crashes(oodbench.Detector):
    """Raises on the second batch."""

    name = "crashes"
    batches = 0

    def statistics(self, probe):
        self.batches += 1
        if self.batches > 1:
            raise RuntimeError("out of\nluck")
        return probe.images.mean((1, 2, 3))


class NoSuchHead(oodbench.Detector):
    """Asks for a head that there is not."""

    name = "no-such-head"
    unsupervised_head = "antlers"

    def statistics(self, probe):
        return probe.images.mean((1, 2, 3))


class HidesItsArgument(oodbench.Detector):
    """Keeps its hyper-parameter under another name."""

    name = "hides"

    def __init__(self, strength=1.0):
        self.power = strength

    def statistics(self, probe):
        return probe.images.mean((1, 2, 3))


class Overwrites(oodbench.Detector):
    """Writes into what it is given; a tuple is its default."""

    name = "overwrites"

    def __init__(self, layers=(1, 2)):
        self.layers = layers

    def statistics(self, probe):
        probe.logits.zero_()
        return probe.softmax.mul_(0.5).max(1).values


class Declines(oodbench.Detector):
    """Works with no network."""

    name = "declines"

    def check(self, classifier):
        raise Unsuitable("needs a network with wings")

    def statistics(self, probe):
        return probe.images.mean((1, 2, 3))


@pytest.fixture
def plugins(monkeypatch):
    """The troublemakers above, registered as if by --plugin."""
    monkeypatch.setattr(registry, "_added", {})
    kinds = {kind.name: kind for kind in (NotANumber, Constant, Crashes, Declines, NoSuchHead, HidesItsArgument, Overwrites)}
    for name in kinds:
        registry._added["detectors", name] = registry.Record("detectors", name, f"tests:{name}", distribution="troublemakers")
    resolve = registry.resolve
    monkeypatch.setattr(registry, "resolve", lambda target: kinds.get(target.removeprefix("tests:")) or resolve(target))
    return list(kinds)


def run(out, **options):
    options = {"detectors": FAST, "datasets": SETS, "limit": 80, "measure_costs": False, "batch_size": 64} | options
    return oodbench.run(options.pop("suite", "digits"), out=out, device="cpu", **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OODBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return run(tmp_path_factory.mktemp("finished") / "run", measure_costs=True)


def test_every_pairing_has_its_cell_and_the_contract_its_columns(finished):
    frame = finished.frame()
    expected = (
        "model in_distribution detector protocol dataset kind level seed n_in n_out auroc auroc_low auroc_high aupr_out aupr_in"
        " fpr95 detection_accuracy detection_error ms_per_image overhead peak_memory_mb wall_seconds status reason"
        " ms_per_image_spread overhead_spread checkpoint aurc excess_aurc"
    )
    assert list(frame.columns) == expected.split()
    rows = set(zip(frame.detector, frame.protocol, frame.dataset, frame.level.fillna(0), strict=True))
    both = {("digits-heldout", 0), ("digits+noise", 5)}
    assert rows == {(d, "unsupervised", *s) for d in FAST for s in both} | {
        (d, protocol, *s) for d in ("knn", "mahalanobis-fe", "pixels") for protocol in ("per-shift", "transfer") for s in both
    }
    assert set(frame.status) == {"ok"}
    assert (frame.auroc_low <= frame.auroc).all()
    assert (frame.auroc <= frame.auroc_high).all()
    assert (frame.ms_per_image > 0).all()
    assert (frame.overhead > 0).all()
    assert frame.peak_memory_mb.isna().all()  # on the CPU
    assert (frame.wall_seconds > 0).all()


@pytest.mark.parametrize("name", ["msp", "knn", "mahalanobis-fe"])
def test_a_cell_holds_the_scores_that_the_detector_gives_by_itself(finished, name):
    cell = record_of(finished, name, "unsupervised", "digits-heldout")
    arrays = finished.arrays(cell)
    classifier = oodbench.load_model("resnet8-digits")
    train = load_dataset("digits", split="train")
    detector = oodbench.load_detector(name).fit(classifier, train.images, train.labels)
    outside = protocols.limited(load_dataset("digits-heldout"), 80, 0)
    inside = protocols.limited(load_dataset("digits"), 80, 0)
    np.testing.assert_allclose(arrays["out_scores"], detector.score(classifier, outside.images), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(arrays["in_scores"], detector.score(classifier, inside.images), rtol=1e-4, atol=1e-6)
    figure = oodbench.evaluate(arrays["in_scores"], arrays["out_scores"])
    assert cell.metrics.auroc == figure.auroc
    assert (cell.n_in, cell.n_out) == (80, 80)


def test_the_split_is_stored_and_no_base_image_is_both_fitted_and_tested(finished):
    arrays = arrays_of(finished, "pixels", "per-shift", "digits+noise@5")
    assert len(arrays["in_fit"]) == len(arrays["in_choose"]) == len(arrays["out_fit"]) == 20
    assert len(arrays["out_scores"]) == len(arrays["out_test"]) == 40
    learnt = {*arrays["in_fit"], *arrays["in_choose"], *arrays["out_fit"], *arrays["out_choose"]}
    assert not learnt & {*arrays["in_test"], *arrays["out_test"]}  # both sides hold the same base images here


def test_each_image_goes_through_the_network_once(tmp_path, monkeypatch):
    oodbench.load_model("resnet8-digits")  # its training, the first time, is not counted
    seen = []
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, images: seen.append(len(images)) or forward(self, images))
    detectors = ["msp", "energy", "knn", "vim", "rmd", "she", "klm", "gradnorm", "mahalanobis-v", "pixels"]
    run(tmp_path / "run", detectors=detectors, protocols=["unsupervised"])
    train = len(load_dataset("digits", split="train"))
    calibration = 87  # the held-out tenth, which the temperature and pixels are calibrated on in one pass
    checked = 2 + 1 + 1  # two images, one of them again, and again for what the network changes by itself
    accuracy = 80  # the in-distribution test images, in a pass of their own
    once = train + accuracy + 80 + 2 * 80 + checked
    assert sum(seen) == once + calibration
    calls = len(seen)
    run(tmp_path / "run", detectors=detectors, protocols=["unsupervised"])
    assert len(seen) == calls + 3  # a finished run only checks that the network takes the images


def test_odin_adds_one_pass_and_its_grid_shares_gradients(tmp_path, monkeypatch):
    oodbench.load_model("resnet8-digits")  # its training, the first time, is not counted
    seen = []
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, images: seen.append(len(images)) or forward(self, images))
    run(tmp_path / "run", detectors=["msp", "odin"], protocols=["unsupervised"], datasets=["digits-heldout"])
    temperature = 87  # the held-out tenth
    assert sum(seen) == 4 + 80 + temperature + 2 * (80 + 80)  # checks, accuracy, and for each detector a pass over both sides


def test_trouble_is_a_cell_with_a_reason_and_the_rest_goes_on(tmp_path, plugins):
    folder = run(tmp_path / "run", detectors=["msp", *plugins], datasets=["digits-heldout", "folder:nowhere"], data=tmp_path)
    frame = folder.frame().set_index(["detector", "dataset"])
    here = "digits-heldout"
    assert frame.loc[("msp", here), "status"] == "ok"
    assert frame.loc[("not-a-number", here), "status"] == "failed"
    assert "not finite" in frame.loc[("not-a-number", here), "reason"]
    assert "all scores are 3, up to rounding" in frame.loc[("constant", here), "reason"]
    assert re.fullmatch(r"RuntimeError: out of luck \((.*/)?test_run\.py, line \d+\)", frame.loc[("crashes", here), "reason"])
    assert "unknown head 'antlers' (known" in frame.loc[("no-such-head", here), "reason"]
    assert "plain attributes" in frame.loc[("hides", here), "reason"]
    assert frame.loc[("declines", here), "status"] == "skipped"
    assert frame.loc[("declines", here), "reason"] == "needs a network with wings"
    missing = frame.xs("folder:nowhere", level="dataset")
    assert set(missing.status) == {"skipped"}
    assert str(tmp_path / "nowhere") in missing.reason.iloc[0]
    assert frame.auroc.notna().sum() == 2  # msp and overwrites
    alone = run(tmp_path / "alone", detectors=["msp"], datasets=["digits-heldout"]).frame()
    assert alone.auroc[0] == frame.loc[("msp", here), "auroc"]  # whatever overwrites wrote


def test_a_cell_without_figures_is_tried_again(tmp_path):
    data = tmp_path / "data"
    folder = run(tmp_path / "run", detectors=["msp"], datasets=["folder:extra"], data=data)
    assert folder.frame().status.tolist() == ["skipped"]
    from PIL import Image

    (data / "extra").mkdir(parents=True)
    for place in range(9):
        Image.fromarray(np.full((8, 8, 3), 20 * place, np.uint8)).save(data / "extra" / f"{place}.png")
    again = run(tmp_path / "run", detectors=["msp"], datasets=["folder:extra"], data=data)
    assert again.frame().status.tolist() == ["ok"]


def test_a_folder_is_one_set_however_it_is_written(tmp_path):
    from PIL import Image

    (tmp_path / "data" / "extra").mkdir(parents=True)
    for place in range(9):
        Image.fromarray(np.full((8, 8, 3), 20 * place, np.uint8)).save(tmp_path / "data" / "extra" / f"{place}.png")
    options = {"detectors": ["msp"], "data": tmp_path / "data"}
    for name in ("folder:extra", "folder:extra/", "folder:./extra"):
        folder = run(tmp_path / "run", datasets=[name], **options)
    both = run(tmp_path / "both", datasets=["folder:./extra/", "folder:extra"], **options)
    assert folder.frame().dataset.tolist() == both.frame().dataset.tolist() == ["folder:extra"]
    assert len(list(folder.passes_path.glob("folder*.safetensors"))) == 1
    sets = [TestSet(name="folder:extra"), TestSet(name="folder:extra/")]
    with pytest.raises(UsageError, match="lists the set folder:extra twice"):
        run(tmp_path / "twice", suite=Suite(in_distribution="digits", detectors=["msp"], sets=sets), datasets=None)


def test_what_is_finished_stays_when_its_set_or_plugin_is_gone(tmp_path, plugins, monkeypatch):
    from PIL import Image

    data = tmp_path / "data"
    (data / "extra").mkdir(parents=True)
    for place in range(9):
        Image.fromarray(np.full((8, 8, 3), 20 * place, np.uint8)).save(data / "extra" / f"{place}.png")
    options = {"detectors": ["msp", "overwrites"], "datasets": ["folder:extra"], "data": data}
    before = figures(run(tmp_path / "run", **options))
    assert figures(run(tmp_path / "run", **options)) == before  # a tuple among parameters is no other setting
    (data / "extra").rename(data / "elsewhere")
    assert figures(run(tmp_path / "run", **options)) == before
    (data / "elsewhere").rename(data / "extra")
    monkeypatch.setattr(Overwrites, "__init__", lambda self: 1 / 0)
    assert figures(run(tmp_path / "run", **options)) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    home = tmp_path / "home"
    (home / "passes").mkdir(parents=True)
    for name in ("notes.txt", ".eslintrc.json.swp", "passes/.hidden"):
        (home / name).touch()
    with pytest.raises(UsageError, match="is not a run folder and holds"):
        run(home, detectors=["msp"], fresh=True)
    folder = run(tmp_path / "run", detectors=["msp"], datasets=["photos"])
    (folder.passes_path / "mine.csv").touch()
    run(folder.path, detectors=["msp"], datasets=["photos"], fresh=True)
    assert (folder.passes_path / "mine.csv").exists()
    assert sorted(p.name for p in home.rglob("*") if p.is_file()) == [".eslintrc.json.swp", ".hidden", "notes.txt"]


def test_in_distribution_images_are_no_shift(tmp_path):
    frame = run(tmp_path / "run", detectors=["msp"], datasets=["digits", "digits:3", "digits-heldout"]).frame()
    assert frame.set_index("dataset").status.to_dict() == {"digits": "failed", "digits:3": "failed", "digits-heldout": "ok"}
    reason = frame.set_index("dataset").reason["digits:3"]
    assert reason.startswith("row 6 and 9 more of digits:3: also in digits (test), which is in-distribution; remove")


@pytest.mark.parametrize(("split", "named"), [("test", "digits (test)"), ("train", "digits (train)")])
def test_a_planted_in_distribution_image_is_refused(tmp_path, monkeypatch, split, named):
    images = load_dataset("digits-heldout").images[:30].clone()
    images[17] = load_dataset("digits", split=split).images[4]
    monkeypatch.setattr("oodbench.datasets.uniform.uniform", lambda root, split: oodbench.ImageSet(images, name="uniform"))
    frame = run(tmp_path / "run", detectors=["msp"], datasets=["uniform"], limit=None).frame()
    assert set(frame.status) == {"failed"}
    assert f"row 17 of uniform: also in {named}, which is in-distribution" in frame.reason[0]


def test_training_images_among_the_test_images_are_counted(tmp_path):
    from PIL import Image

    digits = load_dataset("digits", split="train")
    for split, rows in (("train", range(20)), ("test", range(13, 25))):
        for row in rows:
            path = tmp_path / "mine" / split / f"c{digits.labels[row]}" / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.images[row].permute(1, 2, 0).numpy()).save(path)
    heard = Heard()
    LoadedSuite(Suite(in_distribution="folder:mine", detectors=["pixels"], sets=[TestSet(name="photos")]), heard, data=tmp_path)
    (line,) = [line for line in heard.lines if "also training images" in line]
    assert line.startswith("folder:mine: 7 of 12 test images are also training images, which flatters")


def test_classes_have_one_number_in_both_splits(tmp_path):
    """A class folder missing from the test split once shifted the labels of all classes after it."""
    from PIL import Image

    def save(split, place, count=6):
        digits = load_dataset("digits", split=split)
        for digit in (0, 1, 2):
            (tmp_path / place / split / f"c{digit}").mkdir(parents=True)
            for row in (digits.labels == digit).nonzero().flatten().tolist()[:count]:
                image = digits.images[row].permute(1, 2, 0).numpy()
                Image.fromarray(image).save(tmp_path / place / split / f"c{digit}" / f"{row}.png")

    for place, gone in (("fewer", "test/c1"), ("more", "train/c1")):
        for split in ("train", "test"):
            save(split, place)
        shutil.rmtree(tmp_path / place / gone)
    inside = {"detectors": ["pixels"], "sets": [TestSet(name="photos")]}
    loaded = LoadedSuite(Suite(in_distribution="folder:fewer", **inside), Progress(), data=tmp_path)
    assert loaded.in_distribution.classes == ("c0", "c1", "c2")
    assert loaded.in_distribution.labels.unique().tolist() == [0, 2]
    with pytest.raises(BadData, match=r"folder:more: its test split has classes that its train split lacks .*\(c1\)"):
        LoadedSuite(Suite(in_distribution="folder:more", **inside), Progress(), data=tmp_path)
    LoadedSuite(Suite(in_distribution="folder:more:c2", **inside), Progress(), data=tmp_path)  # no image of c1


def test_an_image_that_breaks_when_decoded_fails_its_set_alone(tmp_path, monkeypatch):
    from PIL import Image

    from oodbench.datasets import load

    (tmp_path / "extra").mkdir()
    for place in range(9):
        noise = np.random.default_rng(place).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "extra" / f"{place}.png")
    path = tmp_path / "extra" / "5.png"
    path.write_bytes(path.read_bytes()[:120])
    monkeypatch.setattr(load, "IN_MEMORY", 0)
    frame = run(tmp_path / "run", detectors=["msp"], datasets=["folder:extra", "photos"], data=tmp_path).frame()
    assert frame.set_index("dataset").status.to_dict() == {"folder:extra": "failed", "photos": "ok"}
    assert "5.png" in frame.set_index("dataset").reason["folder:extra"]


def test_other_settings_do_not_overwrite_a_run(tmp_path):
    run(tmp_path / "run", detectors=["knn"])
    with pytest.raises(UsageError, match=r"limit = 80, not 70.*--out.*--fresh"):
        run(tmp_path / "run", detectors=["knn"], limit=70)
    with pytest.raises(UsageError, match="parameters of knn"):
        run(tmp_path / "run", detectors=["knn"], parameters={"knn": {"k": 3}})
    extended = run(tmp_path / "run", detectors=["msp"])  # more detectors are welcome
    assert set(extended.frame().detector) == {"knn", "msp"}
    fresh = run(tmp_path / "run", detectors=["msp"], limit=70, fresh=True)
    assert set(fresh.frame().detector) == {"msp"}


def test_what_the_run_hangs_on_raises(tmp_path):
    with pytest.raises(MissingData, match="cifar10"):
        run(tmp_path / "a", suite="cifar10", data=tmp_path, datasets=None, detectors=["msp"])
    with pytest.raises(UsageError, match=r"unknown dataset 'digit-heldout'"):
        run(tmp_path / "b", datasets=["digit-heldout"])
    with pytest.raises(UsageError, match="unknown protocol 'per-shfit'"):
        run(tmp_path / "c", protocols=["per-shfit"])
    with pytest.raises(UsageError, match="parameters given for odin"):
        run(tmp_path / "d", parameters={"odin": {"epsilon": 0}})
    with pytest.raises(UsageError, match="parameter 'kk' of knn"):
        run(tmp_path / "e", parameters={"knn": {"kk": 3}})
    same = Suite(in_distribution="digits", train_split="test", detectors=["pixels"], sets=[TestSet(name="photos")])
    with pytest.raises(OodbenchError, match="same images"):
        run(tmp_path / "f", suite=same, datasets=None, detectors=None)
    (tmp_path / "file").touch()
    with pytest.raises(OodbenchError, match="cannot write"):
        run(tmp_path / "file" / "run", detectors=["msp"])


def test_a_suite_without_a_network_runs_what_needs_none(tmp_path):
    suite = Suite(name="bare", in_distribution="digits", detectors=["pixels", "msp"], sets=[TestSet(name="photos")])
    frame = run(tmp_path / "run", suite=suite, datasets=None, detectors=None).frame().set_index(["detector", "protocol"])
    assert frame.loc[("pixels", "unsupervised"), "auroc"] > 0.9
    assert frame.loc[("msp", "unsupervised"), "status"] == "skipped"
    assert "needs a classifier" in frame.loc[("msp", "unsupervised"), "reason"]


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked(), pytest.raises(OodbenchError, match="another run is writing"):
        run(tmp_path / "run", detectors=["msp"])


def test_an_unknown_schema_version_is_refused(tmp_path):
    folder = run(tmp_path / "run", detectors=["msp"])
    about = json.loads((folder.path / "run.json").read_text())
    (folder.path / "run.json").write_text(json.dumps(about | {"schema_version": 99}))
    with pytest.raises(OodbenchError, match="schema version 99"):
        run(tmp_path / "run", detectors=["msp"])


@pytest.mark.parametrize("delay", [0.0, 0.3, 1.0])
def test_a_killed_run_goes_on_with_the_same_figures_and_redoes_nothing(tmp_path, delay):
    detectors = ["msp", "odin", "knn", "mahalanobis-pfe", "pixels"]
    whole = figures(run(tmp_path / "whole", detectors=detectors))
    code = (
        "import oodbench, sys;"
        f"oodbench.run('digits', out=sys.argv[1], detectors={detectors!r}, datasets={SETS!r}, limit=80, batch_size=64,"
        " measure_costs=False)"
    )
    killed = RunFolder(tmp_path / "killed")
    process = subprocess.Popen([sys.executable, "-P", "-c", code, str(killed.path)], env=os.environ)
    while process.poll() is None and not list(killed.passes_path.glob("*.safetensors")):
        time.sleep(0.005)  # until the first set is written
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in killed.passes_path.glob("*.safetensors")}
    assert before
    resumed = run(killed.path, detectors=detectors)
    assert figures(resumed) == whole
    after = {path.name: path.stat().st_mtime_ns for path in killed.passes_path.glob("*.safetensors")}
    assert {name: after[name] for name in before} == before
    assert not [path for path in Path(killed.path).rglob(".*") if path.name != ".lock"]
