"""Each detector's score against the obvious computation: one image at a time, in float64, from the formula."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from references import CLASSES, TEST, TRAIN, assert_close, energy, run, softmax
from sklearn.covariance import LedoitWolf

import oodbench
from oodbench import protocols
from oodbench.detectors import _bank, odin
from oodbench.detectors._moments import ClassMoments, squared_distances, whitening
from oodbench.heads import separation
from oodbench.probe import Probe


def test_logit_scores(scores_of, arrays):
    assert_close(scores_of("msp"), [1 - softmax(z).max() for z in arrays.z])
    assert_close(scores_of("maxlogit"), [-z.max() for z in arrays.z])
    assert_close(scores_of("energy"), [energy(z) for z in arrays.z])
    assert_close(scores_of("energy", temperature=3.0), [3 * energy(z / 3) for z in arrays.z])
    assert_close(scores_of("entropy"), [-sum(p * np.log(p) for p in softmax(z)) for z in arrays.z])


def test_kl_matching(scores_of, arrays):
    typical = []
    labels_held_out = protocols.held_out(150, arrays.y, seed=0)
    for k in range(CLASSES):
        rows = [softmax(z) for z, held in zip(arrays.train_z, labels_held_out, strict=True) if held and z.argmax() == k]
        typical.append(np.mean(rows, axis=0) if rows else np.eye(CLASSES)[k])
    assert (typical[2] == np.eye(CLASSES)[2]).all()
    tiny = np.finfo(np.float64).tiny

    def divergence(p, d):
        return sum(a * (np.log(a) - np.log(max(b, tiny))) for a, b in zip(p, d, strict=True))

    assert_close(scores_of("klm"), [min(divergence(softmax(z), d) for d in typical) for z in arrays.z])


def kth_distance(f, bank, k):
    unit = [row / np.linalg.norm(row) for row in bank]
    return sorted(np.linalg.norm(f / np.linalg.norm(f) - row) for row in unit)[k - 1]


def knn_reference(arrays, k):
    return [kth_distance(f, arrays.train_f, k) for f in arrays.f]


def vim_reference(arrays, dimension):
    u = -np.linalg.pinv(arrays.weight) @ arrays.bias
    second = sum(np.outer(f - u, f - u) for f in arrays.train_f) / len(arrays.train_f)
    values, vectors = np.linalg.eigh(second)
    residual = vectors[:, np.argsort(-values)[dimension or 8 :]]  # 16 features: by default the top 8 are principal
    alpha = np.mean([z.max() for z in arrays.train_z]) / np.mean([np.linalg.norm(residual.T @ (f - u)) for f in arrays.train_f])
    return [alpha * np.linalg.norm(residual.T @ (f - u)) + energy(z) for f, z in zip(arrays.f, arrays.z, strict=True)]


def react_reference(arrays, percentile):
    held_out = protocols.held_out(150, arrays.y, seed=0)
    threshold = np.percentile(arrays.train_f[held_out].ravel(), percentile)
    return [energy(arrays.weight @ np.minimum(f, threshold) + arrays.bias) for f in arrays.f]


def ash_reference(arrays, percentile):
    kept = 16 - round(16 * percentile / 100)

    def shaped(f):
        places = sorted(range(16), key=lambda i: -f[i])[:kept]
        return np.array([f.sum() / kept if i in places else 0 for i in range(16)])

    return [energy(arrays.weight @ shaped(f) + arrays.bias) for f in arrays.f]


def scale_reference(arrays, percentile):
    kept = 16 - round(16 * percentile / 100)
    scaled = [f * np.exp(f.sum() / sum(sorted(f)[-kept:])) for f in arrays.f]
    return [energy(arrays.weight @ f + arrays.bias) for f in scaled]


@pytest.mark.parametrize("k", [1, 50, 150])
@pytest.mark.parametrize("block", [7, 64, 65536])
def test_knn_sorts_all_distances(scores_of, arrays, monkeypatch, k, block):
    monkeypatch.setattr(_bank, "BLOCK", block)
    assert_close(scores_of("knn", k=k), knn_reference(arrays, k))


def test_knn_of_a_float32_network_takes_the_distance_in_float64(make_classifier):
    classifier = make_classifier()
    train, test = TRAIN.float(), TRAIN[:10].float()
    scores = oodbench.load_detector("knn", k=1).fit(classifier, train).score(classifier, test)
    assert (scores < 1e-6).all()  # each finds itself; from a float32 similarity this would be 3e-4
    bank, features = (run(classifier, images).features.double().numpy() for images in (train, test))
    expected = [kth_distance(f, bank, 5) for f in features]
    assert_close(oodbench.load_detector("knn", k=5).fit(classifier, train).score(classifier, test), expected, rtol=1e-4)


# Each detector with a grid: its default setting and another one, and a grid of which this network serves a part.
GRIDS = [
    ("vim", vim_reference, [{"dimension": None}, {"dimension": 3}], {"dimensions": [12, 3, 1, 8, 16]}, [1, 3, 8, 12]),
    ("react", react_reference, [{"percentile": 90.0}, {"percentile": 50.0}], {}, [85, 90, 95, 99]),
    ("ash", ash_reference, [{"percentile": 90.0}, {"percentile": 60.0}], {"percentiles": [95, 60, 97]}, [60, 95]),
    ("scale", scale_reference, [{"percentile": 85.0}, {"percentile": 40.0}], {"percentiles": [85, 40, 97]}, [40, 85]),
    ("knn", knn_reference, [{"k": 50}, {"k": 1}], {}, [1, 10, 20, 50, 100]),
]


@pytest.mark.parametrize(("name", "reference", "settings"), [each[:3] for each in GRIDS])
def test_a_setting_of_its_own(scores_of, arrays, name, reference, settings):
    default, other = (reference(arrays, **setting) for setting in settings)
    assert_close(scores_of(name), default, rtol=1e-7)
    assert_close(scores_of(name, **settings[1]), other, rtol=1e-7)
    assert not np.allclose(default, other, rtol=1e-3)


@pytest.mark.parametrize(("name", "reference", "settings", "grid", "served"), GRIDS)
def test_every_column_of_a_grid_and_no_setting_that_cannot_be_served(network, arrays, name, reference, settings, grid, served):
    detector = oodbench.load_detector(name, **grid).fit(network, TRAIN, arrays.labels, batch_size=32)
    assert [value for setting in detector.grid for value in setting.values()] == served
    probe = Probe(network, TEST, detector.signals)
    with probe.mode(), detector.computing([detector.setting, *detector.grid]):
        columns = detector.grouped_statistics(probe)[:, :, 0]
    for column, setting in zip(columns.T, [settings[0], *detector.grid], strict=True):
        assert_close(column, reference(arrays, **setting), rtol=1e-7)
    np.testing.assert_array_equal(columns[:, 0], detector.score(network, TEST))


@pytest.mark.parametrize(
    ("name", "grid"),
    [("vim", {"dimensions": [16, 17]}), ("ash", {"percentiles": [97, 99]}), ("knn", {"k": 5, "ks": [151, 1000]})],
)
def test_a_grid_of_which_nothing_can_be_served_is_its_own_setting(network, arrays, name, grid):
    detector = oodbench.load_detector(name, **grid).fit(network, TRAIN, arrays.labels, shift_images=1 - TRAIN)
    assert detector.shift_settings == [detector.setting]
    own = oodbench.load_detector(name, **grid).fit(network, TRAIN, arrays.labels)
    np.testing.assert_array_equal(detector.score(network, TEST), own.score(network, TEST))


@pytest.mark.parametrize(("width", "dimension"), [(767, 383), (768, 512)])
def test_vim_takes_the_authors_dimension_from_the_width_of_their_networks(width, dimension):
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(192, width), torch.nn.ReLU(), torch.nn.Linear(width, CLASSES)
    )
    detector = oodbench.load_detector("vim").fit(oodbench.Classifier(module, name="wide"), torch.rand(600, 3, 8, 8))
    assert detector.dimensions_[0] == dimension


def test_she_with_a_class_that_is_never_right(scores_of, arrays):
    patterns = []
    for c in range(CLASSES):
        own = [(f, z) for f, z, y in zip(arrays.train_f, arrays.train_z, arrays.y, strict=True) if y == c]
        correct = [f for f, z in own if z.argmax() == c]
        patterns.append(np.mean(correct or [f for f, _ in own], axis=0))
    expected = [-f @ patterns[z.argmax()] for f, z in zip(arrays.f, arrays.z, strict=True)]
    assert_close(scores_of("she"), expected)


def test_she_patterns_of_classes_without_correct_or_any_images(network, arrays):
    rows = arrays.y != 1
    detector = oodbench.load_detector("she").fit(network, TRAIN[rows], arrays.labels[rows], batch_size=32)
    assert_close(detector.patterns_[2], arrays.train_f[arrays.y == 2].mean(0))
    assert_close(detector.patterns_[1], arrays.train_f[rows].mean(0))


def test_gradnorm_is_the_gradient_of_kl_to_uniform(scores_of, arrays):
    expected = []
    for f in arrays.f:
        weight = torch.tensor(arrays.weight, requires_grad=True)
        log_p = (weight @ torch.tensor(f) + torch.tensor(arrays.bias)).log_softmax(0)
        uniform = torch.full((CLASSES,), 1 / CLASSES, dtype=torch.float64)
        divergence = (uniform * (uniform.log() - log_p)).sum()
        (gradient,) = torch.autograd.grad(CLASSES * divergence, weight)
        expected.append(-float(gradient.abs().sum()))
    assert_close(scores_of("gradnorm"), expected)


def class_statistics(features, labels):
    """Class means, and the pseudo-inverse of the covariance about them, by a loop."""
    means = {c: features[labels == c].mean(0) for c in sorted(set(labels))}
    scatter = sum(np.outer(f - means[y], f - means[y]) for f, y in zip(features, labels, strict=True))
    return means, np.linalg.pinv(scatter / len(features), hermitian=True, rcond=1e-13)


def quadratic(f, mean, precision):
    return (f - mean) @ precision @ (f - mean)


def test_relative_mahalanobis(scores_of, arrays):
    means, precision = class_statistics(arrays.train_f, arrays.y)
    (mean,), whole = (list(x.values()) if isinstance(x, dict) else x for x in class_statistics(arrays.train_f, arrays.y * 0))
    expected = [min(quadratic(f, m, precision) for m in means.values()) - quadratic(f, mean, whole) for f in arrays.f]
    assert_close(scores_of("rmd"), expected, rtol=1e-7)


def stepped(image, epsilon, loss):
    """image − ε·sign(∂loss/∂image) with sign(0) = +1, by plain autograd."""
    leaf = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf[None]), leaf)
    return image - epsilon * torch.where(gradient >= 0, 1.0, -1.0).to(image.dtype)


@pytest.mark.parametrize("epsilon", [0.0, 0.0014, 0.05])
@pytest.mark.parametrize("temperature", [1.0, 1000.0])
def test_odin(network, scores_of, temperature, epsilon):
    expected = []
    for image in TEST:
        label = int(network(image[None]).argmax())
        moved = stepped(image, epsilon, lambda x, y=label: -(network(x) / temperature).log_softmax(1)[0, y])
        expected.append(1 - softmax(network(moved[None])[0].numpy() / temperature).max())
    assert_close(scores_of("odin", temperature=temperature, epsilon=epsilon), expected)


def test_odin_at_temperature_one_without_a_step_is_msp(scores_of):
    np.testing.assert_array_equal(scores_of("odin", temperature=1.0, epsilon=0.0), scores_of("msp"))


def half_distance(network, layer, mean, precision, images):
    """½ (f − μ)ᵀP(f − μ) of one image (1, C, H, W), through which gradients flow."""
    centred = run(network, images).layers[layer][0] - mean
    return 0.5 * centred @ precision @ centred


def layer_references(network, arrays, layers, fitted_rows, epsilon):
    """min_c ½ (f − μ_c)ᵀP(f − μ_c) at each layer after the step towards that layer's nearest mean: (images, layers)."""
    train = [run(network, TRAIN).layers[layer].numpy()[fitted_rows] for layer in layers]
    columns = []
    for layer, features in zip(layers, train, strict=True):
        means, precision = class_statistics(features, arrays.y[fitted_rows])
        column = []
        for image in TEST:
            at_layer = run(network, image[None]).layers[layer][0].numpy()
            nearest = min(means.values(), key=lambda m: quadratic(at_layer, m, precision))
            distance = partial(half_distance, network, layer, torch.tensor(nearest), torch.tensor(precision))
            moved = run(network, stepped(image, epsilon, distance)[None]).layers[layer][0].numpy()
            column.append(min(0.5 * quadratic(moved, m, precision) for m in means.values()))
        columns.append(column)
    return np.array(columns).T


