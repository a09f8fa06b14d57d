"""The guard of a network: it sees every kind of change and undoes it."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from oodbench.classifier import Classifier
from oodbench.forward.guard import Guard


class Net(nn.Module):
    """One of everything."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.act = torch.relu
        self.fc = nn.Linear(4, 2)
        self.register_buffer("hidden", torch.tensor([torch.nan, 1]), persistent=False)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))

    def forward(self, x):
        self.last = x
        return self.head(self.fc(self.drop(self.norm(self.act(self.conv(x)))).mean((2, 3))))


def swap(net):
    net.fc, net.head = net.head, net.fc


CHANGES = {
    "a value": (lambda net: net.fc.weight.data.add_(1e-3), "fc.weight"),
    "through numpy": (lambda net: net.fc.bias.detach().numpy().fill(3), "fc.bias"),
    "one bit": (lambda net: net.conv.weight.data.view(torch.int32)[0, 0, 0, 0].bitwise_xor_(1), "conv.weight"),
    "NaN": (lambda net: net.hidden.fill_(torch.nan), "hidden"),
    "a new parameter": (lambda net: setattr(net.fc, "weight", nn.Parameter(net.fc.weight.clone())), "fc._parameters"),
    "no parameter": (lambda net: delattr(net.fc, "bias"), "fc._parameters"),
    "dtype": (lambda net: net.double(), "conv.weight"),
    "running statistics": (lambda net: net.norm.train()(torch.rand(2, 4, 3, 3)), "norm.running_mean"),
    "mode": (lambda net: net.drop.train(), "drop.training"),
    "a rate": (lambda net: setattr(net.drop, "p", 0.1), "drop.p"),
    "a function": (lambda net: setattr(net, "act", torch.tanh), "act"),
    "forward": (lambda net: setattr(net.fc, "forward", lambda x: x), "fc.forward"),
    "hook": (lambda net: net.fc.register_forward_hook(lambda *a: None), "fc._forward_hooks"),
    "hook of gradients": (lambda net: net.fc.register_full_backward_hook(lambda *a: None), "fc._backward_hooks"),
    "a module": (lambda net: setattr(net, "extra", nn.Linear(1, 1)), "_modules"),
    "order": (swap, "_modules"),
    "requires_grad": (lambda net: net.fc.weight.requires_grad_(True), "fc.weight"),
    "a gradient": (lambda net: setattr(net.fc.weight, "grad", torch.ones_like(net.fc.weight)), "fc.weight"),
    "a parametrisation": (lambda net: net.head.parametrizations.weight.original0.data.mul_(2), "original0"),
    "forward of a class": (lambda net: setattr(type(net.norm), "forward", lambda self, x: x), "BatchNorm2d.forward"),
    "forward of a base class": (lambda net: setattr(nn.Conv2d, "forward", lambda self, x: x), "Conv2d.forward"),
    "forward of all networks": (lambda net: setattr(Classifier, "forward", lambda self, x: x), "Classifier.forward"),
    "hook on all modules": (lambda net: register_module_forward_hook(lambda module, given, out: out * 2), "torch's hooks on"),
    "autocast": (lambda net: torch.set_autocast_enabled("cpu", True), "torch's autocast"),
    "deterministic mode": (lambda net: torch.use_deterministic_algorithms(True), "torch's deterministic mode"),
    "default dtype": (lambda net: torch.set_default_dtype(torch.float64), "torch's default dtype"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_each_change_is_named_and_undone(change, mode):
    torch.manual_seed(0)
    classifier = Classifier(Net())
    images = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        logits = classifier(images)
    before, hash = copy.deepcopy(classifier.state_dict()), classifier.weights_hash
    guard = Guard(classifier, images)
    assert guard.restore() == []
    make, name = CHANGES[change]
    with mode():
        make(classifier.module)
        changed = guard.restore()
        assert any(name in found for found in changed), changed
        assert guard.restore() == []
        assert torch.equal(classifier(images), logits)
    assert classifier.weights_hash == hash
    assert list(classifier.state_dict()) == list(before)
    pairs = zip(classifier.state_dict().values(), before.values(), strict=True)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)
    assert not any(module.training for module in classifier.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in classifier.parameters())
    assert torch.get_default_dtype() == torch.float32


def test_no_network_and_quantised_weights():
    assert Guard(None).restore() == []
    quantised = Classifier(torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(12, 2))))
    guard = Guard(quantised, torch.rand(1, 3, 2, 2))
    assert guard.restore() == []
    quantised.module[1].train()
    assert guard.restore() == ["1.training", "1._packed_params.training"]


SCRIPTED = {
    "a parameter": (lambda net: setattr(net, "weight", nn.Parameter(torch.zeros(2, 12))), "1.weight"),
    "a value": (lambda net: net.weight.data.zero_(), "1.weight"),
    "mode": (lambda net: net.train(), "1.training"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", SCRIPTED)
def test_torchscript(change):
    classifier, images = Classifier(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))), torch.rand(3, 3, 2, 2)
    logits = classifier(images)
    guard = Guard(classifier, images)
    assert guard.restore() == []
    make, name = SCRIPTED[change]
    make(dict(classifier.module.named_modules())["1"])
    assert guard.restore() == [name]
    assert torch.equal(classifier(images), logits)
    assert not any(module.training for module in classifier.modules())


def test_the_first_optimizer_of_a_process_changes_nothing():
    """torch wraps its own manual_seed when it makes one."""
    code = (
        "import torch; from oodbench.forward.guard import Guard; guard, before = Guard(None), torch.manual_seed\n"
        "torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1)\n"
        "print(guard.restore(), torch.manual_seed is before)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] False\n"
