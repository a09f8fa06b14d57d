"""Scores of detectors of 2022 and later against the obvious computation: one image at a time, in float64, from the formula."""

import numpy as np
import pytest
import torch
from references import CLASSES, TEST, TRAIN, assert_close, softmax
from scipy.optimize import minimize_scalar

import oodbench
from oodbench import protocols
from oodbench.probe import Probe


@pytest.fixture
def columns_of(network, arrays):
    """Fit a detector, and give its columns at its own setting and at each of its grid, each as a dict of settings."""

    def columns(name, **parameters):
        detector = oodbench.load_detector(name, **parameters).fit(network, TRAIN, arrays.labels, batch_size=32)
        settings = [detector.setting, *detector.grid]
        probe = Probe(network, TEST, detector.signals)
        with probe.mode(), detector.computing(settings):
            found = detector.grouped_statistics(probe)[:, :, 0]
        np.testing.assert_array_equal(found[:, 0], detector.score(network, TEST))
        return list(zip(settings, found.T, strict=True))

    return columns


def gen_reference(z, gamma, top):
    kept = sorted(softmax(z))[-top:]
    return sum(p**gamma * (1 - p) ** gamma for p in kept)


def test_generalised_entropy(columns_of, arrays):
    for setting, column in columns_of("gen", gamma=0.3, top=2, gammas=[0.1, 2], tops=[1, 3, 100]):
        assert_close(column, [gen_reference(z, **setting) for z in arrays.z], rtol=1e-7)


def test_generalised_entropy_keeps_the_digits_of_near_certainty():
    logits = torch.tensor([[60.0, 0.0, 0.0], [61.0, 0.0, 0.0]], dtype=torch.float64)
    probe = type("Probe", (), {"softmax": logits.softmax(1)})()
    rest = 2 * np.exp([-60.0, -61.0])
    expected = rest**0.1 + 2 * (rest / 2) ** 0.1
    assert_close(oodbench.load_detector("gen").statistics(probe)[:, 0], expected)


def test_gradtrust_is_the_ratio_of_variances_of_squared_gradients(scores_of, arrays):
    expected = []
    for f in arrays.f:
        weight = torch.tensor(arrays.weight, requires_grad=True)
        logits = weight @ torch.tensor(f) + torch.tensor(arrays.bias)
        loss = torch.nn.functional.mse_loss(logits, torch.full_like(logits, 1 / CLASSES))
        (gradient,) = torch.autograd.grad(loss, weight)
        variances = gradient.square().var(1)
        expected.append(-float(variances.max() / variances.mean()))
    assert_close(scores_of("gradtrust"), expected)


def test_temperature_scaling(scores_of, arrays):
    held_out = protocols.held_out(len(TRAIN), arrays.y, seed=0)
    z, y = arrays.train_z[held_out], arrays.y[held_out]

    def loss(temperature):
        return -sum(np.log(softmax(logits / temperature)[label]) for logits, label in zip(z, y, strict=True))

    temperature = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x
    assert 0.1 < temperature < 19
    largest = np.array([softmax(logits / temperature).max() for logits in arrays.z])
    np.testing.assert_allclose(scores_of("tempscale"), np.log((1 - largest) / largest), rtol=1e-5)
