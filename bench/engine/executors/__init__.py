"""Where the statistics of a run are computed: in its own process, in several processes, or on a Ray cluster.

Fitting, heads, figures and files stay in the process of the run. A pass over a set is cut into shards of whole batches. A
batch gives the same statistics bit for bit wherever it is computed on one type of device, so the executor decides no record.
"""

import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from oodbench.errors import UsageError, counted, reason

if TYPE_CHECKING:
    import torch

    from oodbench.progress import Progress

LOCAL = "local"
ANSWER = 5.0  # seconds within which a cluster must accept a connection
MOST_PER_CORE = 4  # processes, each of which holds the network and the detectors
FORMS = "local, processes:N, ray, or ray:gpus=F"


def parse(name: str) -> tuple[str, float | None]:
    """``processes:4`` -> its kind and its number: of processes, or for ``ray:gpus=0.5`` of GPUs per task.

    Raises UsageError for another name, where Ray is not installed, and where nothing answers at $RAY_ADDRESS.
    """
    kind, colon, text = name.partition(":")
    if name in (LOCAL, "ray"):
        number = None
    elif kind == "processes":
        if not (text.isascii() and text.isdigit() and float(text) > 0):
            raise UsageError(f"--executor processes:N takes a number of processes of at least 1, not '{text}'")
        number = float(text)
        if number > (most := MOST_PER_CORE * cores()):
            raise UsageError(f"--executor {name}: this machine has {counted(cores(), 'core')}; give at most {most} processes")
    elif colon and kind == "ray" and text.startswith("gpus="):
        number = _fraction(text.removeprefix("gpus="))
    else:
        raise UsageError(f"unknown executor '{name}'; give {FORMS}")
    if kind == "ray" and importlib.util.find_spec("ray") is None:
        raise UsageError("--executor ray needs Ray, which is not installed; run: pip install 'oodbench[ray]'")
    if kind == "ray" and not ("ray" in sys.modules and sys.modules["ray"].is_initialized()):
        _require_answer(os.environ.get("RAY_ADDRESS", ""))
    return kind, number


def _require_answer(address: str) -> None:
    """Raise UsageError if nothing accepts connections at ``host:port`` or ``ray://host:port``: Ray would wait for minutes."""
    if address in ("", "auto", "local"):
        return
    host, _, port = address.rpartition("//")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(
            f"no Ray cluster answers at {address}, the value of RAY_ADDRESS ({reason(error)}); start the cluster, correct the"
            " address, or unset RAY_ADDRESS to use this machine"
        ) from error


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fraction(text: str) -> float:
    """The GPUs of a task, of which Ray takes a part of one, or whole ones."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not (0 < number < 1 or (number >= 1 and number.is_integer())):
        raise UsageError(f"--executor ray:gpus=F takes a part of a GPU per task, such as 0.5, or a whole number, not '{text}'")
    return number


@contextmanager
def opened(name: str, device: "torch.device", progress: "Progress", cell_timeout: float | None) -> Iterator[Callable[..., Any]]:
    """Give what does the passes. Workers start with the first pass and end with this context."""
    from oodbench import passes
    from oodbench.engine.executors.processes import Processes
    from oodbench.engine.executors.shards import Sharded
    from oodbench.engine.executors.worker import Conditions

    kind, number = parse(name)
    if kind == LOCAL:
        yield passes.statistics
        return
    conditions = Conditions.of_this_process(device, cell_timeout)
    executor: Sharded
    if kind == "processes":
        executor = Processes(int(number or 1), conditions, progress)
    else:
        from oodbench.engine.executors.ray_tasks import RayTasks

        executor = RayTasks(number, conditions)
    try:
        yield executor.statistics
    finally:
        executor.close()
