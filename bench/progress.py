"""Progress on long work: what runs, how far, how long still. On standard error, so that standard output pipes."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Says nothing: the default of the Python interface."""

    def expect(self, units: float) -> None:
        """So much more work is to come, in the units of ``advance``."""

    def stage(self, title: str) -> None:
        """What runs from now on."""

    def advance(self, units: float) -> None:
        """So much of it is done."""

    def say(self, line: str) -> None:
        """A line that stays."""


class Lines(Progress):
    """One line a stage, for logs and pipes."""

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
        print(line, file=sys.stderr, flush=True)


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """A live bar where standard error is a terminal, lines where it is not."""
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
        TextColumn("· still"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True, expand=True) as live:
        task = live.add_task("starting", total=None)

        class Live(Progress):
            def expect(self, units: float) -> None:
                live.update(task, total=(live.tasks[0].total or 0) + units)

            def stage(self, title: str) -> None:
                live.update(task, description=escape(title))

            def advance(self, units: float) -> None:
                live.advance(task, units)

            def say(self, line: str) -> None:
                live.console.print(escape(line), highlight=False)

        yield Live()
