"""Networks that detectors train: trained once for the same inputs, the same from the cache, and never a crash of it."""

import importlib
import sys
from dataclasses import replace
from functools import partial

import new_process
import numpy as np
import pytest
import torch
from flips import flipped
from heard import Heard
from torch import nn

import oodbench
from oodbench import protocols, state
from oodbench.errors import BadData, NotFitted, OodbenchError
from oodbench.image_set import ImageSet
from oodbench.paths import cache_root
from oodbench.progress import Progress
from oodbench.training_cache import key_of, prepare
from oodbench.training_set import TrainingSet


class Trains(oodbench.Detector):
    """Distance to a noisy mean of training images, in a random direction."""

    signals = ("images",)
    name = "trains"
    trained: list[int] = []  # noqa: RUF012  # how many images each training saw

    def __init__(self, noise=0.1, bins=(1, 2)):
        self.noise, self.bins = noise, bins

    def prepare(self, train_set, classifier, progress):
        progress.expect(len(train_set))
        rows = train_set.rows[torch.randperm(len(train_set.rows)).numpy()]
        images = torch.cat([batch for _, batch in train_set.batches(rows, 7, classifier)]).double()
        weight = torch.zeros(images[0].numel(), dtype=torch.double, requires_grad=True)
        (weight @ images.flatten(1).T).sum().backward()  # gradients are to be had
        Trains.trained.append(len(images))
        self.mean_ = weight.grad / len(images) + self.noise * torch.randn(len(weight), dtype=torch.double)
        self.parts_ = [torch.randn(2), torch.arange(3)]
        self.epochs_ = 3
        self.note = "not to be kept"

    def statistics(self, probe):
        assert not hasattr(self, "note")
        return (probe.images.double().flatten(1) - self.mean_).norm(dim=1) + self.parts_[0].sum()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Trains, "trained", [])
    return tmp_path / "cache" / "prepared"


@pytest.fixture
def images():
    return torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def train_set(images):
    labels = torch.arange(40) % 4
    return TrainingSet(images, labels, protocols.held_out(40, labels.numpy(), 0))


def test_fit_trains_once_and_scores_alike_from_the_cache(classifier, images, cache):
    first = Trains().fit(classifier, images)
    assert Trains.trained == [36]  # not the held-out tenth
    assert [path.name.startswith("trains-") for path in cache.iterdir()] == [True]
    second = Trains().fit(classifier, images)
    assert Trains.trained == [36]
    np.testing.assert_array_equal(first.score(classifier, images), second.score(classifier, images))
    assert state.fitted_state(first).keys() == state.fitted_state(second).keys() == {"mean_", "parts_", "epochs_"}
    assert second.epochs_ == 3
    for file in cache.iterdir():
        file.unlink()
    third = Trains().fit(classifier, images)
    assert Trains.trained == [36, 36]
    np.testing.assert_array_equal(first.score(classifier, images), third.score(classifier, images))


def test_training_draws_from_its_seed_and_leaves_the_global_generator_alone(classifier, train_set, cache):
    found = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 5)):
        for file in cache.glob("*"):
            file.unlink()
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        detector = Trains()
        with torch.inference_mode():
            prepare(detector, classifier, replace(train_set, seed=seed), Progress())
        assert torch.equal(torch.get_rng_state(), before)
        found.append(detector.mean_)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_the_key_is_all_that_decides(make_classifier, train_set):
    classifier = make_classifier()

    class Other(Trains):
        """Another class."""

    def key(detector=None, classifier=classifier, **changes):
        return key_of(detector or Trains(), classifier, replace(train_set, **changes))

    same = [
        key(), key(Trains(noise=0.1)), key(Trains(bins=[1, 2])), key(images=train_set.images.clone()), key(data="elsewhere")
    ]  # fmt: skip
    assert len(set(same)) == 1
    changed, relabelled, others = train_set.images.clone(), train_set.labels.clone(), train_set.held_out.copy()
    changed[39, 2, 7, 7] += 1 / 255
    relabelled[0] += 1
    others[0] = ~others[0]
    stored = ImageSet((train_set.images * 255).to(torch.uint8))
    different = [
        key(Trains(noise=0.2)), key(Other()), key(classifier=make_classifier(1)), key(classifier=None), key(images=changed),
        key(images=train_set.images.double()), key(images=stored), key(images=stored.images), key(labels=relabelled),
        key(labels=None), key(held_out=others), key(seed=1), key(images=replace(stored, flips=False)),
    ]  # fmt: skip
    assert len({*same, *different}) == 1 + len(different)


