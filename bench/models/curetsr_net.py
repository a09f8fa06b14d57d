"""The small network of CURE-TSR's authors (Temel et al., NIPS workshop 2017, arXiv 1712.02463), for 28x28 images.

Two convolutions with pooling and three linear layers. Names as in the authors' code: ``conv1 conv2 fc1 fc2 fc3``.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.classifier import Classifier

SMALLEST = 1e-6  # a channel of one colour has no contrast; the authors divide by 0 there


class CureTsrNet(nn.Module):
    """Images (N, 3, 28, 28) in [0, 1] -> logits (N, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(standardised(x))), 2)  # (N, 6, 12, 12)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (N, 16, 4, 4)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


def standardised(images: Tensor) -> Tensor:
    """Each channel of each image with mean 0 and standard deviation 1: (N, C, H, W) -> (N, C, H, W).

    The authors divide an image by its L2 norm first, which this undoes.
    """
    deviation = images.std((2, 3), keepdim=True)
    return (images - images.mean((2, 3), keepdim=True)) / deviation.clamp_min(SMALLEST)


def curetsr_net(num_classes: int = 14) -> Classifier:
    """45,066 parameters with 14 classes."""
    return Classifier(CureTsrNet(num_classes), layers=("conv1", "conv2"))
