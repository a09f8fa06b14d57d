"""The layers that layered detectors read, of networks of timm and torchvision."""

import pytest
import torch

import oodbench
from oodbench.commands.common import read_layers
from oodbench.errors import BadData, UsageError
from oodbench.inference import thresholds
from oodbench.models.build import build, outline
from oodbench.probe import Probe

QUARTERS = ("blocks.2", "blocks.5", "blocks.8", "blocks.11")
STAGES = ("features.0.0", "features.1", "features.3", "features.5", "features.7")
LAYERED = "mahalanobis-fe"


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("torchvision:vit_b_16", ("conv_proj", *(f"encoder.layers.encoder_layer_{place}" for place in (2, 5, 8, 11)))),
        ("torchvision:swin_t", STAGES),
        ("torchvision:convnext_tiny", STAGES),
        ("torchvision:efficientnet_b0", (*STAGES[:-1], "features.8")),
        ("torchvision:mobilenet_v3_small", ("features.0.0", *(f"features.{place}" for place in (2, 5, 8, 12)))),
        ("torchvision:densenet121", ("features.conv0", *(f"features.transition{n}" for n in (1, 2, 3)), "features.norm5")),
        ("torchvision:vgg11", ()),
        ("timm:vit_tiny_patch16_224", ("patch_embed", *QUARTERS)),
        ("timm:swin_tiny_patch4_window7_224", ("patch_embed", "layers.0", "layers.1", "layers.2", "layers.3")),
        ("timm:convnext_atto", ("stem", "stages.0", "stages.1", "stages.2", "stages.3")),
        ("timm:regnety_002", ("stem", "s1", "s2", "s3", "s4")),
        ("timm:efficientnet_lite0", ("conv_stem", "blocks.0", "blocks.2", "blocks.4", "blocks.6")),
        ("timm:mobilenetv2_050", ("conv_stem", "blocks.0", "blocks.2", "blocks.4", "blocks.6")),
    ],
)
def test_families(name, layers):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    assert outline(name).layer_names == layers


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("torchvision:regnet_x_400mf", [32, 32, 64, 160, 400]),
        ("torchvision:mobilenet_v3_small", [16, 24, 40, 48, 576]),
        ("timm:convnext_atto", [40, 40, 80, 160, 320]),
        ("timm:mobilenetv3_small_050", [16, 8, 24, 24, 288]),
    ],
)
def test_a_column_per_channel(name, channels):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    classifier = build(name)
    assert [len(layer[0]) for layer in Probe(classifier, torch.rand(2, 3, 32, 32), {"layers"}).layers] == channels


@pytest.mark.filterwarnings("ignore:.*using random weights")
def test_layers_of_ones_own(tmp_path):
    classifier = oodbench.load_model("torchvision:squeezenet1_1", layers=["features.3", "features.12"])
    assert classifier.layer_names == ("features.3", "features.12")
    with pytest.raises(UsageError, match=r"^unknown layer 'layer9' of resnet8-digits; did you mean 'layer"):
        oodbench.load_model("resnet8-digits", layers=["layer9"])
    digits = {
        "datasets": "uniform",
        "detectors": [LAYERED, "msp"],
        "limit": 30,
        "measure_costs": False,
        "protocols": "unsupervised",
    }
    run = oodbench.run("digits", out=tmp_path / "run", layers=["layer2"], **digits)
    assert run.manifest().settings["layers"] == ["layer2"]
    other = oodbench.run("digits", out=tmp_path / "other", **digits)
    assert other.manifest().settings["layers"] == ["relu", "layer1", "layer2", "layer3"]
    scores = [each.scores(LAYERED, "uniform")["score"] for each in (run, other)]
    assert not scores[0].equals(scores[1])
    with pytest.raises(UsageError, match=r"holds a run with layers = \['layer2'\], not \['relu', 'layer1', "):
        oodbench.run("digits", out=run.path, **digits)
    assert oodbench.run("digits", out=run.path, layers="layer2", **digits).frame()["status"].eq("ok").all()


def test_a_fitted_detector_keeps_its_layers(tmp_path):
    digits = {"model": "resnet8-digits", "dataset": "digits"}
    thresholds.fit(LAYERED, **digits, layers=["layer1", "layer3"]).save(tmp_path / "fitted")
    loaded = oodbench.load_fitted(tmp_path / "fitted")
    assert loaded.classifier.layer_names == ("layer1", "layer3")
    other = oodbench.load_model("resnet8-digits", layers=["layer3", "layer1"])
    with pytest.raises(BadData, match="was fitted on the layers layer1, layer3 of resnet8-digits, not layer3, layer1; fit it"):
        oodbench.load_fitted(tmp_path / "fitted", other)
    thresholds.fit("msp", **digits).save(tmp_path / "msp")
    assert oodbench.load_fitted(tmp_path / "msp", other).classifier is other  # reads none


def test_the_option_takes_commas_and_repeats():
    assert read_layers(["layer1, layer2", "layer3"]) == ["layer1", "layer2", "layer3"]
    assert read_layers([]) is None
    with pytest.raises(UsageError, match=r"^--layers takes names with commas between them, not 'layer1,'$"):
        read_layers(["layer1,"])