def test_an_edited_plugin_trains_anew(tmp_path, monkeypatch, classifier, train_set):
    monkeypatch.syspath_prepend(tmp_path)
    text = '"""Mine."""\nimport oodbench\n\n\nclass Mine(oodbench.Detector):\n    """Mine."""\n\n    rate = 1  # half\n'
    keys = []
    for version in (text, text.replace("# half", "# of all"), text.replace("= 1", "= 25")):
        (tmp_path / "mine.py").write_text(version)
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        keys.append(key_of(importlib.import_module("mine").Mine(), classifier, train_set))
    assert keys[0] == keys[1]  # a comment
    assert keys[0] != keys[2]
    del sys.modules["mine"]


class Functional(nn.Module):
    """An activation that no weight and no repr tells."""

    def __init__(self, activation, gain=1.0, offset=None):
        super().__init__()
        self.first, self.last = nn.Linear(192, 6), nn.Linear(6, 4)
        self.activation, self.gain = activation, gain
        self.register_buffer("offset", torch.zeros(6) if offset is None else offset, persistent=False)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.fill_(0.01 * (number + 1))

    def forward(self, images):
        return self.last(self.activation(self.gain * self.first(images.flatten(1)) + self.offset))


class Squared(Functional):
    """The same structure and weights, another forward."""

    def forward(self, images):
        return super().forward(images) ** 2


def test_networks_of_the_same_weights_are_told_apart(train_set):
    def stacked(activation):
        layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), activation, nn.Linear(6, 4))
        with torch.no_grad():
            for parameter in layers.parameters():
                parameter.fill_(0.1)
        return oodbench.Classifier(layers)

    def functional(*arguments, kind=Functional, **names):
        return oodbench.Classifier(kind(*arguments), name="net", **names)

    two = partial(nn.functional.leaky_relu, negative_slope=0.2)
    networks = [
        stacked(nn.ReLU()), stacked(nn.Tanh()), functional(torch.tanh), functional(torch.relu), functional(lambda x: x * 2),
        functional(lambda x: x * 3), functional(two), functional(partial(two, negative_slope=0.1)), functional(torch.tanh, 2.0),
        functional(torch.tanh, 1.0, torch.ones(6)), functional(torch.tanh, kind=Squared), functional(torch.tanh, head="first"),
        functional(torch.tanh, layers=["first"]),
    ]  # fmt: skip
    weights = {network.weights_hash for network in networks}
    assert len(weights) == 2
    keys = [key_of(Trains(), network, train_set) for network in networks]
    assert len(set(keys)) == len(keys)
    again = [stacked(nn.ReLU()), functional(torch.tanh), functional(partial(nn.functional.leaky_relu, negative_slope=0.2))]
    assert [key_of(Trains(), network, train_set) for network in again] == [keys[0], keys[2], keys[6]]


def test_a_key_is_the_same_in_another_process(train_set):
    code = (
        "import torch, oodbench\nfrom torch import nn\nfrom oodbench import code_hash\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__(); self.act, self.names, self.own = torch.relu, {'a': 1}, object()\n"
        "    def forward(self, x):\n        return ACT(x)\n"
        "print(code_hash.of_network(oodbench.Classifier(Net())))\n"
    )

    def printed(text):
        done = new_process.python(text)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert printed(code) == printed(code) != printed(code.replace("ACT", "torch.tanh"))


