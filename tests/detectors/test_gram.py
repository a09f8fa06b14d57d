"""Gram: row sums against the Gram matrix itself, and the score against a loop over images, layers, powers and channels."""

import numpy as np
import pytest
import torch

import oodbench
from oodbench import protocols
from oodbench.detectors.gram import row_sums
from oodbench.errors import Unsuitable
from oodbench.probe import Probe


def smooth(size: int, seed: int) -> torch.Tensor:
    """Smooth random images (size, 3, 8, 8), float32."""
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.rand(size, 3, 3, 3, generator=random), size=8, mode="bilinear")


TRAIN, TEST = smooth(150, 0), smooth(12, 1)
HELD_OUT = protocols.held_out(150, None, 0)


@pytest.fixture
def network(make_classifier):
    """A float64 network that predicts three of its four classes; one channel of its last layer is dead."""
    classifier = make_classifier(seed=3, dtype=torch.float64)
    module = classifier.module
    with torch.no_grad():
        module.layer2[1].weight.mul_(3)
        module.layer2[1].bias[5] = -100.0
        module.linear.weight.mul_(6)
        module.linear.bias.copy_(-(run(classifier, TRAIN)[0][2].mean((2, 3)).mean(0) @ module.linear.weight.T))
        module.linear.bias[2] -= 20.0
    assert set(run(classifier, TRAIN)[1].argmax(1).tolist()) == {0, 1, 3}
    return classifier


def run(network, images):
    """Maps [(N, C, H, W)] and logits, by hand."""
    module = network.module
    stem = module.conv1((images.double() - 0.5) / 0.25)
    first = module.layer1(stem.relu())
    second = module.layer2(first)
    return [stem, first, second], module.linear(second.mean((2, 3)))


def correlations(channels, powers=5):
    """One map (C, H, W) -> g (powers, C), through the Gram matrix."""
    flat = channels.reshape(len(channels), -1)
    found = []
    for r in range(1, powers + 1):
        gram = (flat**r) @ (flat**r).T
        sums = [sum(row) for row in gram]
        found.append([np.sign(s) * abs(s) ** (1 / r) for s in sums])
    return np.array(found)


def deviation(g, low, high):
    total = 0.0
    for value, m, most in zip(g.ravel(), low.ravel(), high.ravel(), strict=True):
        total += max(0, m - value) / abs(m + 1e-6) + max(0, value - most) / abs(most + 1e-6)
    return total


@pytest.fixture
def reference(network):
    """g of every image and layer, and the scores of TEST, by loops."""

    def read(images):
        maps, logits = run(network, images)
        return [[correlations(layer[row].numpy()) for layer in maps] for row in range(len(images))], logits.numpy()

    train, logits = read(TRAIN)
    predicted = logits.argmax(1)
    bounds = {}
    for c in range(4):
        rows = [r for r in range(150) if not HELD_OUT[r] and predicted[r] == c]
        rows = rows or [r for r in range(150) if not HELD_OUT[r]]  # class 2: none is predicted as it
        stacked = [np.stack([train[r][layer] for r in rows]) for layer in range(3)]
        bounds[c] = [(g.min(0), g.max(0)) for g in stacked]

    def deviations(g, c):
        return np.array([deviation(g[layer], *bounds[c][layer]) for layer in range(3)])

    expected = np.mean([deviations(train[r], predicted[r]) for r in np.flatnonzero(HELD_OUT)], 0)

    def score(images):
        read_images, logits = read(images)
        scores = []
        for g, z in zip(read_images, logits, strict=True):
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            scores.append((deviations(g, z.argmax()) / expected).sum() / p.max())
        return np.array(scores)

    return score, expected


