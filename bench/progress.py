"""Progress of long work: current stage, share done and time remaining. Printed on standard error, to keep stdout clean."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from oodbench.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress


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


def live_bar(console: "Console") -> "RichProgress":
    """A line with the stage, a bar, the share done and two times. Only the stage and the bar shrink where it is narrow."""
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("remaining"),
    )
    return RichProgress(*columns, console=console, transient=True, expand=True)


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """A live bar if standard error is a terminal, otherwise one line per stage."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.markup import escape

    with live_bar(Console(stderr=True)) as live:
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

        yield Live()
