"""Which axis of a layer's output is the channels', by what the layer ends in."""

import pytest
import torch
import torchvision.models as tv
from torch import nn

from oodbench.classifier import Classifier
from oodbench.errors import Unsuitable
from oodbench.forward.channels import channels_first
from oodbench.probe import Probe


class Tokens(nn.Module):
    """Maps of 12 channels and 8x8 pixels, then a layer on channels-last maps or on tokens."""

    def __init__(self, layer, tokens=False, batch_first=True):
        super().__init__()
        self.stem, self.act, self.layer, self.last, self.fc = nn.Conv2d(3, 12, 1), nn.ReLU(), layer, nn.GELU(), nn.Linear(12, 5)
        self.tokens, self.batch_first = tokens, batch_first

    def forward(self, x):
        x = self.act(self.stem(x)).movedim(1, -1)
        x = x.flatten(1, 2) if self.tokens else x
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.last(self.layer(x))
        x = x if self.batch_first else x.transpose(0, 1)
        return self.fc(x.flatten(1, -2).mean(1))


def attention(batch_first=True):
    return nn.TransformerEncoderLayer(12, 2, 24, batch_first=batch_first)


@pytest.mark.parametrize(
    ("layer", "tokens"),
    [(attention(), True), (nn.Linear(12, 12), True), (nn.Linear(12, 12), False), (nn.LayerNorm(12), False)],
    ids=lambda value: type(value).__name__,
)
def test_channels_last_are_averaged_over_space(layer, tokens):
    torch.manual_seed(0)
    network, images = Tokens(layer, tokens), torch.rand(2, 3, 8, 8)
    classifier = Classifier(network, layers=["stem", "act", "layer", "last"])
    probe = Probe(classifier, images, {"layers", "maps"})
    kept = []
    network.layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    classifier(images)
    maps = kept[0].detach().flatten(1, -2)  # (N, places, 12)
    assert [tuple(layer.shape) for layer in probe.layers] == [(2, 12)] * 4
    torch.testing.assert_close(probe.layers[2], maps.mean(1))
    assert torch.equal(probe.maps[2].flatten(2), maps.transpose(1, 2))
    stem = network.stem(images)
    assert torch.equal(probe.layers[0], stem.flatten(2).mean(2))  # a convolution's, as ever
    assert torch.equal(probe.maps[1], stem.relu())


def test_tokens_before_images_are_refused():
    classifier = Classifier(Tokens(attention(batch_first=False), True, False), layers=["stem", "layer"])
    probe = Probe(classifier, torch.rand(2, 3, 8, 8), {"layers"})
    with pytest.raises(Unsuitable, match=r"^layer 'layer' gives \(64, 2, 12\) for 2 images, not 2 rows; build"):
        _ = probe.layers
    assert probe.layer(0).shape == (2, 12)


class Mixed(nn.Sequential):
    """A convolution and a linear layer, without a forward of its own."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 1), nn.Linear(8, 8))


class ChannelsFirstNorm(nn.LayerNorm):
    """As ConvNeXt has it: named like a norm of the last axis, but of axis 1."""


@pytest.mark.parametrize(
    ("layer", "shape", "channels"),
    [
        (nn.Conv2d(3, 8, 1), (2, 8, 5, 8), 8),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), (2, 5, 7, 8), 8),  # patches, channels last
        (nn.Conv2d(3, 8, 1), (2, 35, 8), 8),
        (nn.Conv2d(3, 8, 1), (2, 8, 35), 8),
        (nn.Conv2d(3, 8, 1), (2, 8, 8), None),
        (nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)), (2, 20, 4, 4), 20),  # concatenated, as in DenseNets
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv1d(1, 1, 3)), (2, 8, 1, 1), 8),  # attention to channels
        (Mixed(), (2, 8, 5, 5), 8),
        (Mixed(), (2, 5, 5, 8), 8),
        (Mixed(), (2, 8, 8, 8), None),
        (nn.Linear(8, 8), (2, 8, 8), 8),
        (nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8), nn.LayerNorm(16)), (2, 5, 5, 8), 8),
        (ChannelsFirstNorm(8), (2, 8, 5, 5), 8),
        (ChannelsFirstNorm(8), (2, 8, 8, 8), None),
        (nn.GELU(), (2, 8, 5), None),
    ],
    ids=lambda value: str(value).split("(")[0] if isinstance(value, nn.Module) else str(value),
)
def test_the_layer_decides(layer, shape, channels):
    network = nn.Sequential(layer)
    if channels is None:
        with pytest.raises(Unsuitable, match=r"^layer '0' gives .*, and nothing in it tells which axis is the channels'; name"):
            channels_first("0", network, torch.zeros(shape), 2)
    else:
        assert channels_first("0", network, torch.zeros(shape), 2).shape[1] == channels


@pytest.mark.parametrize(
    ("make", "layers", "channels"),
    [
        (tv.resnet18, ["relu", "layer1", "layer4", "avgpool"], [64, 64, 512, 512]),
        (
            tv.densenet121,
            ["features.conv0", "features.denseblock1", "features.transition1", "features.norm5"],
            [64, 256, 128, 1024],
        ),
        (tv.convnext_tiny, ["features.0", "features.1", "features.2", "features.7"], [96, 96, 192, 768]),
        (tv.swin_t, ["features.0", "features.1", "features.2", "features.7", "norm"], [96, 96, 192, 768, 768]),
        (tv.mobilenet_v3_small, ["features.0", "features.1", "features.12"], [16, 16, 576]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_layers_of_torchvision(make, layers, channels):
    classifier = Classifier(make(), layers=layers)
    probe = Probe(classifier, torch.rand(1, 3, 64, 64), {"layers"})
    assert [layer.shape[1] for layer in probe.layers] == channels
