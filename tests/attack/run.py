"""Attack a run, its files and its readers, and print what survived.

Run it from the root of a checkout with the test tools installed (Linux only):

    .venv/bin/python tests/attack/run.py                       # all of it: three quarters of an hour on two cores
    .venv/bin/python tests/attack/run.py --only flips --seed 1
    .venv/bin/python tests/attack/run.py --share 0.01          # a hundredth of each

    kills     runs, trainings, fits and downloads are killed at random moments: nothing damaged is taken for whole, and what is
              done again ends as if undisturbed (the docstring of kills.py lists the stages)
    executors runs with worker processes: the run or one of its workers is killed, and nothing is lost or differs
    flips     one bit of a file that the product wrote: it is noticed, or it changes nothing
    files     files of results, settings and weights are mutated: read, or refused in one line, in bounded time and memory
    readers   the same for the files of data sets (tests/datasets/test_fuzz_readers.py)
    bombs     small files that ask for much time or memory: refused in one line that names the bound, under a memory limit
    zoo       plug-ins that misbehave: they fail alone (tests/engine)

It prints what did not survive, then a table, and exits with status 1 if anything did not. pytest does not collect this file;
tests/attack/test_attacks.py runs a small part of each.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported: a pool of threads would not survive a fork

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "helpers"))  # what the attacks share with the tests

import bombs
import files
import flips
import kills
from trial import Row, table

ROOT = Path(__file__).resolve().parents[2]
TIMES = {"kills": 50, "executors": 50, "flips": 300, "files": 4_000, "readers": 6_000, "bombs": 41, "zoo": 1}
READERS, ZOO = ["tests/datasets/test_fuzz_readers.py"], ["tests/engine/test_isolation.py", "tests/engine/test_third_party.py"]


def by_pytest(attack: str, tests: list[str], examples: int = 1, each: int = 1, **environment: str) -> Row:
    """What pytest says of these tests, each of ``each`` tries."""
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    tried = sum(counts.values())
    faults = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not tried:
        faults.append(done.stdout[-500:] + done.stderr[-500:])
    megabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return Row(attack, tried * each, counts.get("passed", 0) * each, seconds / max(1, tried), megabytes, faults)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TIMES, default=list(TIMES), metavar="ATTACK")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="how much of each attack to run (default: 1)")
    options = parser.parse_args()
    times = {name: max(1, round(options.share * TIMES[name])) for name in options.only}
    attacks = {
        "kills": lambda n: kills.attack("kills", n, options.seed),
        "executors": lambda n: kills.attack("executors", n, options.seed),
        "flips": lambda n: flips.attack(n, options.seed),
        "files": lambda n: files.attack(n, options.seed),
        "readers": lambda n: by_pytest("readers", READERS, each=max(25, n // 60), OODBENCH_FUZZ=str(max(25, n // 60))),
        "bombs": lambda n: bombs.attack(n, options.seed),
        "zoo": lambda n: by_pytest("zoo", ZOO),
    }
    rows = []
    for name, count in times.items():
        print(f"{name} …", file=sys.stderr, flush=True)
        rows.append(attacks[name](count))
    for row in rows:
        for fault in row.faults:
            print(f"{row.attack}: {fault}")
    print(table(rows))
    return int(any(row.survived < row.tried for row in rows))


if __name__ == "__main__":
    sys.exit(main())
