"""Weights in checkpoints: which part of a file is the network's, whatever wrappers and trainers put before its names."""

import sys
import types
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch
from new_process import oodbench as command
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import oodbench
from oodbench.errors import BadData, UsageError
from oodbench.models import weights
from oodbench.models.build import build
from oodbench.models.load import load_model

NAME = "resnet8-digits"
OTHER = build(NAME, 5, seed=4).module.state_dict()


def compiled(state):
    """As of a network of which one layer was compiled and then the whole."""
    return {f"_orig_mod.{key.replace('layer1.', 'layer1._orig_mod.')}": value for key, value in state.items()}


def under(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def averaged(state):
    network = build(NAME, 5).module
    network.load_state_dict(state)
    return torch.optim.swa_utils.AveragedModel(network).state_dict()


WRAPPED = {
    "compiled": compiled,
    "compiled in DataParallel": lambda state: {"model": under("module.", compiled(state))},
    "moving average": averaged,
    "nothing else": lambda state: {"ema": {"module": state}},
    "timm": lambda state: {
        "epoch": 3, "state_dict": state, "args": Namespace(lr=0.1), "optimizer": {"state": {0: {"n": torch.ones(1)}}},
    },
    "PyTorch's tutorial": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {0: torch.ones(3)}}},
    "kuangliu": lambda state: {"net": under("module.", state), "acc": 93.0, "epoch": 3},
    "Lightning": lambda state: {
        "pytorch-lightning_version": "2.4.0",
        "state_dict": under("network.", state) | {"loss.weight": torch.ones(3), "metric.total": torch.ones(1)},
        "optimizer_states": [{"state": {}}],
    },
}  # fmt: skip


@pytest.fixture
def state():
    return build(NAME, 5, seed=3).module.state_dict()


def make_images(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / "black.png")
    return tmp_path / "images"


def same(classifier, state):
    return all(torch.equal(classifier.module.state_dict()[key], value) for key, value in state.items())


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_the_networks_part_of_a_checkpoint_is_read(wrap, state, tmp_path):
    torch.save(wrap(state), tmp_path / "mine.pt")
    assert same(load_model(NAME, tmp_path / "mine.pt"), state)


class OwnModule(nn.Module):
    """Keeps its layers in attributes that wrappers use too."""

    def __init__(self, attribute):
        super().__init__()
        setattr(self, attribute, nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))

    def forward(self, x):
        return next(self.children())(x)


