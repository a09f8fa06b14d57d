"""DenseNet-BC for 32x32 images (Huang et al., CVPR 2017, arXiv 1608.06993).

Depth 6n + 4: a first convolution, three dense blocks of n bottleneck layers, a transition that halves channels and
sides after the first two, a final norm and one linear layer. Names: ``conv1``, ``block{1,2,3}.N.{bn1,conv1,bn2,conv2}``,
``trans{1,2}.{bn1,conv1}``, ``bn1``, ``linear``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.classifier import Classifier
from oodbench.models.resnet import MEAN, STD


class DenseLayer(nn.Module):
    """Adds ``growth`` channels to its input: (N, inputs, H, W) -> (N, inputs + growth, H, W)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(new)))], 1)


class Transition(nn.Module):
    """(N, inputs, H, W) -> (N, inputs / 2, H / 2, W / 2)"""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class DenseNet(nn.Module):
    """Normalised images (N, 3, H, W) -> logits (N, num_classes); H and W of at least 4."""

    def __init__(self, depth: int, growth: int, num_classes: int) -> None:
        super().__init__()
        layers, channels = (depth - 4) // 6, 2 * growth

        def block(inputs: int) -> nn.Sequential:
            return nn.Sequential(*(DenseLayer(inputs + i * growth, growth) for i in range(layers)))

        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.block1 = block(channels)
        channels += layers * growth
        self.trans1 = Transition(channels)
        channels //= 2
        self.block2 = block(channels)
        channels += layers * growth
        self.trans2 = Transition(channels)
        channels //= 2
        self.block3 = block(channels)
        channels += layers * growth
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.trans1(self.block1(self.conv1(x)))
        x = self.trans2(self.block2(x))
        x = self.relu(self.bn1(self.block3(x)))  # (N, channels, H / 4, W / 4)
        return self.linear(x.mean((2, 3)))


def densenet_bc_100_12(num_classes: int = 10) -> Classifier:
    """769,162 parameters with 10 classes."""
    return Classifier(DenseNet(100, 12, num_classes), MEAN, STD)
