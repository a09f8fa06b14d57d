"""Every bar of speed and memory with its figure, in one command: runs the scripts beside this one, one after another.

    python tests/benchmarks/bars.py [--data DIR] [--quick] [--only SCRIPT …]

Takes about an hour, and needs a machine on which nothing else runs; ``--quick`` measures less of everything, to see
that it works, and ``--only`` runs some of the scripts. ``--data`` is a data root with the sets of the suite ``cifar10``;
without it, bars that need them are left out. The bars beside pytorch-ood need pytorch-ood 0.4.0, those of ``gpu_report.py``
an accelerator. Exits with 1 if one is missed.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

FINISHED = 3.0  # seconds that a run on finished work may take
QUICK = {
    "gradient_norms.py": ["--repeats", "1", "--batch-size", "2", "--large-batch", "8"],
    "streaming.py": ["--model", "torchvision:squeezenet1_1", "--images", "16", "32", "--size", "64", "--workers", "1"],
    "run_folder.py": ["--sets", "6", "--rows", "4"],
    "memory.py": ["--quick", "--images", "100", "--detector", "knn", "--scores", "100000"],
}
QUICK_WITH_DATA = {
    "shared_pass.py": ["--repeats", "1", "--limit", "50"],
    "scaling.py": ["--repeats", "1", "--limits", "20", "40", "80"],
    "against_pytorch_ood.py": ["--repeats", "1", "--limit", "50"],
}
WHOLE = {"against_pytorch_ood.py": ["--repeats", "1"]}  # each repeat on whole sets takes a quarter of an hour


def script(name: str, options: list[str]) -> list[str]:
    """The lines ``NAME: SHARE of the bar …`` that a script prints, after its name."""
    print(f"running {name} …", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name(name)), *options], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return [f"{name}, {line}" for line in done.stdout.splitlines() if re.match(r"[\w, -]+: (\d+\.\d+|nan) of the bar", line)]


def finished() -> list[str]:
    """A run on finished work."""
    print("running oodbench run on finished work …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-P", "-m", "oodbench.cli", "run", "--limit", "40", "--detector", "msp", "--no-costs"]
        taken = []
        for _ in range(4):
            start = time.perf_counter()
            subprocess.run([*command, "--out", f"{place}/run"], capture_output=True, check=True)
            taken.append(time.perf_counter() - start)
    return [f"finished work: {min(taken[1:]) / FINISHED:.2f} of the bar, {min(taken[1:]):.1f} s"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=["finished", *QUICK, *QUICK_WITH_DATA, "gpu_report.py"], metavar="SCRIPT")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        arguments = {name: quick if options.quick else [] for name, quick in QUICK.items()}
        if torch.accelerator.is_available():
            arguments["gpu_report.py"] = ["--out", place, *(["--quick"] if options.quick else [])]
        if options.data is not None:
            with_data = {name: quick if options.quick else WHOLE.get(name, []) for name, quick in QUICK_WITH_DATA.items()}
            arguments |= {name: ["--data", options.data, *quick] for name, quick in with_data.items()}
        work = {"finished": finished} | {name: partial(script, name, of) for name, of in arguments.items()}
        shares = [share for name, measure in work.items() if name in (options.only or work) for share in shown(measure())]
    missed = sum(not share <= 1 for share in shares)
    print(f"{len(shares) - missed} of {len(shares)} bars hold")
    if "gpu_report.py" not in arguments:
        print("left out: the bars of gpu_report.py, which need an accelerator")
    if options.data is None:
        print(f"left out: the bars of {', '.join(QUICK_WITH_DATA)}, which need --data")
    return int(missed > 0)


def shown(lines: list[str]) -> list[float]:
    """Print the lines of bars, and return their shares."""
    shares = [float(re.search(r": (\d+\.\d+|nan) of the bar", line)[1]) for line in lines]
    for line, share in zip(lines, shares, strict=True):
        print(f"{'holds ' if share <= 1 else 'missed'}  {line}", flush=True)
    return shares


if __name__ == "__main__":
    raise SystemExit(main())
