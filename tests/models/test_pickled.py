"""Pickled checkpoints that would take far more time or memory than their size allows."""

import hashlib

import pytest
import torch
from hostile import CHECKPOINTS, old_checkpoint, tensor

from oodbench.errors import BadData
from oodbench.models import weights
from oodbench.models.build import build
from oodbench.models.checkpoint import Checkpoint
from oodbench.models.load import load_model

LOADED = {"expanded", "a storage without values", "a tensor without values"}  # without harm: nothing is copied yet


@pytest.mark.parametrize("what", CHECKPOINTS)
def test_a_checkpoint_that_grows_is_refused_in_one_line(what, tmp_path, monkeypatch):
    content, says = CHECKPOINTS[what]
    (tmp_path / "a.pth").write_bytes(content)
    if what not in LOADED:
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("its instructions were followed"))
    with pytest.raises(BadData, match=rf"a\.pth {says}") as raised:
        weights.read(tmp_path / "a.pth")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.eye(2).to_sparse(), "a sparse tensor"),
        (torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)]), "a nested tensor"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "a quantised tensor"),
    ],
    ids=["sparse", "nested", "quantised"],
)
def test_tensors_that_are_not_plain_are_refused(value, says, tmp_path):
    """torch.load looks at each value of a sparse one; 2 kB of a nested or quantised one may copy any number."""
    torch.save({"weight": torch.ones(1), "more": value}, tmp_path / "a.pt")
    with pytest.raises(BadData, match=rf"a\.pt holds {says}, whose size has no bound; save the module's state_dict\(\) alone"):
        weights.read(tmp_path / "a.pt")


def test_one_storage_may_have_a_few_names_but_not_any_number(tmp_path):
    shared = torch.arange(2.0**16)
    torch.save({str(i): shared for i in range(8)}, tmp_path / "few.pt")
    assert len(weights.read(tmp_path / "few.pt")) == 8
    torch.save({str(i): shared for i in range(20)}, tmp_path / "many.pt")
    with pytest.raises(BadData, match=r"many\.pt has 26\d,\d\d\d bytes, and its tensors up to .* claim 2,.*; save copies"):
        weights.read(tmp_path / "many.pt")


def test_a_dict_of_a_thousand_tensors_with_an_optimizer_is_read(tmp_path):
    """The bounds leave room for what trainers save: sets, bytes, sizes and counters too."""
    module = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(500)))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    extra = {"schedule": schedule.state_dict(), "sizes": [p.shape for p in module.parameters()], "names": {"a"}, "raw": b"ab"}
    torch.save({"state_dict": module.state_dict(), "optimizer": optimizer.state_dict(), **extra}, tmp_path / "a.pt")
    assert len([name for name in weights.read(tmp_path / "a.pt") if name.startswith("state_dict.")]) == 1000


@pytest.mark.parametrize("what", ["bytes", "a storage without values"])
def test_a_training_is_not_resumed_from_a_checkpoint_that_grows(what, tmp_path):
    content, says = CHECKPOINTS[what]
    path = tmp_path / "a.checkpoint"
    path.write_bytes(hashlib.sha256(content).digest() + content)
    with pytest.raises(BadData, match=rf"is not a checkpoint, or .*{says.partition(';')[0]}.*delete .* to train from"):
        Checkpoint(path, {}, {}).restore(torch.device("cpu"))


@pytest.mark.parametrize("name", ["torchvision:vit_b_16", "timm:vit_base_patch16_224", "resnet20-cifar10"])
def test_a_network_is_not_built_before_the_shapes_of_its_weights_are_compared(name, tmp_path, monkeypatch):
    torch.save({"conv1.weight": torch.ones(3)}, tmp_path / "small.pt")
    monkeypatch.setattr("oodbench.models.load.build", lambda *_: pytest.fail("built"))
    with pytest.raises(BadData, match=rf"small\.pt does not fit {name}: it lacks "):
        load_model(name, tmp_path / "small.pt")


@pytest.mark.parametrize("name", ["torchvision:regnet_y_400mf", "torchvision:googlenet"])
def test_networks_that_compute_their_shapes_or_leave_out_heads_still_load(name, tmp_path):
    state = build(name, 7, seed=2).module.state_dict()
    kept = {key: value for key, value in state.items() if not key.startswith("aux")}
    torch.save(kept, tmp_path / "mine.pt")
    loaded = load_model(name, tmp_path / "mine.pt").module.state_dict()
    assert loaded.keys() == kept.keys()
    assert all(torch.equal(loaded[key], value) for key, value in kept.items())


def test_the_number_of_classes_of_a_file_is_bounded_by_its_size(tmp_path, monkeypatch):
    """30 million classes, as 261 bytes claim them, take 7.7 GB."""
    (tmp_path / "a.pth").write_bytes(old_checkpoint(tensor((30_000_000, 64), (64, 1), 1, b"N")))
    monkeypatch.setattr("oodbench.models.load.build", lambda *_: pytest.fail("built"))
    monkeypatch.setattr("oodbench.models.load.outline", lambda *_: pytest.fail("built"))
    with pytest.raises(BadData, match="save copies of them"):
        load_model("resnet8-digits", tmp_path / "a.pth")
