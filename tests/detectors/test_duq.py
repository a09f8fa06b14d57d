"""DUQ: kernels, gradient penalty and training against slow references, and what the frozen network's head tells apart."""

import math

import pytest
import torch
import torch.nn.functional as F
from training import prepared_detector, training_set_of

import oodbench
from oodbench.conformance.task import easy_shift, easy_task, trained_classifier
from oodbench.detectors import duq
from oodbench.errors import BadData, OodbenchError, Unsuitable, UsageError
from oodbench.models.duq import exponents_of, offsets_of
from oodbench.probe import Probe
from oodbench.training_set import TrainingSet

TRAIN, LABELS = easy_task(400, seed=0)
INSIDE, INSIDE_LABELS = easy_task(60, seed=1)
OUTSIDE = easy_shift(60, seed=2)


def training_set(images=TRAIN, labels=LABELS, seed=0):
    return training_set_of(images, labels, seed)


def prepared(classifier, train_set=None, progress=None, **parameters):
    return prepared_detector("duq", classifier, train_set or training_set(), progress, **{"epochs": 30, **parameters})


@pytest.fixture(scope="module")
def classifier():
    return trained_classifier()


@pytest.fixture(scope="module")
def detector(classifier):
    return prepared(classifier)


def kernels(features, embedding, centroids, length_scale):
    """K, one image, one class at a time, by the formula."""
    rows = []
    for feature in features:
        by_class = []
        for matrix, centroid in zip(embedding, centroids, strict=True):
            distance = ((matrix @ feature - centroid) ** 2).mean()
            by_class.append(torch.exp(-distance / (2 * length_scale**2)))
        rows.append(torch.stack(by_class))
    return torch.stack(rows)


@pytest.fixture
def parts():
    """Features (5, 6), embedding (3, 4, 6), centroids (3, 4): kernels between 0 and 1, none of them at the ends."""
    random = torch.Generator().manual_seed(0)
    features, embedding, centroids = (
        torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((5, 6), (3, 4, 6), (3, 4))
    )
    return features, embedding * 0.2, centroids * 0.2


def test_kernels_are_the_formula(parts):
    features, embedding, centroids = parts
    exponents = exponents_of(offsets_of(features, embedding.flatten(0, 1), centroids), 0.5)
    expected = kernels(features, embedding, centroids, 0.5)
    torch.testing.assert_close(torch.exp(-exponents), expected, rtol=1e-12, atol=0)
    assert 0.01 < expected.min() < expected.max() < 0.99


def test_the_gradient_in_closed_form_is_what_autograd_gives(parts):
    features, embedding, centroids = parts
    offsets = offsets_of(features, embedding.flatten(0, 1), centroids)
    found = duq.kernel_gradients(offsets, exponents_of(offsets, 0.5), embedding, 0.5)
    leaf = features.clone().requires_grad_()
    (expected,) = torch.autograd.grad(kernels(leaf, embedding, centroids, 0.5).sum(), leaf)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_the_loss_and_its_gradient_are_those_of_the_paper(parts):
    features, embedding, centroids = parts
    targets = F.one_hot(torch.tensor([0, 1, 2, 0, 1]), 3).double()
    detector = duq.DUQ(length_scale=0.5, penalty=0.3)
    weights = embedding.clone().requires_grad_()
    found = detector._loss(features, targets, weights, centroids)
    leaf, slow = features.clone().requires_grad_(), embedding.clone().requires_grad_()
    outputs = kernels(leaf, slow, centroids, 0.5)
    (by_feature,) = torch.autograd.grad(outputs.sum(), leaf, create_graph=True)
    penalty = ((by_feature.pow(2).sum(1).sqrt() - 1) ** 2).mean()
    expected = F.binary_cross_entropy(outputs, targets) + 0.3 * penalty
    torch.testing.assert_close(found, expected)
    (fast_gradient,), (slow_gradient,) = torch.autograd.grad(found, weights), torch.autograd.grad(expected, slow)
    torch.testing.assert_close(fast_gradient, slow_gradient)


