"""The probe: each thing computed once, one forward pass for all, and gradients that plain autograd gives too."""

import pytest
import torch
from torch import nn

from oodbench.classifier import Classifier
from oodbench.errors import BadData, Unsuitable
from oodbench.gradients import squared_norms
from oodbench.probe import SIGNALS, Probe


@pytest.fixture
def counted(make_classifier):
    """A float64 classifier and the list of batch sizes that went through it."""
    classifier = make_classifier(dtype=torch.float64)
    squared_norms(classifier, torch.rand(1, 3, 8, 8, dtype=torch.float64))  # tries the network, once
    passes: list[int] = []
    classifier.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    return classifier, passes


@pytest.fixture
def images():
    return torch.rand(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def confidence(probe):
    return -probe.softmax.max(1).values.log()


def feature_energy(probe):
    return probe.features.double().pow(2).sum(1)


def test_one_forward_pass_for_every_signal_and_loss(counted, images):
    classifier, passes = counted
    probe = Probe(classifier, images)
    probe.forward()
    for _ in range(2):
        _ = probe.logits, probe.softmax, probe.prediction, probe.features, probe.layers, probe.maps, probe.stochastic(3)
        probe.input_gradient(confidence)
        probe.input_gradient(feature_energy)
        probe.input_gradient(lambda p: p.layers[1].sum(1))
    assert passes == [5]


def test_signals_are_what_the_network_computes(counted, images):
    classifier, _ = counted
    probe = Probe(classifier, images, {"logits", "features", "layers"})
    module, hooked = classifier.module, (images - 0.5) / 0.25
    stem = module.conv1(hooked)
    first = module.layer1(stem.relu())
    second = module.layer2(first)
    assert torch.equal(probe.logits, classifier(images))
    torch.testing.assert_close(probe.softmax, classifier(images).softmax(1))
    assert torch.equal(probe.prediction, classifier(images).argmax(1))
    torch.testing.assert_close(probe.features, second.mean((2, 3)))
    for got, activation in zip(probe.layers, (stem, first, second), strict=True):
        torch.testing.assert_close(got, activation.mean((2, 3)))


def test_logits_are_float64_whatever_the_network(make_classifier, images):
    probe = Probe(make_classifier(), images.float())
    assert probe.logits.dtype == probe.softmax.dtype == torch.float64
    assert probe.features.dtype == torch.float32


@pytest.mark.parametrize("read_first", [False, True])
def test_gradients_equal_plain_autograd(counted, images, read_first):
    classifier, _ = counted
    probe = Probe(classifier, images)
    if read_first:  # outside a loss, where tensors come detached
        _ = probe.softmax, probe.features, probe.layers
    for row in range(len(images)):  # one image at a time: each image's gradient is its own
        leaf = images[row : row + 1].clone().requires_grad_()
        (expected,) = torch.autograd.grad(-classifier(leaf).softmax(1).max().log(), leaf)
        torch.testing.assert_close(probe.input_gradient(confidence)[row : row + 1], expected)
        features = classifier.module.layer2(classifier.module.layer1(classifier.module.conv1((leaf - 0.5) / 0.25).relu()))
        (expected,) = torch.autograd.grad(features.mean((2, 3)).pow(2).sum(), leaf)
        torch.testing.assert_close(probe.input_gradient(feature_energy)[row : row + 1], expected)


def test_detached_outside_a_loss_attached_within(counted, images):
    probe = Probe(counted[0], images)
    within = {}

    def look(p):
        within.update(logits=p.logits, softmax=p.softmax, features=p.features, layer=p.layers[0])
        return p.logits.sum(1)

    gradient = probe.input_gradient(look)
    assert all(tensor.requires_grad for tensor in within.values())
    for tensor in (gradient, probe.logits, probe.softmax, probe.features, *probe.layers):
        assert not tensor.requires_grad


def test_a_failing_loss_leaves_tensors_detached(counted, images):
    probe = Probe(counted[0], images)
    with pytest.raises(ZeroDivisionError):
        probe.input_gradient(lambda p: p.logits * (1 / 0))
    assert not probe.logits.requires_grad


def test_no_graph_where_no_gradient_was_declared(counted, images):
    probe = Probe(counted[0], images, {"logits"})
    with probe.mode():
        assert probe.logits.is_inference()
    probe = Probe(counted[0], images, {"logits", "input_gradient"})
    with probe.mode():
        assert not probe.logits.is_inference()
        assert probe.input_gradient(lambda p: p.logits.sum(1)).abs().sum() > 0


@pytest.mark.parametrize("signal", sorted(SIGNALS - {"images", "logits"}))
def test_undeclared_signals_are_refused(counted, images, signal):
    probe = Probe(counted[0], images, {"logits"})
    with pytest.raises(BadData, match=f"asked the probe for '{signal}' without declaring it"):
        {
            "input_gradient": lambda: probe.input_gradient(confidence),
            "stochastic": lambda: probe.stochastic(2),
            "gradient_norms": probe.gradient_norms,
            "edited": lambda: probe.edited(0, torch.relu),
        }.get(signal, lambda: getattr(probe, signal))()
    assert len(probe.logits) == 5


def test_losses_are_memoised_by_key(counted, images):
    probe, calls = Probe(counted[0], images), []

    def make(name):
        def loss(p):
            calls.append(name)
            return confidence(p)

        return loss

    first = probe.input_gradient(make("a"), key="confidence")
    assert torch.equal(probe.input_gradient(make("b"), key="confidence"), first)
    probe.input_gradient(make("c"), key="other")
    loss = make("d")
    assert torch.equal(probe.input_gradient(loss), probe.input_gradient(loss))
    assert calls == ["a", "c", "d"]


def test_perturbed_is_one_unclipped_sign_step(counted, images):
    classifier, passes = counted
    images[0] = 0  # at the edge: a clipped step would stay
    probe = Probe(classifier, images)
    stepped = probe.perturbed(0.01, confidence)
    expected = images - 0.01 * torch.where(probe.input_gradient(confidence) >= 0, 1.0, -1.0).double()
    assert torch.equal(stepped.images, expected)
    assert stepped.images.min() < 0
    torch.testing.assert_close(stepped.logits, classifier(expected))
    assert probe.perturbed(0.01, confidence) is stepped
    assert probe.perturbed(0.02, confidence) is not stepped
    assert probe.perturbed(0, confidence) is probe
    assert passes == [5, 5, 5]  # the probe's, the stepped probe's, and this test's own


def test_sign_of_zero_is_plus_one(counted, images):
    stepped = Probe(counted[0], images).perturbed(0.5, lambda p: 0 * p.logits.sum(1))
    assert torch.equal(stepped.images, images - 0.5)


def test_layers_before_inplace_modules_are_right_and_so_are_gradients(images):
    """ReLU(inplace=True) overwrites the map that a hook saw; its mean must be of what the layer gave."""

    def build(inplace):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(inplace), nn.Conv2d(6, 6, 3), nn.ReLU(inplace), nn.Flatten(), nn.Linear(96, 4)
        )
        return Classifier(module.double(), layers=["0", "2"])

    plain, overwritten = (Probe(build(inplace), images) for inplace in (False, True))
    for a, b in zip(plain.layers, overwritten.layers, strict=True):
        assert torch.equal(a, b)
        assert (a < 0).any()
    for loss in (confidence, lambda p: p.layers[0].pow(2).sum(1)):
        torch.testing.assert_close(plain.input_gradient(loss), overwritten.input_gradient(loss))


