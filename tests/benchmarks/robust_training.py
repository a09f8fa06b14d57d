"""Whether networks trained by the recipes ``noise`` and ``augmix`` are more accurate under corruption than by ``standard``.

    python tests/benchmarks/robust_training.py --data DIR [--seconds 60] [--seeds 3] [--images 8000] [--size 16] [--quick]
    python tests/benchmarks/robust_training.py --data DIR --model resnet18 --size 32 --device cuda

Trains a ResNet-8 on real CIFAR-10 by each recipe with several seeds for the same time each, that of one CPU thread, or of an
accelerator: as many epochs as fit, by the time of one. Tests all generated corruptions at all levels, on the same images for
all. Prints accuracies, and differences to ``standard`` with 95 % intervals over seeds and images. The bar: both intervals are
above 0. ``noise`` trains on a corruption that is tested too, so the mean over the others is printed beside.
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t

from oodbench import protocols
from oodbench.datasets.corruptions import CORRUPTIONS, LEVELS, corrupt
from oodbench.datasets.load import load_dataset
from oodbench.models import recipes
from oodbench.models.build import build
from oodbench.models.train import Training, train

BASE = "standard"


def epochs_within(seconds, images, recipe, model, device, clock):
    """How many epochs fit, by the time of the second one, and that time."""
    training = Training(build(model, len(images.classes)).to(device), images, recipe)
    training.epoch(0)
    start = clock()
    training.epoch(1)
    taken = clock() - start
    return max(1, round(seconds / taken)), taken


def right_answers(classifier, sets, labels):
    """bool (sets, images)"""
    with torch.inference_mode():
        answers = [
            torch.cat([classifier(part.to(classifier.device) / 255).argmax(1).cpu() for part in images.split(500)]) == labels
            for images in sets
        ]
    return torch.stack(answers).numpy()


def interval(gains):
    """Mean of gains (seeds, images), and half the width of its 95 % interval: both seeds and images are samples."""
    seeds, images = gains.shape
    error = math.sqrt(gains.mean(1).var(ddof=1) / seeds + gains.mean(0).var(ddof=1) / images)
    return gains.mean(), t.ppf(0.975, seeds - 1) * error


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--model", default="resnet8-digits", help="its architecture, with new weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=60, help="of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=8000, help="to train on")
    parser.add_argument("--size", type=int, default=16, help="pixels per side")
    parser.add_argument("--tested", type=int, default=1000)
    parser.add_argument("--recipes", nargs="+", default=["noise", "augmix"])
    parser.add_argument("--quick", action="store_true", help="two seeds, an epoch of few images: to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.seeds, options.images, options.tested = 0, 2, 40, 10

    torch.set_num_threads(1)
    # Other processes do not change the time of a CPU, but an accelerator works beside it.
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    given = {"data": options.data, "size": options.size}
    images = protocols.limited(load_dataset("cifar10", split="train", **given), options.images, 0)
    test = protocols.limited(load_dataset("cifar10", **given), options.tested, 0)
    names = [(name, level) for name in CORRUPTIONS for level in LEVELS]
    sets = [test.images, *(corrupt(test.images, name, level) for name, level in names)]
    other = np.array([name != "noise" for name, _ in names])
    print(f"{options.model} on {len(images):,} images, {len(test):,} tested, {options.size} pixels per side")

    right = {}
    settings = {}
    for name in (BASE, *options.recipes):
        recipe = recipes.find(name)
        epochs, taken = epochs_within(options.seconds, images, recipe, options.model, options.device, clock)
        settings[name] = recipe.override(epochs=epochs)
        print(f"{name}: {epochs} epochs of {taken:.1f} s", flush=True)
    for seed in range(options.seeds):
        for name, recipe in settings.items():
            start = clock()
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "net.safetensors"
                classifier = train(
                    options.model, images, out=out, recipe=recipe, seed=seed, device=options.device, progress=False
                )
            taken = clock() - start
            answers = right_answers(classifier, sets, test.labels)
            right.setdefault(name, []).append(answers)
            clean, corrupted = answers[0].mean(), answers[1:].mean()
            print(f"seed {seed}, {name}: {taken:.1f} s, clean {clean:.1%}, corrupted {corrupted:.1%}", flush=True)

    found = {name: np.stack(answers).astype(float) for name, answers in right.items()}  # (seeds, 1 + corruptions, images)
    print()
    for name in CORRUPTIONS:
        rows = 1 + np.flatnonzero([one == name for one, _ in names])
        print(f"{name}: " + ", ".join(f"{recipe} {values[:, rows].mean():.1%}" for recipe, values in found.items()))
    holds = True
    for name in options.recipes:
        gains = found[name] - found[BASE]
        parts = {
            "clean": gains[:, 0],
            "all corruptions": gains[:, 1:].mean(1),
            "all but noise": gains[:, 1:][:, other].mean(1),
        }
        for part, values in parts.items():
            mean, half = interval(values)
            print(f"{name} - {BASE}, {part}: {100 * mean:+.1f} ± {100 * half:.1f} points")
        mean, half = interval(parts["all corruptions"])
        holds &= bool(mean - half > 0)
    print("holds" if holds else "missed")
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
