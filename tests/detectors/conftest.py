"""A float64 network whose classes and features are not all alike, and what slow references start from."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from references import CLASSES, TEST, TRAIN, run

import oodbench


@pytest.fixture
def network(make_classifier):
    """A float64 network whose logits spread over three of its four classes, and of which one feature is always 0."""
    classifier = make_classifier(seed=3, dtype=torch.float64)
    with torch.no_grad():
        classifier.module.layer2[1].weight.mul_(3)
        classifier.module.layer2[1].bias[5] = -100.0
        classifier.module.linear.weight.mul_(6)
        features = run(classifier, TRAIN).layers[2]
        classifier.module.linear.bias.copy_(-(features.mean(0) @ classifier.module.linear.weight.T))
        classifier.module.linear.bias[2] -= 20.0
    seen = run(classifier, TRAIN)
    assert sorted(set(seen.logits.argmax(1).tolist())) == [0, 1, 3]
    assert (seen.features[:, 5] == 0).all()
    return classifier


@pytest.fixture
def arrays(network):
    """What the references start from: numpy arrays of the training and test images' logits and features."""
    train, test = run(network, TRAIN), run(network, TEST)
    labels = train.logits.argmax(1)
    labels[::3] = (torch.arange(150) % CLASSES)[::3]  # class 2 is never predicted, so none of its images is correct
    weight, bias = network.weight_and_bias
    return SimpleNamespace(
        labels=labels,
        y=labels.numpy(),
        train_z=train.logits.numpy(),
        train_f=train.features.numpy(),
        z=test.logits.numpy(),
        f=test.features.numpy(),
        weight=weight.numpy(),
        bias=bias.numpy(),
    )


@pytest.fixture
def scores_of(network, arrays):
    def score(name: str, **parameters) -> np.ndarray:
        detector = oodbench.load_detector(name, **parameters)
        return detector.fit(network, TRAIN, arrays.labels, batch_size=32).score(network, TEST, batch_size=5)

    return score
