"""MC dropout: the three uncertainties and the masks against loops over images in Python's own numbers."""

import numpy as np
import pytest
import torch
from torch import nn
from whole_numbers import GOLDEN, mixed

import oodbench
from oodbench.classifier import Classifier
from oodbench.detectors._uncertainty import uncertainties
from oodbench.errors import Unsuitable, UsageError
from oodbench.probe import Probe


def quadrants(dropout: float | None) -> Classifier:
    """Four classes, the bright quadrant of (N, 3, 8, 8); with or without dropout of its own before the head."""
    head = nn.Linear(12, 4)
    with torch.no_grad():
        head.bias.zero_()
        head.weight.copy_(4 * torch.eye(4).repeat(1, 3) - 1)
    layers = [nn.AvgPool2d(4), nn.Flatten(), *([] if dropout is None else [nn.Dropout(dropout)]), head]
    return Classifier(nn.Sequential(*layers), mean=(0.5,) * 3, std=(0.2,) * 3, name="quadrants")


def bright(size: int, seed: int) -> torch.Tensor:
    """One quadrant bright, the rest dark."""
    images = 0.1 * torch.rand(size, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    for row in range(size):
        top, left = 4 * (row // 2 % 2), 4 * (row % 2)
        images[row, :, top : top + 4, left : left + 4] += 0.8
    return images


def by_loops(softmax):
    """(members, N, classes) -> (N, 3), from the definitions."""
    rows = []
    for image in range(softmax.shape[1]):
        members = softmax[:, image]
        mean = [np.mean([p[c] for p in members]) for c in range(members.shape[1])]

        def entropy(p):
            return -sum(value * np.log(value) for value in p if value > 0)

        variance = sum(np.mean([(p[c] - mean[c]) ** 2 for p in members]) for c in range(len(mean)))
        rows.append([entropy(mean), entropy(mean) - np.mean([entropy(p) for p in members]), variance])
    return np.array(rows)


def keep(image: torch.Tensor, seed: int, number: int, place: int, units: int, p: float) -> torch.Tensor:
    """Which units of an image stay on at the dropout of this place (0: the features) of a pass, in Python's whole numbers."""
    pixels = [round(value * 65535) for value in image.flatten().tolist()]
    content = sum(mixed(pixel + n * GOLDEN) for n, pixel in enumerate(pixels, 1))
    key = mixed(mixed(content + mixed(seed)) + (number + 1) * GOLDEN)
    key = mixed(key + place)
    return torch.tensor([(mixed(key + n * GOLDEN) >> 11) / 2**53 >= p for n in range(1, units + 1)])


def test_uncertainties_equal_their_definitions():
    logits = 4 * torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_allclose(uncertainties(logits), by_loops(logits.softmax(2).numpy()), rtol=1e-10)


def test_uncertainties_at_their_ends():
    agreed = torch.tensor([[[1000.0, 0, 0]]]).expand(4, 1, 3)
    assert uncertainties(agreed).tolist() == [[0, 0, 0]]
    split = torch.tensor([[[1000.0, 0]], [[0, 1000.0]]])  # each sure, of different classes
    np.testing.assert_allclose(uncertainties(split), [[np.log(2), np.log(2), 0.5]])
    unsure = torch.zeros(4, 1, 3)
    np.testing.assert_allclose(uncertainties(unsure), [[np.log(3), 0, 0]], atol=1e-15)


def test_without_dropout_features_are_dropped_before_the_head(make_classifier):
    network = make_classifier(dtype=torch.float64)
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    detector = oodbench.load_detector("mc-dropout", passes=4, p=0.3, seed=5)
    features = Probe(network, images, {"features"}).features
    weight, bias = network.weight_and_bias
    softmax = []
    for number in range(4):
        thinned = [row * keep(image, 5, number, 0, 16, 0.3) / 0.7 for image, row in zip(images, features, strict=True)]
        softmax.append([(weight @ row + bias).softmax(0).numpy() for row in thinned])
    actual = detector.statistics(Probe(network, images, detector.signals))
    assert (detector.variants, actual.dtype) == (("mutual-information", "variance"), torch.float64)
    np.testing.assert_allclose(actual, by_loops(np.array(softmax)), rtol=1e-6)
    assert (actual[:, 1:] > 0).all()


def test_the_networks_own_dropout_is_used(monkeypatch):
    detector = oodbench.load_detector("mc-dropout")
    images = bright(8, 0)

    def statistics(network, images=images):
        return detector.statistics(Probe(network, images, detector.signals))

    own, none = statistics(quadrants(0.5)), statistics(quadrants(None))
    assert (own[:, 1:] > 0).any()
    assert not torch.equal(own, statistics(quadrants(0.2)))
    torch.testing.assert_close(own.mean(0), none.mean(0), rtol=0.2, atol=0.02)  # other masks, but of one rate
    classifier = quadrants(0.5)
    weights = classifier.weights_hash
    before = classifier(images)
    statistics(classifier)
    assert classifier.weights_hash == weights
    assert torch.equal(classifier(images), before)  # dropout is off again


@pytest.mark.parametrize("dropout", [None, 0.4])
def test_another_seed_gives_other_masks(dropout):
    detector, other = oodbench.load_detector("mc-dropout"), oodbench.load_detector("mc-dropout", seed=1)
    network, images = quadrants(dropout), torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    one, two = (each.statistics(Probe(network, images, each.signals)) for each in (detector, other))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("dropout", [None, 0.5])
def test_constant_and_extreme_images_are_finite(dropout):
    detector = oodbench.load_detector("mc-dropout")
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8), torch.full((3, 8, 8), 0.5)])
    assert torch.isfinite(detector.statistics(Probe(quadrants(dropout), images, detector.signals))).all()


