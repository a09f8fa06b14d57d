"""Attacks against slow references: formulas by hand, one image at a time, one pixel at a time; and what they refuse."""

import ast
import colorsys
import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from whole_numbers import GOLDEN, mixed

import oodbench
from oodbench.datasets.adversarial import hsv
from oodbench.datasets.adversarial.attacks import ATTACKS, PRESETS, STREAM, attack, keys_of, passes, settings_of, uniform
from oodbench.errors import BadData, OodbenchError, Unsuitable, UsageError
from oodbench.progress import Progress

SIGNED = ("fgsm", "bim", "pgd", "iterll")


def pictures(n: int = 12, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(n, 3, 8, 8), of all 8-bit values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 8, 8), generator=generator).to(dtype) / 255


def near_the_boundary(classifier):
    """With the mean logits of ``pictures()`` taken off, so that its classes are about as many and can be fooled."""
    classifier.head.bias.data -= classifier(pictures(dtype=classifier.dtype)).mean(0)
    return classifier


@pytest.fixture
def double(make_classifier):
    return near_the_boundary(make_classifier(dtype=torch.float64))


@pytest.fixture
def single(make_classifier):
    return near_the_boundary(make_classifier())


@pytest.fixture
def labels(double):
    """What the network says of ``pictures()``, but wrong for the last two."""
    said = double(pictures()).argmax(1)
    said[-2:] = (said[-2:] + 1) % 4
    return said


def gradient(classifier, image, label):
    """Of the cross-entropy, (C, H, W)."""
    image = image.clone().requires_grad_()
    F.cross_entropy(classifier(image[None])[0], label).backward()
    return image.grad


# The generator, in Python's own whole numbers.


def drawn(seed: int, image: int, place: int) -> float:
    key = mixed(mixed(mixed(seed) + STREAM) + image * GOLDEN)
    return (mixed(key + (place + 1) * GOLDEN) >> 11) / 2**53


def test_uniform_numbers_are_those_of_whole_number_arithmetic():
    found = uniform(keys_of(7, torch.tensor([0, 5, 10**12])), (2, 3))
    wanted = [[drawn(7, image, place) for place in range(6)] for image in (0, 5, 10**12)]
    assert found.flatten(1).tolist() == wanted


# References, one image at a time.


def test_fgsm_is_its_formula_by_hand():
    weight = torch.randn(4, 192, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 4, bias=False)).double()
    linear[1].weight.data = weight
    classifier = oodbench.Classifier(linear, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    images, labels = pictures(), torch.arange(12) % 4
    found = attack(classifier, images, labels, "fgsm", eps=0.03)
    scale = torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64).repeat_interleave(64)
    shift = torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64).repeat_interleave(64)
    for image, label, changed in zip(images, labels, found, strict=True):
        probabilities = (weight @ ((image.flatten() - shift) / scale)).softmax(0)
        by_hand = (weight.T @ (probabilities - F.one_hot(label, 4))) / scale  # of the cross-entropy, to the pixels
        assert torch.equal(changed, (image + 0.03 * by_hand.sign().view_as(image)).clamp(0, 1))


@pytest.mark.parametrize("name", SIGNED)
def test_signed_steps_against_one_image_at_a_time(name, double, labels):
    images, index = pictures(), torch.arange(100, 112)
    settings = {"eps": 0.05} | ({} if name == "fgsm" else {"step": 0.02, "steps": 4})
    found = attack(double, images, labels, name, seed=3, index=index, batch_size=5, **settings)
    for row, image in enumerate(images):
        changed, label, step = image, labels[row], settings.get("step", 0.05)
        if name == "pgd":
            start = torch.tensor([drawn(3, int(index[row]), place) for place in range(192)], dtype=torch.float64)
            changed = (image + 0.05 * (2 * start.view_as(image) - 1)).clamp(0, 1)
        if name == "iterll":
            label, step = double(image[None])[0].argmin(), -step
        for _ in range(settings.get("steps", 1)):
            changed = changed + step * gradient(double, changed, label).sign()
            changed = (image + (changed - image).clamp(-0.05, 0.05)).clamp(0, 1)
        assert torch.allclose(found[row], changed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"preset": "lee", "weight": 3.0}, {"kappa": 0.02, "weight": 30.0, "lr": 0.02}])
