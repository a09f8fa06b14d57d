"""A network, detectors and images as a user may have them in the working folder, good and bad."""

import os
import pathlib
import signal
import threading
import time

import torch

import oodbench
import oodbench.errors


def build():
    class Net(torch.nn.Module):  # which only this function knows
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 6, 3, padding=1)
            self.linear = torch.nn.Linear(6, 8)

        def forward(self, images):
            return self.linear(self.conv(images).relu().mean((2, 3)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return oodbench.Classifier(Net(), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def node():
    import ray

    return ray.get_runtime_context().get_node_id()


class Plugin(oodbench.Detector):
    """Minus the largest probability."""

    signals = ("logits",)

    def statistics(self, probe):
        return -probe.softmax.max(1).values


class Sound(Plugin):
    """Keeps what it learnt where no file would keep it, and gives class probabilities."""

    def observe(self, probe):
        self._mean = probe.logits.mean(0)

    def finish(self):
        self.seen_ = True

    def statistics(self, probe):
        return (probe.logits - self._mean).square().sum(1)

    def probabilities(self, probe):
        return (probe.logits - self._mean).softmax(1)


class Hungry(Plugin):
    """Memory is short for more than three images."""

    def statistics(self, probe):
        if len(probe) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().statistics(probe)


class OwnError(Exception):
    """An error that cannot be made from its text."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class Raises(Plugin):
    def statistics(self, probe):
        raise OwnError("this", "that")


class NaNs(Plugin):
    def statistics(self, probe):
        scores = super().statistics(probe)
        return scores.where(scores < scores.median(), torch.nan)


class Changes(Plugin):
    def statistics(self, probe):
        probe.classifier.module.linear.bias.data.add_(1)
        return super().statistics(probe)


class Widths(Plugin):
    def statistics(self, probe):
        return torch.zeros(len(probe), 1 + len(probe) % 3)


class Locked(Plugin):
    """Cannot be pickled."""

    def __init__(self):
        self.lock = threading.Lock()


class Sleeps(Plugin):
    def statistics(self, probe):
        time.sleep(60)


class Dies(Plugin):
    """Kills its process, as often as there are files."""

    def __init__(self, folder="deaths"):
        self.folder = folder

    def statistics(self, probe):
        for file in sorted(pathlib.Path(self.folder).glob("*")):
            try:
                file.unlink()
            except FileNotFoundError:  # the other worker was first
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return super().statistics(probe)


class Waits(Plugin):
    """Notes its process, or the node of its Ray cluster, and waits while there is a folder to note it in."""

    def statistics(self, probe):
        for folder, name in (("pids", os.getpid), ("nodes", node)):
            if os.path.isdir(folder):
                pathlib.Path(folder, str(name())).touch()
            while os.path.isdir(folder):
                time.sleep(0.05)
        return super().statistics(probe)


class Broken:
    """Cannot be decoded, nor sent with a lock."""

    shape = (40, 3, 8, 8)
    lock = None

    def __len__(self):
        return 40

    def __getitem__(self, rows):
        raise oodbench.errors.BadData("some file is broken")


class Images:
    """Counts what it decodes in this process."""

    shape = (40, 3, 8, 8)
    decoded = 0

    def __len__(self):
        return 40

    def __getitem__(self, rows):
        type(self).decoded += len(rows)
        return torch.stack([torch.full((3, 8, 8), row, dtype=torch.uint8) for row in rows])