@pytest.mark.parametrize("attribute", ["module", "_orig_mod", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_of_the_network_that_begin_like_a_wrappers_are_kept(attribute, prefix, tmp_path, monkeypatch):
    torch.manual_seed(0)
    trained = OwnModule(attribute).state_dict()
    save_file(under(prefix, trained), tmp_path / "mine.safetensors")
    module = types.ModuleType("own_names_for_a_test")
    module.build = lambda: OwnModule(attribute)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert same(load_model("own_names_for_a_test:build", tmp_path / "mine.safetensors"), trained)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_of_several_parts_one_is_named(prefix, state, tmp_path):
    file = tmp_path / "mine.pt"
    torch.save({"state_dict": under(prefix, OTHER), "state_dict_ema": under(prefix, state), "epoch": 1}, file)
    keys = f"state_dict{prefix and '.module'}, state_dict_ema{prefix and '.module'}"
    with pytest.raises(UsageError, match=rf"mine\.pt holds several sets of weights for {NAME}: {keys}; choose one with --weig"):
        load_model(NAME, file)
    assert same(load_model(NAME, file, weights_key="state_dict_ema"), state)
    assert same(load_model(NAME, file, weights_key="state_dict"), OTHER)
    with pytest.raises(UsageError, match=r"pt: unknown weights key 'state_dict_em'; did you mean 'state_dict_ema'\? \(it has"):
        load_model(NAME, file, weights_key="state_dict_em")


def test_student_and_teacher_in_one_state_dict_are_two_parts(state, tmp_path):
    file = tmp_path / "mine.safetensors"
    save_file(under("teacher.", OTHER) | under("student.", state), file)
    with pytest.raises(UsageError, match=r"for resnet8-digits: student, teacher; choose one"):
        load_model(NAME, file)
    assert same(load_model(NAME, file, weights_key="student"), state)


def test_a_key_without_a_file_is_refused():
    with pytest.raises(UsageError, match="weights key ema: densenet-bc-100-12 is built without a weights file; give --weights"):
        load_model("densenet-bc-100-12", weights_key="ema")


def test_a_part_that_lacks_something_says_what(state, tmp_path):
    del state["bn1.weight"]
    torch.save({"state_dict": under("module.", state | {"extra": torch.ones(1)})}, tmp_path / "mine.pt")
    with pytest.raises(BadData, match=r"does not fit resnet8-digits: it lacks bn1\.weight; it has unknown extra;"):
        load_model(NAME, tmp_path / "mine.pt")


def test_a_dict_that_holds_itself_is_read_once(state, tmp_path):
    found = {"state_dict": state}
    found["state_dict_again"] = found["loop"] = found
    torch.save(found, tmp_path / "mine.pt")
    assert same(load_model(NAME, tmp_path / "mine.pt"), state)


def test_run_fit_and_score_take_the_key(tmp_path):
    state = load_model(NAME).module.state_dict()
    torch.save({"model": {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}, "ema": state}, tmp_path / "w.pt")
    key = ["--weights", str(tmp_path / "w.pt"), "--weights-key", "ema"]
    fast = ["--detector", "msp", "--dataset", "photos", "--limit", "20", "--out", str(tmp_path / "run")]
    assert "choose one with --weights-key KEY" in command("run", *fast, *key[:2]).stderr
    assert command("run", *fast, *key).returncode == 0
    out = ["--model", NAME, "--dataset", "digits", "--out", str(tmp_path / "fitted.safetensors")]
    assert command("fit", "msp", *out, *key).returncode == 0
    fitted = oodbench.load_fitted(tmp_path / "fitted.safetensors")  # remembers the key
    assert same(fitted.classifier, state)
    (tmp_path / "w.pt").rename(tmp_path / "moved.pt")
    torch.save({"average": state, "model": OTHER}, tmp_path / "moved.pt")
    images = make_images(tmp_path)
    moved = ["--weights", tmp_path / "moved.pt", "--weights-key", "average"]
    assert command("score", tmp_path / "fitted.safetensors", images, *moved).returncode == 0


def compress(path):
    """As a file that was packed again."""
    with zipfile.ZipFile(path) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in parts.items():
            packed.writestr(name, content)


@pytest.mark.parametrize(
    "value", [torch.zeros(1, 1).expand(30_000_000, 64), torch.empty(30_000_000, 64, device="meta")], ids=["expanded", "meta"]
)
def test_a_tensor_of_more_values_than_the_file_holds_is_refused_before_a_network_is_built(value, state, tmp_path, monkeypatch):
    classes = []
    monkeypatch.setattr("oodbench.models.load.build", lambda name, count=None: classes.append(count) or build(name, 5))
    torch.save(state | {"linear.weight": value}, tmp_path / "mine.pt")
    with pytest.raises(BadData, match=r"holds fewer values of linear\.weight than its shape \(30000000, 64\) needs.*; save"):
        load_model(NAME, tmp_path / "mine.pt")
    assert classes == []


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(state, tmp_path, monkeypatch):
    torch.save(state | {"more": torch.zeros(2**20)}, tmp_path / "mine.pt")
    compress(tmp_path / "mine.pt")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(BadData, match=r"mine\.pt is compressed, and holds 4,[0-9,]+ bytes; save it with torch\.save, if you"):
        load_model(NAME, tmp_path / "mine.pt")


def test_a_weight_without_values_does_not_say_the_number_of_classes():
    module = nn.Linear(1, 4)
    module.weight = nn.Parameter(torch.empty(4, 0))
    assert weights.other_classes({"weight": torch.empty(30_000_000, 0)}, module) is None
    module.weight = nn.Parameter(torch.empty(4, 1))
    assert weights.other_classes({"weight": torch.empty(6, 1)}, module) == 6
