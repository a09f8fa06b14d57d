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
