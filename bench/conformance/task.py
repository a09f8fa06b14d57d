"""The task of the checks: four classes of small images, a network that learns them in a second, and an obvious shift."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodbench.classifier import Classifier

CLASSES = 4
SIDE = 8  # pixels


class TinyResNet(nn.Module):
    """Two stages on (N, 3, 8, 8) images with known layers, non-negative features and a linear head."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, stride=2), nn.BatchNorm2d(12), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        self.linear = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 8, 8) -> (N, classes)."""
        return self.linear(self.layer2(self.layer1(self.conv1(images).relu())).mean((2, 3)))


def easy_task(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (size, 3, 8, 8) in [0, 1] of four classes (which quadrant is bright, and its colour), and labels (size,)."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % CLASSES
    images = 0.3 + 0.05 * torch.randn(size, 3, SIDE, SIDE, generator=random)
    colours = torch.tensor([[0.6, 0.1, 0.1], [0.1, 0.6, 0.1], [0.1, 0.1, 0.6], [0.5, 0.5, 0.0]])
    half = SIDE // 2
    for row, label in enumerate(labels.tolist()):
        top, left = half * (label // 2), half * (label % 2)
        images[row, :, top : top + half, left : left + half] += colours[label][:, None, None]
    return images.clamp(0, 1), labels


def easy_shift(size: int, seed: int) -> Tensor:
    """Uniform noise (size, 3, 8, 8) that shows none of the classes.

    A shift that removes contrast would not do: features then become alike, and SCALE's factor, the exponential of the sum
    of all 16 over that of the top 2, makes such images look the most certain.
    """
    return torch.rand(size, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def extreme_images() -> Tensor:
    """(9, 3, 8, 8): constant ones, checkerboards, one bright pixel, noise."""
    place = torch.arange(SIDE)
    fine = ((place[:, None] + place) % 2).float().expand(3, SIDE, SIDE)
    halves = (place < SIDE // 2).float().expand(3, SIDE, SIDE)
    constant = [torch.full((3, SIDE, SIDE), value) for value in (0.0, 0.5, 1.0)]
    red, pixel = torch.zeros(2, 3, SIDE, SIDE)
    red[0], pixel[:, 0, 0] = 1, 1
    random = torch.Generator().manual_seed(0)
    noise = torch.rand(3, SIDE, SIDE, generator=random)
    return torch.stack([*constant, fine, 1 - fine, halves, red, pixel, noise])


def trained_classifier(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Classifier:
    """A new network on each call, with the weights that learnt ``easy_task``."""
    classifier = _untrained()
    classifier.module.load_state_dict(_weights())
    return classifier.to(device, dtype)


def _untrained() -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = TinyResNet()
    return Classifier(module, (0.5,) * 3, (0.25,) * 3, layers=["conv1", "layer1", "layer2"], name="tiny")


@cache
def _weights() -> dict[str, Tensor]:
    classifier = _untrained()
    module = classifier.module.requires_grad_().train()
    images, labels = easy_task(400, seed=0)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    for step in range(40):
        rows = torch.arange(step % 4, len(images), 5)
        optimiser.zero_grad()
        F.cross_entropy(classifier(images[rows]), labels[rows]).backward()
        optimiser.step()
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
