"""Attacks of Foolbox and ART by name: the same as ours where both have one, seeded, and what is reported if they fail."""

import random
import sys

import numpy as np
import pytest
import torch

from oodbench import ImageSet
from oodbench.datasets.adversarial import library_attacks
from oodbench.datasets.adversarial.adversarial_sets import attacked
from oodbench.datasets.adversarial.attacks import attack, settings_of
from oodbench.errors import OodbenchError, UsageError

PACKAGES = ("foolbox", "art")


@pytest.fixture
def victim(make_classifier):
    """A network minus its mean logits, so that it can be fooled."""
    classifier = make_classifier()
    classifier.head.bias.data -= classifier(images()).mean(0)
    return classifier


def images() -> torch.Tensor:
    return torch.randint(0, 256, (12, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("foolbox:LinfFastGradientAttack", {"eps": 0.03}),
        ("art:FastGradientMethod", {"eps": 0.03}),
    ],
)
def test_the_same_attack_of_a_package_and_of_ours(name, settings, victim):
    pytest.importorskip(name.partition(":")[0], exc_type=ImportError)
    labels = victim(images()).argmax(1)
    theirs = attack(victim, images(), labels, name, **settings)
    ours = attack(victim, images(), labels, "fgsm", **settings)
    # The sign of a gradient close to 0 depends on rounding.
    assert (theirs - ours).abs().lt(1e-6).double().mean() > 0.999
    assert theirs.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("foolbox:LinfPGD", {"eps": 0.05, "steps": 4}),
        ("foolbox:LinfDeepFoolAttack", {"steps": 10}),
        ("art:ProjectedGradientDescent", {"eps": 0.05, "eps_step": 0.02, "max_iter": 4, "num_random_init": 1}),
        ("art:DeepFool", {"max_iter": 5}),
    ],
)
def test_an_attack_of_a_package_in_a_set(name, settings, victim, tmp_path, monkeypatch):
    package = pytest.importorskip(name.partition(":")[0], exc_type=ImportError)
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path))
    labels, before = victim(images()).argmax(1), victim.weights_hash
    base = ImageSet((images() * 255).round().to(torch.uint8), labels, name="noise")
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = attack(victim, images().double(), labels, name, seed=1, **settings)
    assert torch.equal(first, attack(victim, images().double(), labels, name, seed=1, **settings))
    assert (first.dtype, first.shape) == (torch.float64, images().shape)
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    if "eps" in settings:
        assert float((first - images()).abs().max()) <= 0.05 + 1e-6
        assert not torch.equal(first, attack(victim, images().double(), labels, name, seed=2, **settings))
    found = attacked(base, name, victim, seed=1, settings=settings)
    assert found.images.dtype == torch.uint8
    assert (found.name, found.attack_record.attack) == (f"noise+{name}", name)
    assert found.attack_record.settings == settings | {"rounded": True, "filtered": False}
    assert found.attack_record.success_rate > 0.2
    assert victim.weights_hash == before
    assert not any(p.requires_grad or p.grad is not None for p in victim.parameters())
    assert not any(module.training for module in victim.modules())
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    assert package.__version__ in library_attacks.version(name)


@pytest.mark.parametrize(
    ("name", "settings", "error", "said"),
    [
        (
            "foolbox:LinfDeepFool",
            {},
            UsageError,
            r"unknown attack 'LinfDeepFool' of foolbox; did you mean 'LinfDeepFoolAttack'",
        ),
        ("foolbox:LinfPGD", {}, UsageError, r"foolbox:LinfP.* needs the setting eps: a distance in pixel units"),
        ("foolbox:LinfPGD", {"stepz": 1}, UsageError, r"unknown setting 'stepz' of foolbox:LinfPGD; did you mean 'steps'"),
        (
            "foolbox:LinfPGD",
            {"eps": 0.1, "steps": "x"},
            OodbenchError,
            r"foolbox:LinfPGD with eps = 0.1, steps = x fails: \w+Error",
        ),
        ("art:DeepFol", {}, UsageError, r"unknown attack 'DeepFol' of art; did you mean 'DeepFool'"),
        ("art:DeepFool", {"max_itr": 1}, UsageError, r"did you mean 'max_iter'"),
        ("art:DeepFool", {"max_iter": -1}, OodbenchError, r"art:DeepFool with max_iter = -1 fails: ValueError"),
    ],
)
def test_what_a_package_does_not_take(name, settings, error, said, victim):
    pytest.importorskip(name.partition(":")[0], exc_type=ImportError)
    with pytest.raises(error, match=said) as caught:
        attack(victim, images(), torch.zeros(12, dtype=torch.int64), name, **settings)
    assert "\n" not in str(caught.value)


def test_settings_are_known_before_an_attack_runs():
    pytest.importorskip("foolbox", exc_type=ImportError)
    with pytest.raises(UsageError, match="unknown setting 'stepz' of foolbox:LinfPGD"):
        settings_of("foolbox:LinfPGD", {"stepz": 1})


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_that_is_not_installed_names_the_remedy(package, monkeypatch):
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"pip install 'oodbench\[{package}\]'"):
        settings_of(f"{package}:DeepFool", {})
