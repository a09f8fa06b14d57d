"""Pools of active learning for tests of strategies."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax

from oodbench.active_learning.pool import Outputs, Pool


@dataclass
class GivenPool:
    """A pool of which a test gives every array; ``passes`` are what ``dropped`` gives, (T, N, classes)."""

    features: np.ndarray
    probabilities: np.ndarray
    labelled: np.ndarray
    passes: np.ndarray = None

    def __len__(self):
        return len(self.features)

    def dropped(self, passes, p, random):
        assert passes == len(self.passes)
        yield from self.passes


def random_pool(images=60, features=7, classes=5, labelled=4, passes=6, seed=0) -> GivenPool:
    """Features that are not negative, as after a ReLU, and confident probabilities."""
    random = np.random.default_rng(seed)
    return GivenPool(
        random.gamma(1, 2, (images, features)).astype(np.float32),
        softmax(3 * random.standard_normal((images, classes)), 1),
        random.gamma(1, 2, (labelled, features)).astype(np.float32),
        softmax(3 * random.standard_normal((passes, images, classes)), 2),
    )


def outputs(images: int, head: torch.nn.Linear, seed: int) -> Outputs:
    """Features as after a ReLU, and what the head makes of them."""
    features = torch.randn(images, head.in_features, generator=torch.Generator().manual_seed(seed)).relu()
    with torch.no_grad():
        return Outputs(features.numpy(), head(features).numpy())


def network_pool(images=60, labelled=8, introspective=None, head=None) -> Pool:
    """A pool as the harness makes it, of a random last layer."""
    if head is None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            head = torch.nn.Linear(16, 4)
    return Pool(outputs(images, head, 2), outputs(labelled, head, 3), head, introspective)
