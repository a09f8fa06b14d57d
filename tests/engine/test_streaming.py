"""Sets that are too large for memory: known by their files, decoded once in a run, with the figures of sets in memory."""

import shutil

import numpy as np
import pytest
import torch
from image_files import save_image

import oodbench
from oodbench import load_dataset, protocols
from oodbench.datasets import load
from oodbench.datasets.formats import files
from oodbench.engine import look_alikes
from oodbench.image_set import joined

FIGURES = ["auroc", "auroc_low", "fpr95", "n_in", "n_out"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("streaming")
    for split in ("train", "test"):
        images = load_dataset("digits", split=split)
        for number, (image, label) in enumerate(zip(images.images[:200], images.labels, strict=False)):
            save_image(root / "mine" / split / str(int(label)) / f"{number:03d}.png", image.numpy())
    for number, image in enumerate(load_dataset("photos").images[:60]):
        save_image(root / "theirs" / f"{number:03d}.png", image.numpy())
    return root


@pytest.fixture
def nothing_fits(monkeypatch, tmp_path):
    monkeypatch.setattr(load, "IN_MEMORY", 0)
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "cache"))


def run(root, out, *sets, **options):
    return oodbench.run(
        in_distribution="folder:mine", datasets=list(sets), model="resnet8-digits", detectors=["msp", "knn", "pixels"],
        data=root, out=out, measure_costs=False, size=8, **options,
    )  # fmt: skip


def test_figures_do_not_depend_on_where_images_are_kept(root, tmp_path, monkeypatch, nothing_fits):
    sets = ["folder:theirs", "folder:mine+noise@3"]
    monkeypatch.setattr(look_alikes, "LARGEST", 0)  # such small images are read again where they are nearest to another
    decode, decoded = files.decode, []
    monkeypatch.setattr(files, "decode", lambda path: decoded.append(path) or decode(path))
    streamed = run(root, tmp_path / "streamed", *sets).frame()
    # A tenth of the training images again, to calibrate. The test images for their accuracy, as they are, and as what noise is
    # made of, in the unsupervised pass and to learn from.
    most = {"train": 2, "test": 5, "theirs": 1}
    counts = {name: np.unique([str(p) for p in decoded if name in p.parts], return_counts=True)[1].max() for name in most}
    assert all(counts[name] <= most[name] for name in most), counts
    monkeypatch.setattr(load, "IN_MEMORY", 2**31)
    kept = run(root, tmp_path / "kept", *sets).frame()
    assert (streamed["status"] == "ok").all()
    for figure in FIGURES:
        assert streamed[figure].to_numpy() == pytest.approx(kept[figure].to_numpy(), abs=1e-12), figure
    assert oodbench.verify(tmp_path / "streamed").ok


def test_a_set_is_known_by_its_files_and_by_how_they_are_read(root, tmp_path, nothing_fits):
    whole = load_dataset("folder:theirs", data=root, size=8)
    shutil.copytree(root / "theirs", tmp_path / "copy" / "theirs")
    copy = load_dataset("folder:theirs", data=tmp_path / "copy", size=8)
    assert whole.read_as == "uint8 RGB, 8x8, 8x8 pixels, bilinear"
    assert copy.fingerprint == whole.fingerprint
    assert protocols.same_images(whole, copy)[0].tolist() == protocols.same_images(whole, copy)[1].tolist()
    others = [load_dataset("folder:theirs", data=root, size=8, **how) for how in ({"resize": "lanczos"}, {"shorter_side": 9})]
    others += [
        load_dataset(f"folder:theirs+noise@{level}", data=root, size=8, seed=seed) for level, seed in ((1, 0), (1, 1), (2, 0))
    ]
    others.append(whole.select(torch.arange(59)))
    fingerprints = [one.fingerprint for one in (whole, *others)]
    assert len(set(fingerprints)) == len(fingerprints)
    save_image(tmp_path / "copy" / "theirs" / "000.png", np.zeros((3, 8, 8), np.uint8))
    assert load_dataset("folder:theirs", data=tmp_path / "copy", size=8).fingerprint != whole.fingerprint


def test_copies_are_found_beside_a_set_in_memory(root, monkeypatch, nothing_fits):
    streamed = load_dataset("folder:mine", data=root, size=8)
    monkeypatch.setattr(load, "IN_MEMORY", 2**31)
    kept = load_dataset("folder:mine", data=root, size=8).select(torch.tensor([3, 5]))
    assert kept.read_as == ""
    assert protocols.copies_of(kept, streamed).tolist() == [3, 5]
    both = joined([kept, streamed])
    assert both.read_as == streamed.read_as
    assert both.labels.tolist() == [*kept.labels.tolist(), *streamed.labels.tolist()]
    assert torch.equal(both.read([201, 0, 2]), torch.cat([streamed.read([199]), kept.read([0]), streamed.read([0])]))


def test_a_file_that_breaks_fails_the_cells_of_its_set(root, tmp_path, nothing_fits):
    shutil.copytree(root, tmp_path / "data")
    (tmp_path / "data" / "theirs" / "007.png").write_bytes(b"\x89PNG broken")
    frame = run(tmp_path / "data", tmp_path / "run", "folder:theirs", "folder:mine+noise@3").frame()
    status = frame.groupby("dataset")["status"].agg(set).to_dict()
    assert status == {"folder:theirs": {"failed"}, "folder:mine+noise": {"ok"}}
    assert frame[frame["status"] == "failed"]["reason"].str.contains("007.png is not an image").all()


def test_only_the_files_that_are_used_are_hashed(root, nothing_fits, monkeypatch):
    asked = []

    def hashed(paths, progress):
        asked.append(len(paths))
        return np.zeros((len(paths), 32), np.uint8)

    monkeypatch.setattr("oodbench.image_set.digests", hashed)
    part = load_dataset("folder:theirs", data=root, size=8).select(torch.arange(5))
    assert part.identity
    assert asked == []
    assert part.fingerprint
    assert asked == [5]
