"""ResNet-18/34/50/101 (He et al., CVPR 2016, arXiv 1512.03385) with a stem for 32x32 images.

The stem is one 3x3 convolution of stride 1 without pooling. The rest is the ImageNet network, with projection shortcuts
and, in bottlenecks, the stride in the 3x3 convolution. Names: ``conv1 bn1 layer{1..4}.N.{conv,bn}{1,2,3}``,
``layer{1..4}.N.shortcut.{0,1}``, ``linear``.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.classifier import Classifier

# Independent of the data set, so that weights mean the same whatever they were trained on: pixels to about [-2, 2].
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions. (N, inputs, H, W) -> (N, width, H / stride, W / stride)"""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions. (N, inputs, H, W) -> (N, 4 width, H / stride, W / stride)"""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = F.relu(self.bn2(self.conv2(residual)))
        return F.relu(self.bn3(self.conv3(residual)) + self.shortcut(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """The identity if shapes agree, else a projection."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Normalised images (N, 3, H, W) -> logits (N, num_classes)."""

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()

        def stage(inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
            outputs = width * block.expansion
            return nn.Sequential(block(inputs, width, stride), *(block(outputs, width, 1) for _ in range(depth - 1)))

        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = stage(64, 64, depths[0], stride=1)
        self.layer2 = stage(64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = stage(128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = stage(256 * block.expansion, 512, depths[3], stride=2)
        self.linear = nn.Linear(512 * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))  # (N, 64, H, W)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (N, 512 expansion, H / 8, W / 8)
        return self.linear(x.mean((2, 3)))


def resnet18(num_classes: int = 10) -> Classifier:
    """11,173,962 parameters with 10 classes."""
    return Classifier(ResNet(BasicBlock, (2, 2, 2, 2), num_classes), MEAN, STD)


def resnet34(num_classes: int = 10) -> Classifier:
    """21,282,122 parameters with 10 classes."""
    return Classifier(ResNet(BasicBlock, (3, 4, 6, 3), num_classes), MEAN, STD)


def resnet50(num_classes: int = 10) -> Classifier:
    """23,520,842 parameters with 10 classes."""
    return Classifier(ResNet(Bottleneck, (3, 4, 6, 3), num_classes), MEAN, STD)


def resnet101(num_classes: int = 10) -> Classifier:
    """42,512,970 parameters with 10 classes."""
    return Classifier(ResNet(Bottleneck, (3, 4, 23, 3), num_classes), MEAN, STD)