def test_cw_against_one_image_at_a_time(settings, double, labels):
    how = settings_of("cw", {"steps": 25} | settings)
    images = pictures()
    found = attack(double, images, labels, "cw", batch_size=5, **{"steps": 25} | settings)
    moved = 0
    for image, label, result in zip(images, labels, found, strict=True):
        changed = image.clone().requires_grad_()
        adam = torch.optim.Adam([changed], lr=how["lr"])
        best, nearest = image, float("inf")
        for _ in range(how["steps"]):
            logits = double(changed[None])[0]
            distance = (changed - image).square().sum()
            margin = logits[label] - max(logits[k] for k in range(4) if k != label)
            if margin <= -how["kappa"] and logits.argmax() != label and distance < nearest:
                best, nearest = changed.detach().clone(), distance.item()
            adam.zero_grad()
            (distance + how["weight"] * margin.clamp(min=-how["kappa"])).backward()
            adam.step()
            changed.data.clamp_(0, 1)
        assert torch.allclose(result, best, rtol=0, atol=1e-9)
        moved += not torch.equal(result, image)
    assert moved >= 3  # some are fooled, or the test says nothing


def test_cw_keeps_the_best_of_each_image_and_leaves_what_it_cannot_fool(double, labels):
    images = pictures()
    few = attack(double, images, labels, "cw", steps=40, weight=5.0)
    more = attack(double, images, labels, "cw", steps=80, weight=5.0)
    fooled = double(few).argmax(1) != labels
    assert fooled.all()
    # More steps never make it worse.
    assert ((more - images).flatten(1).norm(dim=1) <= (few - images).flatten(1).norm(dim=1)).all()
    barely = attack(double, images, labels, "cw", steps=1)
    assert torch.equal(barely, images)  # the only iterate is the image


def test_hsv_is_that_of_colorsys():
    images = pictures(3)
    images[0, :, :, :4] = images[0, :1, :, :4]  # grey
    images[1, :, :2] = 0
    images[1, 0, 2:4] = images[1, 1, 2:4]  # two channels equal
    there = hsv.from_rgb(images)
    for image in range(3):
        for y in range(8):
            for x in range(8):
                wanted = torch.tensor(colorsys.rgb_to_hsv(*images[image, :, y, x].tolist()), dtype=torch.float64)
                assert torch.allclose(there[image, :, y, x], wanted, rtol=0, atol=1e-12)
    assert torch.allclose(hsv.to_rgb(there), images, rtol=0, atol=1e-12)
    turned = pictures(3, seed=1)
    back = hsv.to_rgb(turned)
    for y in range(8):
        for x in range(8):
            wanted = torch.tensor(colorsys.hsv_to_rgb(*turned[2, :, y, x].tolist()), dtype=torch.float64)
            assert torch.allclose(back[2, :, y, x], wanted, rtol=0, atol=1e-12)


def test_semantic_is_the_negative_image(double, labels):
    assert torch.equal(attack(double, pictures(), labels, "semantic"), 1 - pictures())


def test_semantic_in_hsv_against_one_pixel_at_a_time(double, labels):
    images, trials = pictures(), 12
    found = attack(double, images, labels, "semantic", reading="hsv", trials=trials, seed=2, batch_size=5)
    changed = left = 0
    for row, image in enumerate(images):
        wanted = image
        if double(image[None]).argmax() == labels[row]:
            for trial in range(trials):
                hue_shift, saturation_shift = drawn(2, row, 2 * trial), 2 * drawn(2, row, 2 * trial + 1) - 1
                tried = torch.empty_like(image)
                for y in range(8):
                    for x in range(8):
                        hue, saturation, value = colorsys.rgb_to_hsv(*image[:, y, x].tolist())
                        saturation = min(1.0, max(0.0, saturation + saturation_shift * trial / trials))
                        pixel = colorsys.hsv_to_rgb((hue + hue_shift) % 1, saturation, value)
                        tried[:, y, x] = torch.tensor(pixel, dtype=torch.float64)
                if double(tried[None]).argmax() != labels[row]:
                    wanted = tried
                    break
        changed += wanted is not image
        left += wanted is image
        assert torch.allclose(found[row], wanted, rtol=0, atol=1e-12)
    assert changed
    assert left


# All attacks.

EVERY = [(name, {}) for name in ATTACKS if name != "cw"] + [
    ("cw", {"steps": 20}),
    ("semantic", {"reading": "hsv", "trials": 30}),
]


