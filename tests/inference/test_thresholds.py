"""The threshold of a fitted detector: it flags as few new images as was asked, or says that it does not."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oodbench
from oodbench.detector import Detector
from oodbench.errors import BadData, UsageError
from oodbench.image_set import ImageSet
from oodbench.inference import false_alarms, thresholds
from oodbench.inference.fitted import load_fitted
from oodbench.progress import Progress

PIXELS = {"model": None, "dataset": "digits"}


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=60),
    st.integers(1, 99).map(lambda percent: percent / 100),
)
def test_the_threshold_is_the_smallest_that_keeps_the_share(scores, share):
    """Any of n + 1 exchangeable scores is as likely the new one as any other: count how many would then be flagged."""
    scores = np.array(scores, dtype=float)
    among = round(share * 100) * (len(scores) + 1)  # the share of n + 1, exact, in hundredths
    if among < 100:
        with pytest.raises(UsageError, match="are too few for a false-alarm rate"):
            false_alarms.threshold_of(scores, share)
        return
    found = false_alarms.threshold_of(scores, share)
    assert found in scores
    assert ((scores > found).sum() + 1) * 100 <= among  # the new one too
    for lower in [value for value in np.unique(scores) if value < found]:
        assert ((scores > lower).sum() + 1) * 100 > among


@given(st.lists(st.integers(0, 5), min_size=3, max_size=12), st.integers(1, 99).map(lambda percent: percent / 100))
def test_whichever_of_the_images_is_the_new_one_the_rate_is_kept_exactly(scores, share):
    scores = np.array(scores, dtype=float)
    if round(share * 100) * len(scores) < 100:
        return
    rest = [np.delete(scores, place) for place in range(len(scores))]
    flagged = sum(score > false_alarms.threshold_of(others, share) for score, others in zip(scores, rest, strict=True))
    assert flagged * 100 <= round(share * 100) * len(scores)


@pytest.mark.parametrize(("images", "share"), [(19, 0.05), (20, 0.05), (100, 0.01), (289, 0.0035), (289, 0.05), (30, 0.3)])
def test_new_images_are_flagged_at_most_as_often_as_asked(images, share):
    random = np.random.default_rng(0)
    draws = 20_000
    found = np.array([false_alarms.threshold_of(random.random(images), share) for _ in range(draws)])
    rates = 1 - found  # of new scores, uniform in [0, 1]
    error = rates.std() / draws**0.5
    assert rates.mean() <= share + 3 * error
    assert rates.mean() > share - 1 / (images + 1) - 3 * error  # and as often as images allow


def test_29_of_100_is_29():
    assert false_alarms.threshold_of(np.arange(99.0), 0.29) == 70  # 0.29 · 100 is 28.999999999999996


def test_a_rate_that_so_few_images_cannot_tell():
    with pytest.raises(
        UsageError,
        match=r"289 held-out images are too few for a false-alarm rate of 0.001; ask for at least 0.003449,"
        r" or hold out at least 1,998",
    ):
        thresholds.fit("pixels", **PIXELS, false_alarms=0.001)
    assert false_alarms.rank_of(289, 0.003449) == false_alarms.rank_of(999, 0.001) == false_alarms.rank_of(19, 0.05) == 1
    with pytest.raises(UsageError, match=r"ask for at least 0.001002, or hold out at least 1,998 images"):
        false_alarms.rank_of(998, 0.001)
    with pytest.raises(UsageError, match="give a share between 0 and 1"):
        thresholds.fit("pixels", **PIXELS, false_alarms=5)


def test_it_says_where_more_are_flagged_than_was_asked(monkeypatch, tmp_path):
    said = []
    progress = Progress()
    progress.say = said.append
    assert not thresholds.fit("pixels", **PIXELS, progress=progress).about.false_alarms.exceeds
    assert said == []
    scores = thresholds.fit("pixels", **PIXELS)(oodbench.load_dataset("digits"))[0]
    order = np.argsort(scores)
    monkeypatch.setattr(thresholds, "_halves", lambda *arguments: (order[::2][:200], order[300:]))  # easy, and hard
    found = thresholds.fit("pixels", **PIXELS, progress=progress)
    alarms = found.about.false_alarms
    assert alarms.exceeds
    assert alarms.measured_low > 0.05
    assert len(said) == 1
    assert said[0].startswith(f"pixels flags more than the 5.00% requested: {alarms.measured:.2%} of ")
    assert "\n" not in said[0]
    found.save(tmp_path / "file")
    assert load_fitted(tmp_path / "file").about.false_alarms.exceeds


def test_values_that_a_detector_does_not_take(monkeypatch):
    class Picky(Detector):
        """Takes small numbers."""

        signals = ("images",)

        def __init__(self, n: int = 1) -> None:
            if n > 2:
                raise ValueError("too large")
            self.n = n + 0

        def statistics(self, probe):
            return probe.images.flatten(1).mean(1)

    monkeypatch.setattr(thresholds, "load_detector", lambda name, **parameters: Picky(**parameters))
    for value, says in ((3, "ValueError: too large"), ("x", "TypeError: ")):
        with pytest.raises(UsageError, match=rf"picky does not take {{'n': {value!r}}}: {says}"):
            thresholds.fit("picky", **PIXELS, parameters={"n": value})


def test_an_error_without_parameters_is_the_detectors_own(monkeypatch):
    def broken(name):
        raise ValueError("broken")

    monkeypatch.setattr(thresholds, "load_detector", broken)
    with pytest.raises(ValueError, match=r"^broken$"):
        thresholds._made("x", {})


# With small sets in place of real ones


@pytest.fixture
def sets(monkeypatch):
    """Random images of 8×6 pixels by split; what a test changes here is what is loaded."""
    random = torch.Generator().manual_seed(0)

    def make(split: str, size: int) -> ImageSet:
        images = torch.randint(0, 256, (size, 3, 8, 6), dtype=torch.uint8, generator=random)
        return ImageSet(images, torch.arange(size) % 4, name="small", split=split)

    found = {"train": make("train", 40), "test": make("test", 61)}
    monkeypatch.setattr("oodbench.datasets.load.load_dataset", lambda name, split, **options: found[split])
    return found


SMALL = {"dataset": "small", "held_out_split": "test"}


@pytest.mark.parametrize("given", [False, True])
def test_what_is_recorded_of_a_network(given, sets, classifier, monkeypatch, tmp_path):
    asked, checked, key = [], [], "ema" if given else None
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"abc")

    def load_model(name, weights, **options):
        asked.append((name, weights, options))
        return classifier

    monkeypatch.setattr("oodbench.models.load.load_model", load_model)
    monkeypatch.setattr(type(classifier), "check", lambda self, images: checked.append(images))
    found = thresholds.fit("msp", model="tiny", weights=weights if given else None, weights_key=key, data=tmp_path, **SMALL)
    options = {"weights_key": key, "layers": None, "data": tmp_path, "device": "cpu", "require_weights": True}
    assert asked == [("tiny", weights if given else None, options)]
    assert torch.equal(checked[0], sets["train"].images[:2] / 255)
    about = found.about
    assert (about.model.name, about.model.weights_hash) == ("tiny", classifier.weights_hash)
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc", from its standard
    expected = (str(weights), "ema", abc) if given else (None, None, None)
    assert (about.model.weights, about.model.weights_key, about.model.weights_sha256) == expected
    assert about.input.size == (8, 6)
    assert (about.training.seed, about.training.images, about.false_alarms.asked) == (0, 40, 0.05)
    assert (about.false_alarms.drawn_from, about.false_alarms.measured_on) == (31, 30)


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.5])
def test_a_rate_that_is_no_share(share, sets):
    with pytest.raises(UsageError, match="give a share between 0 and 1"):
        thresholds.fit("pixels", model=None, false_alarms=share, **SMALL)


def test_a_detector_of_a_network_needs_one(sets):
    with pytest.raises(UsageError, match="msp needs a network; name one with --model"):
        thresholds.fit("msp", model=None, **SMALL)


def test_scores_that_are_all_equal(sets):
    sets["test"] = replace(sets["test"], images=torch.zeros_like(sets["test"].images))
    with pytest.raises(BadData, match=r"all scores of pixels are .* choose another detector"):
        thresholds.fit("pixels", model=None, **SMALL)


def test_held_out_images_are_other_images_of_the_same_size(sets):
    train, held_out = thresholds._sets("small", "train", seed=0)
    assert sorted(train.base_index.tolist() + held_out.base_index.tolist()) == list(range(40))
    assert len(held_out) == 4
    assert thresholds._sets("small", "test", seed=0) == (sets["train"], sets["test"])
    sets["val"] = sets["train"]
    with pytest.raises(BadData, match="small: its train and val splits have the same images"):
        thresholds._sets("small", "val", seed=0)
    for height, width in ((6, 6), (8, 8)):
        sets["val"] = ImageSet(torch.zeros(9, 3, height, width, dtype=torch.uint8), name="small")
        with pytest.raises(UsageError, match=f"its splits are 8×6 and {height}×{width} pixels; resize both with --size"):
            thresholds._sets("small", "val", seed=0)


def test_held_out_images_have_the_classes_of_the_training_images(sets):
    classes = tuple("abcdefgh")
    sets["train"] = replace(sets["train"], classes=classes)
    sets["test"] = replace(sets["test"], classes=(*classes[:-1], "z"), labels=torch.full((61,), 6))
    assert thresholds._sets("small", "test", seed=0)[1] is sets["test"]  # nothing is a z
    sets["test"] = replace(sets["test"], labels=torch.full((61,), 7))
    with pytest.raises(BadData, match=r"its test split has classes that its train split lacks or numbers otherwise \(z\)"):
        thresholds._sets("small", "test", seed=0)


def test_halves_are_disjoint_and_hold_everything(sets):
    first, second = thresholds._halves(sets["test"], seed=0)
    assert (len(first), len(second)) == (31, 30)
    assert sorted([*first, *second]) == list(range(61))
    assert len(thresholds._halves(replace(sets["test"], labels=None), seed=0)[0]) == 31


def test_the_measured_rate_has_an_exact_interval():
    scores = np.arange(1.0, 21.0)
    found = false_alarms.measured(scores, 18, 0.05, 30)
    assert (found.asked, found.drawn_from, found.measured, found.measured_on) == (0.05, 30, 2 / 20, 20)
    # Clopper and Pearson: P(X >= 2 | low) = P(X <= 2 | high) = 2.5 % of 20 draws.
    low, high = found.measured_low, found.measured_high
    assert 1 - (1 - low) ** 20 - 20 * low * (1 - low) ** 19 == pytest.approx(0.025)
    assert (1 - high) ** 20 + 20 * high * (1 - high) ** 19 + 190 * high**2 * (1 - high) ** 18 == pytest.approx(0.025)
    assert not found.exceeds
    assert not false_alarms.measured(scores, 18, low, 30).exceeds
    assert false_alarms.measured(scores, 18, low - 1e-9, 30).exceeds


@pytest.mark.parametrize("chooses", [False, True])
def test_the_cost_is_that_of_the_setting_in_use(chooses, sets, monkeypatch):
    jobs = []

    def standalone_costs(given, classifier, images):
        jobs.append((given["it"].setting, tuple(images.shape)))
        return {"it": {"ms_per_image": 1.0}}

    monkeypatch.setattr(thresholds.timing, "standalone_costs", standalone_costs)
    head = SimpleNamespace(chooses=chooses, setting_=1)
    detector = SimpleNamespace(head=head, grid=[{"k": 1}, {"k": 2}], setting={"k": 9})
    assert thresholds._cost(detector, None, sets["test"]) == {"ms_per_image": 1.0}
    assert jobs == [({"k": 2} if chooses else {"k": 9}, (32, 3, 8, 6))]


def test_the_weights_file_is_the_first_that_exists(monkeypatch, tmp_path):
    monkeypatch.setattr("oodbench.models.weights.places", lambda name, data: [tmp_path / "a", tmp_path / "b"])
    assert thresholds._weights_file("tiny", "mine", None) == Path("mine")
    assert thresholds._weights_file("tiny", None, None) is None
    (tmp_path / "b").touch()
    assert thresholds._weights_file("tiny", None, None) == tmp_path / "b"