def test_vector_layers_survive_inplace_modules(images):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(inplace=True), nn.Linear(6, 4)).double()
    (layer,) = Probe(Classifier(module, layers=["1"]), images, {"layers"}).layers
    torch.testing.assert_close(layer, module[1](images.flatten(1)).detach())


def test_no_linear_layer_is_only_the_trouble_of_who_asks(images):
    probe = Probe(Classifier(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()).double(), name="headless"), images)
    assert probe.logits.shape == (5, 4)
    with pytest.raises(Unsuitable, match="headless has no final linear layer"):
        _ = probe.features
    with pytest.raises(Unsuitable, match="headless: its layers are not known"):
        _ = probe.layers


class Bypass(nn.Module):
    """Its last linear layer is not on the way."""

    def __init__(self):
        super().__init__()
        self.way, self.aside = nn.Conv2d(3, 4, 8), nn.Linear(4, 4)

    def forward(self, x):
        return self.way(x).flatten(1)


def test_layers_that_are_not_on_the_way_are_named(images):
    probe = Probe(Classifier(Bypass().double(), layers=["way", "aside"], name="bypass"), images)
    assert probe.logits.shape == (5, 4)
    with pytest.raises(Unsuitable, match="bypass: its logits do not come from 'aside', its last linear layer"):
        _ = probe.features
    with pytest.raises(Unsuitable, match="bypass: its forward pass does not go through aside"):
        _ = probe.layers


def test_without_a_classifier_there_are_images_only(images):
    probe = Probe(None, images)
    assert torch.equal(probe.images, images)
    for signal in ("logits", "softmax", "prediction", "features", "layers", "classifier"):
        with pytest.raises(Unsuitable, match="needs a classifier"):
            getattr(probe, signal)
    with pytest.raises(Unsuitable, match="needs a classifier"):
        probe.perturbed(0.1, confidence)


