"""One try of an attack in a fork of this process, with its time and memory; and the table of all."""

import json
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

SECONDS, MEGABYTES = 5.0, 1024  # the most that one try may take


class Row(NamedTuple):
    """What came of one attack: tries, those survived, the worst time and memory of a try, and each fault in words."""

    attack: str
    tried: int
    survived: int
    seconds: float
    megabytes: float
    faults: Sequence[str]


class Result(NamedTuple):
    """``value`` is what the work returned, as JSON; ``fault`` says what went wrong instead."""

    value: Any
    fault: str
    seconds: float
    megabytes: float  # above what the process had before


def resident() -> float:
    """MiB that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def forked(work: Callable[[], Any], seconds: float = SECONDS, megabytes: float = MEGABYTES) -> Result:
    """Run work in a fork; it may take so long, and so much memory beyond what there is."""
    reading, writing = os.pipe()
    start = time.perf_counter()
    if not (child := os.fork()):
        os.close(reading)
        devnull = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(devnull, stream)
        with open("/proc/self/statm") as file:
            there = int(file.read().split()[0]) * resource.getpagesize()
        limit = there + int(megabytes * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        before = resident()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak counts from here
        try:
            found = work(), ""
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            found = None, f"{type(error).__name__}: {error} ({os.path.basename(last.filename)}:{last.lineno})"
        with open("/proc/self/status") as file:
            peak = next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
        os.write(writing, json.dumps([*found, max(0.0, peak - before)]).encode())
        os._exit(0)
    os.close(writing)
    parts, end = [], time.monotonic() + seconds
    while select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
        if not (part := os.read(reading, 2**16)):
            break
        parts.append(part)
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    spent = time.perf_counter() - start
    if code:
        return Result(None, f"ended with {code} after {spent:.1f} s", spent, 0.0)
    value, fault, peak = json.loads(b"".join(parts))
    return Result(value, fault, spent, peak)


def table(rows: Sequence[Row]) -> str:
    """One line per attack."""
    lines = [f"{'attack':<10}{'tried':>8}{'survived':>10}{'worst s':>9}{'worst MiB':>11}"]
    lines += [f"{r.attack:<10}{r.tried:>8,}{r.survived:>10,}{r.seconds:>9.2f}{r.megabytes:>11.0f}" for r in rows]
    return "\n".join(lines)
