"""Runs that are killed at random moments, and resumed."""

import os
import random
import shutil
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

import made
from trial import Row, forked

from oodbench import state
from oodbench.results.folder import RunFolder


def attack(times: int, seed: int) -> Row:
    """Each try: kill a run with SIGKILL, read all that it left, resume it, and compare it with an undisturbed one."""
    generator, faults, worst, memory = random.Random(seed), [], 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        whole = forked(partial(_resumed, Path(folder, "whole")), seconds=600, megabytes=8192)
        lasts = time.perf_counter() - start
        if whole.fault:
            return Row("kills", times, 0, lasts, whole.megabytes, [f"the undisturbed run: {whole.fault}"])
        for number in range(times):
            place = Path(folder, str(number))
            after = generator.uniform(0, lasts)
            _killed(place, after)
            found = forked(partial(_resumed, place), seconds=600, megabytes=8192)
            worst, memory = max(worst, found.seconds), max(memory, found.megabytes)
            if found.fault or found.value != whole.value:
                faults.append(f"killed after {after:.2f} s: {found.fault or 'the figures differ'}")
            shutil.rmtree(place, ignore_errors=True)
    return Row("kills", times, times - len(faults), worst, memory, faults)


def _killed(place: Path, after: float) -> None:
    if not (child := os.fork()):
        os.setsid()
        devnull = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(devnull, stream)
        os.environ["OODBENCH_CACHE"] = str(place / "cache")
        made.run(place)
        os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _resumed(place: Path) -> dict:
    """The figures of a run that was killed or not begun. Raises what a damaged file raises."""
    os.environ["OODBENCH_CACHE"] = str(place / "cache")
    folder = RunFolder(place / "run")
    if (folder.path / "run.json").exists():
        folder.manifest()
        for record in folder.records():
            folder.arrays(record)
    for path in sorted(place.glob("cache/prepared/*.safetensors")) + sorted(place.glob("cache/adversarial/*/*.safetensors")):
        state.load(path)
    found = made.figures(made.run(place))
    if (folder.path / "aside").exists():
        raise AssertionError(f"set aside: {os.listdir(folder.path / 'aside')}")
    hidden = [path for path in (folder.path).rglob(".*") if path.name != ".lock"]
    if hidden:
        raise AssertionError(f"left over: {hidden}")
    return found
