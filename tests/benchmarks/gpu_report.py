"""Everything that is measured and checked on an accelerator, in one command, without a network connection.

    python tests/benchmarks/gpu_report.py [--device auto] [--out gpu-report] [--quick] [--only CHECK …]

Writes ``report.md`` and ``report.json`` to the folder, and exits with 1 if a check fails. ``--device cpu`` tries it without an
accelerator, and ``--quick`` does less of everything. Needs torch 2.6 and the packages that the tests need.

- figures: every built-in detector, attack and corruption on the device against the CPU, on a small network.
- rate: a pass of forward-only detectors against a bare forward loop over the same batches. Bar: at least .9 of its rate.
- gradient norms: in bare forward passes. Bar: 3.5.
- waiting: operations that wait for the device, in passes over two and over six batches: as many (CUDA and ROCm).
- memory: a batch that does not fit is halved, and the scores are the same (devices that tell their free memory).
- precision: how far bf16 moves AUROC of forward-only detectors. Bar: 5 points.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import oodbench
from oodbench import batching, passes, registry
from oodbench.batching import batches, pieces_of
from oodbench.classifier import Classifier
from oodbench.conformance.subject import INSIDE, INSIDE_LABELS, LABELS, OUTSIDE, TRAIN
from oodbench.conformance.task import trained_classifier
from oodbench.datasets.adversarial.attacks import ATTACKS, attack
from oodbench.datasets.corruptions import CORRUPTIONS, corrupt
from oodbench.detector import Detector, load_detector
from oodbench.metrics import auroc
from oodbench.models.build import build
from oodbench.models.device import module_of, name_of, precision_on, resolve_device, synchronise
from oodbench.models.exact import exact
from oodbench.passes.memory import limited
from oodbench.probe import NEED_GRAPH
from oodbench.results.precision import stored

sys.path.append(str(Path(__file__).parent))
from gradient_norms import TIME_BAR, times

TRAINS = {name: {"epochs": 1} for name in ("duq", "ensemble", "gradcon", "gradcon-vae", "introspective")}
SCORES = 1e-3  # tolerance of a score, relative to the range of all
TRAINED = 0.05  # of AUROC, where the detector trains a network, in which rounding grows
PIXELS, MOVED = (
    1e-3,
    0.02,
)  # tolerance of an attacked pixel, and the share of pixels that may differ: signs of tiny gradients do
RATE = 0.9  # of the bare loop's
SHIFT = 0.05  # of AUROC in bf16
MUST_WAIT = {"rankfeat": "torch.linalg.eigh reads whether it converged"}
PICTURES = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FORWARD_ONLY = ["msp", "energy", "maxlogit", "entropy", "gen", "react", "ash", "scale", "dice", "vim", "knn", "she"]


@dataclass
class Check:
    """One part of the report: what it found, and why it failed or was skipped."""

    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    @property
    def status(self) -> str:
        return "failed" if self.failures else "skipped" if self.skipped else "passed"

    def bar(self, what: str, share: float, said: str) -> None:
        """A line that ``bars.py`` reads; a share above 1 misses the bar."""
        self.lines.append(f"{what}: {share:.2f} of the bar, {said}")
        if not share <= 1:
            self.failures.append(f"{what} misses its bar: {said}")


@dataclass
class Options:
    device: torch.device
    quick: bool


def figures(check: Check, options: Options) -> None:
    """Scores, attacked images and corrupted images of the CPU and of the device."""
    here, there = trained_classifier(), trained_classifier(device=str(options.device))
    for name in ("msp", "knn", "odin") if options.quick else registry.records("detectors"):
        check.figures[name] = _difference(check, name, here, there)
    for name in ("fgsm",) if options.quick else ATTACKS:
        expected = attack(here, INSIDE, INSIDE_LABELS, name)
        found = attack(there, INSIDE, INSIDE_LABELS, name)
        moved = float(((found - expected).abs() > PIXELS).double().mean())
        check.figures[f"attack {name}"] = moved
        if moved > MOVED:
            check.failures.append(f"{name}: {100 * moved:.1f} % of the pixels differ from the CPU's")
    for name in ("decolor",) if options.quick else CORRUPTIONS:
        for level in range(1, 6):
            expected, found = (corrupt(images, name, level) for images in (PICTURES, PICTURES.to(options.device)))
            check.figures[f"{name}@{level}"] = differ = float((found.cpu() != expected).double().mean())
            if differ:
                check.failures.append(f"{name}@{level}: {100 * differ:.2g} % of the pixels differ from the CPU's")
    count = len(check.figures)
    check.lines.append(f"{count - len(check.failures)} of {count} detectors, attacks, corruptions have the figures of the CPU")


def _difference(check: Check, name: str, here: Classifier, there: Classifier) -> float:
    """The largest difference of a score, relative to the range of all; of a detector that trains a network, that of AUROC."""
    found = []
    for network in (here, there):
        detector = load_detector(name, **TRAINS.get(name, {})).fit(network, TRAIN, LABELS)
        found.append([detector.score(network, images) for images in (INSIDE, OUTSIDE)])
    if detector.prepares:
        difference, bound = abs(np.subtract(*(auroc(*sides) for sides in found))), TRAINED
    else:
        scores = [np.concatenate(sides) for sides in found]
        difference, bound = np.abs(scores[1] - scores[0]).max() / np.ptp(scores[0]), SCORES
    if not difference <= bound:
        check.failures.append(f"{name}: differs from the CPU by {difference:.2g}, and {bound:g} is allowed")
    return float(difference)


def rate(check: Check, options: Options) -> None:
    """The images of a pass of forward-only detectors per second, beside those of a bare loop; interleaved."""
    small = options.quick or options.device.type == "cpu"
    name, side, count, size = ("resnet20-cifar10", 32, 256, 64) if small else ("torchvision:resnet50", 224, 4096, 128)
    network = build(name, 10).to(options.device)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    detectors = [load_detector(one) for one in FORWARD_ONLY]
    labels = torch.arange(min(count, 512)) % 10
    for detector in detectors:
        detector.fit(network, images[: len(labels)], labels, batch_size=size)
    pieces = pieces_of(np.arange(count), size)

    def bare() -> None:
        with torch.inference_mode():
            for _, batch in batches(images, network, pieces):
                network(batch)

    def whole() -> None:
        passes.statistics({detector: [detector.setting] for detector in detectors}, network, images, pieces)

    shares = []
    batching.RESIDENT_BYTES = 0  # as for large sets, so that copies to the device count in both
    bare(), whole()
    for _ in range(1 if options.quick else 5):
        first, ours, second = (_seconds(work, options.device) for work in (bare, whole, bare))
        shares.append((first + second) / 2 / ours)
    share = float(np.median(shares))
    check.figures |= {"network": name, "images": count, "batch size": size, "share of the bare loop's rate": share}
    check.figures |= {"images per second": count / ours, "repeats": shares}
    said = f"{count / ours:.0f} images/s, {share:.2f} of the bare loop's, {len(detectors)} detectors on {name}"
    if small:  # on the CPU, and at a tiny size, the detectors' own work counts for more than the network
        check.lines.append(f"forward-only detectors: {said}; the bar is for accelerators")
    else:
        check.bar("rate of forward-only detectors", RATE / share, said)


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def gradient_norms(check: Check, options: Options) -> None:
    """As ``gradient_norms.py`` measures them."""
    median = times(options.device, 1 if options.quick else 10, 2 if options.quick else 32)
    check.figures["bare forward passes"] = median
    if options.quick:
        check.lines.append(f"gradient norms: {median:.2f} bare forward passes on 2 images; the bar is for 32")
    else:
        check.bar("gradient norms", median / TIME_BAR, f"{median:.2f} bare forward passes")


def waiting(check: Check, options: Options) -> None:
    """How often a pass of each forward-only detector waits for the device: not once more with three times as many batches."""
    if options.device.type != "cuda":
        check.skipped = f"{options.device.type} does not tell which operations wait for it"
        return
    network = trained_classifier(device=str(options.device))
    for name in FORWARD_ONLY if options.quick else registry.records("detectors"):
        detector = load_detector(name, **TRAINS.get(name, {}))
        if detector.declared_signals & NEED_GRAPH or not detector.reads_network:
            continue
        if name in MUST_WAIT:
            check.lines.append(f"{name} is left out: {MUST_WAIT[name]}")
            continue
        detector.fit(network, TRAIN, LABELS)
        _waits(detector, network, 30)  # warm-up
        two, six = (_waits(detector, network, size) for size in (30, 10))
        check.figures[name] = [two, six]
        if six > two:
            check.failures.append(f"{name}: waits {two} times in two batches, and {six} times in six")
    count = len(check.figures)
    check.lines.append(f"{count - len(check.failures)} of {count} forward-only detectors wait for the device in no batch")


def _waits(detector: Detector, network: Classifier, size: int) -> int:
    pieces = pieces_of(np.arange(60), size)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            passes.statistics({detector: [detector.setting]}, network, INSIDE[:60], pieces)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in said)


class Hungry(nn.Module):
    """Allocates a number of bytes for each image, and gives the mean of each channel."""

    def __init__(self, bytes_per_image: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.elements = bytes_per_image // 4

    def forward(self, images: Tensor) -> Tensor:
        held = images.new_empty(len(images), self.elements)
        logits: Tensor = self.head(images.mean((2, 3)))
        return logits + 0 * held[:, :1].nan_to_num(0, 0, 0)


def memory(check: Check, options: Options) -> None:
    """A network that takes a fortieth of the free memory per image, in batches of 64."""
    told = getattr(module_of(options.device), "mem_get_info", None)
    if options.device.type == "cpu" or told is None:
        check.skipped = f"{options.device.type} does not tell its free memory"
        return
    free, _ = told(options.device)
    network = Classifier(Hungry(free // 40)).to(options.device)
    images, said = torch.rand(128, 3, 8, 8, generator=torch.Generator().manual_seed(0)), list[str]()
    detector = load_detector("msp")
    jobs: dict[Detector, Any] = {detector: [detector.setting]}
    with limited(said.append):
        halved = passes.statistics(jobs, network, images, pieces_of(np.arange(128), 64))[0][detector]
        expected = passes.statistics(jobs, network, images, pieces_of(np.arange(128), 8))[0][detector]
    difference = float(np.abs(halved - expected).max())
    check.figures |= {"free GiB": free / 2**30, "said": said, "largest difference": difference}
    check.lines += said
    if not said:
        check.failures.append("no batch was halved, although 64 images need more than the free memory")
    if not difference <= SCORES:
        check.failures.append(f"scores differ by {difference:.2g} after a batch was halved")


def precision(check: Check, options: Options) -> None:
    """The shift of AUROC that a run on digits measures."""
    try:
        precision_on(options.device, "bf16")
    except oodbench.errors.UsageError as error:
        check.skipped = str(error)
        return
    named = FORWARD_ONLY[:4] if options.quick else FORWARD_ONLY
    sets = ["photos"] if options.quick else ["photos", "digits+noise@3", "digits+gaussian-blur@3"]
    with tempfile.TemporaryDirectory() as place:
        results = oodbench.run(
            "digits",
            detectors=named,
            datasets=sets,
            protocols=["unsupervised"],
            limit=60 if options.quick else None,
            device=str(options.device),
            precision="bf16",
            measure_costs=False,
            out=Path(place) / "run",
        )
        shift = stored(oodbench.open_run(results.path).manifest().provenance)
    if shift is None:
        check.failures.append("the run measured no shift")
        return
    check.lines.append(shift.sentence())
    check.figures |= {name: {at: list(pair) for at, pair in of.items()} for name, of in shift.auroc.items()}
    largest = max(abs(lower - full) for of in shift.auroc.values() for full, lower in of.values())
    check.bar("AUROC in bf16", largest / SHIFT, f"moves by {100 * largest:.2f} points at most")


CHECKS = {
    "figures": figures,
    "rate": rate,
    "gradient norms": gradient_norms,
    "waiting": waiting,
    "memory": memory,
    "precision": precision,
}


def about(device: torch.device) -> dict[str, Any]:
    """The machine and the software."""
    return {
        "device": str(device),
        "name": name_of(device) if device.type != "cpu" else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "ROCm": torch.version.hip,
        "Python": platform.python_version(),
        "system": platform.platform(),
        "oodbench": oodbench.__version__,
    }


def as_markdown(facts: dict[str, Any], checks: list[Check]) -> str:
    """The report for people."""
    lines = ["# What oodbench measures on this device", "", *(f"- {name}: {value}" for name, value in facts.items() if value)]
    lines += ["", "| Check | Outcome | Seconds |", "|---|---|---|"]
    lines += [f"| {check.name} | {check.status} | {check.seconds:.1f} |" for check in checks]
    for check in checks:
        lines += ["", f"## {check.name}: {check.status}", ""]
        lines += [f"- {line}" for line in (*check.failures, *([check.skipped] if check.skipped else []), *check.lines)]
        lines += ["", *(f"    {name}: {json.dumps(value)}" for name, value in check.figures.items())]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=CHECKS, metavar="CHECK", default=list(CHECKS))
    given = parser.parse_args()
    options = Options(resolve_device(given.device), given.quick)
    facts, checks = about(options.device), []
    for name in given.only:
        print(f"{name} …", file=sys.stderr, flush=True)
        check, start = Check(name), time.perf_counter()
        try:
            with exact(options.device):
                CHECKS[name](check, options)
        except Exception as error:  # so that the other checks are made, and this one is reported
            check.failures.append(f"{type(error).__name__}: {error}")
            check.lines += traceback.format_exc().splitlines()
        check.seconds = time.perf_counter() - start
        checks.append(check)
        print(*(f"{name}: {why}" for why in (*check.failures, check.skipped) if why), *check.lines, sep="\n", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "report.md").write_text(as_markdown(facts, checks))
    outcomes = [asdict(check) | {"status": check.status} for check in checks]
    (given.out / "report.json").write_text(json.dumps({"about": facts, "quick": options.quick, "checks": outcomes}, indent=1))
    count = {status: sum(check.status == status for check in checks) for status in ("passed", "failed", "skipped")}
    print(", ".join(f"{number} {status}" for status, number in count.items()) + f"; see {given.out / 'report.md'}")
    return int(count["failed"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
