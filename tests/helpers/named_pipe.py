"""A named pipe in place of a file."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 20  # after which a reader counts as hanging


@contextmanager
def pipe_at(path: Path) -> Iterator[None]:
    """Make a pipe, to which nothing is ever written. Who reads it gets a TimeoutError."""

    def end(*_: object) -> None:
        raise TimeoutError(f"hangs on {path}")

    os.mkfifo(path)
    held = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # so that opening it does not block where no handler can run
    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        os.close(held)
