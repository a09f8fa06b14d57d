"""How the time of a run grows with images and with detectors that read logits and features.

    python tests/benchmarks/scaling.py --data DIR [--suite cifar10] [--limits 160 640 2500] [--repeats 3]

Images: one run for each limit of images a set, all with the same training images; the exponent is that of the time that
more images add, and the bar is 1.05. Detectors: a run of two that need the passes over training and test images, and a run
with twelve more that read the same logits and features; the bar is that these add 15 % of a bare forward pass over the images.
Exits with 1 if one is missed.
"""

import argparse
import math
import sys
from pathlib import Path

from oodbench import protocols
from oodbench.batching import MOST_IMAGES
from oodbench.datasets.load import load_dataset
from oodbench.models.load import load_model
from oodbench.suites.load import load_suite

sys.path.append(str(Path(__file__).parent))
from shared_pass import bare_pass, image_sets, whole_run

EXPONENT, SHARE = 1.05, 0.15  # the bars
TWO = ["msp", "mahalanobis-v"]
MORE = ["maxlogit", "energy", "entropy", "gen", "klm", "rmd", "knn", "vim", "she", "fdbd", "nci", "ddu"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="cifar10")
    parser.add_argument("--data")
    parser.add_argument("--limits", type=int, nargs=3, default=[160, 640, 2500])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    suite = load_suite(options.suite)
    classifier = load_model(suite.model, data=options.data, device="cpu")
    load = {"data": options.data, "size": suite.size}
    names = image_sets(suite)
    sets = [load_dataset(name, **load) for name in (suite.in_distribution, *names)]
    train = load_dataset(suite.in_distribution, split=suite.train_split, **load)

    def seconds(detectors: list[str], limit: int) -> float:
        return whole_run(suite, detectors, names, data=options.data, device="cpu", limit=limit)[0]

    counts = [sum(min(len(one), limit) for one in sets) for limit in options.limits]
    largest = [protocols.limited(one, options.limits[-1], suite.seed) for one in sets]
    batch_size = suite.batch_size or MOST_IMAGES
    bare_pass(classifier, largest[:1], batch_size)  # warm-up
    taken: dict[int, list[float]] = {count: [] for count in counts}
    added = []
    for _ in range(options.repeats):
        for count, limit in zip(counts, options.limits, strict=True):
            taken[count].append(seconds(TWO, limit))
        before = bare_pass(classifier, [train, *largest], batch_size)
        more = seconds([*TWO, *MORE], options.limits[-1])
        after = bare_pass(classifier, [train, *largest], batch_size)
        added.append(2 * (more - taken[counts[-1]][-1]) / (before + after))
    few, some, many = (min(taken[count]) for count in counts)
    (small, large), times = (counts[1] - counts[0], counts[2] - counts[1]), (some - few, many - some)
    exponent = math.log(times[1] / times[0]) / math.log(large / small) if min(times) > 0 else math.nan
    for count in counts:
        print(f"{count:,} test images, {len(train):,} training images: {min(taken[count]):.2f} s")
    share = sorted(added)[len(added) // 2]
    print(f"images: {exponent / EXPONENT:.2f} of the bar, exponent {exponent:.2f}")
    print(
        f"detectors: {max(share, 0) / SHARE:.2f} of the bar, {len(MORE)} more add {share:.1%} of a bare pass"
        f" ({min(added):.1%} to {max(added):.1%})"
    )
    return int(not (exponent <= EXPONENT and share <= SHARE))


if __name__ == "__main__":
    raise SystemExit(main())