EVERYTHING = np.ones(150, dtype=bool)


def test_mahalanobis_v(network, scores_of, arrays):
    assert_close(scores_of("mahalanobis-v"), layer_references(network, arrays, [2], EVERYTHING, 0.0)[:, 0], rtol=1e-7)


@pytest.mark.parametrize("epsilon", [0.0014, 0.01])
def test_mahalanobis_p_is_fitted_without_the_held_out_tenth(network, scores_of, arrays, epsilon):
    expected = layer_references(network, arrays, [2], ~protocols.held_out(150, arrays.y, seed=0), epsilon)[:, 0]
    assert_close(scores_of("mahalanobis-p", epsilon=epsilon), expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "epsilon"), [("mahalanobis-fe", 0.0), ("mahalanobis-pfe", 0.0014)])
def test_mahalanobis_over_layers_is_fitted_without_the_held_out_tenth(network, scores_of, arrays, name, epsilon):
    held_out = protocols.held_out(150, arrays.y, seed=0)
    detector = oodbench.load_detector(name).fit(network, TRAIN, arrays.labels, batch_size=32)
    probe = Probe(network, TEST, detector.signals)
    with probe.mode():
        columns = detector.statistics(probe)
    expected = layer_references(network, arrays, [0, 1, 2], ~held_out, epsilon)
    assert_close(columns, expected, rtol=1e-6)
    inside = Probe(network, TRAIN[held_out], detector.signals)
    with inside.mode():
        calibration = detector.statistics(inside).numpy()
    summed = ((expected - calibration.mean(0)) / calibration.std(0)).sum(1)
    np.testing.assert_allclose(scores_of(name), summed, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "backward_passes"), [("odin", 4), ("mahalanobis-p", 1), ("mahalanobis-pfe", 3)])
