"""How long a leaderboard of 100,000 records takes, and how much memory: generates a run folder and reads it.

    python tests/benchmarks/run_folder.py [--sets 1250] [--rows 80]

Prints the size of the folder, and for ``oodbench leaderboard FOLDER --format csv`` and for the tables on a terminal the wall
time and the largest resident memory, each in a process of its own. Bars: 10 s and 1.5 GB on two cores.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from oodbench.metrics import evaluate
from oodbench.results.folder import RunFolder
from oodbench.results.pass_file import hash_of
from oodbench.results.records import DetectionRecord

KINDS = ("near-ood", "far-ood", "corruption", "anomaly")
SECONDS, GIGABYTES = 10, 1.5  # the bars
IMAGES = 20  # a set: the arrays are small, because the leaderboard does not read them


def generate(path: Path, sets: int, rows: int) -> RunFolder:
    """A run folder of ``sets`` sets with ``rows`` records each."""
    folder, random = RunFolder(path), np.random.default_rng(0)
    with folder.locked():
        folder.check_settings({"model": "generated"})
        inside = random.normal(size=IMAGES)
        for place in range(sets):
            records, arrays = [], {}
            for row in range(rows):
                outside = random.normal(size=IMAGES) + row / rows
                arrays[hash_of(outside)] = outside
                records.append(
                    _record(
                        place, row, evaluate(inside, outside), {"in_scores": hash_of(inside), "out_scores": hash_of(outside)}
                    )
                )
            folder.write(records, arrays, {hash_of(inside): inside})
    return folder


def _record(place: int, row: int, metrics, arrays: dict[str, str]) -> DetectionRecord:
    kind = KINDS[place % len(KINDS)]
    corrupted = kind == "corruption"
    return DetectionRecord(
        model="generated",
        weights_hash="0" * 16,
        in_distribution="generated-set",
        in_fingerprint="0" * 16,
        train_fingerprint="1" * 16,
        seed=0,
        detector=f"detector-{row // 2}",
        parameters={"k": row},
        code="2" * 16,
        non_default={},
        protocol=("unsupervised", "per-shift")[row % 2],
        dataset=f"generated-set+noise-{place // 20}" if corrupted else f"set-{place}",
        level=1 + place // len(KINDS) % 5 if corrupted else None,
        kind=kind,
        fingerprint=f"{place:016d}",
        status="ok",
        sizes={"generated-set (test)": (IMAGES, None)},
        n_in=IMAGES,
        n_out=IMAGES,
        metrics=metrics,
        setting={},
        head="identity",
        wall_seconds=0.5,
        arrays=arrays,
    )


def measured(command: list[str]) -> tuple[float, float]:
    """(seconds, largest resident memory in GB) of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"COLUMNS": "160"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return time.perf_counter() - start, kilobytes / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1250)
    parser.add_argument("--rows", type=int, default=80)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        folder = generate(Path(place) / "run", options.sets, options.rows)
        size = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file()) / 1e6
        count, files, seconds = options.sets * options.rows, options.sets + 2, time.perf_counter() - start
        print(f"{count:,} records in {files:,} files, {size:.0f} MB, written in {seconds:.0f} s")
        start = time.perf_counter()
        count = sum(1 for _ in folder.records())
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"opening all {count:,}: {time.perf_counter() - start:.1f} s; this process took {memory:.2f} GB at most")
        for format in ("csv", "table"):
            command = [sys.executable, "-P", "-m", "oodbench.cli", "leaderboard", str(folder.path), "--format", format]
            seconds, gigabytes = measured(command)
            share = max(seconds / SECONDS, gigabytes / GIGABYTES)
            print(f"leaderboard --format {format}: {share:.2f} of the bar, {seconds:.1f} s, {gigabytes:.2f} GB")


if __name__ == "__main__":
    main()
