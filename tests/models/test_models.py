"""The networks, and how weights are found, read and refused."""

import os
import pickle
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torchvision
from flips import flipped
from named_pipe import pipe_at
from safetensors.torch import load_file, save_file
from torch import nn

import oodbench
from oodbench import registry
from oodbench.errors import BadData, MissingData, OodbenchError, Unsuitable, UsageError
from oodbench.models import TABLE, device, weights
from oodbench.models.build import build, outline
from oodbench.models.checkpoint import Checkpoint
from oodbench.models.cifar_resnet import Block
from oodbench.models.curetsr_net import standardised
from oodbench.models.load import load_model, resolve_device
from oodbench.models.train import accuracy

CIFAR = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018}
PARAMETERS = {
    **{f"resnet{depth}-cifar10": count for depth, count in CIFAR.items()},
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "resnet101": 42_512_970,
    "densenet-bc-100-12": 769_162,
    "curetsr-net": 44_726,
    "duq-resnet18": 14_052_928,
    "sngp-resnet18": 11_179_328,
    "resnet8-digits": 75_290,
}
HEADLESS = ("duq-resnet18", "sngp-resnet18")  # no linear layer gives their logits
WEIGHTS_HASH = "e6d7fb1191ca3e79"  # of resnet8-digits
CHANNELS = {
    "resnet20-cifar10": [16, 16, 32, 64],
    "resnet18": [64, 64, 128, 256, 512],
    "resnet50": [64, 256, 512, 1024, 2048],
    "densenet-bc-100-12": [24, 108, 150, 342],
}


def save_resnet8(path: Path, wrap=lambda state: state) -> dict[str, torch.Tensor]:
    """A ResNet-8 of 5 classes, drawn at random, as a PyTorch file."""
    state = build("resnet8-digits", 5, seed=3).module.state_dict()
    torch.save(wrap(state), path)
    return state


@pytest.mark.parametrize("name", TABLE)
def test_a_network_has_its_size_layers_and_head(name):
    classifier = build(name, 10)
    assert sum(p.numel() for p in classifier.parameters()) == PARAMETERS[name]
    assert classifier.name == name
    assert not any(getattr(module, "inplace", False) for module in classifier.modules())
    calls = dict.fromkeys(classifier.layer_names, 0)
    modules = dict(classifier.module.named_modules())
    for layer in calls:
        modules[layer].register_forward_hook(lambda *_, layer=layer: calls.update({layer: calls[layer] + 1}))
    side = 28 if name == "curetsr-net" else 16
    classifier(torch.rand(2, 3, side, side))
    assert calls
    assert set(calls.values()) == {1}
    classifier.check(torch.rand(2, 3, side, side))
    seven, shapes = build(name, 7), outline(name, 7)
    assert shapes.device.type == "meta"
    assert [v.shape for v in shapes.state_dict().values()] == [v.shape for v in seven.state_dict().values()]
    assert seven(torch.rand(1, 3, side, side)).shape == (1, 7)
    if name in HEADLESS:
        with pytest.raises(Unsuitable, match=f"{name} has no final linear layer; use detectors that read no features"):
            _ = seven.head
    else:
        assert seven.head.out_features == 7


@pytest.mark.parametrize("name", CHANNELS)
def test_layers_have_the_channels_of_the_papers(name):
    classifier = build(name, 10)
    probe = oodbench.Probe(classifier, torch.rand(2, 3, 16, 16), {"layers", "features"})
    assert [layer.shape[1] for layer in probe.layers] == CHANNELS[name]
    torch.testing.assert_close(probe.features, probe.layers[-1])  # both are the last map, averaged over space


def test_the_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    block = Block(4, 8, stride=2).double().eval()
    nn.init.zeros_(block.conv2.weight)  # no residual: what is left is the shortcut
    x = torch.rand(3, 4, 6, 6, dtype=torch.float64)
    expected = torch.zeros(3, 8, 3, 3, dtype=torch.float64)
    for channel in range(4):
        for row in range(3):
            for column in range(3):
                expected[:, channel + 2, row, column] = x[:, channel, 2 * row, 2 * column]
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


