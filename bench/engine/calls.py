"""Watches the calls of detectors, sets and networks in a run: names a slow one, and ends one that exceeds the limit."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from oodbench.errors import TooSlow, UsageError, around_call
from oodbench.progress import Progress

SLOW = 30.0  # seconds of one call after which it is named
AGAIN = 1.0  # seconds until code that catches the end of its call is ended again
LONGEST = 10**6  # seconds that a timer takes on every system


class _Late(BaseException):
    """Raised in third-party code; not an Exception, which that code may catch."""


@contextmanager
def watched(progress: Progress, limit: float | None) -> Iterator[None]:
    """Within this context, name a call that takes ``SLOW`` seconds, and end it after ``limit``.

    Raises UsageError for a limit that is not a number of seconds, and where a call cannot be ended: on systems without timers,
    and outside the main thread.
    """
    if limit is not None:
        if not 0 < limit <= LONGEST:
            raise UsageError(f"--cell-timeout takes a number of seconds above 0 and up to {LONGEST:,}, not {limit:g}")
        if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
            raise UsageError("--cell-timeout needs a system with timers (not Windows) and the main thread; leave it out")
    calls, ended = _Calls(limit, progress), threading.Event()
    thread = threading.Thread(target=calls.name_slow, args=(ended,), daemon=True)
    thread.start()
    token = around_call.set(calls.one)
    try:
        yield
    finally:
        around_call.reset(token)
        ended.set()
        thread.join()


class _Calls:
    def __init__(self, limit: float | None, progress: Progress) -> None:
        self._limit, self._progress = limit, progress
        self._current: tuple[str, float, bool] | None = None  # what runs, since when, and whether the limit ends it

    @contextmanager
    def one(self, what: str, ends: bool = True) -> Iterator[None]:
        """One call, such as "one call of knn". Raises TooSlow if it ``ends`` with the limit and exceeds it."""
        if self._current is not None:  # part of the call that is already watched
            yield
            return
        self._current = what, time.monotonic(), ends
        self._progress.calling(what)
        try:
            if self._limit is None or not ends:
                yield
            else:
                with _ended_after(self._limit, what):
                    yield
        finally:
            self._current = None

    def name_slow(self, ended: threading.Event) -> None:
        named = None
        while not ended.wait(SLOW / 30):
            current = self._current
            if current is not None and current is not named and time.monotonic() - current[1] >= SLOW:
                named = current
                hint = "; --cell-timeout SECONDS ends such calls" if current[2] else ""
                self._progress.say(f"{current[0]} has taken {SLOW:g} s so far{hint}")


@contextmanager
def _ended_after(limit: float, what: str) -> Iterator[None]:
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
        raise TooSlow(f"{what} took longer than {limit:g} s (--cell-timeout); allow more, or make it do less per call")
