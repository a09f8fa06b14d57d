"""The classifier: always in eval mode and frozen, normalisation inside, a hash of exactly its weights, and what check says."""

import pytest
import torch
from torch import nn

from oodbench.classifier import Classifier
from oodbench.errors import BadData, Unsuitable


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_stays_in_eval_mode_and_frozen(classifier, images):
    classifier.train()
    assert not any(module.training for module in classifier.modules())
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    before = classifier.weights_hash
    classifier(images)
    assert classifier.weights_hash == before  # no running statistics moved


def test_normalisation_is_inside_and_keeps_float64(make_classifier, images):
    classifier = make_classifier(dtype=torch.float64)
    images = images.double()
    mean, std = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), torch.tensor([0.7, 0.8, 0.9], dtype=torch.float64)
    normalising = Classifier(classifier.module, mean=mean.tolist(), std=std.tolist())
    assert torch.equal(normalising(images), classifier.module((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)))
    assert torch.equal(Classifier(classifier.module)(images), classifier.module(images))


def test_mean_without_std():
    with pytest.raises(ValueError, match="both mean and std, or neither"):
        Classifier(nn.Identity(), mean=(0.5,))


def test_final_linear_layer(make_classifier):
    classifier = make_classifier()
    weight, bias = classifier.weight_and_bias
    assert torch.equal(weight, classifier.module.linear.weight)
    assert torch.equal(bias, classifier.module.linear.bias)
    without_bias = Classifier(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)))
    assert without_bias.head is without_bias.module[2]
    assert torch.equal(without_bias.weight_and_bias[1], torch.zeros(2))
    assert Classifier(without_bias.module, head="0").head is without_bias.module[0]
    with pytest.raises(Unsuitable, match="has no final linear layer"):
        _ = Classifier(nn.Conv2d(3, 3, 1)).head
    with pytest.raises(Unsuitable, match="has no final linear layer"):
        _ = Classifier(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), head="0").head


@pytest.mark.parametrize("names", [{"head": "nowhere"}, {"layers": ["conv1", "nowhere"]}])
def test_unknown_modules_are_named(make_classifier, names):
    with pytest.raises(ValueError, match="has no module 'nowhere'"):
        Classifier(make_classifier().module, **names)


def test_layers_of_known_families():
    torchvision = pytest.importorskip("torchvision")
    assert Classifier(torchvision.models.resnet18()).layer_names == ("relu", "layer1", "layer2", "layer3", "layer4")
    assert Classifier(nn.Sequential(nn.Linear(2, 2))).layer_names == ()


def test_weights_hash_sees_every_bit(make_classifier):
    classifier = make_classifier()
    before = classifier.weights_hash
    assert make_classifier().weights_hash == before
    assert make_classifier(seed=1).weights_hash != before
    bits = classifier.module.layer1[1].running_mean.view(torch.int32)
    bits[3] ^= 1
    assert classifier.weights_hash != before
    bits[3] ^= 1
    assert classifier.weights_hash == before
    classifier.mean[0] += 1e-12  # normalisation is part of the network
    assert classifier.weights_hash != before


def test_weights_hash_sees_neither_memory_layout_nor_order_of_registration(make_classifier):
    classifier = make_classifier()
    before = classifier.weights_hash
    classifier.module.to(memory_format=torch.channels_last)
    assert classifier.weights_hash == before
    reordered = make_classifier()
    reordered.module.register_module("conv1", reordered.module._modules.pop("conv1"))  # now last
    assert list(reordered.state_dict()) != list(classifier.state_dict())
    assert reordered.weights_hash == before


def test_weights_hash_is_the_same_on_every_device(make_classifier):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA")
    assert make_classifier().cuda().weights_hash == make_classifier().weights_hash


def test_check_passes_for_a_sound_network(classifier, images):
    classifier.check(images)


class Gives(nn.Module):
    """Returns what it is told."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


@pytest.mark.parametrize(
    ("output", "kind", "message"),
    [
        ((torch.zeros(3, 2),), Unsuitable, r"gives tuple for 3 images, not logits \(3, classes\); wrap it"),
        (torch.zeros(3, 2, 1), Unsuitable, r"gives \(3, 2, 1\) for 3 images"),
        (torch.zeros(2, 2), Unsuitable, r"gives \(2, 2\) for 3 images"),
        (torch.tensor([[0.0, torch.nan]] * 3), BadData, "logits that are not finite; check its weights"),
    ],
)
def test_check_names_what_is_no_logits(images, output, kind, message):
    with pytest.raises(kind, match=message):
        Classifier(Gives(output)).check(images)


def test_check_names_images_of_the_wrong_shape(classifier):
    with pytest.raises(
        Unsuitable, match=r"^tiny does not take images of shape \(1, 8, 8\): .*; choose another model"
    ) as raised:
        Classifier(classifier.module, name="tiny").check(torch.zeros(2, 1, 8, 8))
    assert "\n" not in str(raised.value)
