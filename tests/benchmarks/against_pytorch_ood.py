"""oodbench and pytorch-ood 0.4.0 on one machine, network, images and detectors, in turn; and the floor of bare passes.

    pip install oodbench pytorch-ood==0.4.0      # in an environment of its own
    python tests/benchmarks/against_pytorch_ood.py --data DIR [--suite cifar10] [--limit N] [--repeats 2]

The thirteen detectors are those that both libraries have and whose defaults are the same method (docs/pytorch-ood.md), under
the protocol ``unsupervised``. pytorch-ood fits each on a loader of the training images and evaluates it on each set together
with the in-distribution images; its images are decoded and in memory before its time starts. It is timed both as its
examples use it, one detector at a time, and with all of them in one call of ``Benchmark.evaluate``, which shares features and
logits. oodbench's time is that of the whole run: reading the sets, fitting, writing. The bars: at least 10 times as fast as
one detector at a time, at least 15 times without ODIN, and without ODIN at most 1.3 times the floor: one bare forward pass
over the test images and one over the training images. Exits with 1 if one is missed.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from oodbench import protocols
from oodbench.batching import MOST_IMAGES
from oodbench.classifier import Classifier
from oodbench.datasets.load import load_dataset
from oodbench.image_set import ImageSet
from oodbench.models.load import load_model
from oodbench.suites.load import load_suite

sys.path.append(str(Path(__file__).parent))
from shared_pass import image_sets, whole_run

try:
    import pytorch_ood.detector as theirs
    from pytorch_ood.api import Detector
    from pytorch_ood.benchmark import Benchmark
except ImportError:
    sys.exit("pytorch-ood is not installed: pip install pytorch-ood==0.4.0")

ALL, UNPERTURBED, FLOOR = 10, 15, 1.3  # the bars: times as fast, times as fast without ODIN, bare passes


def pytorch_oods(classifier: Classifier) -> dict[str, Detector]:
    """pytorch-ood's detectors under oodbench's names."""
    name, last = [(name, module) for name, module in classifier.named_modules() if isinstance(module, nn.Linear)][-1]
    encoder = copy.deepcopy(classifier)
    parent, _, child = name.rpartition(".")
    setattr(encoder.get_submodule(parent), child, nn.Identity())

    def maps(images: Tensor) -> Tensor:
        return encoder(images)[..., None, None]

    return {
        "msp": theirs.MaxSoftmax(classifier),
        "maxlogit": theirs.MaxLogit(classifier),
        "energy": theirs.EnergyBased(classifier),
        "klm": theirs.KLMatching(classifier),
        "knn": theirs.KNN(encoder),
        "vim": theirs.ViM(encoder, d=last.in_features // 2, w=last.weight.detach(), b=last.bias.detach()),
        "mahalanobis-v": theirs.Mahalanobis(encoder),
        "rmd": theirs.RMD(encoder),
        "ddu": theirs.GMM(encoder),
        "she": theirs.SHE(encoder, last),
        "react": theirs.ReAct(maps, lambda maps: last(maps.flatten(1))),
        "gradnorm": theirs.GradNorm(classifier, param_filter=lambda parameter: parameter == f"{name}.weight"),
        "odin": theirs.ODIN(classifier),
    }


class Sets(Benchmark):
    """The suite's sets as a benchmark of pytorch-ood: each with the in-distribution images before it."""

    def __init__(self, train: TensorDataset, inside: TensorDataset, outside: dict[str, TensorDataset]) -> None:
        self.train, self.inside, self.outside, self.ood_names = train, inside, outside, list(outside)

    def train_set(self) -> TensorDataset:
        return self.train

    def test_sets(self, known: bool = True, unknown: bool = True) -> list[ConcatDataset]:
        return [ConcatDataset([self.inside] * known + [one] * unknown) for one in self.outside.values()]


