"""Training: augmentation, schedule, checkpoint and resume."""

import json
import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flips import flipped
from safetensors.torch import load_file
from scipy.io import savemat

from oodbench import ImageSet, cli, load_dataset
from oodbench.errors import BadData, OodbenchError, Unsuitable, UsageError
from oodbench.models import recipes
from oodbench.models import train as train_module
from oodbench.models.build import build
from oodbench.models.checkpoint import Checkpoint
from oodbench.models.load import load_model
from oodbench.models.recipes.schedule import cosine, dropped
from oodbench.models.train import _seeded, accuracy, augmented, train

SETTINGS = {"epochs": 4, "batch_size": 16, "lr": 0.05, "device": "cpu", "progress": False}
MODEL = "resnet8-digits"
INTERRUPTIONS = [
    *((0, "openood"), (2, "openood"), (4, "openood"), (3, "densenet-cifar")),
    *((2, "augmix"), (2, "adversarial"), (2, "noise")),
    *((2, "simclr"), (3, "simclr"), (2, "simclr-adam"), (3, "simclr-adam")),  # the last of four epochs trains the head
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def bright_set() -> ImageSet:
    """65 images 8x8 of three classes that differ in brightness, with noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(65) % 3
    noise = torch.randint(0, 60, (65, 3, 8, 8), generator=generator)
    return ImageSet((labels.view(-1, 1, 1, 1) * 90 + noise).clamp(max=255).to(torch.uint8), labels, name="bright")


@pytest.fixture
def dropping(tmp_path, monkeypatch) -> str:
    """The name of a small network with dropout and BatchNorm: all that a resumed run must draw and keep alike."""
    (tmp_path / "dropping_network.py").write_text(
        "from torch import nn\n"
        "def build(num_classes):\n"
        "    hidden = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.ReLU())\n"
        "    return nn.Sequential(hidden, nn.Linear(16, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "dropping_network:build"
    sys.modules.pop("dropping_network", None)


def train_until(last: int, name: str, images: ImageSet, **settings: Any) -> None:
    """A training that is interrupted once this many epochs are kept."""
    store = Checkpoint.store

    def store_and_stop(self: Checkpoint, done: int) -> None:
        store(self, done)
        if done == last:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "store", store_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(name, images, **settings)


def test_a_trained_network_has_learnt_and_is_the_one_on_disk(bright_set, tmp_path):
    out = tmp_path / "new folder" / "net.safetensors"
    trained = train(MODEL, bright_set, out=out, test_set=bright_set, **SETTINGS)
    assert accuracy(trained, bright_set) > 0.9
    assert not any(p.requires_grad for p in trained.parameters())
    assert not any(module.training for module in trained.modules())
    loaded = load_model(MODEL, out)
    assert loaded.weights_hash == trained.weights_hash
    assert loaded.head.out_features == 3
    assert sorted(path.name for path in out.parent.iterdir()) == ["net.card.json", "net.safetensors"]


@pytest.mark.parametrize(("epochs", "recipe"), INTERRUPTIONS)
def test_an_interrupted_run_ends_with_the_same_weights(epochs, recipe, bright_set, dropping, tmp_path, monkeypatch):
    settings = SETTINGS | {"recipe": recipe}
    train(dropping, bright_set, out=tmp_path / "whole.safetensors", **settings)
    out = tmp_path / "resumed.safetensors"
    train_until(epochs, dropping, bright_set, out=out, **settings)
    assert not out.exists()
    torch.rand(3)  # what else happened in the process must not matter
    kept, store = [], Checkpoint.store
    monkeypatch.setattr(Checkpoint, "store", lambda self, done: (kept.append(done), store(self, done)))
    train(dropping, bright_set, out=out, **settings)
    assert kept == list(range(epochs, 5))  # finished epochs are not done again
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not list(tmp_path.glob("*.checkpoint"))


def test_the_seed_matters(bright_set, tmp_path):
    for seed in (0, 1):
        train(MODEL, bright_set, out=tmp_path / f"{seed}.safetensors", seed=seed, **SETTINGS)
    one, two = (load_file(tmp_path / f"{seed}.safetensors") for seed in (0, 1))
    assert not torch.equal(one["conv1.weight"], two["conv1.weight"])


def test_finished_weights_of_another_training_are_not_replaced(bright_set, tmp_path):
    out = tmp_path / "net.safetensors"
    train(MODEL, bright_set, out=out, **SETTINGS)
    before = out.read_bytes()
    with pytest.raises(
        UsageError, match=r"net\.safetensors holds weights of a training with seed 0 instead of 1; name another"
    ):
        train(MODEL, bright_set, out=out, seed=1, **SETTINGS)
    for content in ("[]", " " * 70_000_000):
        (tmp_path / "net.card.json").write_text(content)
        with pytest.raises(BadData, match=r"net\.card\.json is not a card of oodbench; delete it"):
            train(MODEL, bright_set, out=out, **SETTINGS)
    assert out.read_bytes() == before
    (tmp_path / "net.card.json").unlink()
    train(MODEL, bright_set, out=out, **SETTINGS)
    train(MODEL, bright_set, out=out, **SETTINGS)  # the same again
    train(MODEL, bright_set, out=out, seed=1, resume=False, **SETTINGS)


def test_a_checkpoint_of_another_training_is_not_resumed(bright_set, tmp_path):
    out = tmp_path / "net.safetensors"
    train_until(1, MODEL, bright_set, out=out, **SETTINGS)
    with pytest.raises(UsageError, match=r"a training with epochs 4 instead of 5; delete .*net\.safetensors\.checkpoint"):
        train(MODEL, bright_set, out=out, **{**SETTINGS, "epochs": 5})
    with pytest.raises(
        UsageError, match=r"a training with drops \[\] instead of \[0\.5, 0\.75\], drop None instead of 0\.1, weight d"
    ):
        train(MODEL, bright_set, out=out, recipe="densenet-cifar", **SETTINGS)
    train(MODEL, bright_set, out=out, resume=False, **{**SETTINGS, "epochs": 1})


def test_a_broken_checkpoint_is_refused(bright_set, tmp_path):
    (tmp_path / "net.safetensors.checkpoint").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(BadData, match=r"is not a checkpoint, or damaged \(its content does not match its digest\); delete"):
        train(MODEL, bright_set, out=tmp_path / "net.safetensors", **SETTINGS)


def test_a_flipped_byte_in_a_checkpoint_is_noticed(bright_set, tmp_path):
    out, file = tmp_path / "net.safetensors", tmp_path / "net.safetensors.checkpoint"
    train_until(1, MODEL, bright_set, out=out, **SETTINGS)
    for content in flipped(file.read_bytes(), 20):
        file.write_bytes(content)
        with pytest.raises(BadData, match=r"is not a checkpoint, or damaged"):
            train(MODEL, bright_set, out=out, **SETTINGS)


@pytest.mark.parametrize("flips", [True, False])
def test_augmentation_equals_a_loop_over_images(flips):
    images = torch.randint(0, 256, (40, 3, 16, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    made = augmented(images, flips, torch.Generator().manual_seed(2))
    draw = torch.Generator().manual_seed(2)
    top, left = torch.randint(0, 5, (40, 1), generator=draw), torch.randint(0, 3, (40, 1), generator=draw)
    mirrored = torch.rand(40, 1, generator=draw) < 0.5
    for i in range(40):
        padded = torch.zeros(3, 20, 10, dtype=torch.uint8)
        padded[:, 2:18, 1:9] = images[i]
        expected = padded[:, int(top[i]) : int(top[i]) + 16, int(left[i]) : int(left[i]) + 8]
        if flips and mirrored[i]:
            expected = expected.flip(2)
        assert torch.equal(made[i], expected)


def test_images_are_mirrored_only_where_the_set_allows_it(bright_set, tmp_path, monkeypatch):
    seen = []

    def spy(images, flips, generator):
        seen.append(flips)
        return images

    monkeypatch.setattr("oodbench.models.train.augmented", spy)
    for flips in (True, False):
        bright_set.flips = flips
        train(MODEL, bright_set, out=tmp_path / "net.safetensors", **{**SETTINGS, "epochs": 1})
    assert seen == [True] * 5 + [False] * 5  # 65 images in batches of at most 16
    train(MODEL, bright_set, out=tmp_path / "plain.safetensors", augment=False, **{**SETTINGS, "epochs": 1})
    assert len(seen) == 10


def test_each_epoch_draws_another_order(bright_set, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("oodbench.models.train.augmented", lambda images, *_: (seen.append(images), images)[1])
    train(MODEL, bright_set, out=tmp_path / "net.safetensors", **{**SETTINGS, "epochs": 2})
    first, second = torch.cat(seen[:5]), torch.cat(seen[5:])
    assert not torch.equal(first, second)
    for epoch in (first, second):  # every image once
        assert sorted(epoch.flatten(1).tolist()) == sorted(bright_set.images.flatten(1).tolist())


def test_the_schedule_is_half_a_cosine():
    assert [cosine(0.2, step, 4) for step in (0, 1, 2, 4)] == pytest.approx([0.2, 0.1 + 0.1 * math.sqrt(0.5), 0.1, 0])


def test_the_rate_drops_at_shares_of_the_epochs():
    rates = [dropped(0.1, epoch, 80, (0.375, 0.75), 0.1) for epoch in (0, 29, 30, 59, 60, 79)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert [dropped(1, epoch, 3, (0.5, 0.75), 0.2) for epoch in range(3)] == pytest.approx([1, 1, 0.04])


def test_the_rate_rises_step_by_step_in_the_first_epochs(bright_set, monkeypatch):
    recipe = replace(recipes.find("svhn"), warmup=2, batch_size=33, epochs=8)
    training = train_module.Training(build(MODEL, 3), bright_set, recipe)
    rates, step = [], training._step
    monkeypatch.setattr(
        training, "_step", lambda *each: (step(*each), rates.append(training.optimizer.param_groups[0]["lr"]))[0]
    )
    for epoch in range(5):
        training.epoch(epoch)
    assert rates == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("name", [name for name, recipe in recipes.RECIPES.items() if not recipe.method])
def test_a_recipe_is_followed(name, bright_set, dropping, tmp_path, monkeypatch):
    """Against a loop that is written out, on one batch a step and without augmentation."""
    recipe = recipes.find(name)
    epochs = 4
    trained = train(
        dropping,
        bright_set,
        out=tmp_path / "net.safetensors",
        recipe=name,
        augment=False,
        epochs=epochs,
        batch_size=65,
        device="cpu",
        progress=False,
    )
    network = build(dropping, 3)
    parameters = network.module.requires_grad_(True).parameters()
    optimizer = torch.optim.SGD(parameters, recipe.lr, 0.9, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov)
    milestones = [round(share * epochs) for share in recipe.drops]
    schedule = (
        torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, recipe.drop)
        if milestones
        else torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    )
    for epoch in range(epochs):
        network.module.train()
        with _seeded(0, epoch) as generator:
            rows = torch.randperm(len(bright_set), generator=generator)
            loss = torch.nn.functional.cross_entropy(network(bright_set.images[rows] / 255), bright_set.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        rate = optimizer.param_groups[0]["lr"]
        optimizer.param_groups[0]["lr"] = rate * (min(1, epoch / recipe.warmup) if recipe.warmup else 1)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = rate
        schedule.step()
    for key, value in network.module.state_dict().items():
        torch.testing.assert_close(trained.module.state_dict()[key], value)


def test_recipes_are_known_by_name(bright_set, tmp_path):
    assert all(recipe.name == name and recipe.source for name, recipe in recipes.RECIPES.items())
    with pytest.raises(
        UsageError, match=r"unknown recipe 'curetsrr'; did you mean 'curetsr'\? \(known: openood, standard, resnet-cifar, dense"
    ):
        train(MODEL, bright_set, out=tmp_path / "net.safetensors", recipe="curetsrr", **SETTINGS)
    changed = recipes.find("svhn").override(epochs=3, augment=True, lr=None)
    assert (changed.epochs, changed.augment, changed.lr, changed.batch_size) == (3, True, 0.1, 64)


def test_a_card_from_before_recipes_had_a_factor_is_that_of_the_same_training(bright_set, tmp_path):
    out = tmp_path / "net.safetensors"
    train(MODEL, bright_set, out=out, recipe="svhn", **SETTINGS)
    card = json.loads((tmp_path / "net.card.json").read_text())
    assert (card["recipe"].pop("drop"), card["recipe"].pop("warmup")) == (0.1, 0)
    (tmp_path / "net.card.json").write_text(json.dumps(card))
    train(MODEL, bright_set, out=out, recipe="svhn", **SETTINGS)
    other = replace(recipes.find("svhn"), drop=0.2)
    with pytest.raises(UsageError, match=r"of a training with drop 0\.1 instead of 0\.2; name another"):
        train(MODEL, bright_set, out=out, recipe=other, **SETTINGS)


def test_the_card_says_what_made_the_weights(bright_set, tmp_path):
    out = tmp_path / "net.safetensors"
    bright_set.classes, apart = ("dark", "grey", "bright"), bright_set.select(torch.arange(30))
    trained = train(MODEL, bright_set, out=out, test_set=apart, recipe="svhn", seed=3, **SETTINGS)
    card = json.loads((tmp_path / "net.card.json").read_text())
    assert card["weights"] == {"file": "net.safetensors", "hash": load_model(MODEL, out).weights_hash}
    assert (card["model"], card["seed"], card["train"]["images"]) == (MODEL, 3, 65)
    assert card["train"]["fingerprint"] == bright_set.fingerprint
    assert card["train"]["classes"] == ["dark", "grey", "bright"]
    assert (card["test"]["fingerprint"], card["test"]["accuracy"]) == (apart.fingerprint, accuracy(trained, apart))
    recipe = recipes.find("svhn")
    assert card["recipe"] == recipe.values() | {"epochs": 4, "batch_size": 16, "lr": 0.05}
    assert card["software"]["torch"] == torch.__version__
    assert card["code"].keys() == {"network", "training"}
    train(MODEL, bright_set, out=tmp_path / "other.safetensors", **SETTINGS | {"epochs": 1})
    assert json.loads((tmp_path / "other.card.json").read_text())["test"] is None
    with pytest.raises(BadData, match="bare has no labels; accuracy needs them"):
        train(MODEL, bright_set, out=tmp_path / "a.safetensors", test_set=ImageSet(bright_set.images, name="bare"), **SETTINGS)


def test_the_command_resizes_as_its_recipe_says_and_needs_no_test_images(tmp_path, monkeypatch, capsys):
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    (tmp_path / "svhn").mkdir()
    savemat(tmp_path / "svhn" / "train_32x32.mat", {"X": images, "y": np.arange(1, 21)[:, None] % 10 + 1})
    out = tmp_path / "net.safetensors"
    options = ["--dataset", "svhn", "--data", tmp_path, "--recipe", "curetsr", "--epochs", 1, "--device", "cpu", "--out", out]
    monkeypatch.setattr("sys.argv", ["oodbench", "train", "curetsr-net", *map(str, options)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert "the card will not state an accuracy: svhn (test) is missing" in capsys.readouterr().err
    card = json.loads((tmp_path / "net.card.json").read_text())
    assert (card["train"]["pixels"], card["recipe"]["batch_size"], card["test"]) == ([28, 28], 256, None)
    assert str(tmp_path) not in json.dumps(card)
    assert load_model("curetsr-net", out).head.out_features == 10


def test_channels_last_changes_neither_files_nor_networks(bright_set, tmp_path, monkeypatch):
    """As on CUDA, here on the CPU, where sums may differ in the last digits."""
    assert train_module._layout(torch.device("cpu")) is None
    assert train_module._layout(torch.device("cuda")) is torch.channels_last
    train(MODEL, bright_set, out=tmp_path / "0.safetensors", **SETTINGS | {"epochs": 1})
    monkeypatch.setattr(train_module, "_layout", lambda device: torch.channels_last)
    out, settings = tmp_path / "1.safetensors", SETTINGS | {"epochs": 1}
    train_until(1, MODEL, bright_set, out=out, **settings)
    trained = train(MODEL, bright_set, out=out, **settings)
    assert all(value.is_contiguous() for value in trained.module.state_dict().values())
    for key, value in load_file(tmp_path / "0.safetensors").items():
        torch.testing.assert_close(load_file(out)[key], value, rtol=1e-3, atol=1e-4)


def test_sets_that_teach_nothing_are_refused(bright_set, tmp_path):
    images, labels = bright_set.images, bright_set.labels
    for broken, message in (
        (ImageSet(images, None, name="bare"), "bare has no labels"),
        (ImageSet(images, torch.zeros(65, dtype=torch.int64), name="lone"), "lone holds only one class"),
        (ImageSet(images, labels, name="odd", classes=("dark", "grey")), r"odd has labels outside 0\.\.1"),
        (ImageSet(images, labels - 1, name="low"), "low has labels outside"),
    ):
        with pytest.raises(BadData, match=message):
            train(MODEL, broken, out=tmp_path / "net.safetensors", **SETTINGS)
    with pytest.raises(Unsuitable, match="does not take images"):
        train(MODEL, ImageSet(images[:, :2], labels), out=tmp_path / "net.safetensors", **SETTINGS)
    assert not list(tmp_path.iterdir())


def test_settings_without_sense_are_refused(bright_set, tmp_path):
    for change, message in (
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": -1}, "batch size"),
        ({"lr": math.nan}, "lr is nan"),
    ):
        with pytest.raises(UsageError, match=message):
            train(MODEL, bright_set, out=tmp_path / "net.safetensors", **{**SETTINGS, **change})
    for out in (tmp_path, tmp_path / "net.pt"):
        with pytest.raises(UsageError, match=r"name a file that ends in \.safetensors"):
            train(MODEL, bright_set, out=out, **SETTINGS)


def test_an_unwritable_folder_is_told_before_the_first_epoch(bright_set, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("oodbench.models.train.Training.epoch", lambda *_: pytest.fail("trained for nothing"))
    with pytest.raises(OodbenchError, match=r"cannot write .*choose another folder"):
        train(MODEL, bright_set, out=tmp_path / "file" / "net.safetensors", **SETTINGS)


def test_a_diverging_loss_stops_the_training(bright_set, tmp_path):
    with pytest.raises(OodbenchError, match=r"diverged in epoch 1 .*lower lr"):
        train(MODEL, bright_set, out=tmp_path / "net.safetensors", **{**SETTINGS, "lr": 1e30})


def test_an_accuracy_needs_labels(classifier, bright_set):
    with pytest.raises(BadData, match="bright has no labels"):
        accuracy(classifier, ImageSet(bright_set.images, None, name="bright"))


def test_images_with_a_corruption_are_not_trained_on(tmp_path, monkeypatch, capsys):
    """As the in-distribution set of a run has none."""
    refusal = r"digits\+noise@5: in-distribution images are used without corruption or attack; write digits"
    noisy = load_dataset("digits+noise@5", split="train")
    with pytest.raises(UsageError, match=refusal):
        train(MODEL, noisy, out=tmp_path / "w.safetensors", **SETTINGS)
    own = replace(noisy, name="dimmed")  # a user's own images may be of any kind
    train(MODEL, own, out=tmp_path / "own.safetensors", **SETTINGS | {"epochs": 1})
    for change in ("noise@5", "pgd"):
        command = ["oodbench", "train", MODEL, "--dataset", f"digits+{change}", "--out", str(tmp_path / "w.safetensors")]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2
        assert f"digits+{change}: in-distribution images are used without" in capsys.readouterr().err
    assert not (tmp_path / "w.safetensors").exists()