def test_the_network_of_curetsr_standardises_each_image_as_the_authors_do():
    images = torch.rand(2, 3, 28, 28, dtype=torch.float64)
    images[1, 2] = 0.5  # one colour: 0 instead of the authors' 0 / 0
    normed = images * 255 / torch.linalg.vector_norm(images * 255, dim=(1, 2, 3), keepdim=True)
    expected = torch.stack([(channel - channel.mean()) / channel.std().clamp_min(1e-6) for channel in normed.flatten(0, 1)])
    torch.testing.assert_close(standardised(images), expected.view_as(images))
    with pytest.raises(Unsuitable, match="curetsr-net does not take images"):
        build("curetsr-net").check(torch.rand(2, 3, 32, 32))


@pytest.mark.data
@pytest.mark.parametrize("depth", [20, 32, 44])
def test_published_weights_load_and_classify(depth, data_root):
    classifier = load_model(f"resnet{depth}-cifar10", data=data_root)
    for key, value in load_file(data_root / "models" / f"resnet{depth}-cifar10.safetensors").items():
        assert torch.equal(classifier.module.state_dict()[key], value)
    test = oodbench.load_dataset("cifar10", data=data_root, split="test")
    assert accuracy(classifier, test.select(torch.arange(400))) > 0.89


def test_the_weights_for_digits_come_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "none"))
    found = load_model("resnet8-digits", require_weights=True)
    assert accuracy(found, oodbench.load_dataset("digits", split="test")) > 0.95
    assert found.weights_hash == WEIGHTS_HASH, "the figures in README.md and docs/ are of other weights"
    assert not (tmp_path / "none").exists()


def test_a_flipped_byte_in_the_packaged_weights_never_changes_the_network(tmp_path, monkeypatch):
    state = load_model("resnet8-digits").module.state_dict()
    whole, loaded = weights.SHIPPED["resnet8-digits"].read_bytes(), 0
    path = tmp_path / "copy.safetensors"
    monkeypatch.setitem(weights.SHIPPED, "resnet8-digits", path)
    contents = list(flipped(whole))
    for content in contents:
        path.write_bytes(content)
        with suppress(BadData):
            found = load_model("resnet8-digits").module.state_dict()
            assert all(torch.equal(found[name], value) for name, value in state.items())
            loaded += 1
    assert loaded < len(contents) - 50


def test_weights_that_train_wrote_are_refused_if_they_have_changed(tmp_path):
    path = tmp_path / "mine.safetensors"
    weights.write(path, build("resnet8-digits", 5).module)
    load_model("resnet8-digits", path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"mine.safetensors is damaged: its content .* digest; restore it from a copy, or train"):
        load_model("resnet8-digits", path)
    save_file({name: value * 2 for name, value in load_file(path).items()}, path)  # no digest: as other programs write it
    load_model("resnet8-digits", path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "best_prec1": 91.7},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    ],
    ids=["plain", "DataParallel's", "without counts of batches"],
)
def test_pytorch_files_are_read(wrap, tmp_path):
    state = save_resnet8(tmp_path / "mine.th", wrap)
    classifier = load_model("resnet8-digits", tmp_path / "mine.th", num_classes=8)
    assert classifier.head.out_features == 5  # the file says it, not the argument
    found = classifier.module.state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    "name", ["torchvision:squeezenet1_1", "timm:dla34", "timm:resnetv2_50", "torchvision:mobilenet_v3_small"]
)
def test_the_file_says_the_number_of_classes_whatever_the_last_layer_is(name, tmp_path):
    """A convolution, as of the first three; the fourth ends in a linear layer, and has others before it."""
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    expected = build(name, 7, seed=3)
    torch.save(expected.module.state_dict(), tmp_path / "mine.pt")
    assert load_model(name, tmp_path / "mine.pt").weights_hash == expected.weights_hash


@pytest.mark.parametrize("name", HEADLESS)
def test_the_file_of_a_network_on_a_body_says_its_classes_and_holds_its_buffers(name, tmp_path):
    expected = build(name, 7, seed=3)
    weights.write(tmp_path / "mine.safetensors", expected.module)
    loaded = load_model(name, tmp_path / "mine.safetensors")
    assert loaded.weights_hash == expected.weights_hash
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(images), expected(images))


