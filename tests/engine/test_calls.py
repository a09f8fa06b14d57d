"""A detector that hangs: it is named, and with a limit it fails alone."""

import signal
import threading
import time
from contextlib import suppress

import pytest
from heard import Heard
from run_folders import figures

import oodbench
from oodbench import registry
from oodbench.engine import calls
from oodbench.errors import TooSlow, UsageError
from oodbench.passes import around_call

OTHERS = ["msp", "odin"]
pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")


class Slow(oodbench.Detector):
    """Hangs while others' share of the work is half done."""

    signals = ("logits", "input_gradient")

    def statistics(self, probe):
        def endless(p):
            time.sleep(60)
            return p.logits.sum(1)

        return probe.input_gradient(endless).flatten(1).sum(1)


class Stubborn(Slow):
    """Catches all that would end it, a few times."""

    def observe(self, probe):
        for _ in range(2):
            with suppress(BaseException):
                time.sleep(60)

    def finish(self):
        self.seen_ = True


class SlowToBuild(Slow):
    """Hangs in its constructor."""

    def __init__(self):
        time.sleep(60)


@pytest.fixture
def run(tmp_path, monkeypatch):
    def it(name, kind, **options):
        monkeypatch.setitem(registry._added, ("detectors", "slow"), registry.Record("detectors", "slow", "tests:slow"))
        resolve = registry.resolve
        monkeypatch.setattr(registry, "resolve", lambda target: kind if target == "tests:slow" else resolve(target))
        options = {"datasets": ["photos"], "protocols": ["unsupervised"], "limit": 40, "measure_costs": False} | options
        return oodbench.run("digits", out=tmp_path / name, **options)

    return it


@pytest.mark.parametrize("kind", [Slow, Stubborn, SlowToBuild])
def test_a_detector_that_hangs_fails_alone(run, monkeypatch, kind):
    monkeypatch.setattr(calls, "AGAIN", 0.1)
    before = signal.getsignal(signal.SIGALRM)
    folder = run("with", kind, detectors=["slow", *OTHERS], cell_timeout=1.0)
    found = figures(folder)
    (own,) = (record for place, record in found.items() if "slow" in place)
    assert (own["status"], own["reason"]) == (
        "failed",
        "one call took longer than 1 s (--cell-timeout); allow more, or let it do less per batch",
    )
    assert {p: r for p, r in found.items() if "slow" not in p} == figures(run("without", kind, detectors=OTHERS))
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_detector_that_takes_long_is_named_once(monkeypatch):
    monkeypatch.setattr(calls, "SLOW", 0.2)
    heard = Heard()
    with calls.watched(heard, None):
        for _ in range(2):
            with around_call.get()("quick"):
                pass
        with around_call.get()("slow"), around_call.get()("slow"):
            time.sleep(0.6)
        time.sleep(0.3)
    assert heard.lines == ["slow: one call has taken 0.2 s so far; --cell-timeout SECONDS ends such calls"]
    with around_call.get()("later"):
        pass


def test_a_result_that_comes_late_does_not_count():
    def swallows():
        with suppress(BaseException):
            time.sleep(60)

    with calls.watched(Heard(), 0.1), pytest.raises(TooSlow), around_call.get()("late"):
        swallows()


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_a_number_of_seconds(limit):
    with pytest.raises(UsageError, match="--cell-timeout takes a number of seconds above 0"), calls.watched(Heard(), limit):
        pass


def test_only_the_main_thread_can_end_a_call():
    errors = []

    def work():
        try:
            with calls.watched(Heard(), 1.0):
                pass
        except UsageError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == ["--cell-timeout needs a system with timers (not Windows) and the main thread; leave it out"]
