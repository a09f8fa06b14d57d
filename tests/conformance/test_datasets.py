"""Each check of a data set can fail: for each there is one that breaks what it checks."""

import sys
from dataclasses import replace

import pytest
import torch

from oodbench import conformance, registry
from oodbench.conformance.datasets import CHECKS
from oodbench.conformance.outcomes import Outcome
from oodbench.errors import MissingData, UsageError
from oodbench.image_set import ImageSet, Source


def checkers(root, split):
    if split not in ("train", "test"):
        raise UsageError(f"checkers has no split '{split}'; it has train and test")
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * torch.arange(100, 164)[:, None, None, None]
    return ImageSet(
        (board + (split == "test")).expand(-1, 3, -1, -1).to(torch.uint8).contiguous(),
        torch.arange(64) % 4,
        name="checkers",
        split=split,
        classes=tuple("abcd"),
        source=Source("Checkerboards", licence="public domain", citation="none"),
    )


def changed(**fields):
    return lambda root, split: replace(checkers(root, split), **fields)


def noisy(root, split):
    return replace(checkers(root, split), images=torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8))


def any_split(root, split):
    return checkers(root, split if split == "train" else "test")


def no_source(root, split):
    return replace(checkers(root, split), source=Source("Checkerboards"))


def broken_when_missing(root, split):
    if not (root / "checkers").exists():
        raise FileNotFoundError(root / "checkers")
    return checkers(root, split)


def raises(root, split):
    raise ValueError("my own fault")


class Drifts:
    """Says one shape and decodes another."""

    shape = (64, 3, 8, 8)

    def __len__(self):
        return 64

    def __getitem__(self, rows):
        return torch.zeros(len(rows), 3, 9, 9, dtype=torch.uint8)


BROKEN_SETS = [
    ("loads", raises, "my own fault"),
    ("images", changed(images=Drifts()), "(1, 3, 9, 9)"),
    ("labels", changed(labels=torch.arange(64, dtype=torch.int32) % 4), "labels are torch.int32"),
    ("fingerprint", noisy, "its pixels or order change"),
    ("base-index", changed(base_index=torch.arange(64) + 1), "row 64 of 64 images"),
    ("splits-apart", lambda root, split: checkers(root, "test" if split == "train" else split), "made from the same images"),
    ("source", no_source, "no licence and no citation"),
    ("missing-files", broken_when_missing, "FileNotFoundError"),
    ("unknown-split", any_split, "loads a split that does not exist"),
]


@pytest.fixture
def as_set(monkeypatch, tmp_path):
    """as_set(loader) -> the outcomes of all checks of the set ``checkers`` that it loads, or of another name of it."""
    (tmp_path / "checkers").mkdir()

    def check(loader, name="checkers"):
        module = type(sys)("checkers_for_a_test")
        module.checkers = loader
        monkeypatch.setitem(sys.modules, module.__name__, module)
        record = registry.Record("datasets", "checkers", f"{module.__name__}:checkers")
        monkeypatch.setitem(registry._added, ("datasets", "checkers"), record)
        return {outcome.check: outcome for outcome in conformance.check(name, "datasets", data=tmp_path)}

    return check


def test_a_sound_set_passes_all(as_set):
    assert {o.outcome for o in as_set(checkers).values()} == {"pass"}


@pytest.mark.parametrize(("check", "loader", "says"), BROKEN_SETS, ids=[case[0] for case in BROKEN_SETS])
def test_a_broken_set_fails_its_check(as_set, check, loader, says):
    outcome = as_set(loader)[check]
    assert outcome.outcome == "fail", outcome.reason
    assert says in outcome.reason


def test_splits_number_their_classes_alike(as_set):
    other = lambda root, split: replace(checkers(root, split), classes=tuple("abcd" if split == "train" else "acbd"))  # noqa: E731
    outcome = as_set(other)["splits-apart"]
    assert (outcome.outcome, outcome.reason) == ("fail", "train and test number their classes differently (b, c)")


def with_copies(count):
    """Training images among the test images."""

    def load(root, split):
        found, train = checkers(root, split), checkers(root, "train")
        if split == "test":
            found.images[1 : 1 + count] = train.images[:count]
        return found

    return load


def test_training_images_are_not_test_images(as_set):
    outcome = as_set(with_copies(40))["splits-apart"]
    assert outcome == ("splits-apart", "fail", "40 of 64 test images are also training images, the first in row 1")


def test_every_check_of_sets_has_one_that_fails_it():
    assert [case[0] for case in BROKEN_SETS] == list(CHECKS)


def test_a_set_whose_files_are_missing_is_skipped_with_the_reason(as_set):
    def absent(root, split):
        if split not in ("train", "test"):
            raise UsageError("no such split")
        raise MissingData("no checkers.zip; fetch it")

    found = as_set(absent)
    assert found["loads"] == Outcome("loads", "skip", "no checkers.zip; fetch it")
    assert {name for name, o in found.items() if o.outcome == "pass"} == {"missing-files"}
    assert "fail" not in {o.outcome for o in found.values()}


@pytest.mark.parametrize("name", ["digits", "digits-heldout", "photos", "uniform", "digits:3", "digits:3+noise@2", "cifar10"])
def test_the_embedded_sets_pass(name, tmp_path):
    assert "fail" not in {o.outcome for o in conformance.check(name, "datasets", data=tmp_path)}


def test_real_sets_pass(data_root):
    for name in ("textures", "gtsrb", "folder:svhn-digits"):
        found = list(conformance.check(name, "datasets", data=data_root))
        assert [o for o in found if o.outcome == "fail"] == []
        assert [o.outcome for o in found if o.check == "fingerprint"] == ["pass"]


def in_parts(root, split, part, level):
    """Two parts of a set that is nothing of its own."""
    if split != "test":
        raise UsageError(f"checkers has no split '{split}'; it has test")
    if part not in ("left", "right"):
        raise UsageError("checkers has no images of its own; name a part, as checkers/left@1")
    if not (root / "checkers").exists():
        raise MissingData("no checkers.zip; fetch it")
    return replace(checkers(root, split), base="checkers of the test", base_index=torch.arange(64) + 1000 * (part == "right"))


def test_a_set_with_parts_is_checked_by_part_class_and_change(as_set):
    for name in ("checkers/left@1", "checkers/right@2", "checkers:c/right@2", "checkers/right@2+noise@1"):
        found = as_set(in_parts, name)
        assert "fail" not in {o.outcome for o in found.values()}, name
        assert {c for c, o in found.items() if o.outcome == "skip"} == {"splits-apart"}, name
    whole = as_set(in_parts, "checkers")
    assert "fail" not in {o.outcome for o in whole.values()}
    assert whole["loads"] == Outcome("loads", "skip", "checkers has no images of its own; name a part, as checkers/left@1")


@pytest.mark.parametrize("name", ["cifar10c", "cifar10c/fog@3", "curetsr", "curetsr/Haze@3", "curetsr-unreal"])
def test_sets_with_parts_of_which_no_file_is_there(name, tmp_path):
    found = {outcome.check: outcome for outcome in conformance.check(name, "datasets", data=tmp_path)}
    assert "fail" not in {o.outcome for o in found.values()}
    assert found["missing-files"].outcome == ("skip" if name == "cifar10c" else "pass")