def test_weights_are_found_under_the_data_root(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    save_file(build("resnet18", 3, seed=5).module.state_dict(), tmp_path / "models" / "resnet18.safetensors")
    expected = build("resnet18", 3, seed=5).weights_hash
    assert load_model("resnet18", data=tmp_path).weights_hash == expected
    monkeypatch.setenv("OODBENCH_DATA", str(tmp_path))
    assert load_model("resnet18", require_weights=True).weights_hash == expected


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["zip", "bare"])
def test_a_hostile_pickle_is_refused_and_not_run(write, tmp_path):
    file, trace = tmp_path / "weights.th", tmp_path / "was-here"
    write({"state_dict": Hostile(trace)}, file)
    says = r"weights\.th holds (a Python object \((posix|nt)\.mkdir\)|no plain tensors.*download it again)"
    with pytest.raises(BadData, match=says) as caught:
        load_model("resnet8-digits", file)
    assert not trace.exists()
    assert "\n" not in str(caught.value)
    assert "weights_only=False" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_network_says_how_to_save_its_weights(zipped, tmp_path):
    torch.save(build("resnet8-digits", 5).module, file := tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    says = r"net\.pth holds a Python object \(.*ResNet\), such as a whole network; save only its weights, with torch\.save\("
    with pytest.raises(BadData, match=says):
        load_model("resnet8-digits", file)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("keep", [0, 7, 5000])
def test_a_truncated_file_is_refused(suffix, keep, tmp_path):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(build("resnet8-digits", 5).module.state_dict(), whole)
    load_model("resnet8-digits", whole)
    cut.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(BadData, match="truncated"):
        load_model("resnet8-digits", cut)


@pytest.mark.parametrize(("value", "there"), [([1, 2], "it is a list"), ({"epoch": 3}, "it has epoch"), ({}, "it has nothing")])
def test_a_file_without_weights_is_refused(value, there, tmp_path):
    torch.save(value, tmp_path / "odd.pt")
    with pytest.raises(BadData, match=rf"odd\.pt holds no weights \({there}\)"):
        load_model("resnet8-digits", tmp_path / "odd.pt")


def test_another_networks_weights_are_refused_by_name(tmp_path):
    state = save_resnet8(tmp_path / "whole.pt")
    torch.save(
        {"extra.weight": torch.ones(1), **{k: v for k, v in state.items() if not k.startswith("bn1")}}, tmp_path / "keys.pt"
    )
    with pytest.raises(
        BadData, match=r"lacks bn1\.weight, bn1\.bias, bn1\.running_mean and 1 more; it has unknown extra\.weight;"
    ):
        load_model("resnet8-digits", tmp_path / "keys.pt")
    torch.save({**state, "conv1.weight": torch.ones(16, 1, 3, 3)}, tmp_path / "shape.pt")
    with pytest.raises(BadData, match=r"conv1\.weight is \(16, 1, 3, 3\) instead of \(16, 3, 3, 3\)"):
        load_model("resnet8-digits", tmp_path / "shape.pt")
    torch.save({**state, "conv1.weight": (state["conv1.weight"] * 100).to(torch.int8)}, tmp_path / "dtype.pt")
    with pytest.raises(BadData, match=r"conv1\.weight is int8 instead of floats"):
        load_model("resnet8-digits", tmp_path / "dtype.pt")
    torch.save(
        {key: value.half() if value.is_floating_point() else value for key, value in state.items()}, tmp_path / "half.pt"
    )
    assert load_model("resnet8-digits", tmp_path / "half.pt").dtype == torch.float32


def test_a_published_file_must_have_its_checksum(tmp_path):
    (tmp_path / "models").mkdir()
    file = weights.PUBLISHED["resnet20-cifar10"].file
    torch.save(build("resnet20-cifar10", 10).module.state_dict(), tmp_path / "models" / file)
    with pytest.raises(BadData, match=f"{file} is not the published file: SHA-256"):
        load_model("resnet20-cifar10", data=tmp_path)
    (tmp_path / "models" / file).rename(tmp_path / "mine.th")
    load_model("resnet20-cifar10", tmp_path / "mine.th")


def test_absent_weights_say_where_and_what_to_do(tmp_path):
    for name, published in weights.PUBLISHED.items():
        with pytest.raises(MissingData) as caught:
            load_model(name, data=tmp_path)
        said = str(caught.value)
        assert f"{tmp_path}/models/{name}.safetensors" in said
        assert all(part in said for part in (published.url, published.sha256, "--weights FILE"))
    with pytest.raises(MissingData, match="oodbench train resnet18"):
        load_model("resnet18", data=tmp_path, require_weights=True)
    with pytest.raises(MissingData, match=r"weights file .*absent\.th does not exist"):
        load_model("resnet18", tmp_path / "absent.th")


def test_a_pipe_in_place_of_weights_is_named(tmp_path):
    (tmp_path / "models").mkdir()
    for path in (tmp_path / "models" / "resnet18.safetensors", tmp_path / "mine.pth"):
        with pipe_at(path), pytest.raises(BadData, match=f"{path} is not a regular file; replace it with one"):
            load_model("resnet18", path if path.parent == tmp_path else None, data=tmp_path)
    with pipe_at(tmp_path / "checkpoint"), pytest.raises(BadData, match="checkpoint is not a regular file"):
        Checkpoint(tmp_path / "checkpoint", {}, {}).restore(torch.device("cpu"))


def test_a_bare_architecture_warns_and_is_the_same_each_time(tmp_path):
    state = torch.random.get_rng_state()
    with pytest.warns(UserWarning, match="densenet-bc-100-12 has no weights .*random"):
        first = load_model("densenet-bc-100-12", data=tmp_path, num_classes=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    with pytest.warns(UserWarning, match="random"):
        assert load_model("densenet-bc-100-12", data=tmp_path, num_classes=3).weights_hash == first.weights_hash
    assert first.head.out_features == 3


def test_timm_brings_its_normalisation_layers_and_head(tmp_path):
    pytest.importorskip("timm")
    with pytest.warns(UserWarning, match="timm:test_resnet has no weights .*random"):
        classifier = load_model("timm:test_resnet", data=tmp_path, num_classes=4)
    assert classifier.mean.flatten().tolist() == list(classifier.module.pretrained_cfg["mean"])
    assert classifier.std.flatten().tolist() == list(classifier.module.pretrained_cfg["std"])
    assert classifier.layer_names == ("act1", "layer1", "layer2", "layer3", "layer4")
    assert classifier.head_name == "fc"
    assert classifier(torch.rand(2, 3, 64, 64)).shape == (2, 4)
    (tmp_path / "models").mkdir()
    save_file(build("timm:test_resnet", 6, seed=1).module.state_dict(), tmp_path / "models" / "timm-test_resnet.safetensors")
    assert load_model("timm:test_resnet", data=tmp_path).head.out_features == 6
    with pytest.raises(UsageError, match="unknown timm model 'resnett18'; did you mean 'resnet18'"):
        load_model("timm:resnett18")


def test_without_timm_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(OodbenchError, match=r"needs timm; run pip install 'oodbench\[timm\]'"):
        load_model("timm:resnet18")


def test_torchvision_is_wrapped_with_its_normalisation(tmp_path):
    with pytest.warns(UserWarning, match="torchvision:mobilenet_v3_small has no weights .*random"):
        classifier = load_model("torchvision:mobilenet_v3_small", data=tmp_path, num_classes=4)
    assert classifier.mean.flatten().tolist() == [0.485, 0.456, 0.406]
    assert classifier.head_name == "classifier.3"
    assert classifier(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    with pytest.raises(UsageError, match=r"unknown torchvision model 'resnet19'; did you mean"):
        load_model("torchvision:resnet19")


def first_input(module, run):
    """What the first convolution of a module reads during ``run()``."""
    seen = []
    hook = next(m for m in module.modules() if isinstance(m, nn.Conv2d)).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach())
    )
    run()
    hook.remove()
    return seen[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "size", "aux"), [("googlenet", 32, False), ("googlenet", 32, True), ("inception_v3", 80, False)]
)
def test_torchvision_weights_read_what_their_preprocessing_gives(name, size, aux, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, transform_input=True, aux_logits=aux, init_weights=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "published.pt")
    images = torch.rand(2, 3, size, size)
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    normalised = torchvision.transforms.Normalize(preset.mean, preset.std)(images)
    ours = load_model(f"torchvision:{name}", tmp_path / "published.pt")
    found = first_input(ours.module, lambda: ours(images))
    torch.testing.assert_close(found, first_input(theirs, lambda: theirs(normalised)))
    assert -1.001 < found.min() < found.max() < 1.001
    torch.testing.assert_close(ours(images), theirs(normalised).detach())
    assert set(ours.module.state_dict()) == set(theirs.state_dict())


