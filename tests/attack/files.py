"""Files of results, settings and weights, mutated."""

import random
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import made
import torch
from flips import readers
from trial import MEGABYTES, SECONDS, Row, forked

from oodbench.errors import OodbenchError
from oodbench.models import weights
from oodbench.suites.load import load_suite

SUITE = """
name = "small"
title = "A suite"
model = "resnet8-digits"
in_distribution = "digits"
detectors = ["msp", "knn"]
protocols = ["unsupervised", "per-shift"]
seed = 3

[parameters.knn]
k = 10

[[sets]]
name = "digits-heldout"
kind = "near-ood"
"""
BATCH = 50  # tries in one process


def attack(times: int, seed: int) -> Row:
    """Each try: mutate one file, and read it: it is read, or refused in one line."""
    generator, faults, worst, memory = random.Random(seed), [], 0.0, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = made.everything(folder)
        (folder / "suite.toml").write_text(SUITE)
        torch.save({"epoch": 3, "state_dict": network.module.state_dict()}, folder / "weights.pth")
        kinds = {
            **readers(folder, network),
            "suite.toml": load_suite,
            "weights.pth": lambda path: weights.read(path),
        }
        files = [(path, read) for pattern, read in kinds.items() for path in sorted(folder.glob(pattern))]
        left = times
        while left > 0:
            path, read = generator.choice(files)
            whole, mutants = path.read_bytes(), [generator.getrandbits(64) for _ in range(min(BATCH, left))]
            left -= len(mutants)
            found = forked(partial(_all, path, read, whole, mutants), SECONDS * BATCH, MEGABYTES)
            if found.fault:  # one by one, to find it
                for mutant in mutants:
                    one = forked(partial(_all, path, read, whole, [mutant]))
                    worst, memory = max(worst, one.seconds), max(memory, one.megabytes)
                    faults += [f"{path.relative_to(folder)}, mutant {mutant}: {one.fault}"] if one.fault else []
            else:
                worst, memory = max(worst, found.value), max(memory, found.megabytes)
            path.write_bytes(whole)
    return Row("files", times, times - len(faults), worst, memory, faults)


def _all(path: Path, read: Callable[[Path], Any], whole: bytes, mutants: list[int]) -> float:
    """The worst time of these mutants. Raises what is no OodbenchError of one line."""
    worst = 0.0
    for mutant in mutants:
        path.write_bytes(mutated(whole, random.Random(mutant)))
        start = time.perf_counter()
        try:
            read(path)
        except OodbenchError as error:
            if "\n" in str(error) or len(str(error)) > 1000:
                raise AssertionError(f"mutant {mutant} is not refused in one line: {error}") from error
        worst = max(worst, time.perf_counter() - start)
    if worst > SECONDS:
        raise AssertionError(f"took {worst:.1f} s")
    return worst


def mutated(whole: bytes, generator: random.Random) -> bytes:
    """The bytes after one to four changes."""
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(whole) + 1) if generator.random() < 0.5 else min(len(whole), generator.randrange(400))
        length = generator.choice([1, 1, 2, 8, 100])
        head, tail = whole[:place], whole[place:]
        texts = [b"9" * length, b'"', b"{" * length, b"-", b"1e999", b"NaN", b"null"]
        value = generator.choice([generator.randbytes(length), b"\xff" * 8, b"\0" * 8, *texts])
        changes: Mapping[str, bytes] = {
            "set": head + value + tail[len(value) :],
            "insert": head + value + tail,
            "cut": head + tail[length:],
            "end": head,
            "swap": tail + head,
            "repeat": whole + tail[: 2**12],
        }
        whole = changes[generator.choice(["set", "set", "set", "insert", "insert", "cut", "end", "swap", "repeat"])]
    return whole
