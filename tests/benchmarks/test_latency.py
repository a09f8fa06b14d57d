"""Latency of every detector on one batch, beside the bare forward pass: ``make bench``.

Without ``--benchmark-enable`` each runs once, on a small network, to see that it can.
"""

import pytest
import torch

import oodbench
from oodbench import registry
from oodbench.models.build import build
from oodbench.probe import Probe

DETECTORS = [name for name, record in registry.records("detectors").items() if record.distribution == "oodbench"]
BATCH = 32
FEWER = {"ensemble": {"members": 2}}  # of a network this large, training another is minutes
TRAIN = 320  # more than ViM keeps of the 512 dimensions


@pytest.fixture(scope="module")
def classifier(request):
    if not request.config.getoption("benchmark_enable"):
        return build("resnet20-cifar10")
    with pytest.warns(UserWarning, match="random"):
        return oodbench.load_model("resnet18")


@pytest.fixture(scope="module")
def images():
    return torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.benchmark(group="one batch of 32, ResNet-18")
def test_bare_forward(benchmark, classifier, images):
    with torch.inference_mode():
        assert benchmark(classifier, images).shape == (BATCH, 10)


@pytest.mark.benchmark(group="one batch of 32, ResNet-18")
@pytest.mark.parametrize("name", DETECTORS)
def test_latency(benchmark, classifier, images, name):
    detector = oodbench.load_detector(name, **registry.load("detectors", name).quick | FEWER.get(name, {}))
    train = torch.rand(TRAIN, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    detector.fit(classifier, train, torch.arange(TRAIN) % 10)

    def statistics():
        probe = Probe(classifier, images, detector.declared_signals)
        with probe.mode():
            return detector.grouped_statistics(probe)

    assert len(benchmark(statistics)) == BATCH
