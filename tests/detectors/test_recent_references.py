"""Scores of detectors of 2022 and later against the obvious computation: one image at a time, in float64, from the formula."""

import numpy as np
import pytest
import torch
from references import CLASSES, TEST, TRAIN, assert_close, energy, run, softmax
from scipy.optimize import minimize_scalar

import oodbench
from oodbench import protocols
from oodbench.detectors import neco, nnguide, rankfeat, weiper
from oodbench.errors import Unsuitable, UsageError
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


def unit(features):
    return np.array([f / np.linalg.norm(f) for f in features])


@pytest.mark.parametrize("name", ["mahalanobis++", "rmd++"])
def test_mahalanobis_distances_of_normalised_features(scores_of, arrays, name):
    train, test, y = unit(arrays.train_f), unit(arrays.f), arrays.y
    means = np.array([train[y == c].mean(0) for c in range(CLASSES)])
    precision, whole = (
        np.linalg.pinv(centred.T @ centred / len(train), hermitian=True, rcond=1e-13)
        for centred in (train - means[y], train - train.mean(0))
    )
    to_class = np.array([min((f - m) @ precision @ (f - m) for m in means) for f in test])
    to_all = np.array([(f - train.mean(0)) @ whole @ (f - train.mean(0)) for f in test])
    assert_close(scores_of(name), to_class / 2 if name == "mahalanobis++" else to_class - to_all, rtol=1e-6)


def nnguide_reference(arrays, rows, k):
    bank = unit(arrays.train_f[rows])
    energies = [-energy(z) for z in arrays.train_z[rows]]
    scores = []
    for f, z in zip(unit(arrays.f), arrays.z, strict=True):
        similar = sorted(e * (f @ row) for e, row in zip(energies, bank, strict=True))
        scores.append(energy(z) * np.mean(similar[-k:]))
    return scores


@pytest.mark.parametrize("block", [7, 65536])
@pytest.mark.parametrize("k", [10, 1000])
def test_nearest_neighbour_guidance(scores_of, arrays, monkeypatch, block, k):
    monkeypatch.setattr(nnguide, "BLOCK", block)
    assert_close(scores_of("nnguide", k=k), nnguide_reference(arrays, slice(None), k), rtol=1e-7)


def test_nearest_neighbour_guidance_draws_its_bank(scores_of, arrays):
    rows = np.argsort(np.random.default_rng(7).random(len(TRAIN)))[:40]
    assert_close(scores_of("nnguide", k=5, size=40, seed=7), nnguide_reference(arrays, rows, 5), rtol=1e-7)


def neco_reference(arrays, dimension):
    mean, spread = arrays.train_f.mean(0), arrays.train_f.std(0)
    spread[spread < 1e-9] = 1
    standard = (arrays.train_f - mean) / spread
    values, vectors = np.linalg.eigh(standard.T @ standard)
    principal = vectors[:, np.argsort(-values)[: dimension or 3]]  # four classes span three dimensions
    tests = [(f - mean) / spread for f in arrays.f]
    return [-np.linalg.norm(principal.T @ h) / np.linalg.norm(h) for h in tests]


def test_neural_collapse(columns_of, scores_of, arrays):
    columns = columns_of("neco", dimensions=[12, 5, 16, 100])
    assert [setting["dimension"] for setting, _ in columns] == [None, 5, 12]
    for setting, column in columns:
        assert_close(column, neco_reference(arrays, **setting), rtol=1e-7)
    by_logit = np.array(neco_reference(arrays, None)) * arrays.z.max(1)
    assert_close(scores_of("neco", max_logit=True), by_logit, rtol=1e-7)


@pytest.mark.parametrize(("width", "classes", "dimension"), [(200, 4, 100), (199, 150, 99), (199, 11, 10), (2, 5, 1)])
def test_dimensions_of_neural_collapse_by_width(width, classes, dimension):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, width), torch.nn.Linear(width, classes))
    network = oodbench.Classifier(module.double(), name="wide")
    scores = [oodbench.load_detector("neco", dimension=d).fit(network, TRAIN).score(network, TEST) for d in (None, dimension)]
    np.testing.assert_array_equal(*scores)


