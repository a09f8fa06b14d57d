"""What the slow references of detectors share: images, a network called by hand, and plain formulas."""

from types import SimpleNamespace

import numpy as np
import torch

CLASSES = 4


def random_images(size: int, seed: int) -> torch.Tensor:
    """Smooth random images (size, 3, 8, 8) in float64, which spread over features more than noise does."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(size, 3, 3, 3, generator=random, dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, size=8, mode="bilinear")


TRAIN, TEST = random_images(150, seed=0), random_images(12, seed=1)


def run(classifier, images):
    """Logits, penultimate features and space-averaged layers, called by hand; gradients flow."""
    module = classifier.module
    stem = module.conv1((images - 0.5) / 0.25)
    first = module.layer1(stem.relu())
    second = module.layer2(first)
    layers = [stem.mean((2, 3)), first.mean((2, 3)), second.mean((2, 3))]
    return SimpleNamespace(logits=module.linear(layers[2]), features=layers[2], layers=layers)


def softmax(z):
    powers = np.exp(z - z.max())
    return powers / powers.sum()


def energy(z):
    return -np.log(np.exp(z).sum())


def assert_close(actual, expected, rtol=1e-9):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-12)
