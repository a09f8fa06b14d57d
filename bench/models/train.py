"""Trains a classifier by a recipe, with crops and flips, checkpoint and resume."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.classifier import Classifier
from oodbench.datasets.name import CHANGED, parse_unchanged
from oodbench.errors import BadData, OodbenchError, UsageError, one_line
from oodbench.image_set import ImageSet
from oodbench.models import card, recipes, undenoised, weights
from oodbench.models.build import build
from oodbench.models.checkpoint import Checkpoint
from oodbench.models.device import mixed_precision, resolve_device, seeded
from oodbench.models.exact import exact
from oodbench.models.objective import OwnObjective
from oodbench.models.recipes import Recipe
from oodbench.models.recipes.method import method_of


def train(
    name: str,
    train_set: ImageSet,
    *,
    out: str | Path,
    test_set: ImageSet | None = None,
    recipe: str | Recipe = recipes.DEFAULT,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    augment: bool | None = None,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
    progress: bool = True,
) -> Classifier:
    """Train model ``name`` on a labelled set, write its weights to ``out`` (safetensors), and return it, frozen.

    ``recipe`` names the settings; those that are given take the place of its own, and ``parameters`` those of its method. Its
    ``size`` is for the caller, who loads the images. Normalisation belongs to the model, so ``load_model(name, weights=out)``
    gives the same network. A card beside ``out`` states what made the weights, and their accuracy on ``test_set``, which is
    read after the last epoch only.

    A checkpoint is written beside ``out`` after each epoch. An interrupted training that is started again resumes from it and,
    on the CPU, ends with the same weights bit for bit. On CUDA and XPU it uses mixed precision and channels last.
    ``progress`` shows a bar on stderr, with the accuracy on the training images of the epoch.

    Raises BadData for a set without labels or with one class, UsageError for an unknown recipe, for a set with a corruption or
    attack, for invalid settings, for settings that differ from the checkpoint or, with ``resume``, from those that the weights
    in ``out`` were made with, and OodbenchError for a loss that diverges or
    a folder that cannot be written.
    """
    inner, settings = undenoised(name)
    if settings is not None:
        raise UsageError(f"{name} filters images at test time; train {inner}, and name {name} where you run it")
    out, target = Path(out), resolve_device(device)
    if out.suffix != ".safetensors" or out.is_dir():
        raise UsageError(f"cannot write weights to {out}; name a file that ends in .safetensors")
    recipe = (recipes.find(recipe) if isinstance(recipe, str) else recipe).override(
        parameters,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        augment=augment,
    )
    if train_set.kind in CHANGED:
        parse_unchanged(train_set.name)
    if test_set is not None:
        _require_labels(test_set)
    if resume:
        card.refuse_other(out, name, recipe, seed, train_set)
    classifier = build(name, _classes(train_set), seed).to(target)
    module = classifier.module
    if isinstance(module, OwnObjective) and not recipe.method and recipe.name != module.recipe:
        print(one_line(f"{name} has a recipe of its own; use --recipe {module.recipe}, not {recipe.name}"), file=sys.stderr)
    classifier.check(train_set.read([0, 1]).float() / 255)
    if (layout := _layout(target)) is not None:
        classifier.module.to(memory_format=layout)
    training = Training(classifier, train_set, recipe, seed)
    checkpoint = Checkpoint(
        out.with_name(f"{out.name}.checkpoint"),
        {"module": classifier.module, "optimizer": training.optimizer, "scaler": training.scaler, **training.method.parts()},
        {
            "model": name,
            "images": train_set.fingerprint,
            "epochs": recipe.epochs,
            "batch size": recipe.batch_size,
            "lr": recipe.lr,
            "drops": list(recipe.drops),
            "drop": recipe.drop if recipe.drops else None,
            "final lr": recipe.final_lr or None,
            "warmup": recipe.warmup or None,
            "momentum": recipe.momentum,
            "nesterov": recipe.nesterov,
            "weight decay": recipe.weight_decay,
            "seed": seed,
            "augment": recipe.augment and ("crops and flips" if train_set.flips else "crops"),
            "precision": str(training.precision),
            "method": recipe.method or None,
            **recipe.values()["parameters"],
        },
    )
    first = checkpoint.restore(target) if resume and checkpoint.path.exists() else 0
    checkpoint.store(first)  # before the first epoch, so that an unwritable folder is noticed early

    with exact(target), _bar(name, recipe.epochs, training.steps, first, progress) as (on_step, on_epoch):
        for epoch in range(first, recipe.epochs):
            loss, reached = training.epoch(epoch, on_step)
            if not math.isfinite(loss):
                raise OodbenchError(f"training {name} diverged in epoch {epoch + 1} (loss {loss}); lower lr, now {recipe.lr:g}")
            checkpoint.store(epoch + 1)
            on_epoch(epoch + 1, loss, reached)

    if layout is not None:
        classifier.module.to(memory_format=torch.contiguous_format)
    classifier.requires_grad_(False).eval()
    reached_there = None if test_set is None else accuracy(classifier, test_set)
    weights.write(out, classifier.module)
    card.write(out, classifier, recipe, seed, train_set, test_set, reached_there)
    checkpoint.remove()
    return classifier


class Training:
    """Trains a classifier in place, epoch by epoch, as a recipe says: on the cross-entropy by SGD, on what a module that is an
    ``OwnObjective`` minimises, or by the method of the recipe.

    Uses mixed precision on CUDA and XPU. ``images`` are labelled. Raises UsageError for a method that does not fit.
    """

    def __init__(self, classifier: Classifier, images: ImageSet, recipe: Recipe, seed: int = 0) -> None:
        self.steps = math.ceil(len(images) / recipe.batch_size)  # per epoch
        self.precision = mixed_precision(classifier.device)
        classifier.module.requires_grad_(True)
        self.method = method_of(classifier, recipe, images.flips, seed)
        self.optimizer = self.method.optimizer()
        self.scaler = torch.amp.GradScaler(classifier.device.type, enabled=self.precision is torch.float16)
        self._classifier, self._images, self._recipe, self._seed = classifier, images, recipe, seed

    def epoch(self, number: int, on_step: Callable[[], None] = lambda: None) -> tuple[float, float]:
        """Run epoch ``number`` (from 0) over all images; returns mean loss and accuracy during the epoch."""
        images, device = self._images, self._classifier.device
        assert images.labels is not None
        loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
        self._classifier.module.train()
        self.method.begin_epoch(number)
        with _seeded(self._seed, number) as generator:
            # Batches of nearly equal size: a last batch with one image would have no variance for normalisation.
            order = torch.randperm(len(images), generator=generator).tensor_split(self.steps)
            for step, rows in enumerate(order):
                batch, labels = images.read(rows).to(device), images.labels[rows].to(device)
                if self._recipe.augment:
                    batch = augmented(batch, images.flips, generator)
                loss, right = self._step(batch, labels, number * self.steps + step, generator)
                # Stays on the device: reading a number here would make the host wait at each step.
                loss_sum += loss * len(rows)
                correct += right.sum()
                on_step()
        with torch.no_grad():
            self.method.end_epoch()
        return float(loss_sum) / len(images), float(correct) / len(images)

    def _step(self, batch: Tensor, labels: Tensor, step: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """One step on uint8 images (n, C, H, W); returns the loss, and which were answered right before the step, bool (n,)."""
        with nullcontext() if self.precision is None else torch.autocast(batch.device.type, self.precision):
            loss, right = self.method.loss(batch, labels, random)
        for group in self.optimizer.param_groups:
            group["lr"] = self.method.rate(step, self.steps)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            self.method.after_step(batch, labels)
        return loss.detach(), right


def accuracy(classifier: Classifier, images: ImageSet, batch_size: int = 500) -> float:
    """Accuracy on a labelled set. Raises BadData for a set without labels."""
    labels = _require_labels(images)
    correct = 0
    with torch.inference_mode():
        for rows in torch.arange(len(images)).split(batch_size):
            batch = images.read(rows).to(classifier.device, classifier.dtype) / 255
            correct += int((classifier(batch).argmax(1).cpu() == labels[rows]).sum())
    return correct / len(images)


def _require_labels(images: ImageSet) -> Tensor:
    if images.labels is None:
        raise BadData(f"{images.name or 'the test set'} has no labels; accuracy needs them")
    return images.labels


def augmented(images: Tensor, flips: bool, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its side, filling with zeros, and mirror it half the time if ``flips``.

    (N, C, H, W) -> (N, C, H, W); 4 pixels at 32x32, the usual crop. ``generator`` is on the CPU for every device.
    """
    count, _, height, width = images.shape
    down, across = height // 8, width // 8
    top = torch.randint(0, 2 * down + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * across + 1, (count, 1), generator=generator)
    mirrored = (torch.rand(count, 1, generator=generator) < 0.5) & flips
    ahead = torch.arange(width)
    rows = (top + torch.arange(height)).to(images.device)  # (N, H)
    columns = (left + torch.where(mirrored, ahead.flip(0), ahead)).to(images.device)  # (N, W)
    padded = F.pad(images, (across, across, down, down))
    place = torch.arange(count, device=images.device)
    # (N, 1, 1), (N, H, 1), (N, 1, W) around the channels -> (N, H, W, C)
    return padded[place[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _classes(images: ImageSet) -> int:
    """The number of classes of the set or of its labels. Raises BadData if nothing can be learnt from them."""
    name = images.name or "the training set"
    if images.labels is None:
        raise BadData(f"{name} has no labels; train on a labelled set")
    if len(images.labels.unique()) < 2:
        raise BadData(f"{name} holds only one class; train on a set with at least two")
    classes = len(images.classes) or int(images.labels.max()) + 1
    if int(images.labels.min()) < 0 or int(images.labels.max()) >= classes:
        raise BadData(f"{name} has labels outside 0..{classes - 1}; its files disagree")
    return classes


def _layout(device: torch.device) -> torch.memory_format | None:
    """The memory layout in which mixed precision is fastest; None on the CPU, where results must not depend on it."""
    return None if mixed_precision(device) is None else torch.channels_last


@contextmanager
def _seeded(seed: int, epoch: int) -> Iterator[torch.Generator]:
    """The random generator of one epoch, independent of earlier ones; also seeds the global generator, for dropout."""
    value = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    with seeded(value):
        yield torch.Generator().manual_seed(value)


@contextmanager
def _bar(
    name: str, epochs: int, steps: int, first: int, shown: bool
) -> Iterator[tuple[Callable[[], None], Callable[[int, float, float], None]]]:
    """(on_step(), on_epoch(done, loss, accuracy)): show epoch, loss, accuracy and remaining time on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[measured]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task(
            f"{name}, epoch {min(first + 1, epochs)} of {epochs}", total=epochs * steps, completed=first * steps, measured=""
        )

        def on_epoch(done: int, loss: float, reached: float) -> None:
            bar.update(
                task,
                description=f"{name}, epoch {min(done + 1, epochs)} of {epochs}",
                measured=f"loss {loss:.3f}, accuracy {reached:.1%}",
            )

        yield lambda: bar.advance(task), on_epoch
