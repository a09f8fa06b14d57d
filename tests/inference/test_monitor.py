"""The monitor tells a flagged rate that does not fit the promised one from one that does."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.stats import beta

import oodbench
from oodbench.errors import BadData, UsageError
from oodbench.inference import thresholds
from oodbench.inference.false_alarms import FalseAlarms, measured
from oodbench.inference.fitted import Fitted


class Promise(Fitted):
    """What a monitor reads of a fitted detector."""

    def __init__(self, alarms: FalseAlarms) -> None:
        self.about = type("About", (), {"false_alarms": alarms})


def promise(asked=0.05, flagged=50, count=1000):
    return Promise(measured(np.arange(count) >= count - flagged, 0.5, asked, 1000))


def test_digits_fit_and_photos_drift():
    fitted = thresholds.fit("mahalanobis-v", model="resnet8-digits", dataset="digits")
    monitor = oodbench.Monitor(fitted, window=200)
    monitor.add(fitted(oodbench.load_dataset("digits").images)[1])
    assert not monitor.report().drift
    assert str(monitor.report()).startswith("no drift: ")
    monitor.add(fitted(oodbench.load_dataset("photos").images[:200])[1])
    report = monitor.report()
    assert (report.images, report.drift) == (200, True)
    assert str(report).startswith(f"drift: {report.rate:.2%} of the last 200 images are flagged")


def test_the_interval_is_clopper_and_pearsons():
    monitor = oodbench.Monitor(promise(), window=100, confidence=0.9)
    monitor.add(np.arange(100) < 20)
    report = monitor.report()
    np.testing.assert_allclose([report.low, report.high], [beta.ppf(0.05, 20, 81), beta.ppf(0.95, 21, 80)], rtol=1e-9)
    assert (report.images, report.flagged, report.rate, report.drift) == (100, 20, 0.2, True)


def test_only_the_last_images_count():
    monitor = oodbench.Monitor(promise(), window=50)
    monitor.add([True] * 500)
    assert monitor.report().drift
    monitor.add(np.zeros(48, dtype=bool))
    monitor.add(False)
    monitor.add(np.bool_(True))
    assert (monitor.report().images, monitor.report().flagged) == (50, 1)


def test_too_few_flags_are_drift_too():
    monitor = oodbench.Monitor(promise(), window=1000)
    monitor.add([False] * 50)
    assert not monitor.report().drift  # so few prove nothing
    monitor.add([False] * 950)
    assert monitor.report().drift


def test_a_rate_measured_on_few_images_excuses_more():
    few, many = (oodbench.Monitor(promise(0.1, count // 10, count), window=1000) for count in (30, 10000))
    for monitor in (few, many):
        monitor.add(np.arange(1000) < 150)
    assert (few.report().drift, many.report().drift) == (False, True)


def test_a_given_threshold_promises_what_was_measured():
    monitor = oodbench.Monitor(promise(asked=None, flagged=300), window=1000)
    assert monitor.promised_low < 0.3 < monitor.promised_high
    monitor.add(np.arange(1000) < 300)
    assert not monitor.report().drift


def test_false_drift_is_as_rare_as_it_says():
    random, found = np.random.default_rng(0), 0
    for _ in range(300):
        monitor = oodbench.Monitor(promise(0.05, random.binomial(1000, 0.05)), window=1000, confidence=0.9)
        monitor.add(random.random(1000) < 0.05)
        found += monitor.report().drift
    assert found <= 30


def test_without_images_there_is_no_drift():
    monitor = oodbench.Monitor(promise())
    monitor.add([])
    report = monitor.report()
    assert (report.images, report.rate, report.low, report.high, report.drift) == (0, None, 0, 1, False)
    assert str(report) == "no images yet"


def test_threads_share_a_monitor():
    monitor = oodbench.Monitor(promise(), window=100_000)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(monitor.add, np.arange(10) < 3) for _ in range(2000)]:
            done.result()
            monitor.report()
    assert (monitor.report().images, monitor.report().flagged) == (20_000, 6_000)


def test_what_it_does_not_take():
    judged = ([0.1, 0.2], [True, False], [[1, 2], [3, 4]])
    for flags in (np.zeros(3), np.zeros((2, 2), dtype=bool), [0.5, 1.5], 1, None, judged):
        with pytest.raises(BadData, match="give the second result of fitted"):
            oodbench.Monitor(promise()).add(flags)
    for window in (0, 2.5, True, 10**12):
        with pytest.raises(UsageError, match=f"window = {window}; give a whole number"):
            oodbench.Monitor(promise(), window=window)
    with pytest.raises(UsageError, match="confidence = 95; give a number between 0 and 1"):
        oodbench.Monitor(promise(), confidence=95)
