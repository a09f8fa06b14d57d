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


class Keeps(nn.Linear):
    """Has state that is no parameter or buffer."""

    extra: object = None

    def get_extra_state(self):
        return self.extra


def hash_with(extra):
    torch.manual_seed(0)
    module = Keeps(4, 3)
    module.extra = extra
    return Classifier(module, name="keeps").weights_hash


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
def test_a_quantised_network_has_a_hash_of_its_weights(dtype):
    def quantised(change):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
        with torch.no_grad():
            module[3].weight[1, 2] += change
        return Classifier(torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=dtype))

    assert quantised(0).weights_hash == quantised(0).weights_hash
    assert quantised(0).weights_hash != quantised(0.1).weights_hash
    quantised(0).check(torch.rand(2, 3, 2, 2))


def test_quantised_tensors_count_with_their_scales():
    values = torch.tensor([[1.0, -2.0, 3.0]])
    one, other = (torch.quantize_per_tensor(values * factor, 0.1 * factor, 0, torch.qint8) for factor in (1, 2))
    assert torch.equal(one.int_repr(), other.int_repr())
    scales = [torch.quantize_per_channel(values, torch.tensor([s]), torch.tensor([0]), 0, torch.qint8) for s in (0.1, 0.2)]
    assert len({hash_with(state) for state in (one, other, *scales)}) == 4


def test_extra_state_counts_and_an_unsupported_one_is_named():
    assert hash_with({"amax": torch.ones(2), "calls": 3}) == hash_with({"calls": 3, "amax": torch.ones(2)})
    states = [{"amax": torch.ones(2), "calls": 3}, {"amax": torch.ones(2), "calls": 4}, {"amax": torch.zeros(2), "calls": 3}]
    assert len({hash_with(state) for state in (*states, (1, 2), (12,), None, torch.float16)}) == 7
    for state, what in ((object(), "an object of builtins.object"), (torch.eye(3).to_sparse(), "RuntimeError")):
        with pytest.raises(Unsuitable, match=rf"^keeps: its weights have no hash, because 'module._extra.*{what}") as raised:
            hash_with(state)
        assert "\n" not in str(raised.value)


def test_images_get_the_dtype_of_real_floats():
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    module.phase = nn.Parameter(torch.zeros(2, dtype=torch.cfloat))
    module.packed = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    assert next(module.parameters()).is_complex()
    assert Classifier(module).dtype == torch.float32


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
        ((torch.zeros(3, 2), torch.zeros(3, 2)), Unsuitable, r"gives tuple for 3 images, not logits \(3, classes\); wrap it"),
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
