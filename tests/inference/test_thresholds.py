"""The threshold of a fitted detector: it flags as few new images as was asked, or says that it does not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oodbench
from oodbench.detector import Detector
from oodbench.errors import UsageError
from oodbench.inference import thresholds
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
            thresholds.threshold_of(scores, share)
        return
    found = thresholds.threshold_of(scores, share)
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
    flagged = sum(score > thresholds.threshold_of(others, share) for score, others in zip(scores, rest, strict=True))
    assert flagged * 100 <= round(share * 100) * len(scores)


@pytest.mark.parametrize(("images", "share"), [(19, 0.05), (20, 0.05), (100, 0.01), (289, 0.0035), (289, 0.05), (30, 0.3)])
def test_new_images_are_flagged_at_most_as_often_as_asked(images, share):
    random = np.random.default_rng(0)
    draws = 20_000
    found = np.array([thresholds.threshold_of(random.random(images), share) for _ in range(draws)])
    rates = 1 - found  # of new scores, uniform in [0, 1]
    error = rates.std() / draws**0.5
    assert rates.mean() <= share + 3 * error
    assert rates.mean() > share - 1 / (images + 1) - 3 * error  # and as often as images allow


def test_29_of_100_is_29():
    assert thresholds.threshold_of(np.arange(99.0), 0.29) == 70  # 0.29 · 100 is 28.999999999999996


def test_a_rate_that_so_few_images_cannot_tell():
    with pytest.raises(
        UsageError,
        match=r"289 held-out images are too few for a false-alarm rate of 0.001; ask for at least 0.003449,"
        r" or hold out twice 999",
    ):
        thresholds.fit("pixels", **PIXELS, false_alarms=0.001)
    assert thresholds.rank_of(289, 0.003449) == thresholds.rank_of(999, 0.001) == thresholds.rank_of(19, 0.05) == 1
    with pytest.raises(UsageError, match=r"ask for at least 0.001002, or hold out twice 999 images"):
        thresholds.rank_of(998, 0.001)
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
