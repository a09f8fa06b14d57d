"""What a whole run costs in bare forward passes: twelve detectors together, unsupervised, on the sets that a suite reads.

    python tests/benchmarks/shared_pass.py --data DIR [--suite cifar10] [--repeats 3] [--limit N]

The bar: at most six bare forward passes over the test images plus two over the training images, reading the sets,
fitting and writing included, the measurement of standalone cost apart. Bare passes and runs are interleaved; the
figure is the median of the repeats' ratios.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import oodbench
from oodbench import batching, protocols
from oodbench.datasets.load import load_dataset
from oodbench.models.device import synchronise
from oodbench.models.load import load_model
from oodbench.suites.load import load_suite

DETECTORS = ["msp", "energy", "maxlogit", "entropy", "odin", "mahalanobis-v", "rmd", "knn", "vim", "she", "klm", "gradnorm"]


def bare_pass(classifier, image_sets, batch_size):
    """Seconds of one forward pass over all images, as the engine batches them."""
    start = time.perf_counter()
    with torch.inference_mode():
        for images in image_sets:
            for _, batch in batching.batches(images, classifier, batching.pieces_of(np.arange(len(images)), batch_size)):
                classifier(batch)
    synchronise(classifier.device)
    return time.perf_counter() - start


def whole_run(suite, detectors, datasets, **options):
    """Seconds of an unsupervised run without standalone costs, reading the sets and writing included; and its frame."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        results = oodbench.run(
            suite,
            detectors=detectors,
            datasets=datasets,
            protocols=["unsupervised"],
            out=Path(folder) / "run",
            measure_costs=False,
            **options,
        )
        return time.perf_counter() - start, results.frame()


def image_sets(suite):
    """Names of the suite's test sets that are read and not made from others: to make a set is no pass."""
    return [one.name for one in suite.tested_sets() if "+" not in one.name]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="cifar10")
    parser.add_argument("--data")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()

    suite = load_suite(options.suite)
    classifier = load_model(suite.model, data=options.data, device=options.device)
    load = {"data": options.data, "size": suite.size}
    read = image_sets(suite)
    names = [suite.in_distribution, *read]
    test = [protocols.limited(load_dataset(name, **load), options.limit, suite.seed) for name in names]
    train = [load_dataset(suite.in_distribution, split=suite.train_split, **load)]
    print(f"{sum(map(len, test)):,} test and {len(train[0]):,} training images, {len(DETECTORS)} detectors, {suite.model}")

    batch_size = suite.batch_size or batching.MOST_IMAGES
    bare_pass(classifier, train, batch_size)  # warm-up
    shares = []
    for repeat in range(options.repeats):
        before = bare_pass(classifier, test, batch_size), bare_pass(classifier, train, batch_size)
        whole, _ = whole_run(suite, DETECTORS, read, data=options.data, device=options.device, limit=options.limit)
        after = bare_pass(classifier, test, batch_size), bare_pass(classifier, train, batch_size)
        over_test, over_train = ((a + b) / 2 for a, b in zip(before, after, strict=True))
        allowed = 6 * over_test + 2 * over_train
        shares.append(whole / allowed)
        print(
            f"repeat {repeat + 1}: run {whole:.1f} s; bare passes {over_test:.1f} s test, {over_train:.1f} s training;"
            f" {(whole - over_train) / over_test:.2f} test passes after one over training; {whole / allowed:.2f} of the bar"
        )
    median = statistics.median(shares)
    print(f"median: {median:.2f} of the bar of 6 test passes + 2 training passes")
    sys.exit(median > 1)


if __name__ == "__main__":
    main()