def test_a_whole_grid_is_its_settings_side_by_side_and_shares_gradients(network, arrays, monkeypatch, name, backward_passes):
    taken = []
    backward = Probe._backward
    monkeypatch.setattr(Probe, "_backward", lambda probe, loss: taken.append(loss) or backward(probe, loss))
    detector = oodbench.load_detector(name).fit(network, TRAIN, arrays.labels)
    taken.clear()
    probe = Probe(network, TEST, detector.signals)
    with probe.mode(), detector.computing(detector.grid):
        together = detector.grouped_statistics(probe)
    assert len(taken) == backward_passes
    assert together.shape[:2] == (len(TEST), len(detector.grid))
    for place, setting in enumerate(detector.grid):
        alone = Probe(network, TEST, detector.signals)
        with alone.mode(), detector.computing([setting]):
            np.testing.assert_array_equal(detector.grouped_statistics(alone)[:, 0], together[:, place])


@pytest.mark.parametrize("name", ["odin", "mahalanobis-p", "knn", "vim", "react", "ash", "scale"])
def test_a_shift_chooses_the_setting_that_parts_it_best(network, arrays, name):
    grid = {"vim": {"dimensions": [1, 3, 8, 12]}}.get(name, {})
    shift = (TRAIN.roll(40, 0) + 0.05 * torch.randn(TRAIN.shape, generator=torch.Generator().manual_seed(7))).clamp(0, 1)
    held_out = protocols.held_out(150, arrays.y, seed=0)
    chosen = oodbench.load_detector(name, **grid).fit(network, TRAIN, arrays.labels, shift_images=shift)

    def parted(setting):
        detector = oodbench.load_detector(name, **grid, **setting).fit(network, TRAIN, arrays.labels)
        return separation(detector.score(network, TRAIN[held_out]), detector.score(network, shift), "tnr95")

    shares = [parted(setting) for setting in chosen.grid]
    assert max(shares) > min(shares)
    assert shares[chosen.head.setting_] == max(shares)


