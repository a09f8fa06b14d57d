"""What the methods of recipes do to images, losses and weights, against loops and formulas that are written out."""

import json
import math

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms.v2 import functional as library

from oodbench import Classifier, ImageSet, cli
from oodbench.errors import OodbenchError, Unsuitable, UsageError
from oodbench.models import recipes
from oodbench.models.build import build
from oodbench.models.load import load_model
from oodbench.models.recipes import augmix, lars, simclr, views
from oodbench.models.recipes.method import method_of
from oodbench.models.train import Training, accuracy, train

MODEL = "resnet8-digits"
SETTINGS = {"epochs": 3, "batch_size": 16, "lr": 0.05, "device": "cpu", "progress": False}
METHODS = [name for name, recipe in recipes.RECIPES.items() if recipe.method]

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(count=6, height=16, width=16, seed=0):
    """Photographs do not have this much detail, so interpolation is tested hard."""
    return torch.randint(0, 256, (count, 3, height, width), generator=generator(seed)).to(torch.uint8)


@pytest.fixture(scope="module")
def labelled():
    """66 images 8x8 of three classes that differ in where they are bright, with noise."""
    labels = torch.arange(66) % 3
    images = torch.randint(0, 60, (66, 3, 8, 8), generator=generator())
    for row, label in enumerate(labels.tolist()):
        images[row, label] += 150
    return ImageSet(images.to(torch.uint8), labels, name="bright")


def made(name, classifier, flips=True, **parameters):
    return method_of(classifier, recipes.find(name).override(parameters), flips, seed=0)


@pytest.fixture
def network():
    return build(MODEL, 3)


# AugMix


