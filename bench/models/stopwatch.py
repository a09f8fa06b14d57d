"""Times of work on a device, by its own events where it has them, so that nothing waits for the device."""

import time
from functools import cache

import torch

from oodbench.models.device import synchronise

Moment = float | torch.Event


class Stopwatch:
    """Marks moments in the work of a device, and tells the seconds between two of them.

    With events a mark waits for nothing, and a moment is when the device comes to it. On an accelerator without events that
    tell the time, each mark waits for the device and reads the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._by_events = device, device.type != "cpu" and _events_tell_time(device)

    def mark(self) -> Moment:
        if self._by_events:
            return _recorded(self._device)
        synchronise(self._device)
        return time.perf_counter()

    @staticmethod
    def seconds(start: Moment, end: Moment) -> float:
        """Between two marks of one stopwatch. Waits until the device has come to the second."""
        if isinstance(start, torch.Event) and isinstance(end, torch.Event):
            end.synchronize()
            return start.elapsed_time(end) / 1000
        assert isinstance(start, float)
        assert isinstance(end, float)
        return end - start


def _recorded(device: torch.device) -> torch.Event:
    event = torch.Event(device=device, enable_timing=True)
    event.record(torch.accelerator.current_stream(device))
    return event


@cache
def _events_tell_time(device: torch.device) -> bool:
    """Whether time passes between two events around some work; not every device can record or compare them."""
    try:
        start = _recorded(device)
        torch.ones(256, 256, device=device).sin()
        end = _recorded(device)
        end.synchronize()
        return start.elapsed_time(end) > 0
    except (RuntimeError, AttributeError):  # backends refuse in either way; the clock tells the time then
        return False