@pytest.mark.parametrize(("name", "settings"), EVERY)
def test_the_result_depends_neither_on_batch_nor_on_order(name, settings, double, labels):
    images, index = pictures(), torch.arange(12)
    whole = attack(double, images, labels, name, seed=1, **settings)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    again = attack(double, images[order], labels[order], name, seed=1, index=index[order], batch_size=5, **settings)
    assert torch.allclose(again, whole[order], rtol=0, atol=1e-9)
    assert torch.equal(attack(double, images, labels, name, seed=1, **settings), whole)
    assert bool(((whole >= 0) & (whole <= 1)).all())


@pytest.mark.parametrize(("name", "settings"), [("pgd", {}), ("semantic", {"reading": "hsv", "trials": 30})])
def test_another_seed_gives_another_result(name, settings, double, labels):
    first, second = (attack(double, pictures(), labels, name, seed=seed, **settings) for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", SIGNED)
def test_norms_never_exceed_eps(name, single):
    classifier = single
    images = pictures(40, dtype=torch.float32)
    images[:10] = images[:10].round()  # at the bounds
    labels = classifier(images).argmax(1)
    for eps in (0.0, 0.003, 0.05, 1.0):
        found = attack(classifier, images, labels, name, eps=eps)
        assert float((found - images).abs().max()) <= eps + 1e-7
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1


def test_attacks_fool_the_network_they_are_made_against(single):
    classifier = single
    images = pictures(64, dtype=torch.float32)
    labels = classifier(images).argmax(1)
    for name, settings in [*((name, {"eps": 0.2}) for name in ("fgsm", "bim", "pgd")), ("cw", {"weight": 5.0})]:
        assert (classifier(attack(classifier, images, labels, name, **settings)).argmax(1) != labels).double().mean() > 0.9
    towards = classifier(attack(classifier, images, labels, "iterll", eps=0.2, step=0.02, steps=30)).argmax(1)
    assert (towards == classifier(images).argmin(1)).double().mean() > 0.9


@pytest.mark.parametrize("network", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.float16, torch.float32, torch.float64])
def test_dtype_and_device_stay(make_classifier, network, given):
    classifier = make_classifier(dtype=network)
    images, labels = pictures(4, dtype=given), torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    for name in ATTACKS:
        found = attack(classifier, images, labels, name, **({"steps": 2} if name == "cw" else {}))
        assert (found.dtype, found.device, found.shape) == (given, images.device, images.shape)


def test_the_network_and_the_images_stay_as_they_were(double, labels):
    images, before = pictures(), double.weights_hash
    for name in ATTACKS:
        attack(double, images, labels, name, **({"steps": 2} if name == "cw" else {}))
    assert double.weights_hash == before
    assert torch.equal(images, pictures())
    assert not any(p.requires_grad or p.grad is not None for p in double.parameters())
    assert not any(module.training for module in double.modules())


def test_attacks_work_within_inference_mode(double, labels):
    wanted = attack(double, pictures(), labels, "pgd")
    with torch.inference_mode():
        assert torch.equal(attack(double, pictures(), labels, "pgd"), wanted)


def test_a_network_that_works_in_place(double, labels):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = double

        def forward(self, x):
            return self.inner(x.mul_(1))

    wanted = attack(double, pictures(), labels, "bim")
    assert torch.equal(attack(oodbench.Classifier(InPlace()), pictures(), labels, "bim"), wanted)


@pytest.mark.parametrize(("name", "settings"), EVERY)
def test_a_step_is_one_pass_and_no_more(name, settings, double, labels):
    seen = []
    double.register_forward_hook(lambda module, given, result: seen.append(len(given[0])))
    advanced = []

    class Counting(Progress):
        def advance(self, units):
            advanced.append(units)

    attack(double, pictures(), labels, name, batch_size=5, progress=Counting(), **settings)
    how = settings_of(name, settings)
    steps = 0 if name == "semantic" else how.get("steps", 1) + (name == "iterll")
    checks = 3  # single images
    if how.get("reading") == "hsv":
        assert sum(seen) <= checks + 12 * (how["trials"] + 1)
    else:
        assert sum(seen) == checks + 12 * steps
        assert sum(advanced) == pytest.approx(12 * passes(name, how))
    assert sum(advanced) >= 12 * passes(name, how) * (1 - 1e-9)


def test_no_images_give_none(double):
    assert attack(double, pictures()[:0], torch.empty(0, dtype=torch.int64), "pgd").shape == (0, 3, 8, 8)