class Tokens(nn.Module):
    """A transformer layer on the rows of (N, 3, 8, 8), tokens or images first."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed, self.head = nn.Linear(24, 16), nn.Linear(16, 4)
            self.layer = nn.TransformerEncoderLayer(16, 2, 16, dropout=0.3, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, images):
        tokens = self.embed(images.transpose(1, 2).flatten(2))  # (N, 8, 16)
        return self.head(self.layer(tokens).mean(1) if self.batch_first else self.layer(tokens.transpose(0, 1)).mean(0))


@pytest.mark.parametrize("size", [1, 2, 8])  # 8 is also the number of tokens
def test_dropout_whose_masks_would_differ_between_images_does_not_suit(size):
    detector, images = oodbench.load_detector("mc-dropout"), bright(size, 0)
    network = Classifier(Tokens(batch_first=False), name="tokens")
    with pytest.raises(Unsuitable, match=r"^tokens: with dropout, an image's logits depend on the rest of its batch") as error:
        detector.statistics(Probe(network, images, detector.signals))
    assert "\n" not in str(error.value)
    network = Classifier(Tokens(batch_first=True), name="tokens")
    whole = detector.statistics(Probe(network, images, detector.signals))
    alone = [detector.statistics(Probe(network, images[row : row + 1], detector.signals)) for row in range(size)]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-4, atol=1e-6)
    assert (whole[:, 1:] > 0).all()


def test_dropout_of_an_unused_branch_is_none():
    class Auxiliary(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body, self.auxiliary = body, nn.Dropout(0.5)

        def forward(self, images):
            logits = self.body(images)
            return (logits, self.auxiliary(logits)) if self.training else logits

    detector, images = oodbench.load_detector("mc-dropout"), bright(8, 0)
    plain = quadrants(None)
    unused = Classifier(Auxiliary(plain.module), mean=(0.5,) * 3, std=(0.2,) * 3)
    found, wanted = (detector.statistics(Probe(network, images, detector.signals)) for network in (unused, plain))
    assert torch.equal(found, wanted)
    assert (found[:, 1:] > 0).any()


def test_masks_have_the_precision_of_the_network():
    network, images = quadrants(0.3).double(), bright(6, 0).double()
    logits = Probe(network, images, {"stochastic"}).stochastic(1, seed=2)[0]
    features = ((nn.functional.avg_pool2d(images, 4) - 0.5) / 0.2).flatten(1)
    kept = torch.stack([keep(image, 2, 0, 1, 12, 0.3) for image in images])
    expected = nn.functional.linear(features * kept / 0.7, *network.weight_and_bias)
    torch.testing.assert_close(logits, expected, rtol=1e-13, atol=1e-13)
    assert torch.isfinite(Probe(quadrants(1.0), images.float(), {"stochastic"}).stochastic(1)).all()


def test_bad_hyper_parameters_are_refused_by_name():
    with pytest.raises(UsageError, match="mc-dropout: passes = 1; give a whole number from 2 to 1000"):
        oodbench.load_detector("mc-dropout", passes=1)
    for p in (0, 1, -0.5):
        with pytest.raises(UsageError, match=f"mc-dropout: p = {p}; give a finite number between 0 and 1"):
            oodbench.load_detector("mc-dropout", p=p)
