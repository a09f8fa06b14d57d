"""DDU: the density against scipy's Gaussians, one image at a time, and covariances that are singular."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import oodbench
from oodbench import protocols
from oodbench.detectors import ddu
from oodbench.detectors._moments import ClassCovariances
from oodbench.errors import Unsuitable

D = 16


def smooth(size: int, seed: int) -> torch.Tensor:
    """Smooth random images (size, 3, 8, 8), float32."""
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.rand(size, 3, 3, 3, generator=random), size=8, mode="bilinear")


TRAIN, LABELS, TEST = smooth(300, 0), torch.arange(300) % 3, smooth(12, 1)  # the fourth class has no images


@pytest.fixture
def network(make_classifier):
    return make_classifier(seed=3, dtype=torch.float64)


def features_of(network, images):
    module = network.module
    stem = module.conv1((images.double() - 0.5) / 0.25)
    return module.layer2(module.layer1(stem.relu())).mean((2, 3)).numpy()


def expected_scores(train, labels, test, jitter=0.0):
    kept = ~protocols.held_out(len(train), labels, 0)
    gaussians = [
        multivariate_normal(
            train[kept & (labels == c)].mean(0), np.cov(train[kept & (labels == c)].T) + jitter * np.eye(train.shape[1])
        )
        for c in np.unique(labels)
    ]
    return [-logsumexp([gaussian.logpdf(row) for gaussian in gaussians]) for row in test]


def test_scores_equal_scipys_densities(network):
    detector = oodbench.load_detector("ddu").fit(network, TRAIN, LABELS, batch_size=32)
    assert detector.jitter_ == 0
    assert [tuple(of_class.shape) for of_class in detector.whitening_] == [(D, D)] * 3
    expected = expected_scores(features_of(network, TRAIN), LABELS.numpy(), features_of(network, TEST))
    np.testing.assert_allclose(detector.score(network, TEST, batch_size=5), expected, rtol=1e-8)


def test_a_dead_feature_takes_the_smallest_jitter_that_works(network):
    with torch.no_grad():
        network.module.layer2[1].bias[5] = -100.0
    train, labels = features_of(network, TRAIN), LABELS.numpy()
    assert (train[:, 5] == 0).all()
    kept = ~protocols.held_out(len(train), labels, 0)
    variances = np.concatenate([np.linalg.eigvalsh(np.cov(train[kept & (labels == c)].T)) for c in range(3)])

    def works(jitter):
        return variances.min() + jitter >= 1e-10 * (variances.max() + jitter)

    jitter = next(value for value in [0.0, *(10.0**power for power in range(-30, 5))] if works(value))
    assert jitter > 0
    detector = oodbench.load_detector("ddu").fit(network, TRAIN, LABELS)
    assert detector.jitter_ == pytest.approx(jitter)
    expected = expected_scores(train, labels, features_of(network, TEST), jitter)
    np.testing.assert_allclose(detector.score(network, TEST), expected, rtol=1e-6)


@pytest.mark.parametrize("per_class", [6, 100])
def test_fewer_images_than_features_are_no_trouble_and_no_batch_size_matters(network, per_class):
    size = 3 * per_class
    scores = [
        oodbench.load_detector("ddu").fit(network, TRAIN[:size], LABELS[:size], batch_size=batch).score(network, TEST)
        for batch in (1, 7, 300)
    ]
    np.testing.assert_allclose(scores[1:], [scores[0]] * 2, rtol=1e-5)
    detector = oodbench.load_detector("ddu").fit(network, TRAIN[:size], LABELS[:size])
    alone = [detector.score(network, TEST[row : row + 1])[0] for row in range(12)]
    np.testing.assert_allclose(alone, scores[2], rtol=1e-5)


@pytest.mark.parametrize(
    ("smallest", "largest", "jitter"),
    [
        (1.0, 1.0, 0),
        (1e-10, 1.0, 0),
        (0.95e-10, 1.0, 1e-11),
        (0.0, 1.0, 1e-9),
        (0.0, 0.9, 1e-10),
        (-1e-17, 0.9, 1e-10),
        (0.0, 5e20, 1e11),
    ],
)
def test_smallest_jitter(smallest, largest, jitter):
    assert ddu.smallest_jitter(smallest, largest) == pytest.approx(jitter, rel=1e-12)


def test_streamed_covariances_are_numpys_far_from_the_origin():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 500) * 2
    features = 1e6 + random.normal(size=(500, 6)) * np.array([1, 1e-2, 5, 1, 1, 0]) + labels[:, None]
    streamed = ClassCovariances()
    for start in range(0, 500, 50):
        streamed.add(torch.tensor(features[start : start + 50]), torch.tensor(labels[start : start + 50]))
    for label, (mean, covariance) in zip((0, 2, 4), streamed.take(), strict=True):
        np.testing.assert_allclose(mean, features[labels == label].mean(0), rtol=1e-13)
        expected = np.cov((features[labels == label] - 1e6).T)
        np.testing.assert_allclose(covariance, expected, rtol=1e-6, atol=1e-9)
        assert (covariance[5] == 0).all()


def test_what_cannot_be_done_is_said(network):
    with pytest.raises(Unsuitable, match="needs the labels of the training images"):
        oodbench.load_detector("ddu").fit(network, TRAIN)
    labels = torch.zeros(40, dtype=torch.int64)
    labels[39] = 2
    assert not protocols.held_out(40, labels.numpy(), 0)[39]
    with pytest.raises(Unsuitable, match=r"^class 2 has one training image that is not held out, but a covariance needs 2"):
        oodbench.load_detector("ddu").fit(network, TRAIN[:40], labels)
    with pytest.raises(Unsuitable, match="the features of training images do not vary within any class"):
        oodbench.load_detector("ddu").fit(network, torch.full((40, 3, 8, 8), 0.5), torch.arange(40) % 2)
