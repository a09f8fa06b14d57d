"""Progress of long work: current stage, share done and time remaining. Printed on standard error, to keep stdout clean."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from oodbench.errors import one_line


class Progress:
    """Prints nothing: the default of the Python interface."""

    def expect(self, units: float) -> None:
        """Add to the expected total work, in the units of ``advance``."""

    def stage(self, title: str) -> None:
        """Name the stage that starts now."""

    def advance(self, units: float) -> None:
        """Record work done."""

    def say(self, line: str) -> None:
        """Print a permanent line."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within this context something else may print on the terminal."""
        yield


class Lines(Progress):
    """One line per stage, for logs and pipes."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._expected = self._done = 0.0

    def expect(self, units: float) -> None:
        self._expected += units

    def stage(self, title: str) -> None:
        share = min(1.0, self._done / self._expected) if self._expected else 0
        self.say(f"[{share:4.0%} {time.monotonic() - self._start:6.1f} s] {title}")

    def advance(self, units: float) -> None:
        self._done += units

    def say(self, line: str) -> None:
        print(one_line(line), file=sys.stderr, flush=True)


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """A live bar if standard error is a terminal, otherwise one line per stage."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("remaining"),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True, expand=True) as live:
        task = live.add_task("starting", total=None)

        class Live(Progress):
            def expect(self, units: float) -> None:
                live.update(task, total=(live.tasks[0].total or 0) + units)

            def stage(self, title: str) -> None:
                live.update(task, description=escape(one_line(title)))

            def advance(self, units: float) -> None:
                live.advance(task, units)

            def say(self, line: str) -> None:
                live.console.print(escape(one_line(line)), highlight=False)

            @contextmanager
            def paused(self) -> Iterator[None]:
                live.stop()
                try:
                    yield
                finally:
                    live.start()

        yield Live()
