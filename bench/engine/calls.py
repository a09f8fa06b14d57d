"""Watches the calls of detectors in a run: names a detector that takes long, and ends a call that exceeds the run's limit."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from oodbench.errors import TooSlow, UsageError
from oodbench.passes import around_call
from oodbench.progress import Progress

SLOW = 30.0  # seconds of one call after which its detector is named
AGAIN = 1.0  # seconds until code that catches the end of its call is ended again
LONGEST = 10**6  # seconds that a timer takes on every system


class _Late(BaseException):
    """Raised in the code of a detector; not an Exception, which that code may catch."""


@contextmanager
def watched(progress: Progress, limit: float | None) -> Iterator[None]:
    """Within this context, say which detector computes if one call takes ``SLOW`` seconds, and end a call after ``limit``.

    Raises UsageError for a limit that is no number of seconds, and where a call cannot be ended: on systems without timers,
    and outside the main thread.
    """
    if limit is not None:
        if not 0 < limit <= LONGEST:
            raise UsageError(f"--cell-timeout takes a number of seconds above 0 and up to {LONGEST:,}, not {limit:g}")
        if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
            raise UsageError("--cell-timeout needs a system with timers (not Windows) and the main thread; leave it out")
    calls, ended = _Calls(limit), threading.Event()
    thread = threading.Thread(target=calls.name_slow, args=(progress, ended), daemon=True)
    thread.start()
    token = around_call.set(calls.one)
    try:
        yield
    finally:
        around_call.reset(token)
        ended.set()
        thread.join()


class _Calls:
    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._current: tuple[str, float] | None = None  # the detector that computes, and since when

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """One call of a detector. Raises TooSlow if it exceeds the limit."""
        if self._current is not None:  # part of the call that is already watched
            yield
            return
        self._current = name, time.monotonic()
        try:
            if self._limit is None:
                yield
            else:
                with _ended_after(self._limit):
                    yield
        finally:
            self._current = None

    def name_slow(self, progress: Progress, ended: threading.Event) -> None:
        named = None
        while not ended.wait(SLOW / 30):
            current = self._current
            if current is not None and current is not named and time.monotonic() - current[1] >= SLOW:
                named = current
                progress.say(f"{current[0]}: one call has taken {SLOW:g} s so far; --cell-timeout SECONDS ends such calls")


@contextmanager
def _ended_after(limit: float) -> Iterator[None]:
    armed, late = True, False

    def end(*_: Any) -> None:
        nonlocal late
        if armed:
            late = True
            raise _Late

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, limit, AGAIN)
    try:
        try:
            yield
        finally:
            armed = False
    except KeyboardInterrupt:
        raise
    except BaseException:  # whatever the code made of it; it may also come right after the call
        armed = False
        if not late:
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if late:
        raise TooSlow(f"one call took longer than {limit:g} s (--cell-timeout); allow more, or let it do less per batch")
