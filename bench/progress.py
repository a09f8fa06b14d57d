"""Progress of long work: current stage, share done and time remaining. Printed on standard error, to keep stdout clean."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from oodbench.errors import once, one_line, reason_in, traceback_lines

Given = ParamSpec("Given")
Result = TypeVar("Result")

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress


class Progress:
    """Prints nothing: the default of the Python interface, but in a notebook."""

    tracebacks = False  # whether ``fail`` prints them

    def expect(self, units: float) -> None:
        """Add to the expected total work, in the units of ``advance``."""

    def stage(self, title: str) -> None:
        """Name the stage that starts now."""

    def advance(self, units: float) -> None:
        """Record work done."""

    def say(self, line: str) -> None:
        """Print a permanent line."""

    def calling(self, what: str) -> None:
        """Note which call of third-party code begins, in case it ends the process."""

    def fail(self, what: str, error: Exception, target: str = "") -> None:
        """Print a permanent line that says what has no result and why (``reason_in``), and with ``tracebacks`` how."""
        self.say(once(what, reason_in(error, target)))
        for line in traceback_lines(error) if self.tracebacks else ():
            self.say(line)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within this context something else may print on the terminal."""
        yield


class Part(Progress):
    """The progress of one of several parts of ``whole``, which counts it as ``units``, however much work it expects itself."""

    def __init__(self, whole: Progress, name: str, units: float = 1) -> None:
        self._whole, self._name, self._units, self.tracebacks = whole, name, units, whole.tracebacks
        self._expected = self._done = self._told = 0.0

    def expect(self, units: float) -> None:
        self._expected += units

    def stage(self, title: str) -> None:
        self._whole.stage(f"{self._name}: {title}")

    def advance(self, units: float) -> None:
        self._done += units
        self._tell(min(1.0, self._done / self._expected) if self._expected else 0.0)

    def say(self, line: str) -> None:
        self._whole.say(line)

    @contextmanager
    def paused(self) -> Iterator[None]:
        with self._whole.paused():
            yield

    def end(self) -> None:
        """Count the part as done."""
        self._tell(1.0)

    def _tell(self, share: float) -> None:
        """What is expected may grow, but what was done stays so."""
        if share > self._told:
            self._whole.advance(self._units * (share - self._told))
            self._told = share


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


class Notebook(Progress):
    """One line that is kept up to date, through the ``update`` of a display handle of IPython."""

    WIDTH, PAUSE = 24, 0.2  # characters of the bar, and seconds between updates

    def __init__(self, update: Callable[[str], object]) -> None:
        self._update, self._title = update, "starting"
        self._expected = self._done = 0.0
        self._start, self._next = time.monotonic(), 0.0

    def expect(self, units: float) -> None:
        self._expected += units
        self._show()

    def stage(self, title: str) -> None:
        self._title = one_line(title)
        self._show()

    def advance(self, units: float) -> None:
        self._done += units
        self._show()

    def say(self, line: str) -> None:
        print(one_line(line), flush=True)

    def end(self, how: str) -> None:
        """Show the line for the last time: ``done`` or ``stopped``."""
        self._update(f"{how} after {_clock(time.monotonic() - self._start)}")

    def _show(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next, spent = now + self.PAUSE, now - self._start
        share = min(1.0, self._done / self._expected) if self._expected else 0.0
        bar = "█" * round(share * self.WIDTH)
        left = f", {_clock(spent / share - spent)} remaining" if share > 0.02 else ""
        self._update(f"{bar:░<{self.WIDTH}} {share:4.0%}  {_clock(spent)}{left}  {self._title}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def shown_in_notebooks(call: Callable[Given, Result]) -> Callable[Given, Result]:
    """Without ``progress``, show a line that is kept up to date in a notebook, and nothing elsewhere."""

    @wraps(call)
    def shown(*args: Given.args, **options: Given.kwargs) -> Result:
        ipython = sys.modules.get("IPython")  # a notebook has imported it
        shell = ipython.get_ipython() if ipython else None
        if options.get("progress") is not None or getattr(shell, "kernel", None) is None:
            return call(*args, **options)
        from IPython.display import display

        handle = display({"text/plain": "starting"}, raw=True, display_id=True)
        progress = Notebook(lambda line: handle.update({"text/plain": line}, raw=True))
        options["progress"] = progress
        try:
            result = call(*args, **options)
        except BaseException:
            progress.end("stopped")
            raise
        progress.end("done")
        return result

    return shown


def live_bar(console: "Console") -> "RichProgress":
    """A line with the stage, a bar, the share done and two times. Only the stage and the bar shrink where it is narrow."""
    from rich.progress import BarColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column
    from rich.text import Text

    class Remaining(TimeRemainingColumn):
        def render(self, task: Task) -> Text:
            left = super().render(task)  # empty before the amount of work is known
            return left.append(" remaining") if left else left

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        Remaining(table_column=Column(no_wrap=True)),
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

            @contextmanager
            def paused(self) -> Iterator[None]:
                live.stop()
                try:
                    yield
                finally:
                    live.start()

        yield Live()
