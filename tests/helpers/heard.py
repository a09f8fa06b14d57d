"""What a progress reports, kept."""

from oodbench.progress import Progress


class Heard(Progress):
    """Keeps stages, lines that stay, both in order of ``everything``, and the work expected and done."""

    def __init__(self):
        self.stages, self.lines, self.everything, self.expected, self.done = [], [], [], 0.0, 0.0

    def expect(self, units):
        self.expected += units

    def advance(self, units):
        self.done += units

    def stage(self, title):
        self.stages.append(title)
        self.everything.append(title)

    def say(self, line):
        self.lines.append(line)
        self.everything.append(line)
