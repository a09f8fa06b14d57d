"""The network of DUQ: its loss, its penalty and its centroids against slow references, and a small training."""

import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from training import trained_whole_and_resumed

import oodbench
from oodbench.errors import Unsuitable
from oodbench.gradients.coverage import norms_one_by_one
from oodbench.gradients.norms import squared_norms
from oodbench.models import weights
from oodbench.models.build import build
from oodbench.models.cifar_resnet import resnet8
from oodbench.models.duq import with_kernels
from oodbench.models.load import load_model
from oodbench.models.train import accuracy, train
from oodbench.probe import Probe

WIDTH, CLASSES = 6, 3


pytestmark = pytest.mark.usefixtures("one_thread")


def small(dtype=torch.float64, **settings):
    torch.manual_seed(0)
    return with_kernels(resnet8(WIDTH), WIDTH, CLASSES, **{"length_scale": 0.5, **settings}).module.to(dtype)


def kernels(network, images):
    """K, class by class, by the formula."""
    features = network.body(images)
    columns = []
    for c in range(CLASSES):
        matrix = network.weight[c * WIDTH : (c + 1) * WIDTH]
        distances = ((features @ matrix.T - network.total[c] / network.count[c]) ** 2).mean(1)
        columns.append(torch.exp(-distances / (2 * network.length_scale**2)))
    return torch.stack(columns, 1)


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(1)
    return torch.randn(7, 3, 8, 8, generator=random, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0, 0])


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_and_its_gradients_are_those_of_the_formula(training, batch):
    images, labels = batch
    network, slow = small(penalty=0.3).train(training), small(penalty=0.3).train(training)
    loss, logits = network.requires_grad_(True).loss(images, labels)
    leaf = images.clone().requires_grad_()
    outputs = kernels(slow.requires_grad_(True), leaf)
    (by_pixel,) = torch.autograd.grad(outputs.sum(), leaf, create_graph=True)
    penalty = sum((gradient.pow(2).sum().sqrt() - 1) ** 2 for gradient in by_pixel) / len(images)
    expected = F.binary_cross_entropy(outputs, F.one_hot(labels, CLASSES).double()) + 0.3 * penalty
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, outputs.log())
    assert 1e-3 < outputs.min() < outputs.max() < 0.999
    assert penalty > 0.01
    loss.backward()
    expected.backward()
    for (name, found), reference in zip(network.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(found.grad, reference.grad, rtol=1e-6, atol=1e-10, msg=name)


def test_the_penalty_is_that_of_finite_differences(batch):
    """In eval mode, where an image's kernels depend on its own pixels alone."""
    images, labels = batch[0][:2, :, :4, :4], batch[1][:2]
    network = small().eval()
    loss = [network.loss(images, labels)[0]]
    network.penalty = 0.0
    loss.append(network.loss(images, labels)[0])
    step, norms = 1e-6, []
    for image in images:
        shifts = torch.eye(image.numel(), dtype=torch.float64).view(-1, *image.shape) * step
        with torch.no_grad():
            slopes = (kernels(network, image + shifts).sum(1) - kernels(network, image - shifts).sum(1)) / (2 * step)
        norms.append(slopes.norm())
    expected = 0.75 * ((torch.stack(norms) - 1) ** 2).mean()
    torch.testing.assert_close(loss[0] - loss[1], expected, rtol=1e-6, atol=0)


def test_centroids_move_towards_the_embeddings_of_eval_mode(batch):
    images, labels = batch
    network, slow = small(gamma=0.9).train(), small(gamma=0.9).eval()
    with torch.no_grad():
        network.after_step(images, labels)
        counts, sums = 0.9 * slow.count, 0.9 * slow.total
        for image, label in zip(images, labels.tolist(), strict=True):
            counts[label] += 0.1
            sums[label] += 0.1 * (slow.weight[label * WIDTH : (label + 1) * WIDTH] @ slow.body(image[None])[0])
    torch.testing.assert_close(network.total, sums)
    torch.testing.assert_close(network.count, counts)
    assert network.training
    assert network.body.bn1.training
    assert torch.equal(network.body.bn1.running_mean, slow.body.bn1.running_mean)  # which only a step changes


def test_a_step_trains_on_images_far_from_all_centroids(batch):
    network = small(torch.float32, length_scale=0.1).requires_grad_(True).train()
    with torch.no_grad():
        network.total += 1e3
    loss, _ = network.loss(batch[0].float(), batch[1])
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters() if parameter.grad is not None)


