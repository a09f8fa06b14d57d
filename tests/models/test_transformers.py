"""ViT, Swin and ConvNeXt of timm under every detector that reads a network: each works, or says in one line why not."""

import re

import numpy as np
import pytest
import torch
import torchvision.models as tv
from torch import nn

import oodbench
from oodbench import registry
from oodbench.classifier import Classifier
from oodbench.errors import Unsuitable
from oodbench.models.build import build
from oodbench.probe import Probe
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet

timm = pytest.importorskip("timm")

NETWORKS = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 4, "embed_dim": 48}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": (1, 2, 1, 1), "num_heads": (1, 1, 2, 2)},
    ),
    "convnext": ("convnext_atto", {"dims": (12, 16, 24, 64), "depths": (1, 1, 2, 1)}),
}
NAMES = [name for name, record in registry.records("detectors").items() if record.distribution == "oodbench"]
DETECTORS = [name for name in NAMES if oodbench.load_detector(name).reads_network]
FEW = {"epochs": 1, "members": 2, "k": 5, "dimension": 16, "passes": 2}  # as few images need
SKIPPED = (
    r"assumes features of at least 0 \(after a ReLU\), but .* also has negative ones",
    r"cannot give \S+ new random weights: \w+ has no reset_parameters for '\S*(cls_token|gamma)', and only",
    r"removes one component from maps, but a layer has one value per channel",
)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    name, options = NETWORKS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = timm.create_model(name, num_classes=4, **options)
    return Classifier(module, (0.5,) * 3, (0.5,) * 3, name=name)


@pytest.fixture(scope="module")
def data():
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 4
    images = 0.4 * torch.rand(64, 3, 32, 32, generator=random) + 0.15 * labels[:, None, None, None]
    return images, labels, torch.rand(20, 3, 32, 32, generator=random)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_works_or_says_why_not(network, data, name):
    images, labels, shift = data
    known = oodbench.load_detector(name)
    detector = oodbench.load_detector(name, **{key: FEW[key] for key in known.parameters() if key in FEW})
    try:
        detector.fit(network, images, labels, shift_images=shift if known.shift_head else None)
        scores = detector.score(network, shift)
    except Unsuitable as error:
        why = str(error)
    else:
        why = ""
        assert np.isfinite(scores).all()
        assert len(np.unique(scores)) > 10
    assert not why or any(re.match(reason, why) for reason in SKIPPED), why


@pytest.mark.parametrize("name", ["timm:convnext_atto", "timm:vit_tiny_patch16_224"])
def test_what_has_no_reset_parameters_is_built_anew(name, data):
    network, images = build(name, 4, seed=7), data[0]
    detector = oodbench.load_detector("untrained")
    detector.check(network)
    detector.prepare(TrainingSet(images, data[1], np.zeros(len(images), bool), seed=3), network, Progress())
    fresh = build(name, 4, seed=3).module.state_dict()
    for value, given, key in zip(detector.weights_, network.module.state_dict().values(), fresh, strict=True):
        assert torch.equal(value, fresh[key])
        assert value.numel() < 2 or value.std() < 1e-9 or not torch.equal(value, given)
    if "convnext" in name:
        assert np.isfinite(detector.fit(network, images, data[1]).score(network, images[:8])).all()


def features_of(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return Probe(Classifier(module), images, {"features"}).features


def tokens_of(network: Classifier, images: torch.Tensor) -> torch.Tensor:
    """What the last norm of a network of timm gives."""
    with torch.no_grad():
        return network.module.forward_features(network.normalised(images))


def test_features_of_timms_networks_are_what_they_call_pre_logits(network, data):
    features = Probe(network, data[0][:4], {"features"}).features
    with torch.no_grad():
        torch.testing.assert_close(features, network.module.forward_head(tokens_of(network, data[0][:4]), pre_logits=True))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_features_of_a_vit_are_the_class_token_or_the_mean_of_patches(data, pool):
    name, options = NETWORKS["vit"]
    network = Classifier(timm.create_model(name, num_classes=4, global_pool=pool, **options))
    tokens = tokens_of(network, data[0][:4])
    expected = tokens[:, 0] if pool == "token" else network.module.fc_norm(tokens[:, 1:].mean(1))
    torch.testing.assert_close(Probe(network, data[0][:4], {"features"}).features, expected.detach())


def test_features_of_torchvisions_networks():
    images = torch.rand(2, 3, 32, 32)
    vit = tv.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=10)
    swin = tv.SwinTransformer([4, 4], 12, [1, 1], [1, 2], [4, 4], num_classes=10)
    block = tv.convnext.CNBlockConfig
    convnext = tv.convnext.ConvNeXt([block(16, 24, 1), block(24, None, 1)], num_classes=10)
    names = [Classifier(module).head_name for module in (vit, swin, convnext)]
    assert names == ["heads.head", "head", "classifier.2"]
    given = [features_of(module, images) for module in (vit, swin, convnext)]
    with torch.no_grad():
        tokens = vit.encoder(torch.cat([vit.class_token.expand(2, -1, -1), vit._process_input(images)], 1))
        torch.testing.assert_close(given[0], tokens[:, 0])
        torch.testing.assert_close(given[1], swin.norm(swin.features(images)).mean((1, 2)))
        torch.testing.assert_close(given[2], convnext.classifier[0](convnext.avgpool(convnext.features(images))).flatten(1))


def test_a_distilled_network_has_two_heads_and_no_features():
    classifier = build("timm:deit_tiny_distilled_patch16_224", 4)
    images = torch.rand(2, 3, 224, 224)
    probe = Probe(classifier, images, {"features", "logits"})
    heads = classifier.module.head, classifier.module.head_dist
    with torch.no_grad():
        tokens = classifier.module.forward_features(classifier.normalised(images))
        both = [head(tokens[:, place]) for place, head in enumerate(heads)]
    torch.testing.assert_close(probe.logits.float(), sum(both) / 2)
    with pytest.raises(Unsuitable, match="_224 has no final linear layer; use detectors that read no features"):
        _ = probe.features
