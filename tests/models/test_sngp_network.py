"""The network of SNGP: bounded convolutions and the Gaussian process against slow references, and a small training."""

import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training import trained_whole_and_resumed

import oodbench
from oodbench.errors import Unsuitable
from oodbench.gradients.coverage import norms_one_by_one
from oodbench.gradients.norms import squared_norms
from oodbench.models.cifar_resnet import resnet8
from oodbench.models.load import load_model
from oodbench.models.sngp import SPREAD, SpectralConv2d, bound_norms, orthogonal_features, with_gaussian_process
from oodbench.models.train import accuracy, train
from oodbench.probe import Probe

CLASSES = 3


pytestmark = pytest.mark.usefixtures("one_thread")


def convolution(stride, bound):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride, padding=1, bias=False))
    bound_norms(network, bound, side=7)
    return network.double()[0]


def operator(conv, side=7):
    """The matrix of a convolution between images: column by column."""
    basis = torch.eye(3 * side * side, dtype=torch.float64).view(-1, 3, side, side)
    return F.conv2d(basis, conv.weight, None, conv.stride, conv.padding).flatten(1).T


@pytest.mark.parametrize("stride", [1, 2])
def test_a_step_is_that_of_the_power_method(stride):
    conv = convolution(stride, 0.5).requires_grad_(False).train()
    matrix, u = operator(conv), conv.u.flatten()
    v = matrix.T @ u / (matrix.T @ u).norm()
    u = matrix @ v / (matrix @ v).norm()
    images = torch.rand(2, 3, 7, 7, dtype=torch.float64)
    found = conv(images)
    torch.testing.assert_close(conv.v.flatten(), v)
    torch.testing.assert_close(conv.u.flatten(), u)
    norm = u @ matrix @ v
    torch.testing.assert_close(found.flatten(1), images.flatten(1) @ matrix.T * 0.5 / norm)
    before = conv.u.clone()
    conv.eval()(images)
    assert torch.equal(conv.u, before)  # evaluation changes nothing


def test_norms_end_at_the_bound_where_they_are_above_it_and_are_kept_below():
    images = torch.rand(2, 3, 7, 7, dtype=torch.float64)
    high, low = convolution(1, 1e-3).train(), convolution(1, 100.0).train()
    for _ in range(300):
        high(images), low(images)
    norm = torch.linalg.svdvals(operator(high.requires_grad_(False)))[0]
    torch.testing.assert_close(high.scale(), 1e-3 / norm, rtol=1e-4, atol=0)
    assert low.scale() == 1
    with torch.no_grad():
        low.u.neg_()  # as before the first step, where the estimate may have any sign
        assert low.eval().scale() == 1


def test_every_convolution_of_the_body_is_bounded():
    network = with_gaussian_process(resnet8(1), CLASSES)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 7
    assert all(isinstance(module, SpectralConv2d) and module.bound == 6 for module in convolutions)


def test_random_features_are_orthogonal_and_give_the_gaussian_kernel():
    torch.manual_seed(0)
    frequencies = orthogonal_features(20_000, 16).double()
    group = frequencies[16:32]
    product = group @ group.T
    torch.testing.assert_close(product, torch.diag(product.diagonal()), rtol=0, atol=1e-4)
    points = torch.randn(4, 16, dtype=torch.float64) * 0.3
    phases = torch.rand(20_000, dtype=torch.float64) * 2 * torch.pi
    features = torch.cos(points @ frequencies.T + phases)
    expected = torch.exp(-torch.cdist(points, points).square() / 2)
    torch.testing.assert_close(features @ features.T * 2 / 20_000, expected, rtol=0, atol=0.03)
    assert SPREAD == 0.05


def small(**settings):
    torch.manual_seed(0)
    return with_gaussian_process(resnet8(1), CLASSES, **{"projected": 8, "random_features": 20, **settings})


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(1)
    return torch.randn(40, 3, 8, 8, generator=random, dtype=torch.float64), torch.arange(40) % CLASSES