def test_presets_name_settings_that_there_are():
    for name, presets in PRESETS.items():
        assert all(set(values) < set(ATTACKS[name].settings) for values in presets.values())
    assert settings_of("cw", {"preset": "lee", "lr": 0.5}) == {
        "weight": 0.04,
        "lr": 0.5,
        "kappa": 0.0,
        "steps": 100,
    }


def test_the_page_names_each_attack_with_its_settings_and_defaults():
    page = (Path(__file__).parents[3] / "docs" / "attacks.md").read_text(encoding="utf-8")
    table = page.partition("## In a suite")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    for name, record in ATTACKS.items():
        settings = " ".join(row[2] for row in rows if row[0] == f"`{name}`")
        said = {
            key: ast.literal_eval(value) if value[0] == '"' else float(Fraction(value))
            for key, value in re.findall(r"`(\w+) = ([^`]+)`", settings.split(";")[0])
            if value != '"hsv"'
        }
        assert said == record.settings, name
    for name, presets in PRESETS.items():
        (settings,) = (row[2] for row in rows if row[0] == f"`{name}`")
        for preset, values in presets.items():
            assert f'`preset = "{preset}"` is ' + ", ".join(f"`{key} = {value}`" for key, value in values.items()) in settings


# Refused input.


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("pdg", {}, r"unknown attack 'pdg'; did you mean 'pgd'\? \(known: fgsm, .*foolbox:CLASS"),
        ("foolbox:", {}, r"unknown attack 'foolbox:'"),
        ("pgd", {"esp": 0.1}, r"unknown setting 'esp' of pgd; did you mean 'eps'\? \(it has: eps, step, steps\)"),
        ("fgsm", {"preset": "lee"}, r"unknown setting 'preset' of fgsm"),
        ("fgsm", {"eps": -0.1}, r"eps of fgsm is -0.1; give a number from 0 to 1: it is in pixel units"),
        ("fgsm", {"eps": 8}, r"eps of fgsm is 8; .*8/255"),
        ("fgsm", {"eps": float("nan")}, r"eps of fgsm is nan"),
        ("fgsm", {"eps": "0.1"}, r"eps of fgsm is '0.1'"),
        ("fgsm", {"eps": True}, r"eps of fgsm is True"),
        ("bim", {"steps": 0}, r"steps of bim is 0; give a whole number of at least 1"),
        ("bim", {"steps": 2.5}, r"steps of bim is 2.5"),
        ("bim", {"step": 0}, r"step of bim is 0; give a number above 0"),
        ("cw", {"kappa": -1}, r"kappa of cw is -1"),
        ("cw", {"weight": 0}, r"weight of cw is 0"),
        ("cw", {"lr": -0.01}, r"lr of cw is -0.01"),
        ("cw", {"preset": "le"}, r"unknown preset 'le' of cw; did you mean 'lee'\?"),
        ("semantic", {"reading": "hvs"}, r"unknown reading 'hvs' of semantic; did you mean 'hsv'\? \(known: negative, hsv\)"),
        ("semantic", {"trials": 0}, r"trials of semantic is 0"),
    ],
)
def test_names_and_settings_that_there_are_not(name, settings, said, classifier):
    with pytest.raises(UsageError, match=said) as caught:
        attack(classifier, pictures(4), torch.zeros(4, dtype=torch.int64), name, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": (pictures(4) * 255).to(torch.uint8)}, r"takes float images .* not torch.uint8 .*; divide them by 255"),
        ({"images": pictures(4) * 2}, r"images in \[0, 1\], but these go from 0 to 2"),
        ({"images": pictures(4) * 1.00001}, r"images in \[0, 1\], but these go from 0 to 1.00001"),
        ({"images": pictures(4) - 1e-5}, r"images in \[0, 1\], but these go from -1e-05 to"),
        ({"images": pictures(4)[0]}, r"takes float images \(N, C, H, W\), not torch.float64 \(3, 8, 8\)"),
        ({"images": torch.full((4, 3, 8, 8), torch.nan)}, r"images in \[0, 1\]"),
        ({"labels": torch.tensor([0, 1, 2, 4])}, r"labels go from 0 to 4, but tiny has classes 0 to 3"),
        ({"labels": torch.tensor([0, 1, 2, -1])}, r"labels go from -1 to 2"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"4 images, but labels torch.int64 \(3,\)"),
        ({"labels": torch.zeros(4)}, r"4 images, but labels torch.float32"),
        ({"index": torch.arange(3)}, r"an index of shape \(3,\)"),
        ({"batch_size": 0}, r"batch_size is 0"),
        ({"images": pictures(4)[:, :2]}, r"tiny does not take images of shape \(2, 8, 8\)"),
    ],
)
def test_images_and_labels_that_do_not_fit(changed, said, classifier):
    given = {"images": pictures(4), "labels": torch.zeros(4, dtype=torch.int64)} | changed
    with pytest.raises(OodbenchError, match=said) as caught:
        attack(classifier, name="pgd", **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ATTACKS)
