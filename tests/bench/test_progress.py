"""Progress of several runs in one."""

import pytest

from oodbench.errors import BadData
from oodbench.progress import Part, Progress


class Seen(Progress):
    """Notes the share done and the titles of stages."""

    tracebacks = True

    def __init__(self):
        self.expected = self.done = 0.0
        self.lines = []

    def expect(self, units):
        self.expected += units

    def advance(self, units):
        assert units > 0
        self.done += units

    def stage(self, title):
        self.lines.append(title)

    def say(self, line):
        self.lines.append(line)


def test_parts_count_the_same_however_much_work_they_expect():
    whole = Seen()
    whole.expect(2)
    first, second = Part(whole, "seed-0"), Part(whole, "seed-1")
    first.expect(1000)
    first.advance(500)
    assert whole.done == 0.5
    first.expect(9000)  # it turns out to be more: what was told stays
    first.advance(100)
    assert whole.done == 0.5
    first.advance(5400)
    assert whole.done == 0.6
    first.end()
    assert whole.done == 1
    second.advance(3)  # nothing was expected
    second.expect(4)
    second.advance(7)
    second.end()
    assert (whole.done, whole.expected) == (2, 2)


def test_a_part_names_its_stages_and_passes_on_the_rest():
    whole = Seen()
    part = Part(whole, "seed-0")
    part.stage("loading the sets")
    part.say("a line")
    part.fail("knn", ValueError("no"))
    assert whole.lines[:3] == ["seed-0: loading the sets", "a line", "knn: ValueError: no"]
    assert part.tracebacks
    with part.paused():
        pass


@pytest.mark.parametrize(
    ("what", "why", "said"),
    [
        ("csv on photos", "csv: looked for w2c.mat", "csv on photos: looked for w2c.mat"),
        ("board", "board: images are float32", "board: images are float32"),
        ("board", "board is missing", "board is missing"),
        ("knn", "k is too large", "knn: k is too large"),
    ],
)
def test_a_failure_names_a_thing_once(what, why, said):
    seen = Seen()
    seen.fail(what, BadData(why))
    assert seen.lines[0] == said
