"""The untrained control: purview's columns of a network that is initialised anew, by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from training import prepared_detector, training_set_of

import oodbench
from oodbench.errors import BadData, Unsuitable
from oodbench.probe import Probe

TRAIN = torch.rand(300, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TEST = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def by_hand(classifier, train_set):
    """A copy with new weights, whose BatchNorm has the mean statistics of the two batches of ``train_set``."""
    copied = copy.deepcopy(classifier)
    torch.manual_seed(train_set.seed)
    for part in copied.module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    norms = [part for part in copied.module.modules() if isinstance(part, nn.BatchNorm2d)]
    inputs = {norm: [] for norm in norms}
    hooks = [norm.register_forward_pre_hook(lambda norm, given: inputs[norm].append(given[0])) for norm in norms]
    for norm in norms:
        norm.train()
    order = np.random.default_rng(train_set.seed).permutation(train_set.rows)
    images = train_set.images[torch.from_numpy(order)]
    for batch in images.tensor_split(2):
        copied(batch)
    copied.module.eval()
    for norm, hook in zip(norms, hooks, strict=True):
        hook.remove()
        norm.running_mean = torch.stack([given.mean((0, 2, 3)) for given in inputs[norm]]).mean(0)
        norm.running_var = torch.stack([given.transpose(0, 1).flatten(1).var(1) for given in inputs[norm]]).mean(0)
    return copied


def test_it_is_purview_of_the_network_with_new_weights(classifier):
    train_set = training_set_of(TRAIN, None, seed=5)
    before = classifier.weights_hash
    detector = prepared_detector("untrained", classifier, train_set, label=0.5)
    with torch.inference_mode():  # as in a run in which no other detector needs a gradient
        found = detector.statistics(Probe(classifier, TEST, detector.signals))
    with torch.random.fork_rng():
        copied = by_hand(classifier, train_set)
    purview = oodbench.load_detector("purview", label=0.5)
    expected = purview.statistics(Probe(copied, TEST, purview.signals))[:, :-2]  # without its variants
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert classifier.weights_hash == before
    assert not torch.allclose(found, purview.statistics(Probe(classifier, TEST, purview.signals))[:, :-2], atol=0.1)


def test_another_seed_gives_other_weights_and_it_says_nothing_of_the_trained_ones(make_classifier):
    found = []
    for weights, seed in ((0, 1), (7, 1), (0, 2)):
        classifier = make_classifier(seed=weights)
        detector = prepared_detector("untrained", classifier, training_set_of(TRAIN, None, seed))
        found.append(detector.statistics(Probe(classifier, TEST, detector.signals)))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=0.1)


def test_without_batch_norm_and_with_few_images():
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 3))
    detector = prepared_detector("untrained", oodbench.Classifier(network), training_set_of(TRAIN[:3], None))
    assert torch.isfinite(detector.statistics(Probe(oodbench.Classifier(network), TEST, detector.signals))).all()


def test_what_cannot_be_initialised_anew_is_unsuitable():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.linear = nn.Parameter(torch.ones(1)), nn.Linear(192, 3)

        def forward(self, images):
            return self.linear(images.flatten(1)) * self.scale

    with pytest.raises(Unsuitable, match="cannot give network new random weights: Scaled has no reset_parameters for 'scale'"):
        oodbench.load_detector("untrained").check(oodbench.Classifier(Scaled(), name="network"))
    with pytest.raises(Unsuitable, match="needs a classifier, and this suite has none"):
        oodbench.load_detector("untrained").check(None)


def test_another_network_is_refused(classifier):
    detector = prepared_detector("untrained", classifier, training_set_of(TRAIN, None))
    other = oodbench.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    with pytest.raises(BadData, match="another architecture than this classifier; fit it again"):
        detector.statistics(Probe(other, TEST, detector.signals))