@pytest.mark.parametrize("scale", [0.0, 1e3])
def test_the_loss_has_a_gradient_at_a_centroid_and_far_from_all(parts, scale):
    features, embedding, centroids = parts
    weights = embedding.clone().requires_grad_()
    targets = F.one_hot(torch.tensor([0, 1, 2, 0, 1]), 3).double()
    loss = duq.DUQ()._loss(features * scale, targets, weights, centroids * scale)
    (gradient,) = torch.autograd.grad(loss, weights)
    assert math.isfinite(float(loss.detach()))
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("epochs", "rates"), [(8, [0.01, 0.01, 0.002, 0.002, 4e-4, 4e-4, 8e-5, 8e-5]), (2, [0.01, 4e-4])])
def test_training_takes_the_steps_of_the_paper(epochs, rates):
    """Against a slow loop in float64: the same batches, torch's own SGD and loss, centroids image by image."""
    double = trained_classifier(torch.float64)
    train_set = training_set(TRAIN[:80], LABELS[:80])
    settings = {"length_scale": 0.3, "penalty": 0.5, "gamma": 0.9, "lr": 0.01, "weight_decay": 1e-3, "batch_size": 30}
    found = prepared(double, train_set, epochs=epochs, **settings)
    rows = torch.from_numpy(train_set.rows)
    features = Probe(double, TRAIN[rows].double(), {"features"}).features
    features, labels = features / features.pow(2).mean().sqrt(), LABELS[rows]
    random = torch.Generator().manual_seed(0)
    embedding = (torch.randn(4, 16, 16, generator=random).double() * math.sqrt(2 / (4 * 16))).requires_grad_()
    centroids = (torch.randn(4, 16, generator=random) * 0.05).double()
    counts, sums = torch.full((4,), 13.0).double(), 13 * centroids
    optimizer = torch.optim.SGD([embedding], lr=0.01, momentum=0.9, weight_decay=1e-3)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        for batch in torch.randperm(72, generator=random).tensor_split(3):
            leaf = features[batch].clone().requires_grad_()
            outputs = kernels(leaf, embedding, sums / counts[:, None], 0.3)
            (by_feature,) = torch.autograd.grad(outputs.sum(), leaf, create_graph=True)
            loss = F.binary_cross_entropy(outputs, F.one_hot(labels[batch], 4).double())
            optimizer.zero_grad()
            (loss + 0.5 * ((by_feature.norm(dim=1) - 1) ** 2).mean()).backward()
            optimizer.step()
            counts, sums = 0.9 * counts, 0.9 * sums
            for row in batch.tolist():
                counts[labels[row]] += 0.1
                sums[labels[row]] += 0.1 * (embedding[labels[row]].detach() @ features[row])
    torch.testing.assert_close(found.embedding_, embedding.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.centroids_, sums / counts[:, None], rtol=1e-6, atol=1e-9)


def test_scores_are_one_less_the_largest_kernel(classifier, detector):
    features = Probe(classifier, INSIDE, {"features"}).features.double() / detector.scale_
    outputs = kernels(features, detector.embedding_.double(), detector.centroids_.double(), 0.1)
    found = detector.statistics(Probe(classifier, INSIDE, detector.signals))
    torch.testing.assert_close(found, 1 - outputs.max(1).values, rtol=1e-9, atol=1e-12)
    assert detector.embedding_.shape == (4, 16, 16)
    assert (outputs.argmax(1) == INSIDE_LABELS).float().mean() > 0.95


def test_the_embedding_may_be_narrower_or_wider_than_the_features(classifier):
    for size in (3, 40):
        assert prepared(classifier, epochs=1, embedding_size=size).embedding_.shape == (4, size, 16)


def test_another_seed_trains_another(classifier, detector):
    other = prepared(classifier, TrainingSet(TRAIN, LABELS, training_set().held_out, seed=1))
    assert not torch.equal(other.embedding_, detector.embedding_)


def test_it_says_what_it_needs(classifier):
    with pytest.raises(Unsuitable, match="needs the labels of the training images"):
        prepared(classifier, training_set(labels=None))
    with pytest.raises(BadData, match=r"training labels range from 1 to 4, but tiny has 4 classes"):
        prepared(classifier, training_set(labels=LABELS + 1))
    with pytest.raises(Unsuitable, match="needs a classifier"):
        duq.DUQ().check(None)
    with pytest.raises(Unsuitable, match="has no final linear layer"):
        duq.DUQ().check(oodbench.Classifier(torch.nn.Flatten()))
    with pytest.raises(OodbenchError, match=r"duq: training diverged in epoch 1 .*; lower lr"):
        prepared(classifier, lr=1e30)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"embedding_size": 0}, "embedding_size = 0; give a whole number of at least 1"),
        ({"length_scale": 0}, "length_scale = 0"),
        ({"epochs": 0}, "epochs = 0"),
        ({"penalty": -1}, "penalty = -1"),
        ({"gamma": 1.5}, r"gamma = 1\.5; give a finite number from 0 to 1"),
    ],
)
def test_bad_hyper_parameters_are_refused(parameters, message):
    with pytest.raises(UsageError, match=message):
        oodbench.load_detector("duq", **parameters)