def test_hooks_are_gone_after_the_pass(counted, images):
    classifier, _ = counted
    _ = Probe(classifier, images).layers
    for module in classifier.module.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_pass_until_a_layer_goes_no_further(make_classifier):
    classifier = make_classifier(dtype=torch.float64)
    ran = []
    for name in ("layer1", "layer2", "linear"):
        classifier.module.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    probe = Probe(classifier, torch.rand(5, 3, 8, 8, dtype=torch.float64))
    with probe.mode():
        whole = probe.perturbed(0.01, lambda p: p.layer(1).sum(1))
        expected = whole.layer(1)
        ran.clear()
        part = probe.perturbed(0.01, lambda p: p.layer(1).sum(1), key="the same", until=1)
        assert torch.equal(part.layer(1), expected)
        assert ran == ["layer1"]
        with pytest.raises(Unsuitable, match="stops at layer 1"):
            _ = part.logits
        with pytest.raises(Unsuitable, match="does not go through layer2"):
            part.layer(2)


def test_a_linear_layer_that_does_not_give_the_logits_is_no_head():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 4, 1)
            self.gate = nn.Linear(3, 4)

        def forward(self, images):
            return self.head(images).mean((2, 3)) * self.gate(images.mean((2, 3))).sigmoid()

    probe = Probe(Classifier(Gated(), name="gated"), torch.rand(2, 3, 8, 8))
    with probe.mode():
        assert probe.logits.shape == (2, 4)
        with pytest.raises(Unsuitable, match="do not come from 'gate'"):
            _ = probe.features


def test_what_a_detector_writes_into_is_its_own(classifier):
    ones = torch.ones(3, dtype=torch.int64)
    probe = Probe(classifier, torch.rand(3, 3, 8, 8), labels=ones, held_out=ones.bool())

    def all_of_it():
        gradient = probe.input_gradient(confidence)
        stepped = probe.perturbed(0.1, confidence)
        of_images = probe.images, stepped.images, stepped.logits, probe.labels, probe.held_out, gradient
        return *of_images, probe.logits, probe.softmax, probe.prediction, probe.features, *probe.layers, *probe.maps

    with probe.mode():
        before = [tensor.clone() for tensor in all_of_it()]
        for tensor in all_of_it():
            tensor.zero_()
        after = all_of_it()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_maps_are_what_layers_average(counted, images):
    probe = Probe(counted[0], images, {"layers", "maps"})
    for mean, map_ in zip(probe.layers, probe.maps, strict=True):
        torch.testing.assert_close(map_.flatten(2).mean(2), mean)
    probe.maps[0].zero_()
    assert probe.maps[0].abs().sum() > 0  # a copy
    with pytest.raises(BadData, match="'maps' without declaring"):
        _ = Probe(counted[0], images, {"layers"}).maps


