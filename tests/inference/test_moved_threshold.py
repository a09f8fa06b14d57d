"""A threshold moves without a new fit, and its false alarms are measured again."""

import re

import numpy as np
import pytest
import torch

import oodbench
from oodbench import state
from oodbench.errors import UsageError
from oodbench.inference import thresholds
from oodbench.inference.fitted import load_fitted

FIT = {"model": "resnet8-digits", "dataset": "digits"}


@pytest.fixture(scope="module")
def digits():
    return oodbench.load_dataset("digits")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Fitted, saved and loaded again."""
    file = tmp_path_factory.mktemp("fit") / "knn"
    thresholds.fit("knn", **FIT).save(file)
    return load_fitted(file)


def test_a_moved_rate_is_what_a_new_fit_gives(fitted):
    moved, again = fitted.with_false_alarms(0.2), thresholds.fit("knn", **FIT, false_alarms=0.2)
    assert moved.threshold == again.threshold
    assert moved.about.false_alarms == again.about.false_alarms
    assert fitted.false_alarms == 0.05  # the first one is as it was
    assert moved.with_false_alarms(0.05).about == fitted.about


def test_a_given_threshold_is_measured_on_images_that_set_none(fitted, digits):
    moved = fitted.with_threshold(0.3)
    _, measuring = thresholds._halves(digits, seed=0)
    scores, flagged = moved(digits.images[torch.from_numpy(measuring)])
    np.testing.assert_array_equal(flagged, scores > 0.3)
    alarms = moved.about.false_alarms
    assert (moved.threshold, moved.false_alarms, alarms.drawn_from, alarms.exceeds) == (0.3, None, 0, False)
    assert alarms.measured == flagged.mean()
    assert alarms.measured_low < alarms.measured < alarms.measured_high
    same = fitted.with_threshold(fitted.threshold).about.false_alarms
    assert (same.measured, same.measured_low) == (fitted.about.false_alarms.measured, fitted.about.false_alarms.measured_low)


def test_a_moved_threshold_is_saved(fitted, digits, tmp_path):
    moved = fitted.with_threshold(0.25)
    moved.save(tmp_path / "moved")
    again = load_fitted(tmp_path / "moved")
    assert again.about == moved.about
    np.testing.assert_array_equal(again(digits)[1], moved(digits)[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "3", None, True])
def test_a_threshold_must_be_a_finite_number(fitted, value):
    with pytest.raises(UsageError, match="give a finite number"):
        fitted.with_threshold(value)


@pytest.mark.parametrize("value", ["0.05", None, True])
def test_a_rate_must_be_a_number(fitted, value):
    with pytest.raises(UsageError, match=re.escape(f"false alarms = {value!r}; give a share between 0 and 1")):
        fitted.with_false_alarms(value)


@pytest.mark.parametrize(("rate", "says"), [(0, "between 0 and 1"), (1, "between 0 and 1"), (0.001, "ask for at least")])
def test_a_rate_that_cannot_be(fitted, rate, says):
    with pytest.raises(UsageError, match=says):
        fitted.with_false_alarms(rate)


def test_an_older_file_without_held_out_scores_says_what_to_do(fitted, digits, tmp_path):
    fitted.save(tmp_path / "old")
    header, found = state.load(tmp_path / "old")
    del header["fitted"]["held_out"]
    state.save(tmp_path / "old", header, found)
    old = load_fitted(tmp_path / "old")
    np.testing.assert_array_equal(old(digits)[1], fitted(digits)[1])
    for move in (lambda: old.with_threshold(0.3), lambda: old.with_false_alarms(0.1)):
        with pytest.raises(UsageError, match="kept no scores of held-out images; fit it again"):
            move()