def test_torchvision_normalisation_is_that_of_the_weights(monkeypatch):
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: nn.Linear(2, 2))  # the network is large
    assert build("torchvision:efficientnet_v2_l").mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert build("torchvision:efficientnet_v2_l").std.flatten().tolist() == [0.5, 0.5, 0.5]


MODULE = """
import oodbench
from torch import nn

number = 5

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

def sized(num_classes):
    return oodbench.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes)), (0.5,) * 3, (0.25,) * 3)

def defaulted(num_classes=6):
    return sized(num_classes)

def text():
    return "no network"

def broken():
    raise KeyError("weights")
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_networks", None)


@pytest.mark.filterwarnings("error")
def test_a_function_of_ones_own_is_called(own_module):
    images = torch.rand(2, 3, 2, 2)
    for name, given, classes in (
        ("plain", None, 3),
        ("plain", 8, 3),
        ("sized", 8, 8),
        ("sized", None, 10),
        ("defaulted", None, 6),
        ("defaulted", 8, 8),
    ):
        classifier = load_model(f"own_networks:{name}", num_classes=given, require_weights=True)
        assert classifier(images).shape == (2, classes)
        assert classifier.name == f"own_networks:{name}"


def test_a_third_partys_model_is_loaded_by_its_name(own_module, monkeypatch):
    monkeypatch.setattr(registry, "discover", lambda group: [("sized", "own_networks:sized", "nets", "1")])
    assert load_model("sized", num_classes=4).head.out_features == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_networks:number", "is int, not a function"),
        ("own_networks:text", "returned str; return an oodbench.Classifier"),
        ("own_networks:broken", "failed when it was built: KeyError: 'weights'"),
        ("own_networks:nothing", "cannot be imported: AttributeError"),
        ("no_such_module:build", "cannot be imported: ModuleNotFoundError"),
        ("resnet20-cifar", r"unknown model 'resnet20-cifar'; did you mean 'resnet20-cifar10'.* \(oodbench list models\)"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(name, message, own_module):
    with pytest.raises(OodbenchError, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_memory_that_is_free_is_at_most_what_a_container_may_take(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "CGROUPS", ())
    free = device.available_memory(torch.device("cpu"))
    if not Path("/proc/meminfo").exists():
        assert free is None
        return
    with open("/proc/meminfo") as file:
        total = 1024 * int(file.readline().split()[1])
    assert 0 < free < total
    for name, text in (("memory.max", "1000"), ("memory.current", "700"), ("memory.stat", "anon 600\ninactive_file 60\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(device, "CGROUPS", ((tmp_path, "memory.max", "memory.current", "inactive_file"),))
    assert device.available_memory(torch.device("cpu")) == 1000 - (700 - 60)
    (tmp_path / "memory.max").write_text("max\n")
    assert device.available_memory(torch.device("cpu")) > 10**6
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    assert device.available_memory(torch.device("cuda:0")) == 123


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for name in ("gpu", "", "meta", "CPU", "cuda:01", "cuda:-1", "cu\udc80", f"cuda:{10**30}"):
        with pytest.raises(UsageError, match=r"^unknown device '.*'; give auto, cpu, or an accelerator that"):
            resolve_device(name)
    for name in ("cuda", "cuda:0", "mps", "xpu:3", "cpu:1"):
        with pytest.raises(OodbenchError, match=f"^no device '{name}': this PyTorch sees [01] .*; run with --device cpu$"):
            load_model("resnet8-digits", device=name)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(OodbenchError, match="no device 'cuda:2': this PyTorch sees 2 CUDA devices; run with --device cuda or"):
        resolve_device("cuda:2")
