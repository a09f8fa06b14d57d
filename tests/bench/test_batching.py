"""Sets that decode on demand: in this process and in workers, the same pixels and the same one-line errors."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from heard import Heard
from PIL import Image
from torch.utils.data import get_worker_info

from oodbench import batching
from oodbench.batching import decoded_batches
from oodbench.datasets import resize
from oodbench.datasets.formats.files import ImageFiles
from oodbench.datasets.resize import Resized, decoded
from oodbench.errors import BadData, OodbenchError

COUNT = 9


@pytest.mark.parametrize(
    ("device", "size", "count"),
    [
        ("cpu", 32, 256),
        ("cpu", 64, 128),
        ("cpu", 224, 8),
        ("cpu", 4096, 1),
        ("cuda", 32, 256),
        ("cuda", 224, 64),
        ("mps", 384, 16),
    ],
)
def test_batches_of_large_images_are_smaller(device, size, count):
    assert batching.default_batch_size(size, torch.device(device)) == count


@pytest.fixture
def fitted(tmp_path):
    """Nine images of varying sizes, fitted to 12x10."""
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(COUNT)]
    for i, path in enumerate(paths):
        Image.fromarray(random.integers(0, 256, (10 + i, 20 - i, 3), dtype=np.uint8)).save(path)
    return Resized(ImageFiles(paths), (12, 10), "bilinear")


@pytest.mark.parametrize("workers", [0, 2])
def test_decoding_gives_the_same_by_any_number_of_workers(fitted, monkeypatch, workers):
    expected = torch.stack([fitted[[row]][0] for row in range(COUNT)])
    monkeypatch.setattr(resize, "MANY", 1)
    monkeypatch.setattr(resize, "CHUNK", 4 * 3 * 12 * 10)
    heard = Heard()
    found = decoded(fitted, workers, heard, "nine")
    assert found.dtype == torch.uint8
    assert torch.equal(found, expected)
    assert heard.stages == ["decoding 9 images of nine"]
    assert heard.expected == heard.done == COUNT


def test_a_small_set_starts_no_process_and_says_nothing(fitted, monkeypatch):
    asked = []
    monkeypatch.setattr(
        resize, "decoded_batches", lambda i, p, workers, name: asked.append(workers) or decoded_batches(i, p, workers)
    )
    heard = Heard()
    assert len(decoded(fitted, 2, heard)) == COUNT
    assert asked == [0]
    assert heard.stages == []
    monkeypatch.setattr(resize, "MANY", COUNT)
    assert len(decoded(fitted, 2, heard)) == COUNT
    assert asked == [0, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_one_line_from_a_worker_too(fitted, workers):
    path = fitted._images.paths[7]
    path.write_bytes(path.read_bytes()[:60])
    batches = decoded_batches(fitted, [np.arange(4), np.arange(4, COUNT)], workers)
    assert len(next(batches)) == 4
    with pytest.raises(BadData, match="truncated") as caught:
        next(batches)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "worker process" not in str(caught.value), "what a DataLoader puts before it"


class InWorkers:
    """Images of which a worker process makes something bad happen."""

    shape = (4, 3, 8, 8)

    def __init__(self, happens):
        self._happens = happens

    def __len__(self):
        return 4

    def __getitem__(self, rows):
        if get_worker_info() is not None:
            self._happens()
        return torch.zeros(len(rows), *self.shape[1:], dtype=torch.uint8)


def full(*_):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)")


def test_full_shared_memory_names_the_remedy(monkeypatch):
    """Once the error was lost in the queue of the worker, and the run waited for ever."""
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # workers are forks
    with pytest.raises(
        OodbenchError, match=r"shared memory, .* is full .*No space left.*make room in /dev/shm, or use --workers 0"
    ):
        list(decoded_batches(InWorkers(lambda: None), [np.arange(4)], workers=1))
    assert len(list(decoded_batches(InWorkers(full), [np.arange(4)]))) == 1


def test_a_worker_that_dies_names_the_remedy():
    images = InWorkers(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(OodbenchError, match=r"a process that decodes images died \(.*\); use --workers 0"):
        list(decoded_batches(images, [np.arange(4)], workers=1))


def test_an_error_of_decoding_in_a_worker_is_its_own():
    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader worker"):
        list(decoded_batches(InWorkers(full), [np.arange(4)], workers=1))


SLOW = """
import os, time
import numpy as np
from oodbench import batching
from oodbench.batching import decoded_batches

class Slow:
    def __len__(self):
        return 2

    def __getitem__(self, rows):
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(60)

list(decoded_batches(Slow(), [np.arange(1)] * 2, workers=2))
"""


def lives(process: int) -> bool:
    """Whether a process runs. One that ended stays in the table until its parent asks for it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch ends them, after some seconds")
def test_workers_end_with_a_killed_parent():
    with subprocess.Popen([sys.executable, "-P", "-c", SLOW], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(lives, workers))
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 10
        while any(map(lives, workers)):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize(("pinned", "kind", "count"), [(False, "meta", 1), (True, "meta", 0), (False, "cpu", 0)])
def test_images_are_pinned_once_where_copies_then_overlap(monkeypatch, pinned, kind, count):
    """The meta device stands for one that takes pinned memory."""
    pins, copies, to = [], [], torch.Tensor.to
    monkeypatch.setattr(batching, "PINNING", ("meta",))
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: pinned)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pins.append(len(self)) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *given, **how: copies.append(how) or to(self, *given, **how))
    found = batching.as_floats(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.device(kind), torch.float32)
    assert (len(pins), found.device.type, found.dtype) == (count, kind, torch.float32)
    assert copies[0] == {"non_blocking": True}