def by_pillow(name, image, level, sign):
    """One operation as AugMix's authors write it, with Pillow."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    width, height = picture.size

    def mapped(*matrix):
        return picture.transform((width, height), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)

    done = {
        "autocontrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
        "posterize": lambda: ImageOps.posterize(picture, 4 - int(level * 4 / 10)),
        "solarize": lambda: ImageOps.solarize(picture, 256 - int(level * 256 / 10)),
        "rotate": lambda: picture.rotate(sign * int(level * 30 / 10), resample=Image.Resampling.BILINEAR),
        "shear_x": lambda: mapped(1, sign * level * 0.3 / 10, 0, 0, 1, 0),
        "shear_y": lambda: mapped(1, 0, 0, sign * level * 0.3 / 10, 1, 0),
        "translate_x": lambda: mapped(1, 0, sign * int(level * (width / 3) / 10), 0, 1, 0),
        "translate_y": lambda: mapped(1, 0, 0, 0, 1, sign * int(level * (height / 3) / 10)),
    }[name]()
    return library.pil_to_tensor(done)


@pytest.mark.parametrize("operation", augmix.OPERATIONS, ids=lambda operation: operation.__name__)
def test_each_operation_of_augmix_is_that_of_pillow(operation):
    images = random_images(12, 20, 24) // 2 + 40
    level = torch.tensor([0.15, 0.9, 1.7, 2.3, 2.95, 9.9], dtype=torch.float64).repeat(2)
    sign = torch.tensor([1, -1]).repeat_interleave(6)
    got = operation(images, level, sign)
    assert got.dtype == torch.uint8
    for row in range(12):
        expected = by_pillow(operation.__name__, images[row], float(level[row]), int(sign[row]))
        apart = (got[row].int() - expected.int()).abs()
        # Rounding differs: autocontrast is torchvision's, and Pillow rounds what it interpolates down or up, by its version.
        assert int(apart.max()) <= (operation.__name__ in ("autocontrast", "rotate", "shear_x", "shear_y"))


def test_no_operation_of_augmix_is_a_test_corruption():
    names = {operation.__name__ for operation in augmix.OPERATIONS}
    geometry = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
    assert names == {"autocontrast", "equalize", "posterize", "solarize"} | geometry
    overlapping = ("color", "colour", "contrast", "brightness", "sharpness", "noise", "blur", "snow", "haze", "exposure")
    assert [name for name in names - {"autocontrast"} for word in overlapping if word in name] == []


def test_what_augmix_draws(network):
    method, count = made("augmix", network), 2000
    draws = method.draw(count, generator())
    operations = torch.stack([operation for operation, _, _ in draws["operations"]])
    assert operations.shape == (3, 3 * count)
    length = (operations >= 0).sum(0)
    assert set(operations[operations >= 0].tolist()) == set(range(9))
    assert torch.bincount(length, minlength=4)[1:].tolist() == pytest.approx([count] * 3, rel=0.1)
    assert all((operations[:, row] >= 0).tolist() == [place < length[row] for place in range(3)] for row in range(300))
    levels = torch.stack([level for _, level, _ in draws["operations"]])
    assert 0.1 <= float(levels.min()) < 0.11 < 2.99 < float(levels.max()) <= 3
    assert set(draws["operations"][0][2].tolist()) == {-1, 1}
    torch.testing.assert_close(draws["weights"].sum(0), torch.ones(count))
    assert float(draws["weights"].min()) >= 0
    assert draws["weights"].mean(1).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    # Of Dirichlet(1, 1, 1), whose parts have variance 2/36; of Beta(1, 1), which is uniform.
    assert draws["weights"].var(1).tolist() == pytest.approx([1 / 18] * 3, rel=0.1)
    assert (float(draws["share"].mean()), float(draws["share"].var())) == pytest.approx((1 / 2, 1 / 12), rel=0.1)


def test_a_mixture_equals_a_loop_over_images_and_chains(network):
    method, images = made("augmix", network), random_images()
    got, draws = method.mixed(images, generator(3)), method.draw(len(images), generator(3))
    for row in range(len(images)):
        mixture = torch.zeros(3, 16, 16)
        for chain in range(3):
            image, place = images[row : row + 1], chain * len(images) + row
            for operation, level, sign in draws["operations"]:
                if operation[place] >= 0:
                    apply = augmix.OPERATIONS[int(operation[place])]
                    image = apply(image, level[place : place + 1], sign[place : place + 1])
            mixture += draws["weights"][chain, row] * image[0] / 255
        share = draws["share"][row]
        torch.testing.assert_close(got[row], (1 - share) * images[row] / 255 + share * mixture)


def test_the_divergence_of_augmix_on_a_worked_case():
    answers = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.25, 0.75], [0.9, 0.1], [0.75, 0.25], [0.9, 0.1]], dtype=torch.float64)
    # The first of two images: M = (1/2, 1/2), the first answer is M itself. The second: all are the same.
    expected = 2 / 3 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2
    assert float(augmix.divergence(answers.log())) == pytest.approx(expected, rel=1e-5)  # in float32
    sure = torch.tensor([[0.0, 1e4], [0.0, 1e4], [0.0, 1e4]])
    assert float(augmix.divergence(sure)) == 0  # M is clamped, and no 0 · log 0 is left


def test_the_loss_of_augmix(network):
    images, labels = random_images(4, 8, 8), torch.tensor([0, 1, 2, 0])
    loss, right = made("augmix", network, consistency=0.0).loss(images, labels, generator())
    logits = network(images / 255)
    clean = nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, clean)
    assert right.tolist() == (logits.argmax(1) == labels).tolist()
    method = made("augmix", network)
    random = generator()
    mixed = [method.mixed(images, random), method.mixed(images, random)]
    apart = augmix.divergence(torch.cat([logits, *(network(one) for one in mixed)]))
    assert float(apart) > 0
    torch.testing.assert_close(method.loss(images, labels, generator())[0], clean + 12 * apart)


# Adversarial training and noise


def test_adversarial_examples_are_near_their_images_and_harder(labelled, network, monkeypatch):
    training = Training(network, labelled, recipes.find("adversarial").override(batch_size=22, augment=False))
    method, seen, modes = training.method, [], []
    attacked = type(method).attacked

    def spy(self, images, labels, random):
        found = attacked(self, images, labels, random)
        assert all(parameter.grad is None for parameter in network.module.parameters()) or seen
        with torch.no_grad():
            losses = [float(nn.functional.cross_entropy(network(one), labels)) for one in (images, found)]
        seen.append((images, found, losses))
        return found

    monkeypatch.setattr(type(method), "attacked", spy)
    network.module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    training.epoch(0)
    assert len(seen) == 3
    assert len(modes) == 3 * (10 + 2 + 1)
    assert all(modes)
    for images, found, (before, after) in seen:
        apart = (found - images).abs()
        assert 0 < float(apart.max()) <= 8 / 255 + 1e-6
        assert float(apart.mean()) > 4 / 255  # most pixels are at the edge of the ball
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
        assert after > before
    again = made("adversarial", network).attacked(seen[0][0], labelled.labels[:22], generator())
    other = made("adversarial", network).attacked(seen[0][0], labelled.labels[:22], generator(1))
    assert not torch.equal(again, other)  # from a random point


def test_an_attack_on_a_network_that_diverged_ends_the_training(labelled, network):
    with torch.no_grad():
        network.module.linear.weight.fill_(torch.inf)
    with pytest.raises(OodbenchError, match=r"training resnet8-digits diverged .*; lower lr, now 0\.1"):
        Training(network, labelled, recipes.find("adversarial")).epoch(0)


def test_half_of_each_batch_is_clean(network):
    images = torch.full((40, 3, 32, 32), 0.5)
    found = made("noise", network).noisy(images, generator())
    assert torch.equal(found[:20], images[:20])
    apart = (found - images)[20:]
    assert apart.flatten(1).std(1).tolist() == pytest.approx([0.1] * 20, rel=0.1)
    assert float(apart.mean()) == pytest.approx(0, abs=0.002)
    strong = made("noise", network, sigma=0.5, clean=0.25).noisy(images, generator())
    assert torch.equal(strong[:10], images[:10])
    assert not (strong[10:] == images[10:]).flatten(1).all(1).any()
    assert (float(strong.min()), float(strong.max())) == (0, 1)
    several = made("noise", network, sigma=[0.02, 0.08], clean=0.0).noisy(images, generator())
    spreads = (several - images).flatten(1).std(1)
    assert {round(float(spread), 2) for spread in spreads} == {0.02, 0.08}


# SimCLR


def test_nt_xent_equals_a_loop():
    embedded = torch.randn(10, 4, generator=generator(), dtype=torch.float64)
    loss, matched = simclr.contrast(embedded, 0.5)
    total = 0.0
    for i in range(10):
        j = (i + 5) % 10

        def similar(k, i=i):
            return float(embedded[i] @ embedded[k] / embedded[i].norm() / embedded[k].norm())

        others = [k for k in range(10) if k != i]
        total -= math.log(math.exp(similar(j) / 0.5) / sum(math.exp(similar(k) / 0.5) for k in others))
        assert bool(matched[i]) == (max(others, key=similar) == j)
    assert float(loss) == pytest.approx(total / 10)


def test_nt_xent_on_a_worked_case():
    # Two images, whose views agree within and are at a right angle between: e^2 against e^2 + 2.
    embedded = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    loss, matched = simclr.contrast(embedded, 0.5)
    assert float(loss) == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 2)))
    assert matched.all()


def test_each_view_is_another(network):
    method, images = made("simclr", network), random_images(8) / 255
    random = generator()
    first, second = method.view(images, random), method.view(images, random)
    assert first.shape == images.shape
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    for one, other in ((first, images), (second, images), (first, second)):
        assert float((one - other).abs().flatten(1).mean(1).min()) > 0.01
    assert torch.equal(method.view(images, generator()), first)


@pytest.mark.parametrize("flips", [True, False])
def test_a_crop_shows_a_part_of_the_image(flips):
    """An image whose channels are the place of a pixel, across and down, tells which part is seen."""
    count, height, width = 400, 24, 32
    across = (torch.arange(width) + 0.5) / width
    down = (torch.arange(height) + 0.5) / height
    image = torch.stack([across.expand(height, width), down[:, None].expand(height, width)])
    seen = views.cropped(image.expand(count, 2, height, width), (0.08, 1.0), flips, generator())
    x, y = seen[:, 0, height // 2, 4:-4], seen[:, 1, 4:-4, width // 2]  # the interpolation is exact away from borders
    wide, high = (x[:, -1] - x[:, 0]) / (width - 9) * width, (y[:, -1] - y[:, 0]) / (height - 9) * height
    if flips:
        assert 0.4 < float((wide < 0).float().mean()) < 0.6
    else:
        assert float(wide.min()) > 0
    wide = wide.abs()
    area, ratio = wide * high, wide * width / (high * height)
    assert 0.07 < float(area.min()) < 0.12
    assert 0.85 < float(area.max()) < 1.01
    fits = (wide < 0.95) & (high < 0.95)
    assert 0.74 < float(ratio[fits].min()) < 0.78
    assert 1.28 < float(ratio[fits].max()) < 1.35
    lines = torch.linspace(0, 1, width - 8)
    torch.testing.assert_close(x, torch.lerp(x[:, :1], x[:, -1:], lines), rtol=0, atol=0.01)


def test_changes_of_colour_equal_a_loop_with_torchvision():
    images = random_images(16) / 255
    change = (2 * torch.rand(16, 4, generator=generator()) - 1) * torch.tensor([0.4, 0.4, 0.4, 0.1])
    order = torch.rand(16, 4, generator=generator(1)).argsort(1)
    order[::4] = -1
    found = views.adjusted(images, change, order)
    adjustments = library.adjust_brightness, library.adjust_contrast, library.adjust_saturation, library.adjust_hue
    assert torch.equal(found[::4], images[::4])
    for row in range(16):
        image = images[row]
        for number in order[row].tolist():
            if number >= 0:
                image = adjustments[number](image, float(change[row, number]) + (number < 3))
        torch.testing.assert_close(found[row], image, rtol=0, atol=2e-3)  # torchvision's luma has four digits


def test_a_share_of_the_views_has_other_colours_or_none():
    images = (random_images(1, 8, 8) / 255).expand(1000, 3, 8, 8)
    found = views.recoloured(images, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, generator())
    without = (found == found[:, :1]).flatten(1).all(1)
    same = (found == images).flatten(1).all(1)
    assert float(without.float().mean()) == pytest.approx(0.2, abs=0.04)
    assert float(same.float().mean()) == pytest.approx(0.2 * 0.8, abs=0.04)
    grey = images[:, :1]
    assert views.recoloured(grey, (0.4, 0.4, 0.4, 0.1), 1, 1, generator()) is grey


def test_lars_equals_its_formula():
    weight, bias = torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([2.0], requires_grad=True)
    unused, zero = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    groups = [{"params": [weight, unused, zero]}, {"params": [bias], "adapted": False, "weight_decay": 0.0}]
    optimizer = lars.LARS(groups, 0.5, 0.9, 0.1)
    w, v, b, u, z = [3.0, 4.0], [0.0, 0.0], 2.0, 0.0, 0.0
    for step in range(3):
        gradient = [1.0 + step, -2.0]
        weight.grad, bias.grad, zero.grad = torch.tensor(gradient), torch.tensor([0.5]), torch.tensor([1.0, 1.0])
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = rate = 0.5 / (step + 1)
        before = zero.detach().clone()
        optimizer.step()
        gradient = [g + 0.1 * x for g, x in zip(gradient, w, strict=True)]
        trust = 0.001 * math.hypot(*w) / math.hypot(*gradient)
        v = [0.9 * x + rate * trust * g for x, g in zip(v, gradient, strict=True)]
        w = [x - y for x, y in zip(w, v, strict=True)]
        u = 0.9 * u + rate * 0.5
        b -= u
        if step == 0:  # without a norm, the rate is as it is
            z = -0.5
            assert (zero - before).tolist() == pytest.approx([z, z])
        assert weight.tolist() == pytest.approx(w)
        assert bias.tolist() == pytest.approx([b])
    assert unused.tolist() == [1, 1]
    with pytest.raises(NotImplementedError, match="takes no closure"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize("name", ["simclr", "simclr-adam"])
def test_pretraining_leaves_the_head_and_the_head_leaves_the_rest(name, labelled):
    network = build(MODEL, 3)
    recipe = recipes.find(name).override({"head_share": 0.5, "head_lr": 0.01}, epochs=4, batch_size=22)
    training = Training(network, labelled, recipe)

    def state():
        return {key: value.clone() for key, value in network.module.state_dict().items()}

    def changed(before):
        now = network.module.state_dict()
        return {key.partition(".")[0] for key, value in now.items() if not torch.equal(value, before[key])}

    before = state()
    training.epoch(0)
    assert changed(before) == {key.partition(".")[0] for key in before} - {"linear"}
    training.epoch(1)
    before, projection = state(), training.method.projection[0].weight.clone()
    for number in (2, 3):
        training.epoch(number)
    assert changed(before) == {"linear"}
    assert torch.equal(projection, training.method.projection[0].weight)


def test_the_rates_of_simclr(network):
    recipe = recipes.find("simclr")
    method = made("simclr", network)
    assert method.pretraining == 1000
    rates = [method.rate(epoch * 98, 98) for epoch in (0, 5, 500, 999, 1000, 1050)]
    half = (1 + math.cos(math.pi * 0.005)) / 2
    assert rates == pytest.approx([0, 2 * half / 2, 1, 2 * (1 + math.cos(math.pi * 0.999)) / 2, 0.2, 0.1])
    assert recipe.lr == 512 / 256 * 1.0
    assert recipe.parameters["head_lr"] == 512 / 256 * 0.1


def test_contrastive_pretraining_learns_to_match_views(labelled):
    network = build(MODEL, 3)
    recipe = recipes.find("simclr-adam").override({"jitter": [0.1] * 4, "area": [0.6, 1.0]}, epochs=24, batch_size=33)
    training = Training(network, labelled, recipe)
    losses, matched = zip(*(training.epoch(number) for number in range(20)), strict=True)
    assert losses[-1] < losses[0] - 0.3
    assert matched[-1] > 3 / 65  # by chance 1 / 65


# All methods


@pytest.mark.parametrize("name", ["augmix", "adversarial", "noise"])
def test_a_network_learns_by_each_method(name, labelled, tmp_path):
    trained = train(MODEL, labelled, out=tmp_path / "net.safetensors", recipe=name, **SETTINGS | {"epochs": 6})
    assert accuracy(trained, labelled) > 0.9
    plain = train(MODEL, labelled, out=tmp_path / "plain.safetensors", recipe="standard", **SETTINGS | {"epochs": 6})
    assert trained.weights_hash != plain.weights_hash


def test_standard_is_pytorch_cifar():
    recipe = recipes.find("standard")
    assert recipe == recipes.replace(recipes.find("resnet-cifar"), name="standard")
    assert (recipe.epochs, recipe.lr, recipe.weight_decay, recipe.nesterov) == (200, 0.1, 5e-4, False)


def test_the_rate_of_augmix_ends_above_zero(network):
    method = made("augmix", network)
    assert method.rate(0, 391) == 0.1
    assert method.rate(100 * 391, 391) == pytest.approx(1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_the_card_has_the_method_with_all_its_parameters(name, labelled, tmp_path):
    out = tmp_path / "net.safetensors"
    train(MODEL, labelled, out=out, recipe=name, **SETTINGS | {"epochs": 2})
    card = json.loads((tmp_path / "net.card.json").read_text())
    recipe = recipes.find(name)
    assert (card["recipe"]["method"], card["recipe"]["parameters"]) == (recipe.method, recipe.parameters)
    assert card["code"].keys() == {"network", "training", "method"}
    assert load_model(MODEL, out).weights_hash == card["weights"]["hash"]
    before = out.read_bytes()
    train(MODEL, labelled, out=out, recipe=name, **SETTINGS | {"epochs": 2})  # the same again
    assert out.read_bytes() == before


def test_a_parameter_given_on_the_command_line_is_used_and_kept(tmp_path, monkeypatch, capsys):
    out = tmp_path / "net.safetensors"
    options = ["--dataset", "digits", "--epochs", "1", "--device", "cpu", "--recipe", "noise", "--out", str(out)]
    command = ["train", MODEL, *options]

    def run(*parameters):
        monkeypatch.setattr("sys.argv", ["oodbench", *command, *(part for one in parameters for part in ("--param", one))])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().err

    assert run("noise.sigma=[0.05, 0.2]")[0] == 0
    assert json.loads((tmp_path / "net.card.json").read_text())["recipe"]["parameters"] == {"sigma": [0.05, 0.2], "clean": 0.5}
    code, text = run("noise.sigma=0.2")
    assert code == 2
    assert "parameters {'sigma': [0.05, 0.2], 'clean': 0.5} instead of" in text
    code, text = run("noise.sigm=0.2")
    assert code == 2
    assert "unknown parameter 'sigm' of noise; did you mean 'sigma'? (it has: sigma, clean)" in text
    code, text = run("augmix.width=2")
    assert code == 2
    assert "this command uses noise" in text


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("noise", {"sigma": -1}, r"noise: sigma\[0\] = -1; give a finite number above 0"),
        ("noise", {"sigma": []}, "noise: sigma = "),
        ("noise", {"clean": 2}, "noise: clean = 2; give a finite number from 0 to 1"),
        ("augmix", {"width": 0}, "augmix: width = 0; give a whole number from 1 to 10"),
        ("augmix", {"severity": 11}, r"augmix: severity = 11; give a number from 0\.1 to 10"),
        ("augmix", {"severity": "much"}, "augmix: severity = 'much'; give a finite number"),
        ("adversarial", {"eps": 8}, "adversarial: eps = 8; give a finite number from 0 to 1"),
        ("adversarial", {"steps": 1.5}, "adversarial: steps = 1.5; give a whole number"),
        ("simclr", {"optimizer": "sgd"}, "simclr: optimizer = 'sgd'; give lars or adam"),
        ("simclr", {"temperature": 0}, "simclr: temperature = 0; give a finite number above 0"),
        ("simclr", {"jitter": 0.4}, r"simclr: jitter = 0\.4; give 4 numbers from 0 to 1"),
        ("simclr", {"area": [0, 1]}, r"simclr: area\[0\] = 0; give a finite number above 0"),
    ],
)
def test_parameters_without_sense_are_refused(name, parameters, message, labelled, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(MODEL, labelled, out=tmp_path / "net.safetensors", recipe=name, parameters=parameters, **SETTINGS)
    assert not list(tmp_path.iterdir())


def test_networks_that_a_method_does_not_fit_are_refused(labelled, tmp_path, network):
    with pytest.raises(
        UsageError, match="objective of its own, which augmix would replace; use --recipe duq, or train another"
    ):
        train("duq-resnet18", labelled, out=tmp_path / "net.safetensors", recipe="augmix", **SETTINGS)
    with pytest.raises(UsageError, match="simclr: epochs = 1; give at least 2"):
        train(MODEL, labelled, out=tmp_path / "net.safetensors", recipe="simclr", **SETTINGS | {"epochs": 1})
    headless = Classifier(network.module, head="", name="headless")
    with pytest.raises(Unsuitable, match="headless has no final linear layer, which simclr trains alone; train another"):
        made("simclr", headless)
    assert not list(tmp_path.iterdir())


def test_a_card_from_before_methods_is_that_of_the_same_training(labelled, tmp_path):
    out = tmp_path / "net.safetensors"
    train(MODEL, labelled, out=out, recipe="standard", **SETTINGS | {"epochs": 1})
    card = json.loads((tmp_path / "net.card.json").read_text())
    assert [card["recipe"].pop(name) for name in ("method", "parameters", "final_lr")] == ["", {}, 0]
    (tmp_path / "net.card.json").write_text(json.dumps(card))
    before = load_file(out)
    train(MODEL, labelled, out=out, recipe="standard", **SETTINGS | {"epochs": 1})
    assert all(torch.equal(value, before[key]) for key, value in load_file(out).items())