def test_pixels_slightly_outside_the_range_are_rounding(name, single, labels):
    """Such as what resizing in floats gives: once it was refused."""
    exact = pictures(dtype=torch.float32)
    exact[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    given = exact.clone()
    given[0, 0, 0, :2] = torch.tensor([-3e-8, 1 + 2e-7])
    assert not torch.equal(given, exact)
    assert torch.equal(attack(single, given, labels, name), attack(single, exact, labels, name))
    assert given.min() < 0, "the caller's images stay"


def test_networks_that_let_no_gradient_through():
    class Silent(nn.Module):
        def forward(self, x):
            return x.detach().flatten(1)[:, :4]

    class Infinite(nn.Module):
        def forward(self, x):
            return (x.flatten(1)[:, :4] * 0).sqrt()  # its slope at 0 is infinite

    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(Unsuitable, match="Silent passes no gradient to its images"):
        attack(oodbench.Classifier(Silent()), pictures(4), labels, "fgsm")
    with pytest.raises(BadData, match="Infinite gives gradients that are not finite"):
        attack(oodbench.Classifier(Infinite()), pictures(4), labels, "fgsm")


def test_hue_needs_colour():
    grey = oodbench.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    with pytest.raises(Unsuitable, match="shifts the hue of RGB images, not of 1 channels"):
        attack(grey, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), "semantic", reading="hsv")
    assert attack(grey, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), "pgd").shape == (2, 1, 8, 8)


# The real network.


@pytest.fixture(scope="module")
def real(data_root):
    """ResNet-20, 128 test images of CIFAR-10, their labels, and which it gets right."""
    classifier = oodbench.load_model("resnet20-cifar10", data=data_root)
    images = oodbench.load_dataset("cifar10", data=data_root).select(torch.arange(128))
    pixels = images.images.float() / 255
    with torch.inference_mode():
        return classifier, pixels, images.labels, classifier(pixels).argmax(1) == images.labels


def rounded(images):
    return (images * 255).round() / 255


def success(real, attacked):
    classifier, _, labels, right = real
    with torch.inference_mode():
        wrong = classifier(attacked).argmax(1) != labels[: len(attacked)]
    return float(wrong[right[: len(attacked)]].double().mean())


@pytest.mark.data
def test_pgd_fools_the_real_network(real):
    classifier, pixels, labels, right = real
    assert right.double().mean() > 0.9
    attacked = attack(classifier, pixels, labels, "pgd", eps=8 / 255)
    assert float((attacked - pixels).abs().max()) <= 8 / 255 + 1e-7
    assert float((rounded(attacked) - pixels).abs().max()) <= 8 / 255 + 1 / 510 + 1e-7
    assert success(real, rounded(attacked)) > 0.99


@pytest.mark.data
def test_fgsm_of_the_real_network_is_its_formula(real):
    classifier, pixels, labels, _ = real
    images = pixels[:16].clone().requires_grad_()
    F.cross_entropy(classifier(images).double(), labels[:16], reduction="sum").backward()
    wanted = (images.detach() + 0.05 * images.grad.sign()).clamp(0, 1)
    assert torch.equal(attack(classifier, pixels[:16], labels[:16], "fgsm", eps=0.05), wanted)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [("bim", {}, 0.95), ("iterll", {}, 0.95), ("cw", {"steps": 25}, 0.95), ("fgsm", {}, 0.7), ("semantic", {}, 0.1)],
)
def test_the_others_on_the_real_network(real, name, settings, least):
    classifier, pixels, labels, _ = real
    attacked = attack(classifier, pixels[:12], labels[:12], name, **settings)
    assert success(real, attacked) >= least
    assert float(attacked.min()) >= 0
    assert float(attacked.max()) <= 1