class Dropping(torch.nn.Module):
    """A linear network with dropout of units and of channels, BatchNorm between."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.channels = torch.nn.Dropout2d(0.4)
        self.norm = torch.nn.BatchNorm2d(6)
        self.units = torch.nn.Dropout(0.3)
        self.linear = torch.nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(self.units(self.norm(self.channels(self.conv(x))).mean((2, 3))))


@pytest.mark.parametrize("network", ["with dropout", "without"])
def test_stochastic_passes_thin_the_network_alike_for_every_image(network, counted, images):
    classifier, _ = counted
    if network == "with dropout":
        torch.manual_seed(0)
        classifier = Classifier(Dropping().double())
    passes = Probe(classifier, images, {"stochastic"}).stochastic(200, p=0.3)
    assert passes.shape == (200, len(images), 4)
    assert passes.dtype == torch.float64
    again = Probe(classifier, images[:1], {"stochastic"}).stochastic(200, p=0.3)
    torch.testing.assert_close(passes[:, :1], again, rtol=1e-4, atol=1e-5)
    other = Probe(classifier, images, {"stochastic"}).stochastic(200, p=0.3, seed=1)
    assert not torch.allclose(passes, other)
    # Dropout keeps what it drops from in the mean, and both networks are linear behind it.
    plain = Probe(classifier, images, {"logits"}).logits
    spread = passes.std(0) / 200**0.5
    assert ((passes.mean(0) - plain).abs() < 5 * spread + 1e-6).all()
    assert not any(module.training for module in classifier.modules())


def test_the_base_is_what_the_network_makes_of_the_clean_twins(counted, images):
    classifier, passes = counted
    clean = images.flip(0)
    probe = Probe(classifier, images, {"layers", "input_gradient", "base"}, clean=clean)
    probe.forward()
    assert passes == [5]  # the twins go by only when somebody asks
    for _ in range(2):
        for got, expected in zip(probe.base.layers, Probe(classifier, clean, {"layers"}).layers, strict=True):
            torch.testing.assert_close(got, expected)
    assert passes == [5, 5, 5, 5]  # the probe's, the base's once, and the two of the comparison
    assert probe.base.base is probe.base
    with pytest.raises(BadData, match="'input_gradient' without declaring"):
        probe.base.input_gradient(confidence)


def test_clean_images_are_their_own_base(counted, images):
    classifier, passes = counted
    probe = Probe(classifier, images, {"logits", "base"}, clean=images)
    assert probe.base is probe
    _ = probe.logits, probe.base.logits
    assert passes == [5]


def test_a_base_that_is_not_there_or_not_declared(counted, images):
    classifier, _ = counted
    with pytest.raises(
        Unsuitable, match="needs the clean twin of each image; only sets with a corruption or an attack have them"
    ):
        _ = Probe(classifier, images).base
    with pytest.raises(BadData, match="asked the probe for 'base' without declaring it"):
        _ = Probe(classifier, images, {"logits"}, clean=images).base


@pytest.mark.parametrize("loss", [lambda logits, images: logits.mean(), lambda logits, images: logits, lambda *_: 1.0])
def test_a_loss_gives_one_value_per_image(counted, images, loss):
    classifier, _ = counted
    probe = Probe(classifier, images, {"input_gradient", "gradient_norms"})
    for gradient in (lambda: probe.gradient_norms(loss), lambda: probe.input_gradient(lambda own: loss(own.logits, images))):
        with pytest.raises(BadData, match=r"the loss gave .*, not one value per image \(\d+,\); leave out mean or sum"):
            gradient()
    with pytest.raises(BadData, match="not one value per image"):
        squared_norms(classifier, images, loss)


def test_an_edited_layer_changes_what_comes_after_it(counted, images):
    classifier, passes = counted
    module = classifier.module
    probe = Probe(classifier, images, {"logits", "edited", "input_gradient"})
    first = module.layer1(module.conv1(classifier.normalised(images)).relu())
    expected = module.linear(module.layer2(first.flip(1)).mean((2, 3)))
    with probe.mode():
        logits = probe.logits
        passes.clear()
        for _ in range(2):
            torch.testing.assert_close(probe.edited(1, flipped), expected)
        torch.testing.assert_close(probe.edited(-2, flipped), expected)
        assert passes == [5]
        torch.testing.assert_close(probe.edited(1, torch.clone), logits)
        assert probe.edited(1, torch.clone).dtype == torch.float64
    torch.testing.assert_close(Probe(classifier, images).logits, logits)  # no hook is left


def flipped(maps):
    return maps.flip(1)


def test_an_edit_gets_tokens_with_their_channels_first():
    torch.manual_seed(0)
    classifier = Classifier(Tokens(), layers=["norm", "unused"], name="tokens")
    images = torch.rand(2, 3, 4, 4)
    shapes = []

    def doubled(maps):
        shapes.append(maps.shape)
        return 2 * maps.double()

    probe = Probe(classifier, images, {"logits", "edited"})
    embedded = classifier.module.norm(classifier.module.embed(images.flatten(2).mT))
    torch.testing.assert_close(probe.edited(0, doubled), classifier.module.head(2 * embedded.mean(1)).double())
    assert shapes == [(2, 6, 16)]
    with pytest.raises(Unsuitable, match="tokens: its forward pass does not go through unused"):
        probe.edited(1, doubled)
    with pytest.raises(Unsuitable, match="tiny: its layers are not known"):
        Probe(Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), name="tiny"), images, {"edited"}).edited(0, doubled)


class Tokens(nn.Module):
    """Pixels as tokens (N, 16, 6)."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.unused, self.head = nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, images):
        return self.head(self.norm(self.embed(images.flatten(2).mT)).mean(1))


def test_a_probe_of_changed_images_is_made_once(counted, images):
    classifier, passes = counted
    probe = Probe(classifier, images, {"logits", "input_gradient"})
    changed = probe.with_images(1 - images, "negative")
    torch.testing.assert_close(changed.logits, classifier(1 - images))
    passes.clear()
    assert probe.with_images(1 - images, "negative").logits.equal(changed.logits)
    assert passes == []
    with pytest.raises(BadData, match="asked the probe for 'input_gradient' without declaring it"):
        changed.input_gradient(confidence)
