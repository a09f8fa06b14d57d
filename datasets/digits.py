"""Handwritten digits, 8x8 grey, embedded in scikit-learn."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from oodbench.datasets import TABLE
from oodbench.datasets.formats.embedded import scikit_learn_file
from oodbench.datasets.formats.layout import require_split
from oodbench.image_set import ImageSet, Source
from oodbench.protocols import stratified_order

HELD_OUT_CLASSES = (8, 9)
TRAIN_SHARE = 0.6
SPLIT_SEED = 0
SOURCE = Source(
    "Optical Recognition of Handwritten Digits (test part)",
    TABLE["digits"].source,
    "CC BY 4.0",
    "Alpaydin & Kaynak, Cascading Classifiers, Kybernetika 1998",
)


def digits(root: Path, split: str) -> ImageSet:
    """Load digits 0-7: train is a seeded, stratified 60 % of them, test is the rest."""
    require_split("digits", split, ("train", "test"))
    images, labels = _pixels()
    rows = np.flatnonzero(~np.isin(labels, HELD_OUT_CLASSES))
    order = rows[stratified_order(len(rows), labels[rows], SPLIT_SEED)]
    train = round(TRAIN_SHARE * len(order))
    rows = np.sort(order[:train] if split == "train" else order[train:])
    return ImageSet(
        torch.from_numpy(images[rows]),
        torch.from_numpy(labels[rows]),
        name="digits",
        split=split,
        kind="near-ood",
        classes=tuple("01234567"),
        source=SOURCE,
        flips=False,
    )


def digits_heldout(root: Path, split: str) -> ImageSet:
    """Load digits 8 and 9, with labels 0 and 1. A network trained on ``digits`` has never seen them."""
    require_split("digits-heldout", split, ("test",))
    images, labels = _pixels()
    rows = np.isin(labels, HELD_OUT_CLASSES)
    return ImageSet(
        torch.from_numpy(images[rows]),
        torch.from_numpy(labels[rows] - min(HELD_OUT_CLASSES)),
        name="digits-heldout",
        split=split,
        kind="near-ood",
        classes=tuple(str(c) for c in HELD_OUT_CLASSES),
        source=SOURCE,
        flips=False,
    )


@cache
def _pixels() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (1797, 1, 8, 8), scaled from 0…16 to 0…255, and int64 (1797,)."""
    table = np.loadtxt(scikit_learn_file("data", "digits.csv.gz"), delimiter=",")
    return np.rint(table[:, :-1] * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64)