@pytest.mark.parametrize("ridge", [1.0, 0.1])
def test_an_epoch_gives_the_covariance_and_the_logits_of_the_formula(ridge, batch):
    images, labels = batch
    network = small(ridge=ridge).to(torch.float64).module.double()
    random_features, seen = network.random_features, []
    network.random_features = lambda images: seen.append(random_features(images)) or seen[-1]
    for epoch in range(2):  # the second starts anew
        seen.clear()
        network.train()
        network.begin_epoch()
        for part, classes in zip(images.split(10), labels.split(10), strict=True):
            loss, logits = network.loss(part + epoch, classes)
            torch.testing.assert_close(loss, F.cross_entropy(seen[-1] @ network.weight.T, classes))
            torch.testing.assert_close(logits, seen[-1] @ network.weight.T)
        with torch.no_grad():
            network.end_epoch()
    precision = ridge * torch.eye(20, dtype=torch.float64)
    for row in torch.cat(seen):
        precision += torch.outer(row, row)
    found = network.eval()(images[:5])
    for image, logits in zip(images[:5], found, strict=True):
        features = random_features(image[None])[0]
        variance = ridge * features @ torch.linalg.inv(precision) @ features
        torch.testing.assert_close(logits, network.weight @ features / (1 + 25 * variance) ** 0.5, rtol=1e-6, atol=1e-9)


def test_random_features_are_cosines_of_the_projected_and_normalised_features(batch):
    network = small().to(torch.float64).module.double()
    image = batch[0][:1]
    projected = network.projection @ network.body(image)[0]
    normalised = (projected - projected.mean()) / (projected.var(correction=0) + 1e-3).sqrt()
    angles = [row @ normalised + phase for row, phase in zip(network.frequencies, network.phases, strict=True)]
    torch.testing.assert_close(network.random_features(image)[0], torch.stack(angles).cos())


def test_a_convolution_that_is_no_linear_map_is_refused():
    for options in ({"bias": True}, {"bias": False, "padding_mode": "circular"}):
        with pytest.raises(ValueError, match="has a bias, or padding other than zeros"):
            bound_norms(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, **options)), 1.0)


def test_rules_cover_the_gradients_of_all_its_parameters(batch):
    network = small().to(torch.float64)
    network.module.double()
    network.module.root.copy_(torch.randn(20, 20, dtype=torch.float64).tril() * 0.1)
    for conv in network.modules():
        if isinstance(conv, SpectralConv2d):
            conv.bound = 0.01  # so that all are scaled
    images = batch[0][:7].sigmoid()
    network.module.train()
    network(images)
    network.eval()
    cotangents = torch.randn(len(images), CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of parameters that no rule covers
        found = squared_norms(network, images, lambda outputs, _: (outputs * cotangents).sum(1))
    expected = norms_one_by_one(network.module, dict(network.module.named_parameters()), network.normalised(images), cotangents)
    assert found.keys() == expected.keys()
    for name, norms in expected.items():
        torch.testing.assert_close(found[name], norms, rtol=1e-8, atol=1e-14, msg=name)
        assert norms.max() > 0


def test_it_has_layers_and_no_final_linear_layer(batch):
    network = small()
    images = batch[0][:4].float().sigmoid()
    network.check(images)
    assert len(Probe(network, images, {"layers"}).layers) == 4
    with pytest.raises(Unsuitable, match="has no final linear layer"):
        _ = Probe(network, images, {"features"}).features


@pytest.fixture
def small_name(tmp_path, monkeypatch):
    """The name of a small SNGP network for the digits."""
    (tmp_path / "process_network.py").write_text(
        "from oodbench.models.cifar_resnet import resnet8\n"
        "from oodbench.models.sngp import with_gaussian_process\n"
        "def build(num_classes=8):\n"
        "    return with_gaussian_process(resnet8(1), num_classes, random_features=256)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "process_network:build"
    sys.modules.pop("process_network", None)


def test_a_small_training_tells_digits_apart_and_far_images_from_them(small_name, tmp_path):
    train_set, test_set = (oodbench.load_dataset("digits", split=split) for split in ("train", "test"))
    out = tmp_path / "net.safetensors"
    trained = train(small_name, train_set, out=out, recipe="sngp", epochs=8, batch_size=32, device="cpu", progress=False)
    assert accuracy(trained, test_set) > 0.9
    far = oodbench.load_dataset("uniform", split="test", size=8).read(torch.arange(200)).float() / 255
    near = test_set.read(torch.arange(len(test_set))).float() / 255
    module = trained.module
    inside, outside = (module.variance(module.random_features(trained.normalised(images))) for images in (near, far))
    assert (inside[:, None] < outside).float().mean() > 0.9
    assert module._precision is None
    loaded = load_model(small_name, out)
    assert loaded.weights_hash == trained.weights_hash
    assert torch.equal(loaded(near), trained(near))


def test_an_interrupted_training_ends_with_the_same_weights_and_covariance(small_name, tmp_path):
    few = oodbench.load_dataset("digits", split="train").select(torch.arange(100))
    whole, resumed = trained_whole_and_resumed(small_name, few, tmp_path, recipe="sngp")
    assert resumed.read_bytes() == whole.read_bytes()
