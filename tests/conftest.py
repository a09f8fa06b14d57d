"""Shared fixtures: a tiny classifier, and real images where they can be had."""

import os
import subprocess
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch: there is a worker a core, and processes that tests start inherit it
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from filelock import FileLock
from torch import nn

import oodbench

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache or data; one cache for all tests of a worker: models are trained once."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("OODBENCH_CACHE", str(cache))
    monkeypatch.delenv("OODBENCH_DATA", raising=False)
    monkeypatch.delenv("OODBENCH_PLUGINS", raising=False)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """A data root with real pieces of CIFAR-10 and others, and ResNet weights.

    $OODBENCH_TEST_DATA, or unpacked from ``../shared/data`` beside the checkout; without either its tests skip.
    """
    if given := os.environ.get("OODBENCH_TEST_DATA"):
        return Path(given)
    unpack = ROOT.parent / "shared" / "data" / "unpack.py"
    if not unpack.exists():
        pytest.skip("no real images: set OODBENCH_TEST_DATA to a data root that holds them")
    root = ROOT / ".test-data"
    with FileLock(tmp_path_factory.getbasetemp().parent / "unpack.lock"):  # one worker unpacks, the others wait and find it
        subprocess.run([sys.executable, str(unpack), str(root)], check=True, stdout=subprocess.DEVNULL)
    return root


class TinyResNet(nn.Module):
    """Two stages on 8x8 images with known layers, non-negative features and a linear head: for tests only."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, stride=2), nn.BatchNorm2d(12), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        self.linear = nn.Linear(16, classes)

    def forward(self, x):
        return self.linear(self.layer2(self.layer1(self.conv1(x).relu())).mean((2, 3)))


@pytest.fixture
def make_classifier():
    """make_classifier(seed=0, dtype=torch.float32) -> a Classifier of 4 classes on (N, 3, 8, 8) images."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float32) -> oodbench.Classifier:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = TinyResNet().to(dtype)
        return oodbench.Classifier(
            module, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), layers=["conv1", "layer1", "layer2"], name="tiny"
        )

    return make


@pytest.fixture
def classifier(make_classifier) -> oodbench.Classifier:
    return make_classifier()


@pytest.fixture
def server(monkeypatch):
    """A real HTTP server on 127.0.0.1; ``web_server`` says what it can do wrong."""
    from web_server import serving

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


@pytest.fixture
def one_thread():
    """Layers of a small network wait longer for a second thread than they gain from it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