def test_neural_collapse_multiplies_by_the_largest_logit_for_transformers():
    assert not neco.is_transformer(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.LayerNorm(8)))
    assert neco.is_transformer(torch.nn.TransformerEncoderLayer(8, 2))


def reconstruction_errors(train, test, variance):
    centred = train - train.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    order = np.argsort(-values)
    explained = np.cumsum(values[order]) / values.sum()
    kept = next(q for q in range(1, len(values) + 1) if explained[q - 1] >= variance)
    principal = vectors[:, order[:kept]]
    return [np.linalg.norm(x - principal @ (principal.T @ x)) for x in test - train.mean(0)]


def test_kernel_pca(network, arrays):
    detector = oodbench.load_detector("kpca", variance=0.8, mapped_variance=0.6, gamma=2.0, mapped=40, seed=3)
    detector.fit(network, TRAIN, batch_size=32)
    probe = Probe(network, TEST, detector.signals)
    with probe.mode():
        found = detector.statistics(probe).numpy()
    train, test = unit(arrays.train_f), unit(arrays.f)
    random = np.random.default_rng(3)
    frequencies = 2 * random.standard_normal((40, 16))
    phases = 2 * np.pi * random.random(40)

    def mapped(features):
        return np.array([np.sqrt(2 / 40) * np.cos(frequencies @ f + phases) for f in features])

    assert_close(found[:, 0], reconstruction_errors(train, test, 0.8), rtol=1e-6)
    assert_close(found[:, 1], reconstruction_errors(mapped(train), mapped(test), 0.6), rtol=1e-6)
    np.testing.assert_array_equal(found[:, 0], detector.score(network, TEST))


def test_rank_one_features_are_removed_from_the_last_two_layers(network, scores_of):
    def without_first(maps):
        u, s, v = np.linalg.svd(maps.reshape(len(maps), -1), full_matrices=False)
        return torch.from_numpy((maps.reshape(len(maps), -1) - s[0] * np.outer(u[:, 0], v[0])).reshape(maps.shape))

    expected, module = [], network.module
    for image in TEST:
        first = module.layer1(module.conv1((image[None] - 0.5) / 0.25).relu())
        seconds = module.layer2(without_first(first[0].numpy())[None]), without_first(module.layer2(first)[0].numpy())[None]
        logits = [module.linear(second.mean((2, 3)))[0].numpy() for second in seconds]
        expected.append(energy(np.mean(logits, axis=0)))
    assert_close(scores_of("rankfeat"), expected, rtol=1e-7)


def test_rank_one_features_of_one_place_are_all_there_is():
    with pytest.raises(Unsuitable, match="a layer has one value per channel"):
        rankfeat.without_first_component(torch.rand(2, 5, 1, 1))


def stability(network, image):
    """The author's Q' of an image (3, 8, 8), with its features."""
    leaf = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf[None]).max(), leaf)
    gradient = 0.25 * gradient.numpy()  # by the normalised image
    smallest = np.argsort(np.abs(gradient).ravel(), kind="stable")[: int(0.05 * gradient.size)]
    changed = image.numpy().copy().ravel()
    changed[smallest] += 0.5 * 0.25 * np.sign(gradient.ravel()[smallest])
    f, after = (run(network, torch.as_tensor(x)[None]).features[0].numpy() for x in (image, changed.reshape(image.shape)))
    (largest,) = np.argsort(-f)[:1]  # 1 % and 5 % of 16 features are less than one
    return 10 * abs(f[largest] - after[largest]) + max(after[largest], 0)


def test_adaptive_scaling(network, arrays):
    detector = oodbench.load_detector("adascale", least=30, most=80, percentiles=[40, 90, 60])
    detector.fit(network, TRAIN, arrays.labels, batch_size=32)
    settings = [detector.setting, *detector.grid]
    assert settings[1:] == [{"least": a, "most": b} for a, b in ((40, 60), (40, 90), (60, 90))]
    probe = Probe(network, TEST, detector.signals)
    with probe.mode(), detector.computing(settings):
        found = detector.grouped_statistics(probe)
    of_train = np.array([stability(network, image) for image in TRAIN[~protocols.held_out(len(TRAIN), arrays.y, seed=0)]])
    for place, setting in enumerate(settings):
        for image, f, z, scores in zip(TEST, arrays.f, arrays.z, found[:, place], strict=True):
            share = np.mean(of_train <= stability(network, image))
            percentile = setting["least"] + (1 - share) * (setting["most"] - setting["least"])
            kept = 16 - round(16 * percentile / 100)
            ratio = f.sum() / sum(sorted(f)[-kept:])
            assert_close(scores, [energy(arrays.weight @ (f * np.exp(ratio)) + arrays.bias), energy(z * ratio**2)], rtol=1e-7)
    np.testing.assert_array_equal(found[:, 0, 0], detector.score(network, TEST))