@pytest.fixture
def small_name(tmp_path, monkeypatch):
    """The name of a small DUQ network for the digits."""
    (tmp_path / "kernel_network.py").write_text(
        "from oodbench.models.cifar_resnet import resnet8\n"
        "from oodbench.models.duq import with_kernels\n"
        "def build(num_classes=8):\n"
        "    return with_kernels(resnet8(64), 64, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "kernel_network:build"
    sys.modules.pop("kernel_network", None)


@pytest.fixture
def digits():
    return [oodbench.load_dataset("digits", split=split) for split in ("train", "test")]


def test_a_small_training_tells_digits_apart_and_far_images_from_them(digits, small_name, tmp_path):
    train_set, test_set = digits
    out = tmp_path / "net.safetensors"
    trained = train(small_name, train_set, out=out, recipe="duq", epochs=10, batch_size=32, device="cpu", progress=False)
    assert accuracy(trained, test_set) > 0.9
    far = oodbench.load_dataset("uniform", split="test", size=8).read(torch.arange(200)).float() / 255
    near = test_set.read(torch.arange(len(test_set))).float() / 255
    inside, outside = (trained(images).exp().max(1).values for images in (near, far))  # max K
    assert (inside[:, None] > outside).float().mean() > 0.85
    assert inside.mean() > outside.mean() + 0.1
    assert (trained.module.count != 13).all()
    loaded = load_model(small_name, out)
    assert loaded.weights_hash == trained.weights_hash
    assert torch.equal(loaded(near), trained(near))
    maxlogit = oodbench.load_detector("maxlogit")
    both = torch.cat([near, far])
    found = maxlogit.statistics(Probe(trained, both, maxlogit.signals))
    assert torch.equal((-torch.expm1(trained(both).double().max(1).values)).argsort(stable=True), found.argsort(stable=True))


def test_an_interrupted_training_ends_with_the_same_weights_and_centroids(digits, small_name, tmp_path):
    few = digits[0].select(torch.arange(100))
    whole, resumed = trained_whole_and_resumed(small_name, few, tmp_path, recipe="duq")
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("recipe", ["duq", "openood"])
def test_another_recipe_than_its_own_is_reported(recipe, digits, small_name, tmp_path, capsys):
    few = digits[0].select(torch.arange(40))
    train(small_name, few, out=tmp_path / "net.safetensors", recipe=recipe, epochs=1, device="cpu", progress=False)
    says = f"{small_name} has a recipe of its own; use --recipe duq, not openood\n"
    assert capsys.readouterr().err == says * (recipe != "duq")


def test_a_file_says_the_number_of_classes(small_name, tmp_path):
    made = build(small_name, 5, seed=3)
    weights.write(tmp_path / "five.safetensors", made.module)
    assert load_model(small_name, tmp_path / "five.safetensors", num_classes=8).weights_hash == made.weights_hash


def test_the_network_of_the_table_is_loaded_from_a_file(tmp_path):
    """Shapes are compared before a network has values."""
    made = build("duq-resnet18", 7, seed=3)
    weights.write(tmp_path / "seven.safetensors", made.module)
    assert load_model("duq-resnet18", tmp_path / "seven.safetensors").weights_hash == made.weights_hash


def test_it_has_layers_and_no_final_linear_layer(batch):
    network = with_kernels(resnet8(WIDTH), WIDTH, CLASSES)
    assert network.layer_names == ("body.relu", "body.layer1", "body.layer2", "body.layer3")
    images = batch[0].float().sigmoid()
    network.check(images)
    assert len(Probe(network, images, {"layers"}).layers) == 4
    with pytest.raises(Unsuitable, match="has no final linear layer"):
        _ = Probe(network, images, {"features"}).features
    plain = resnet8(WIDTH)
    torch.testing.assert_close(network.normalised(images), (images - plain.mean.float()) / plain.std.float())


def test_rules_cover_the_gradients_of_all_its_parameters(batch):
    network = with_kernels(resnet8(WIDTH), WIDTH, CLASSES).to(torch.float64)
    images = batch[0].sigmoid()
    cotangents = torch.randn(len(images), CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of parameters that no rule covers
        found = squared_norms(network, images, lambda outputs, _: (outputs * cotangents).sum(1))
    expected = norms_one_by_one(network.module, dict(network.module.named_parameters()), network.normalised(images), cotangents)
    assert found.keys() == expected.keys()
    for name, norms in expected.items():
        torch.testing.assert_close(found[name], norms, rtol=1e-8, atol=1e-12, msg=name)
        assert norms.max() > 0
