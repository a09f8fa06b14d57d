"""Memory of fits and of metrics: detectors learn from generated features of more and more images, each in a new process.

    python tests/benchmarks/memory.py [--images 4000] [--times 1 4 16] [--detector knn …] [--scores 100000000] [--quick]

A network of random weights turns small generated images, batch by batch, into 2,048 features and logits of 1,000 classes.
For ``ddu`` and ``gram`` there are 8 and 100 classes, and for ``introspective`` 512 features and 50 classes, because they keep
much of each class. For ``--times`` as many images as ``--images``, prints the largest resident memory of ``Detector.fit``,
less what was resident before it, beside the estimate of ``Detector.memory``.

Bars: from the fewest to the most images, memory grows by at most 10 % and 64 MB, which the C library may keep, and for
detectors with a bank by 1.1 times its float32 rows; it is at most 1.1 times the estimate and 300 MB; and figures of
``--scores`` generated float64 scores, half of either side, take at most 3 times the memory of the scores.
"""

import argparse
import json
import subprocess
import sys

from oodbench.paths import size

BATCH = 300e6  # bytes that a batch and what PyTorch loads for training may take beside the estimate
KEPT = 64e6  # bytes by which the same work may differ, as the C library keeps what is freed
FEATURES, CLASSES = 2048, 1000
# By detector: features, classes, hyper-parameters, and the float32 numbers that it keeps of each image.
CASES = {
    "knn": (FEATURES, CLASSES, {}, FEATURES),
    "vim": (FEATURES, CLASSES, {"size": 4000}, 0),
    "ddu": (FEATURES, 8, {}, 0),
    "mahalanobis-v": (FEATURES, CLASSES, {}, 0),
    "mahalanobis-fe": (FEATURES, CLASSES, {}, 0),
    "rmd": (FEATURES, CLASSES, {}, 0),
    "gram": (FEATURES, 100, {}, 0),
    "introspective": (512, 50, {"epochs": 1}, 562),
    "she": (FEATURES, CLASSES, {}, 0),
    "nnguide": (FEATURES, CLASSES, {"size": 4000}, 0),
    "neco": (FEATURES, CLASSES, {}, 0),
    "kpca": (FEATURES, CLASSES, {}, 0),
}
RESIDENT = """
import json, os, resource, sys
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def largest():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
"""
FIT = """
import torch
import oodbench
from oodbench.training_set import FitMemory, TrainingSet
from oodbench import protocols
from oodbench.progress import Progress
name, features, classes, parameters, count = json.loads(sys.argv[1])
torch.manual_seed(0)
network = torch.nn.Sequential()
network.add_module("layer", torch.nn.Conv2d(3, features, 16))
network.add_module("relu", torch.nn.ReLU())
network.add_module("flat", torch.nn.Flatten())
network.add_module("head", torch.nn.Linear(features, classes))
classifier = oodbench.Classifier(network, layers=["relu"], name="random")
images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8)
labels = torch.arange(count) % classes
classifier(images[:128] / 255)
detector = oodbench.load_detector(name, **parameters)
held_out = protocols.held_out(count, labels.numpy(), 0)
size = FitMemory([detector], classifier, TrainingSet(images, labels, held_out), Progress()).size
before = resident()
detector.fit(classifier, images, labels)
print(json.dumps([largest() - before, detector.memory(size)]))
"""
METRICS = """
import numpy as np
import oodbench
count = int(sys.argv[1])
random = np.random.default_rng(0)
sides = [random.standard_normal(count // 2) for _ in range(2)]
sides[1] += 1
oodbench.evaluate(sides[0][:1000], sides[1][:1000])
before = resident() - 8 * count
figures = oodbench.evaluate(*sides)
print(json.dumps([largest() - before, figures.auroc]))
"""


def measured(code: str, argument: str) -> list[float]:
    """What a new process prints."""
    command = [sys.executable, "-P", "-c", RESIDENT + code, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def bar(name: str, share: float, text: str) -> bool:
    """Print how much of a bar is reached; whether it is missed."""
    print(f"{name}: {share:.2f} of the bar, {text}", flush=True)
    return share > 1


def fits(name: str, counts: list[int], scale: int) -> int:
    """Measure the fits of one detector, and print them; the number of bars that are missed."""
    features, classes, parameters, kept = CASES[name]
    features, kept = features // scale, kept // scale
    found = []
    for count in counts:
        taken, estimate = measured(FIT, json.dumps([name, features, max(10, classes // scale), parameters, count]))
        found.append((taken, estimate))
        print(f"{name}, {count:,} images: {size(int(taken))}, estimate {size(estimate)}", flush=True)
    (least, _), (most, _) = found[0], found[-1]
    rows = 4 * kept * (counts[-1] - counts[0])
    text = f"from {size(int(least))} to {size(int(most))}"
    text += f" with {size(rows)} more of features" if rows else ""
    missed = bar(f"growth of {name}", max(0.0, most - least) / (1.1 * rows + 0.1 * least + KEPT), text)
    worst = max(taken / (1.1 * estimate + BATCH) for taken, estimate in found)
    return missed + bar(f"estimate of {name}", worst, f"at most {size(int(most))}")


def scores(count: int) -> int:
    """Measure the metrics of generated scores, and print them; whether the bar is missed."""
    taken, auroc = measured(METRICS, str(count))
    assert abs(auroc - 0.7602) < 0.01, auroc  # Φ(1 / √2)
    text = f"{size(int(taken))} with the scores, {taken / count:.1f} bytes per score"
    return bar(f"metrics of {count:,} scores".replace(",", " "), taken / (3 * 8 * count), text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--detector", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--scores", type=int, default=10**8)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    times, scale = ([1, 16], 8) if options.quick else (options.times, 1)
    missed = sum(fits(name, [options.images * many for many in times], scale) for name in options.detector)
    return int(missed + scores(options.scores) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
