"""A detector, data set or network that hangs: it is named, and with a limit it fails alone."""

import multiprocessing
import signal
import threading
import time
from contextlib import suppress

import pytest
import torch
from heard import Heard
from run_folders import figures

import oodbench
from oodbench import registry
from oodbench.datasets import resize
from oodbench.engine import calls
from oodbench.errors import TooSlow, UsageError, around_call

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


def slow_loader(root, split):
    time.sleep(60)


class SlowImages:
    """Takes for ever to decode one of its images."""

    shape = (40, 3, 8, 8)

    def __len__(self):
        return 40

    def __getitem__(self, rows):
        if 25 in rows:
            time.sleep(60)
        return torch.zeros(len(rows), 3, 8, 8, dtype=torch.uint8)


def slow_images(root, split):
    return oodbench.ImageSet(SlowImages(), name="slow")


class SlowNet(torch.nn.Sequential):
    """Hangs on blank images if it knows others, else on all others."""

    def __init__(self, known):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(192, 10))
        self.known = known

    def forward(self, images):
        if (images[0].std() > 0) != self.known:
            time.sleep(60)
        return super().forward(images)


def blank(root, split):
    return oodbench.ImageSet(torch.zeros(40, 3, 8, 8, dtype=torch.uint8), name="slow")


@pytest.fixture
def run(tmp_path, monkeypatch):
    def it(name, kind, family="detectors", **options):
        monkeypatch.setitem(registry._added, (family, "slow"), registry.Record(family, "slow", "tests:slow", distribution="p"))
        resolve = registry.resolve
        found = {"tests:slow": kind, "tests:knows": lambda: SlowNet(True), "tests:hangs": lambda: SlowNet(False)}
        monkeypatch.setattr(registry, "resolve", lambda target: found.get(target) or resolve(target))
        options = {"datasets": ["photos"], "protocols": ["unsupervised"], "limit": 40, "measure_costs": False} | options
        return oodbench.run("digits", out=tmp_path / name, **options)

    return it


@pytest.mark.parametrize(("kind", "doing"), [(Slow, "one call of"), (Stubborn, "one call of"), (SlowToBuild, "building")])
def test_a_detector_that_hangs_fails_alone(run, monkeypatch, kind, doing):
    monkeypatch.setattr(calls, "AGAIN", 0.1)
    before = signal.getsignal(signal.SIGALRM)
    folder = run("with", kind, detectors=["slow", *OTHERS], cell_timeout=4.0)  # odin takes a second on a busy machine
    found = figures(folder)
    (own,) = (record for place, record in found.items() if "slow" in place)
    assert (own["status"], own["reason"]) == (
        "failed",
        f"{doing} slow took longer than 4 s (--cell-timeout); allow more, or make it do less per call",
    )
    assert {p: r for p, r in found.items() if "slow" not in p} == figures(run("without", kind, detectors=OTHERS))
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("kind", "workers", "doing"),
    [
        (slow_loader, 0, "loading slow"),
        (slow_images, 0, "reading images of slow"),
        (slow_images, 1, "reading images of slow"),
        (blank, 0, "one forward pass of tests:knows"),
    ],
)
def test_a_set_that_hangs_fails_alone(run, monkeypatch, kind, workers, doing):
    monkeypatch.setattr(calls, "SLOW", 0.5)
    monkeypatch.setattr(resize, "MANY", 1 + 39 * bool(workers))
    options = {"detectors": [*OTHERS, "pixels"], "datasets": ["slow", "photos"], "model": "tests:knows", "workers": workers}
    heard, start = Heard(), time.monotonic()
    found = figures(run("with", kind, "datasets", cell_timeout=3.0, progress=heard, **options))
    assert time.monotonic() - start < 50
    own = [record for place, record in found.items() if "slow" in place]
    late = f"{doing} took longer than 3 s (--cell-timeout); allow more, or make it do less per call"
    assert [(record["status"], record["reason"]) for record in own] == [("failed", late)] * 3
    assert heard.lines.count(f"{doing} has taken 0.5 s so far; --cell-timeout SECONDS ends such calls") == 1
    assert f"slow: {late}" in heard.lines
    assert multiprocessing.active_children() == []
    others = figures(run("without", kind, "datasets", **options | {"datasets": ["photos"]}))
    assert {place: record for place, record in found.items() if "slow" not in place} == others


def test_a_large_built_in_set_may_take_long_to_load(run, monkeypatch):
    loader = registry.load("datasets", "photos")

    def slowly(root, split):
        time.sleep(4)
        return loader(root, split)

    target = registry.find("datasets", "photos").target
    resolve = registry.resolve
    monkeypatch.setattr(registry, "resolve", lambda wanted: slowly if wanted == target else resolve(wanted))
    found = figures(run("slow", Slow, detectors=["pixels"], cell_timeout=3.0))
    assert [record["status"] for record in found.values()] == ["ok"]


def test_a_network_that_hangs_on_known_images_ends_the_run(run):
    with pytest.raises(TooSlow, match="one forward pass of tests:hangs took longer than 1 s") as caught:
        run("hung", blank, "datasets", datasets=["slow"], detectors=OTHERS, model="tests:hangs", cell_timeout=1.0)
    assert caught.value.exit_code == 1


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
        with around_call.get()("reading", ends=False):
            time.sleep(0.6)
    assert heard.lines == [
        "slow has taken 0.2 s so far; --cell-timeout SECONDS ends such calls",
        "reading has taken 0.2 s so far",
    ]
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