def test_grids_are_those_of_the_papers():
    assert odin.TEMPERATURES == (1, 10, 100, 1000)
    assert odin.EPSILONS == (0, 0.0005, 0.001, 0.0014, 0.002, 0.0024, 0.005, 0.01, 0.05, 0.1, 0.2)
    assert len(oodbench.load_detector("odin").grid) == 44
    assert [s["epsilon"] for s in oodbench.load_detector("mahalanobis-pfe").grid] == [
        0,
        0.0005,
        0.001,
        0.0014,
        0.002,
        0.005,
        0.01,
    ]
    assert oodbench.load_detector("knn").ks == [1, 10, 20, 50, 100, 200, 500, 1000, 3000, 5000]
    assert oodbench.load_detector("scale").percentiles == [50, 55, 60, 65, 70, 75, 80, 85, 90, 95]
    assert oodbench.load_detector("ash").percentiles == [65, 70, 75, 80, 85, 90, 95]
    assert oodbench.load_detector("react").percentiles == [85, 90, 95, 99]


def pixel_statistics(image):
    """One image (3, 8, 8), by numpy."""
    red, green, blue = image
    rg, yb = red - green, (red + green) / 2 - blue
    grey = image.mean(0)
    across = [(grey[i, j + 1] - grey[i, j]) ** 2 for i in range(8) for j in range(7)]
    down = [(grey[i + 1, j] - grey[i, j]) ** 2 for i in range(7) for j in range(8)]
    half = 0.5 / 255
    levels = [
        *(channel.mean() for channel in image),
        *(channel.std() for channel in image),
        np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()),
    ]
    return [
        *(math.log(max(value, half)) for value in levels),
        math.log(max(np.mean(across) + np.mean(down), half**2)),
        math.log(max(np.mean([round(255 * value) in (0, 255) for value in image.ravel()]), 0.5 / image.size)),
    ]


