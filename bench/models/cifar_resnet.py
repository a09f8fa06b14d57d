"""ResNets for small images with parameter-free shortcuts (He et al., CVPR 2016, arXiv 1512.03385, section 4.2).

Depth 6n + 2: a stem, three stages of n basic blocks with 16, 32 and 64 channels, and one linear layer. Parameter names
match the published CIFAR-10 weights: ``conv1 bn1 layer{1,2,3}.N.{conv1,bn1,conv2,bn2} linear``.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.classifier import Classifier

# Normalisation used to train the published CIFAR-10 weights (ImageNet statistics).
PUBLISHED_MEAN, PUBLISHED_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3x3 convolutions and an option-A shortcut: every ``stride``-th pixel, new channels zero.

    (N, inputs, H, W) -> (N, outputs, H / stride, W / stride)
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(residual + shortcut)


class CifarResNet(nn.Module):
    """Normalised images (N, 3, H, W) -> logits (N, num_classes); H and W of at least 4."""

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))  # (N, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64, H / 4, W / 4)
        return self.linear(x.mean((2, 3)))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10) -> Classifier:
    """269,722 parameters; published top-1 error on CIFAR-10 8.27 %."""
    return Classifier(CifarResNet(3, num_classes), PUBLISHED_MEAN, PUBLISHED_STD)


def resnet32(num_classes: int = 10) -> Classifier:
    """464,154 parameters; published top-1 error on CIFAR-10 7.37 %."""
    return Classifier(CifarResNet(5, num_classes), PUBLISHED_MEAN, PUBLISHED_STD)


def resnet44(num_classes: int = 10) -> Classifier:
    """658,586 parameters; published top-1 error on CIFAR-10 6.90 %."""
    return Classifier(CifarResNet(7, num_classes), PUBLISHED_MEAN, PUBLISHED_STD)


def resnet56(num_classes: int = 10) -> Classifier:
    """853,018 parameters; published top-1 error on CIFAR-10 6.61 %."""
    return Classifier(CifarResNet(9, num_classes), PUBLISHED_MEAN, PUBLISHED_STD)


def resnet8(num_classes: int = 8) -> Classifier:
    """One block per stage, for the embedded digits (two of the ten classes are held out)."""
    return Classifier(CifarResNet(1, num_classes), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
