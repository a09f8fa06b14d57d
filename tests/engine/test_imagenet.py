"""The suites of ImageNet on digits in its layout, whose figures are known from the digits themselves."""

import numpy as np
import pytest
from image_files import save_image

import oodbench
from oodbench import load_dataset, load_detector, load_model, training_set
from oodbench.engine import fitting
from oodbench.engine.loaded_suite import LoadedSuite
from oodbench.engine.plan import plan
from oodbench.errors import MissingData, NoSuchSplit, UsageError
from oodbench.progress import Progress
from oodbench.results.folder import RunFolder
from oodbench.suite import Suite, TestSet

NETWORK = "resnet8-digits"
SETS = {"imagenet": "digits", "imagenet_r": "digits+noise@2", "ninco": "digits-heldout", "own": "photos"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    (root / "benchmark_imglist" / "imagenet").mkdir(parents=True)
    for name, digits in SETS.items():
        images, lines = load_dataset(digits), []
        labels = images.labels if name.startswith("imagenet") else [-1] * len(images)
        for number, (image, label) in enumerate(zip(images.images, labels, strict=True)):
            save_image(root / "images_largescale" / name / f"{number:03d}.png", image.numpy())
            lines.append(f"{name}/{number:03d}.png {int(label)}")
        (root / "benchmark_imglist" / "imagenet" / f"test_{name}.txt").write_text("\n".join(lines))
    return root


def scores(name, images):
    detector = load_detector(name)
    return detector.score(load_model(NETWORK), images)


def frame_of(suite, root, out, detectors=("msp", "energy", "knn", "pixels")):
    return oodbench.run(
        suite,
        model=NETWORK,
        data=root,
        out=out,
        detectors=list(detectors),
        device="cpu",
        measure_costs=False,
        progress=Progress(),
    ).frame()


def test_a_run_without_training_images_has_the_figures_that_need_none(root, tmp_path):
    frame = frame_of("imagenet", root, tmp_path / "run")
    status = frame.groupby("detector")["status"].agg(set).to_dict()
    assert status["knn"] == status["pixels"] == {"skipped"}
    assert frame[frame["detector"] == "knn"]["reason"].str.startswith("it learns from training images").any()
    ok = frame[frame["status"] == "ok"]
    assert ok.drop_duplicates("dataset").set_index("dataset")["kind"].to_dict() == {
        "imagenet/ninco": "near-ood", "imagenet/imagenet_r": "csid", "imagenet/own": "far-ood",
    }  # fmt: skip
    assert len(ok) == 6
    for _, cell in ok.iterrows():
        anomalous = load_dataset(SETS[cell["dataset"].removeprefix("imagenet/")])
        inside, outside = (scores(cell["detector"], images) for images in (load_dataset("digits"), anomalous))
        assert cell["auroc"] == pytest.approx(oodbench.evaluate(inside, outside).auroc, abs=1e-12)


def test_the_accuracy_on_shifted_images_is_recorded_and_the_run_verifies(root, tmp_path):
    frame_of("imagenet", root, tmp_path / "run", ["msp", "mc-dropout"])
    records = list(RunFolder(tmp_path / "run").recognition())
    found = {r.set_name: r for r in records if r.source == "network"}
    assert found.keys() == {"imagenet", "imagenet/imagenet_r"}
    images = load_dataset("digits+noise@2")
    right = (load_model(NETWORK)(images.images / 255).argmax(1) == images.labels).double().mean()
    assert found["imagenet/imagenet_r"].figures.accuracy == pytest.approx(float(right))
    of_scaled = {(r.source, r.status, r.reason) for r in records if r.source.endswith("-scaled")}
    without = "skipped", "there are no images with labels to calibrate on"  # as there are no training images
    assert of_scaled == {("network-scaled", *without), ("mc-dropout-scaled", *without)}
    assert oodbench.verify(tmp_path / "run").ok


def test_shifted_images_are_in_distribution_in_the_full_spectrum(root, tmp_path):
    frame = frame_of("imagenet-fullspectrum", root, tmp_path / "run", ["energy"])
    ok = frame[frame["status"] == "ok"].set_index("dataset")
    assert list(ok.index) == ["imagenet/ninco", "imagenet/own"]
    inside = np.concatenate([scores("energy", load_dataset(name)) for name in ("digits", "digits+noise@2")])
    for name, set_name in (("imagenet/ninco", "digits-heldout"), ("imagenet/own", "photos")):
        assert ok.loc[name, "n_in"] == len(inside)
        assert ok.loc[name, "auroc"] == pytest.approx(
            oodbench.evaluate(inside, scores("energy", load_dataset(set_name))).auroc, abs=1e-12
        )
    assert oodbench.verify(tmp_path / "run").ok


def test_settings_are_chosen_on_the_lists_val_which_are_not_tested(root, tmp_path):
    lists = root / "benchmark_imglist" / "imagenet"
    for name, of in (("openimage_o", "photos"), ("imagenet", "digits")):
        images = load_dataset(of, split="val" if of == "photos" else "train")
        labels = [-1] * 40 if of == "photos" else images.labels
        for number in range(40):
            save_image(root / "images_largescale" / "val" / of / f"{number}.png", images.images[number].numpy())
        (lists / f"val_{name}.txt").write_text("\n".join(f"val/{of}/{n}.png {int(labels[n])}" for n in range(40)))
    folder = oodbench.run(
        "imagenet", model=NETWORK, data=root, out=tmp_path / "run", detectors=["gen"], protocols=["validation"],
        datasets=["imagenet/ninco"], measure_costs=False,
    )  # fmt: skip
    (record,) = folder.records()
    assert (record.status, record.transfer_from) == ("ok", "imagenet/openimage_o (val)")
    assert (record.n_in, record.n_out) == (len(load_dataset("digits")), len(load_dataset("digits-heldout")))
    assert record.sizes["imagenet/openimage_o (val)"] == (40, 1763)
    assert record.sizes["imagenet (val)"][0] == len(folder.arrays(record)["in_choice"]) == 40
    assert oodbench.verify(folder.path).ok
    (lists / "val_imagenet.txt").unlink()
    with pytest.raises(MissingData, match=r"no benchmark_imglist/imagenet/val_imagenet.txt .*; or leave out the protocol"):
        oodbench.run("imagenet", model=NETWORK, data=root, out=tmp_path / "b", detectors=["gen"], protocols=["validation"])


def test_where_every_detector_learns_the_missing_images_are_an_error(root, tmp_path):
    with pytest.raises(NoSuchSplit, match="imagenet has no training images here"):
        frame_of("imagenet", root, tmp_path / "run", ["knn"])


def test_parts_of_a_suite(root):
    def sets_of(*sets):
        chosen = Suite(in_distribution="imagenet", detectors=["msp"], sets=[TestSet(name=name) for name in sets], size=8)
        return [one.name for one in LoadedSuite(chosen, Progress(), data=root).suite.sets]

    assert sets_of("imagenet/own", "imagenet/*") == ["imagenet/own", "imagenet/imagenet_r", "imagenet/ninco"]
    with pytest.raises(UsageError, match=r"cifar10c/\*: cifar10c does not list its parts; name one"):
        sets_of("cifar10c/*")


def test_fit_images_are_drawn_by_the_seed():
    suite = Suite(in_distribution="digits", detectors=["knn"], sets=[TestSet(name="photos")], fit_images=64)
    drawn = [LoadedSuite(suite.model_copy(update={"seed": seed}), Progress()).train for seed in (0, 0, 1)]
    assert [len(one) for one in drawn] == [64] * 3
    assert set(np.bincount(drawn[0].labels)) <= {7, 8, 9}, "stratified"
    assert drawn[0].fingerprint == drawn[1].fingerprint != drawn[2].fingerprint


def test_a_plan_says_what_fits_take_and_fit_images_makes_it_less(monkeypatch):
    monkeypatch.setattr(fitting, "LARGE", 200 * 64 * 4)
    chosen = Suite(in_distribution="digits", detectors=["knn", "msp"], sets=[TestSet(name="photos")], model="resnet8-digits")
    for count in (200, 199):
        lines = plan(chosen.override(fit_images=count))
        found = "about 51 kB for the fits: knn 51 kB" if count == 200 else "about 50 kB for the fits"
        assert f"fit on    digits (train), {count} images" in lines
        assert f"memory    {found}" in lines
    assert not any(line.startswith("memory") for line in plan(chosen.override(detectors=["msp"])))


def test_a_detector_without_enough_memory_is_skipped_and_the_others_run(tmp_path, monkeypatch):
    monkeypatch.setattr(training_set, "available_memory", lambda device: 50_000)
    options = {"detectors": ["knn", "she"], "datasets": ["photos"], "protocols": ["unsupervised"], "limit": 40}
    frame = oodbench.run("digits", out=tmp_path / "run", measure_costs=False, fit_images=200, **options).frame()
    assert dict(zip(frame["detector"], frame["status"], strict=True)) == {"knn": "skipped", "she": "ok"}
    reason = frame.set_index("detector").loc["knn", "reason"]
    assert reason.startswith("its fit takes about 51 kB of memory, and 50 kB are free; learn from fewer training images")


def test_a_plan_says_what_is_skipped_and_an_empty_root_which_list_is_needed(root, tmp_path):
    own = {"in_distribution": "imagenet", "sets": [TestSet(name="imagenet/own")], "model": NETWORK, "size": 8}
    chosen = Suite(detectors=["msp", "knn"], protocols=["unsupervised"], **own)
    lines = plan(chosen, data=root)
    assert "fit on    imagenet (train), not there" in lines
    assert "detector  msp: unsupervised" in lines
    assert [line.endswith("skipped: it learns from training images") for line in lines if "knn" in line] == [True]
    with pytest.raises(MissingData, match="no benchmark_imglist/imagenet/test_imagenet"):
        LoadedSuite(chosen, Progress(), data=tmp_path)