def test_percentiles_of_adaptive_scaling_are_pairs():
    for parameters in ({"least": 90}, {"percentiles": [50]}):
        with pytest.raises(UsageError, match=r"adascale: (least = 90; give a .* of at most 85|percentiles = .*; give at)"):
            oodbench.load_detector("adascale", **parameters)


def divergence(train, values, low, high, bins, smoothing, offset):
    """KL(p‖q) + KL(q‖p) of the mean histogram of rows of ``train`` and the smoothed one of ``values``."""
    edges = np.linspace(low, high, bins + 1)
    p = np.mean([np.histogram(row, edges)[0] / len(row) for row in train], axis=0)
    counts = np.histogram(values[(values >= low) & (values <= high)], edges)[0] / len(values)
    left = (smoothing - 1) // 2
    padded = [counts[0]] * left + [*counts] + [counts[-1]] * (smoothing - 1 - left)
    q = np.array([np.mean(padded[i : i + smoothing]) for i in range(bins)])
    p, q = ((density + offset) / (density + offset).sum() for density in (p, q))
    return sum(p * np.log(p / q)) + sum(q * np.log(q / p))


@pytest.mark.parametrize(("repeats", "block"), [(100, 2**14), (3, 2**14), (100, 2)])
def test_weight_perturbations(scores_of, arrays, monkeypatch, repeats, block):
    monkeypatch.setattr(weiper, "BLOCK", block)
    random = np.random.default_rng((5, 1))
    weights = []
    for noise in random.standard_normal((repeats, *arrays.weight.shape)):
        directions = noise / np.linalg.norm(noise, axis=1, keepdims=True)
        weights.append(arrays.weight + 1.8 * directions * np.linalg.norm(arrays.weight, axis=1, keepdims=True))

    def logits(f):
        return np.array([weight @ f + arrays.bias for weight in weights])

    rows = np.argsort(np.random.default_rng(5).random(len(TRAIN)))[:100]
    train = arrays.train_f[rows]
    of_train = np.array([logits(f).ravel() for f in train])
    expected = []
    for f in arrays.f:
        own = divergence(train, f, train.min(), train.max() * (1 + 1e-6), 100, 4, 0.01)
        width = (of_train.max() - of_train.min()) * (1 + 1e-6)
        perturbed = divergence(of_train, logits(f).ravel(), of_train.min(), of_train.min() + width, 100, 15, 0.025)
        expected.append(own + 2.5 * perturbed - 0.1 * np.mean([softmax(z).max() for z in logits(f)]))
    assert_close(scores_of("weiper", repeats=repeats, size=100, seed=5), expected, rtol=1e-6)


def test_too_many_copies_are_refused(network, monkeypatch):
    monkeypatch.setattr(weiper, "LARGEST_BYTES", 1000)
    with pytest.raises(Unsuitable, match=r"keeps 100 copies of the last layer, .*; lower repeats"):
        oodbench.load_detector("weiper").fit(network, TRAIN)


def test_temperature_scaling(scores_of, arrays):
    held_out = protocols.held_out(len(TRAIN), arrays.y, seed=0)
    z, y = arrays.train_z[held_out], arrays.y[held_out]

    def loss(temperature):
        return -sum(np.log(softmax(logits / temperature)[label]) for logits, label in zip(z, y, strict=True))

    temperature = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x
    assert 0.1 < temperature < 19
    largest = np.array([softmax(logits / temperature).max() for logits in arrays.z])
    np.testing.assert_allclose(scores_of("tempscale"), np.log((1 - largest) / largest), rtol=1e-5)
