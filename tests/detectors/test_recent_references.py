"""Scores of detectors of 2022 and later against the obvious computation: one image at a time, in float64, from the formula."""

import numpy as np
import pytest
import torch
from references import CLASSES, TEST, TRAIN, assert_close, energy, softmax
from scipy.optimize import minimize_scalar

import oodbench
from oodbench import protocols
from oodbench.errors import UsageError
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


def kept_features(f, percentile):
    kept = 16 - round(16 * percentile / 100)
    return sorted(range(16), key=lambda i: -f[i])[:kept]


def ash_s_reference(arrays, percentile):
    scores = []
    for f in arrays.f:
        places = kept_features(f, percentile)
        scaled = [f[i] * np.exp(f.sum() / f[places].sum()) if i in places else 0 for i in range(16)]
        scores.append(energy(arrays.weight @ np.array(scaled) + arrays.bias))
    return scores


def dice_reference(arrays, percentile):
    contributions = arrays.train_f.mean(0) * arrays.weight
    threshold = np.percentile(contributions.ravel(), percentile)
    weight = np.where(contributions > threshold, arrays.weight, 0)
    return [energy(weight @ f + arrays.bias) for f in arrays.f]


def vra_reference(arrays, low, high):
    held_out = protocols.held_out(len(TRAIN), arrays.y, seed=0)
    least, most = (np.percentile(arrays.train_f[held_out], p, axis=0) for p in (low, high))

    def rectified(value, x1, x2):
        return 0 if value < x1 else min(value, x2)

    shaped = [np.array([rectified(*each) for each in zip(f, least, most, strict=True)]) for f in arrays.f]
    return [energy(arrays.weight @ f + arrays.bias) for f in shaped]


def fdbd_reference(arrays):
    mean, scores = arrays.train_f.mean(0), []
    for f, z in zip(arrays.f, arrays.z, strict=True):
        y = z.argmax()
        to_boundaries = [
            abs(z[y] - z[c]) / np.linalg.norm(arrays.weight[y] - arrays.weight[c]) for c in range(CLASSES) if c != y
        ]
        scores.append(-np.mean(to_boundaries) / np.linalg.norm(f - mean))
    return scores


def nci_reference(arrays, alpha):
    mean, scores = arrays.train_f.mean(0), []
    for f, z in zip(arrays.f, arrays.z, strict=True):
        along = arrays.weight[z.argmax()] @ (f - mean) / np.linalg.norm(f - mean)
        scores.append(-(along + alpha * np.abs(f).sum()))
    return scores


@pytest.mark.parametrize(
    ("name", "parameters", "reference"),
    [
        ("ash-s", {"percentile": 70.0, "percentiles": [50, 90]}, ash_s_reference),
        ("dice", {"percentile": 80.0, "percentiles": [10, 90]}, dice_reference),
        ("vra", {"low": 55, "high": 92, "lows": [10, 60], "highs": [70, 95]}, vra_reference),
        ("fdbd", {}, fdbd_reference),
        ("nci", {"alpha": 0.05, "alphas": [0, 1]}, nci_reference),
    ],
)
def test_settings_and_grids(columns_of, arrays, name, parameters, reference):
    columns = columns_of(name, **parameters)
    for setting, column in columns:
        assert_close(column, reference(arrays, **setting), rtol=1e-7)
    if parameters:
        assert not np.allclose(columns[0][1], columns[-1][1], rtol=1e-3)


def test_classes_of_equal_weights_have_no_boundary(network):
    with torch.no_grad():
        network.module.linear.weight[1] = network.module.linear.weight[0]
    detector = oodbench.load_detector("fdbd").fit(network, TRAIN)
    assert np.isfinite(detector.score(network, TEST)).all()
    assert np.abs(detector.score(network, TEST)).max() < 1e6


def test_a_cap_below_the_floor_is_refused():
    for parameters in ({"low": 95}, {"lows": [50, 85]}):
        with pytest.raises(UsageError, match=r"vra: lows? = .*; give percentiles below"):
            oodbench.load_detector("vra", **parameters)


def test_temperature_scaling(scores_of, arrays):
    held_out = protocols.held_out(len(TRAIN), arrays.y, seed=0)
    z, y = arrays.train_z[held_out], arrays.y[held_out]

    def loss(temperature):
        return -sum(np.log(softmax(logits / temperature)[label]) for logits, label in zip(z, y, strict=True))

    temperature = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x
    assert 0.1 < temperature < 19
    largest = np.array([softmax(logits / temperature).max() for logits in arrays.z])
    np.testing.assert_allclose(scores_of("tempscale"), np.log((1 - largest) / largest), rtol=1e-5)
