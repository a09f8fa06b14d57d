"""What strategies see: features and probabilities of the network, or of H, with and without dropout."""

import numpy as np
import pytest
import torch
from pools import network_pool, outputs
from torch import nn

from oodbench.active_learning.pool import Pool, outputs_of
from oodbench.conformance.task import easy_task, trained_classifier
from oodbench.detector import load_detector
from oodbench.image_set import ImageSet
from oodbench.probe import Probe
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet


@pytest.fixture(scope="module")
def images() -> TrainingSet:
    found, labels = easy_task(300, seed=0)
    stored = ImageSet((255 * found).to(torch.uint8), labels, name="easy")
    held_out = np.arange(300) >= 120  # 120 labelled images
    return TrainingSet(stored, labels, held_out, seed=4)


@pytest.fixture(scope="module")
def classifier():
    return trained_classifier()


def fitted(images, classifier, loss="mse"):
    detector = load_detector("introspective", epochs=15, lr=0.005, loss=loss)
    detector.prepare(images, classifier, Progress())
    return detector


def pool_of(images, classifier, introspective=None):
    left, rows = np.flatnonzero(images.held_out), images.rows
    parts = (outputs_of(images, classifier, of, batch_size=64) for of in (left, rows))
    return Pool(*parts, classifier.head, introspective)


def test_feed_forward_features_and_probabilities_are_the_networks(images, classifier):
    pool = pool_of(images, classifier)
    batch = images.images.read(torch.arange(120, 300)).float() / 255
    probe = Probe(classifier, batch, ("features", "logits"))
    with torch.no_grad(), probe.mode():
        assert pool.features.dtype == np.float32
        np.testing.assert_allclose(pool.features, probe.features, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(pool.probabilities, probe.logits.double().softmax(1), rtol=1e-5)
    assert len(pool) == 180
    assert pool.labelled.shape == (120, classifier.head.in_features)


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_introspective_features_and_probabilities_are_those_of_the_detector(images, classifier, loss):
    detector = fitted(images, classifier, loss)
    pool = pool_of(images, classifier, detector)
    batch = images.images.read(torch.arange(120, 300)).float() / 255
    probe = Probe(classifier, batch, detector.declared_signals)
    with probe.mode(), torch.no_grad():
        np.testing.assert_allclose(pool.probabilities, detector.probabilities(probe), rtol=1e-4, atol=1e-7)
    assert pool.features.shape == (180, 100)
    assert pool.labelled.shape == (120, 100)


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_introspective_features_equal_a_slow_reference_in_double_precision(images, classifier, loss):
    """r_x by autograd of the last layer, image by image, and H as its layers say."""
    detector = fitted(images, classifier, loss)
    pool, given = pool_of(images, classifier, detector), outputs_of(images, classifier, np.flatnonzero(images.held_out))
    weights = [w.double() for w in detector.weights_]
    weight, bias = (w.detach().double() for w in (classifier.head.weight, classifier.head.bias))
    classes = len(bias)
    for row in range(0, 180, 9):
        last = weight.clone().requires_grad_()
        logits = last @ torch.from_numpy(given.features[row]).double() + bias
        if loss == "mse":
            energy = ((logits - detector.target_) ** 2).mean()
        else:
            energy = -logits.log_softmax(0).sum()
        (gradient,) = torch.autograd.grad(energy, last)
        r = gradient.flatten() / gradient.norm()  # (classes · d,)
        hidden = weights[2] @ (weights[0] @ r + weights[1]).sigmoid() + weights[3]
        expected = (weights[4] @ hidden.sigmoid() + weights[5]).softmax(0)
        assert expected.shape == (classes,)
        np.testing.assert_allclose(pool.features[row], hidden.sigmoid(), rtol=1e-5)
        np.testing.assert_allclose(pool.probabilities[row], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bias", [True, False])
def test_dropout_keeps_the_mean_of_the_logits(bias):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Linear(16, 4, bias=bias)
    head.weight.data /= 50  # so that the softmax is nearly linear
    pool = network_pool(images=5000, head=head)  # in two blocks
    passes, p = 300, 0.4
    drawn = np.stack(list(pool.dropped(passes, p, np.random.default_rng(0))))
    mean, error = drawn.mean(0), drawn.std(0) / passes**0.5
    assert (abs(mean - pool.probabilities) < 5.5 * error + 2e-4).all()
    spread = drawn.std(0).mean()
    wider = np.stack(list(pool.dropped(passes, 0.8, np.random.default_rng(0)))).std(0).mean()
    assert wider / spread == pytest.approx(((0.8 / 0.2) / (0.4 / 0.6)) ** 0.5, rel=0.05)  # sd of a feature: (p / (1 − p))^½


def test_dropout_passes_equal_a_loop():
    """The share of dropped features, by a head from which each feature can be read."""
    head = nn.Linear(6, 6)
    head.weight.data, head.bias.data = torch.eye(6), torch.zeros(6)
    given = outputs(50, head, 1)
    given.features[:], given.logits[:] = 1, 1
    pool = Pool(given, given, head)
    one, other = pool.dropped(2, 0.25, np.random.default_rng(7))
    assert (one != other).any()
    logs = np.log(np.concatenate([one, other]))
    kept = logs - logs.min(1, keepdims=True)  # 0 where dropped, 1 / (1 − p) where kept, unless all are the same
    mixed = kept.max(1) > 0
    assert set(kept[mixed].round(5).ravel()) == {0.0, round(1 / 0.75, 5)}
    assert (kept[mixed] == 0).mean() == pytest.approx(0.25, abs=0.08)


def test_dropout_depends_on_the_generator_alone():
    pool = network_pool()
    first, again, other = (list(pool.dropped(3, 0.4, np.random.default_rng(seed))) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


def test_dropout_of_introspective_features_goes_through_the_network_and_h(images, classifier):
    detector = fitted(images, classifier)
    pool = pool_of(images, classifier, detector)
    (found, _) = pool.dropped(2, 0.4, np.random.default_rng(2))
    given = outputs_of(images, classifier, np.flatnonzero(images.held_out))
    generator = torch.Generator().manual_seed(int(np.random.default_rng(2).integers(2**63)))
    features = torch.from_numpy(given.features) * (torch.rand(given.features.shape, generator=generator) >= 0.4) / 0.6
    with torch.no_grad():
        expected = detector.classes(features, classifier.head(features)).softmax(1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
    assert not np.allclose(found, pool.probabilities, atol=1e-3)
