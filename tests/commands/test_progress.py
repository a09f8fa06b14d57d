"""The progress bar: its times stay whole however narrow the terminal and however long the stage."""

import io
import re

import pytest
from rich.console import Console

from oodbench.progress import live_bar


@pytest.mark.parametrize("stage", ["photos", "cifar10+gaussian-blur@5: 10,000 images of " + "a-long-name" * 9])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_keeps_its_times(stage, width):
    console = Console(file=io.StringIO(), width=width)
    live = live_bar(console)
    live.update(live.add_task(stage, total=100), completed=37)
    console.print(live.get_renderable())
    (line,) = console.file.getvalue().splitlines()
    assert len(line) <= width
    assert re.search(r"[━╸]+ +37 % 0:00:00 -:--:-- remaining$", line)
    assert stage[:12] in line or stage in line


def test_no_time_remains_before_the_amount_of_work_is_known():
    console = Console(file=io.StringIO(), width=80)
    live = live_bar(console)
    live.add_task("loading the sets", total=None)
    console.print(live.get_renderable())
    assert console.file.getvalue().rstrip().endswith("0:00:00")
