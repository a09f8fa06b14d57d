"""ViT, Swin and ConvNeXt of timm under every detector that reads a network: each works, or says in one line why not."""

import re

import numpy as np
import pytest
import torch

import oodbench
from oodbench import registry
from oodbench.classifier import Classifier
from oodbench.errors import Unsuitable

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
    r"cannot reinitialise '\S*(cls_token|gamma)' of .*its module has no reset_parameters",
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
    except Unsuitable as error:
        why = str(error)
    else:
        why, scores = "", detector.score(network, shift)
        assert np.isfinite(scores).all()
        assert len(np.unique(scores)) > 10
    assert not why or any(re.match(reason, why) for reason in SKIPPED), why