def test_pixels():
    eight_bit = (TRAIN * 300 - 20).clamp(0, 255).round().to(torch.uint8)
    train, test = eight_bit[:120], eight_bit[120:]
    held_out = protocols.held_out(120, None, seed=0)
    calibration = np.array([pixel_statistics(image) for image in train[held_out].double().numpy() / 255])
    expected = np.array([pixel_statistics(image) for image in test.double().numpy() / 255])
    assert expected[:, 8].max() > expected[:, 8].min()
    detector = oodbench.load_detector("pixels").fit(None, train)
    probe = Probe(None, test.double() / 255, detector.signals)
    assert_close(detector.statistics(probe), expected)
    distances = LedoitWolf().fit(calibration).mahalanobis(expected)
    assert_close(detector.score(None, test), distances, rtol=1e-3)  # images go in as float32


def test_pixels_takes_grey_for_three_equal_channels_and_sees_colour_where_training_had_none():
    grey = TRAIN.mean(1, keepdim=True)
    detector = oodbench.load_detector("pixels").fit(None, grey)
    np.testing.assert_array_equal(detector.score(None, grey), detector.score(None, grey.expand(-1, 3, -1, -1)))
    assert detector.score(None, TEST).min() > np.percentile(detector.score(None, grey), 95)


def test_class_moments_match_numpy_far_from_the_origin():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 500) * 2  # classes 1 and 3 have no images
    features = 1e6 + random.normal(size=(500, 6)) * np.array([1, 1e-2, 5, 1, 1, 1]) + labels[:, None]
    moments = ClassMoments(CLASSES + 1)
    for start in range(0, 500, 64):
        moments.add(torch.tensor(features[start : start + 64]), torch.tensor(labels[start : start + 64]))
    means, tied, mean, covariance = moments.moments()
    expected = np.array([features[labels == c].mean(0) for c in (0, 2, 4)])
    np.testing.assert_allclose(means, expected, rtol=1e-13)
    np.testing.assert_allclose(mean, features.mean(0), rtol=1e-13)
    np.testing.assert_allclose(covariance, np.cov(features.T, bias=True), rtol=1e-6, atol=1e-9)
    centred = features - expected[labels // 2]
    np.testing.assert_allclose(tied, centred.T @ centred / 500, rtol=1e-6, atol=1e-9)


def test_whitening_gives_the_pseudo_inverse_and_its_distances():
    random = np.random.default_rng(0)
    factor = random.normal(size=(6, 4)) * np.array([10, 1, 0.1, 1e-3])
    covariance = factor @ factor.T  # rank 4
    whiten = whitening(torch.tensor(covariance))
    assert whiten.shape == (4, 6)
    precision = np.linalg.pinv(covariance, hermitian=True, rcond=1e-13)
    np.testing.assert_allclose(whiten.T @ whiten, precision, rtol=1e-6, atol=1e-6 * np.abs(precision).max())
    assert whitening(torch.zeros(3, 3, dtype=torch.float64)).shape == (0, 3)
    points, centres = random.normal(size=(5, 6)), random.normal(size=(3, 6))
    expected = [[sum((p - c) ** 2) for c in centres] for p in points]
    assert_close(squared_distances(torch.tensor(points), torch.tensor(centres)), expected)