def tensors(images: ImageSet, known: bool) -> TensorDataset:
    """Images as float32 in [0, 1], with labels, which are -1 for out-of-distribution sets."""
    read = images.images.float() / 255
    return TensorDataset(read, torch.as_tensor(images.labels) if known else torch.full((len(read),), -1))


def seconds(work: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="cifar10")
    parser.add_argument("--data")
    parser.add_argument("--limit", type=int, help="images of a set that are read; all training images are")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()

    suite = load_suite(options.suite)
    classifier = load_model(suite.model, data=options.data, device="cpu")
    load = {"data": options.data, "size": suite.size}
    names = image_sets(suite)

    def read(name: str, known: bool = False) -> TensorDataset:
        return tensors(protocols.limited(load_dataset(name, **load), options.limit, suite.seed), known)

    train = tensors(load_dataset(suite.in_distribution, split=suite.train_split, **load), known=True)
    benchmark = Sets(train, read(suite.in_distribution, known=True), {name: read(name) for name in names})
    test = [benchmark.inside, *benchmark.outside.values()]
    print(f"{sum(map(len, test)):,} test images in {len(test)} sets, {len(train):,} training images, {suite.model}")
    loader = {"batch_size": suite.batch_size or MOST_IMAGES}
    found: dict[tuple[str, str], float] = {}
    own: dict[tuple[str, str], float] = {}

    def fitted(detectors: list[str]) -> list[Detector]:
        made = pytorch_oods(classifier)
        with torch.no_grad():
            return [made[name].to("cpu").fit(DataLoader(train, **loader)) for name in detectors]

    def alone(detectors: list[str]) -> None:
        for name, detector in zip(detectors, fitted(detectors), strict=True):
            with torch.set_grad_enabled(name in ("odin", "gradnorm")):
                rows = benchmark.evaluate(detector, loader)
            found.update({(name, row["Dataset"]): row["AUROC"] for row in rows})

    def together(detectors: list[str]) -> None:
        benchmark.evaluate(fitted(detectors), loader)

    def ours(detectors: list[str]) -> float:
        taken, rows = whole_run(suite, detectors, names, data=options.data, device="cpu", limit=options.limit)
        own.update({(row["detector"], row["dataset"]): row["auroc"] for row in rows.to_dict("records")})
        return taken

    def floor() -> None:
        with torch.inference_mode():
            for images in (train, *test):
                for batch in images.tensors[0].split(loader["batch_size"]):
                    classifier(batch)

    every = list(pytorch_oods(classifier))
    unperturbed = [name for name in every if name != "odin"]
    floor()  # warm-up
    shares: dict[str, list[float]] = {"all": [], "unperturbed": [], "floor": []}
    for repeat in range(options.repeats):
        bare = seconds(floor)
        print(f"repeat {repeat + 1}: floor {bare:.1f} s")
        for which, detectors in (("all", every), ("unperturbed", unperturbed)):
            taken, each, shared = ours(detectors), seconds(alone, detectors), seconds(together, detectors)
            print(
                f"  {len(detectors)} detectors: oodbench {taken:.1f} s; pytorch-ood {each:.1f} s one at a time"
                f" ({each / taken:.1f} times), {shared:.1f} s in one call ({shared / taken:.1f} times)"
            )
            shares[which].append(each / taken)
        bare = (bare + seconds(floor)) / 2
        print(f"  the last run in bare passes over all images: {taken / bare:.2f}")
        shares["floor"].append(taken / bare)
    gap, where = max((abs(found[key] - own[key]), key) for key in own)
    print(f"largest difference of an AUROC: {gap:.4f} ({where[0]}, {where[1]})")
    bars = {
        "13 detectors": ALL / statistics.median(shares["all"]),
        "12 unperturbed detectors": UNPERTURBED / statistics.median(shares["unperturbed"]),
        "floor": statistics.median(shares["floor"]) / FLOOR,
    }
    for name, share in bars.items():
        print(f"{name}: {share:.2f} of the bar")
    return int(max(bars.values()) > 1)


if __name__ == "__main__":
    raise SystemExit(main())
