"""Times by the events of a device, and by the clock where it has none."""

import time

import torch

from oodbench.models import stopwatch
from oodbench.models.stopwatch import Stopwatch

UNCACHED = stopwatch._events_tell_time.__wrapped__


class Event:
    """An event of a pretend stream whose time is ``now``."""

    now, waited = 0.0, 0

    def __init__(self, device, enable_timing):
        assert enable_timing

    def record(self, stream):
        self.at = Event.now
        Event.now += 1.5  # of the work that the tests would launch

    def synchronize(self):
        Event.waited += 1

    def elapsed_time(self, end):
        return end.at - self.at


def on(monkeypatch, event):
    """A stopwatch of an accelerator with such events, and how often it waited for the device."""
    waited = []
    monkeypatch.setattr(torch, "Event", event)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: None)
    monkeypatch.setattr(stopwatch, "synchronise", lambda device: waited.append(device.type))
    monkeypatch.setattr(torch, "ones", lambda *shape, device: torch.zeros(shape))
    monkeypatch.setattr(stopwatch, "_events_tell_time", UNCACHED)
    return Stopwatch(torch.device("cuda:0")), waited


def test_events_tell_the_time_without_waiting(monkeypatch):
    watch, waited = on(monkeypatch, Event)
    before, start = Event.waited, watch.mark()
    end = watch.mark()
    assert (Event.waited, waited) == (before, [])
    assert watch.seconds(start, end) == 0.0015
    assert (Event.waited, waited) == (before + 1, [])


def test_the_clock_serves_where_events_tell_no_time(monkeypatch):
    class Refuses(Event):
        def elapsed_time(self, end):
            raise RuntimeError("Backend doesn't support elapsedTime.")

    class Stands(Event):
        def elapsed_time(self, end):
            return 0.0

    for event in (Refuses, Stands):
        watch, waited = on(monkeypatch, event)
        start = watch.mark()
        time.sleep(0.01)
        assert 0.01 <= watch.seconds(start, watch.mark()) < 5
        assert waited == ["cuda", "cuda"]  # else the clock would tell when work was launched


def test_the_cpu_has_a_clock():
    watch = Stopwatch(torch.device("cpu"))
    start = watch.mark()
    time.sleep(0.01)
    assert 0.01 <= watch.seconds(start, watch.mark()) < 5
