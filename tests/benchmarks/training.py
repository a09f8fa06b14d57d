"""What our training costs and reaches beside a plain PyTorch loop of the same recipe, on real CIFAR-10.

    python tests/benchmarks/training.py --data DIR [--images 2000] [--epochs 1] [--repeats 3] [--recipe resnet-cifar]

Both train ResNet-20 from the same initial weights, in turn, within one process; the plain loop is what a user writes with
torchvision's transforms and a DataLoader. The bar: no more time than the plain loop (the median of the repeats' ratios), and
an accuracy on the test images that is no lower than its own by more than two standard errors of their difference.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from oodbench import protocols
from oodbench.datasets.load import load_dataset
from oodbench.models import recipes
from oodbench.models.build import build
from oodbench.models.train import accuracy, train

MODEL = "resnet20-cifar10"


class Augmented(Dataset):
    """Images and labels, each image cropped and mirrored at random."""

    def __init__(self, images):
        self.images, self.labels = images.images, images.labels
        self.transform = v2.Compose(
            [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.transform(self.images[row]), self.labels[row]


def plain(images, recipe, seed):
    """The network after a loop as tutorials write it."""
    classifier = build(MODEL, len(images.classes), seed)
    parameters = classifier.module.requires_grad_(True).parameters()
    optimizer = torch.optim.SGD(
        parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )
    torch.manual_seed(seed)
    batches = DataLoader(Augmented(images), recipe.batch_size, shuffle=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * len(batches))
    for _ in range(recipe.epochs):
        classifier.module.train()
        for batch, labels in batches:
            loss = torch.nn.functional.cross_entropy(classifier(batch), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.requires_grad_(False).eval()


def ours(images, recipe, seed):
    with tempfile.TemporaryDirectory() as folder:
        options = {"recipe": recipe, "seed": seed, "device": "cpu", "progress": False}
        return train(MODEL, images, out=Path(folder) / "net.safetensors", **options)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--recipe", default="resnet-cifar")
    options = parser.parse_args()

    recipe = recipes.find(options.recipe).override(epochs=options.epochs)
    if recipe.drops or not recipe.augment:
        parser.error(f"the plain loop has a cosine schedule and crops; {recipe.name} has not")
    images = protocols.limited(load_dataset("cifar10", data=options.data, split="train"), options.images, 0)
    test = protocols.limited(load_dataset("cifar10", data=options.data), options.images, 0)
    print(f"{MODEL}, {recipe.name}, {recipe.epochs} epochs on {len(images):,} images, {torch.get_num_threads()} threads")

    ratios, reached = [], {"oodbench": [], "plain": []}
    for repeat in range(options.repeats):
        seconds = {}
        for name, loop in [("oodbench", ours), ("plain", plain)][:: 1 if repeat % 2 else -1]:
            start = time.perf_counter()
            classifier = loop(images, recipe, repeat)
            seconds[name] = time.perf_counter() - start
            reached[name].append(accuracy(classifier, test))
        ratios.append(seconds["oodbench"] / seconds["plain"])
        both = ", ".join(f"{name} {seconds[name]:.1f} s, accuracy {reached[name][-1]:.3f}" for name in seconds)
        print(f"seed {repeat}: {both}; {ratios[-1]:.2f} of the time")
    ratio = statistics.median(ratios)
    means = {name: statistics.mean(values) for name, values in reached.items()}
    # Of the test images, and of the seeds where there are several.
    error = math.sqrt(sum(p * (1 - p) / len(test) for p in means.values()))
    if options.repeats > 1:
        spread = sum(statistics.variance(values) for values in reached.values()) / options.repeats
        error = max(error, math.sqrt(spread))
    print(f"median: {ratio:.2f} of the time of the plain loop")
    print(
        f"accuracy on {len(test):,} test images: oodbench {means['oodbench']:.3f}, plain {means['plain']:.3f} ± {2 * error:.3f}"
    )
    return int(ratio > 1 or means["oodbench"] < means["plain"] - 2 * error)


if __name__ == "__main__":
    sys.exit(main())
