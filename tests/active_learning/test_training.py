"""The training of a round, and the protocols."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from oodbench.active_learning import training
from oodbench.active_learning.protocol import PROTOCOLS, Protocol
from oodbench.active_learning.training import train
from oodbench.classifier import Classifier
from oodbench.conformance.task import easy_task
from oodbench.errors import OodbenchError
from oodbench.image_set import ImageSet

QUICK = Protocol(
    start=32, query=32, rounds=2, lr=1e-2, batch_size=16, clamp=None,
    until=0.95, restart_every=3, restart_below=0.2, most_epochs=40,
)  # fmt: skip
ROWS = np.arange(0, 96, 2)


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.linear = nn.Linear(8, classes)

    def forward(self, images):
        return self.linear(self.conv(images).mean((2, 3)))


@pytest.fixture(scope="module")
def images():
    found, labels = easy_task(100, seed=0)
    return ImageSet((255 * found).to(torch.uint8), labels, name="easy")


@pytest.fixture
def built(monkeypatch):
    """Every network that training builds, as it was when it was new."""
    found = []

    def build(name, classes, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            classifier = Classifier(Net(classes), mean=(0.5,) * 3, std=(0.25,) * 3, layers=[], name=name)
        found.append(copy.deepcopy(classifier.module.state_dict()))
        return classifier

    monkeypatch.setattr(training, "build", build)
    return found


def trained(images, protocol=QUICK, seed=0, rows=ROWS):
    return train("net", images, rows, protocol, classes=4, seed=seed, device=torch.device("cpu"))


def test_presets_are_those_of_the_authors():
    gauss, badge = PROTOCOLS["gauss"], PROTOCOLS["badge"]
    assert (gauss.start, gauss.query, gauss.rounds) == (128, 1024, int((4000 - 128) / 1024))
    assert (gauss.lr, gauss.batch_size, gauss.clamp) == (1e-3, 128, None)
    assert (gauss.until, gauss.restart_every, gauss.restart_below) == (0.92, 80, 0.2)
    assert (badge.start, badge.query, badge.lr, badge.clamp) == (100, 100, 1e-4, 0.1)
    assert (badge.until, badge.restart_every, badge.restart_below) == (0.99, 1000, 0.2)
    assert [gauss.labelled(number) for number in range(gauss.rounds + 1)] == [128, 1152, 2176, 3200]
    assert gauss.override(query=10, until=None) == Protocol(**vars(gauss) | {"query": 10})


def test_training_ends_with_the_first_epoch_that_is_accurate_enough(images, built):
    found = trained(images)
    assert found.accuracy >= QUICK.until
    assert 1 < found.epochs < QUICK.most_epochs
    before = trained(images, QUICK.override(most_epochs=found.epochs - 1))
    assert before.accuracy < QUICK.until
    assert before.epochs == found.epochs - 1
    assert found.restarts == before.restarts == 0
    assert found.seconds > 0
    assert not any(parameter.requires_grad for parameter in found.classifier.module.parameters())
    assert not found.classifier.module.training


def test_the_accuracy_is_that_of_the_epoch_before_each_step(images, built):
    """With one batch per epoch, the first epoch's accuracy is that of the new network."""
    found = trained(images, QUICK.override(batch_size=len(ROWS), most_epochs=1))
    network = Classifier(Net(4), mean=(0.5,) * 3, std=(0.25,) * 3, layers=[], name="net")
    network.module.load_state_dict(built[0])
    network.module.train()
    right = network(images.read(torch.from_numpy(ROWS)).float() / 255).argmax(1) == images.labels[ROWS]
    assert found.accuracy == pytest.approx(float(right.float().mean()))


def test_training_restarts_with_other_weights_below_the_bound(images, built):
    never = QUICK.override(lr=1e-12, until=1.0, restart_below=1.0, most_epochs=12)
    found = trained(images, never)
    assert found.epochs == 12
    assert found.restarts == len(built) - 1 == 3  # after epochs 3, 6 and 9: after the last one nothing would be trained
    weights = [network["linear.weight"] for network in built]
    assert not any(torch.equal(weights[0], other) for other in weights[1:])
    assert trained(images, never.override(restart_below=0.0)).restarts == 0


def test_a_restart_at_the_last_epoch_would_give_an_untrained_network(images, built):
    found = trained(images, QUICK.override(until=1.0, restart_below=1.0, most_epochs=3))
    assert (found.restarts, len(built)) == (0, 1)
    assert not torch.equal(found.classifier.module.linear.weight, built[0]["linear.weight"])


@pytest.mark.parametrize("clamp", [None, 1e-3])
def test_gradients_are_clamped_entry_by_entry(images, built, monkeypatch, clamp):
    largest = []
    step = torch.optim.Adam.step

    def watched(self, *arguments):
        largest.append(max(float(p.grad.abs().max()) for group in self.param_groups for p in group["params"]))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    trained(images, Protocol(**vars(QUICK) | {"clamp": clamp, "most_epochs": 2}))
    assert len(largest) == 2 * -(-len(ROWS) // QUICK.batch_size)
    assert max(largest) > 0.01 if clamp is None else max(largest) == pytest.approx(clamp)


def test_the_same_seed_gives_the_same_weights(images, built):
    torch.rand(3)
    once = trained(images).classifier.module.state_dict()
    before = torch.get_rng_state()
    again, other = trained(images).classifier.module.state_dict(), trained(images, seed=1).classifier.module.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["linear.weight"], other["linear.weight"])
    assert not torch.equal(built[0]["linear.weight"], built[-1]["linear.weight"])


def test_only_the_given_rows_are_learnt(images, built):
    other = ImageSet(images.images.clone(), images.labels.clone(), name="other")
    left = np.setdiff1d(np.arange(len(images)), ROWS)
    other.images[left], other.labels[left] = 0, 0
    assert torch.equal(trained(images).classifier.module.linear.weight, trained(other).classifier.module.linear.weight)


def test_no_batch_has_a_single_image(images, built):
    """BatchNorm of one image raises; 49 images in batches of 16 would leave one over."""
    sizes = []
    read = ImageSet.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageSet, "read", lambda self, rows: sizes.append(len(rows)) or read(self, rows))
        trained(images, QUICK.override(most_epochs=1), rows=np.arange(49))
    assert sorted(sizes) == [12, 12, 12, 13]


def test_a_loss_that_is_not_finite_is_one_line(images, built):
    with pytest.raises(OodbenchError, match=r"^training net diverged \(loss (nan|inf)\); lower lr, now 1e\+30$"):
        trained(images, Protocol(**vars(QUICK) | {"lr": 1e30, "until": 1.0}))
