"""Trains the network of a round on the images that are labelled so far."""

import math
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from oodbench.active_learning.protocol import Protocol
from oodbench.classifier import Classifier
from oodbench.errors import OodbenchError
from oodbench.image_set import ImageSet
from oodbench.models.build import build
from oodbench.models.device import seeded


class Trained(NamedTuple):
    """The network of a round, frozen; ``accuracy`` is measured on the labelled images during the last epoch.

    ``seconds``: time of the training.
    """

    classifier: Classifier
    epochs: int
    restarts: int
    accuracy: float
    seconds: float


def train(
    model: str,
    images: ImageSet,
    rows: np.ndarray,
    protocol: Protocol,
    *,
    classes: int,
    seed: int,
    device: torch.device,
) -> Trained:
    """Train a new network on these rows until it is right on enough of them. Weights and order follow from ``seed``.

    Raises OodbenchError for a loss that is not finite.
    """
    start = time.perf_counter()
    attempts = np.random.SeedSequence(seed).spawn(protocol.most_epochs // protocol.restart_every + 1)
    with seeded(seed), torch.inference_mode(False), torch.enable_grad():
        restarts = 0
        classifier, optimizer, random = _new(model, classes, attempts[0], protocol, device)
        for epoch in range(1, protocol.most_epochs + 1):
            right = _epoch(classifier, optimizer, images, rows, protocol, random)
            if right >= protocol.until:
                break
            if epoch % protocol.restart_every == 0 and right < protocol.restart_below and epoch < protocol.most_epochs:
                restarts += 1
                classifier, optimizer, random = _new(model, classes, attempts[restarts], protocol, device)
    classifier.module.requires_grad_(False).eval()
    return Trained(classifier, epoch, restarts, right, time.perf_counter() - start)


def _new(
    model: str, classes: int, seed: np.random.SeedSequence, protocol: Protocol, device: torch.device
) -> tuple[Classifier, torch.optim.Adam, torch.Generator]:
    value = int(seed.generate_state(1)[0])
    classifier = build(model, classes, value).to(device)
    parameters = classifier.module.requires_grad_(True).parameters()
    return classifier, torch.optim.Adam(parameters, protocol.lr), torch.Generator().manual_seed(value)


def _epoch(
    classifier: Classifier,
    optimizer: torch.optim.Adam,
    images: ImageSet,
    rows: np.ndarray,
    protocol: Protocol,
    random: torch.Generator,
) -> float:
    """One pass over the labelled images; returns the share on which the network was right before the step."""
    assert images.labels is not None
    labels = images.labels
    classifier.module.train()
    right = total = torch.zeros((), device=classifier.device)  # stay on the device, so that a step does not wait for it
    order = torch.from_numpy(rows)[torch.randperm(len(rows), generator=random)]
    # Nearly equal batches: BatchNorm cannot be computed for one image.
    for part in order.tensor_split(-(-len(rows) // protocol.batch_size)):
        batch = images.read(part).to(classifier.device).float() / 255
        target = labels[part].to(classifier.device)
        logits = classifier(batch)
        loss = F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        if protocol.clamp is not None:
            torch.nn.utils.clip_grad_value_(classifier.module.parameters(), protocol.clamp)
        optimizer.step()
        right = right + (logits.detach().argmax(1) == target).sum()
        total = total + loss.detach()
    if not math.isfinite(float(total)):
        raise OodbenchError(f"training {classifier.name} diverged (loss {float(total)}); lower lr, now {protocol.lr:g}")
    return float(right) / len(rows)