@pytest.mark.parametrize("powers", [1, 5, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_sums_are_those_of_the_gram_matrix(dtype, powers):
    maps = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = maps.clone()
    expected = np.stack([correlations(image.double().numpy(), powers).ravel() for image in maps])
    np.testing.assert_allclose(row_sums(maps, powers), expected, rtol=1e-10)
    assert torch.equal(maps, before)
    np.testing.assert_allclose(
        row_sums(maps[:, :, 0, 0], 5), [correlations(v[:, 0, :1].double().numpy()).ravel() for v in maps]
    )


def test_row_sums_neither_overflow_nor_vanish():
    maps = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    for scale in (1e-30, 1e-15, 1e15, 1e30):
        np.testing.assert_allclose(row_sums(maps * scale, 5) / scale**2, row_sums(maps, 5), rtol=1e-4)
    assert (row_sums(torch.zeros(2, 5, 16), 5) == 0).all()


@pytest.mark.parametrize("batch_size", [1, 7, 32, 150])
def test_scores_equal_a_loop_over_images(network, reference, batch_size):
    score, expected = reference
    detector = oodbench.load_detector("gram").fit(network, TRAIN, batch_size=batch_size)
    np.testing.assert_allclose(detector.expected_, expected, rtol=1e-9)
    scores = detector.score(network, TEST, batch_size=5)
    np.testing.assert_allclose(scores, score(TEST), rtol=1e-8)
    assert (scores > 0).any()
    np.testing.assert_allclose([detector.score(network, TEST[r : r + 1])[0] for r in range(12)], scores, rtol=1e-9)


def test_powers_are_those_asked_for(network):
    assert oodbench.load_detector("gram", powers=5).non_default() == {}
    few, many = (oodbench.load_detector("gram", powers=powers).fit(network, TRAIN) for powers in (1, 10))
    assert [10 * width for width in few.widths_] == many.widths_
    first = torch.cat([part[:, :width] for part, width in zip(many.low_.split(many.widths_, 1), few.widths_, strict=True)], 1)
    torch.testing.assert_close(first, few.low_)
    assert (many.score(network, TEST) != few.score(network, TEST)).any()


def test_a_class_that_none_is_predicted_as_has_the_bounds_of_all(network):
    detector = oodbench.load_detector("gram").fit(network, TRAIN)
    assert (detector.low_[2] == detector.low_.min(0).values).all()
    assert (detector.high_[2] == detector.high_.max(0).values).all()
    dark = TEST * 0.1
    with torch.no_grad():  # now it is predicted
        network.module.linear.bias[2] += 1000.0
    probe = Probe(network, dark.double(), {"logits", "maps"})
    assert (probe.prediction == 2).all()
    maps = run(network, dark)[0]
    for row in range(3):
        g = [correlations(layer[row].numpy()) for layer in maps]
        whole = [
            deviation(values, low, high)
            for values, low, high in zip(
                g,
                detector.low_[2].split(detector.widths_),
                detector.high_[2].split(detector.widths_),
                strict=True,
            )
        ]
        np.testing.assert_allclose(detector.statistics(probe)[row], (np.array(whole) / detector.expected_.numpy()).sum())


def test_of_held_out_images_only_what_lies_outside_is_kept(network):
    detector = oodbench.load_detector("gram")
    for start in range(0, 150, 10):
        rows = slice(start, start + 10)
        detector.observe(Probe(network, TRAIN[rows].double(), detector.signals, held_out=torch.from_numpy(HELD_OUT[rows])))
    kept = len(detector._outside)
    assert 0 < kept < HELD_OUT.sum() * sum(detector._widths) / 4


def test_training_images_within_the_bounds_score_nothing(network):
    detector = oodbench.load_detector("gram").fit(network, TRAIN)
    np.testing.assert_allclose(detector.score(network, TRAIN[~HELD_OUT]), 0, atol=1e-9)


def test_activations_whose_tenth_power_float32_does_not_hold_have_finite_scores(make_classifier):
    network = make_classifier(seed=3)
    detector = oodbench.load_detector("gram").fit(network, TRAIN)
    with torch.no_grad():  # activations of 1e9
        network.module.conv1.weight.mul_(1e9)
    assert np.isfinite(detector.score(network, torch.cat([TEST, torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)]))).all()


def test_images_that_are_all_alike_are_no_trouble(network):
    constant = torch.full((40, 3, 8, 8), 0.5)
    detector = oodbench.load_detector("gram").fit(network, constant)
    scores = detector.score(network, torch.cat([constant[:2], torch.zeros(1, 3, 8, 8)]))
    assert np.isfinite(scores).all()
    assert scores[2] > scores[0]


def test_what_cannot_be_done_is_said(network):
    with pytest.raises(Unsuitable, match="saw no training images to fit on"):
        oodbench.load_detector("gram").fit(network, TRAIN[:1])


def test_a_layer_whose_held_out_images_stay_within_its_bounds_does_not_outweigh_all(make_classifier):
    network = make_classifier(seed=3, dtype=torch.float64)
    few = TRAIN[:10].repeat(40, 1, 1, 1)  # held-out images are those that were fitted on
    detector = oodbench.load_detector("gram").fit(network, few)
    assert detector.expected_.tolist() == [1, 1, 1]
    probe = Probe(network, TEST.double(), detector.signals)
    values = torch.cat([row_sums(layer, 5) for layer in probe.maps], 1)
    classes = probe.prediction
    low, high = detector.low_[classes], detector.high_[classes]
    deltas = (low - values).clamp_min(0) / (low + 1e-6).abs() + (values - high).clamp_min(0) / (high + 1e-6).abs()
    np.testing.assert_allclose(detector.score(network, TEST), deltas.sum(1) / probe.softmax.max(1).values)
    assert (detector.score(network, few) == 0).all()