def test_the_device_decides(monkeypatch, classifier, train_set):
    before = key_of(Trains(), classifier, train_set)
    monkeypatch.setattr(oodbench.Classifier, "device", torch.device("meta"))
    assert key_of(Trains(), classifier, train_set) != before


def test_an_edited_helper_trains_anew(tmp_path, monkeypatch, classifier, train_set):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "helped"
    package.mkdir()
    (package / "__init__.py").touch()
    text = (
        "import oodbench\nfrom . import _rates\nfrom helped._more import x\n\n\nclass Mine(oodbench.Detector):\n    rate = 1\n"
    )
    (package / "mine.py").write_text(text)
    keys = []
    for rate, deep in ((1, 1), (2, 1), (2, 2), (2, 2)):
        (package / "_rates.py").write_text(f"rate = {rate}\n")
        (package / "_more.py").write_text("from ._deep import x\n")
        (package / "_deep.py").write_text(f"x = {deep}  # {len(keys)}\n")
        for name in [name for name in sys.modules if name.split(".")[0] == "helped"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        keys.append(key_of(importlib.import_module("helped.mine").Mine(), classifier, train_set))
    assert len(set(keys)) == 3
    assert keys[2] == keys[3]


@pytest.mark.parametrize("damage", ["truncated", "empty", "another key", "hostile"])
def test_a_broken_file_is_said_and_made_again(classifier, train_set, cache, damage):
    first = Trains()
    prepare(first, classifier, train_set, Progress())
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        header, found = state.load(path)
        header |= {"key": "another"} if damage == "another key" else {}
        state.save(path, header, found | ({"score": 1} if damage == "hostile" else {}))
    again, progress = Trains(), Heard()
    prepare(again, classifier, train_set, progress)
    assert len(Trains.trained) == 2
    assert len(progress.lines) == 1
    assert progress.lines[0].startswith("trains: ")
    assert str(path) in progress.lines[0]
    assert progress.lines[0].endswith("; deleted, training again")
    assert path.read_bytes() == whole
    assert torch.equal(again.mean_, first.mean_)


def test_a_flipped_byte_never_changes_what_was_trained(classifier, train_set, cache):
    first = Trains()
    prepare(first, classifier, train_set, Progress())
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    for content in flipped(whole):
        path.write_bytes(content)
        trainings, again, progress = len(Trains.trained), Trains(), Heard()
        prepare(again, classifier, train_set, progress)
        assert torch.equal(again.mean_, first.mean_)
        assert all(map(torch.equal, again.parts_, first.parts_))
        if len(Trains.trained) > trainings:
            assert [line for line in progress.lines if str(path) in line and line.endswith("; deleted, training again")]
            assert path.read_bytes() == whole
    assert len(Trains.trained) > 50


def test_a_cache_that_cannot_be_written_is_said(classifier, train_set, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "file"))
    detector, progress = Trains(), Heard()
    prepare(detector, classifier, train_set, progress)
    assert len(detector.mean_) == 192
    assert len(progress.lines) == 1
    assert "the training result is not cached: cannot write" in progress.lines[0]


def test_what_cannot_be_kept_is_an_error_the_first_time(classifier, train_set):
    class NothingKept(Trains):
        """Keeps it under a name that is no fitted state."""

        def prepare(self, train_set, classifier, progress):
            self.mean = torch.zeros(192)

    class AModule(Trains):
        """Keeps a module."""

        def prepare(self, train_set, classifier, progress):
            self.net_ = torch.nn.Linear(2, 2)

    with pytest.raises(BadData, match="prepare left no fitted state; keep trained values in attributes that end in _"):
        prepare(NothingKept(), classifier, train_set, Progress())
    with pytest.raises(OodbenchError, match="cannot store fitted state"):
        prepare(AModule(), classifier, train_set, Progress())
    assert not list((cache_root() / "prepared").glob("*"))


def test_it_must_be_fitted_before_it_scores(classifier, images):
    with pytest.raises(NotFitted, match="trains is not fitted"):
        Trains().score(classifier, images)
    assert Trains().prepares
    assert not oodbench.load_detector("msp").prepares
