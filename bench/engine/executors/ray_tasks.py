"""Workers on a Ray cluster, one task per shard. Ray moves what was packed to each machine once, and computes the tasks of a
machine that dies on another."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch

from oodbench import passes
from oodbench.engine.executors.far_errors import FarError
from oodbench.engine.executors.shards import TRIES, Sharded
from oodbench.engine.executors.worker import Conditions, Shard, Task, Worker
from oodbench.errors import OodbenchError, reason
from oodbench.progress import Lines

_workers: dict[str, Worker] = {}  # of this process, by the run that it works for


class RayTasks(Sharded):
    """Tasks of a Ray cluster: the one that this process is connected to, else that of $RAY_ADDRESS or of this machine, else
    one that is started here.

    gpus: of each task; by default one if the network is on an accelerator, else none.
    """

    def __init__(self, gpus: float | None, conditions: Conditions) -> None:
        super().__init__()
        self._references: dict[int, Any] = {}
        self._running: list[Any] = []
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(logging_level=logging.WARNING, include_dashboard=False)
        on_cpu = conditions.device.type == "cpu"
        gpus = gpus or (0.0 if on_cpu else 1.0)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        # As many cores as it has threads, or the fewest that a machine has: a task that fits nowhere would wait for ever.
        cores = min([conditions.threads, *(int(node["CPU"]) for node in nodes if node.get("CPU"))]) if on_cpu else 1
        self._width = sum(int(min(node.get("CPU", 0) / cores, node.get("GPU", 0) / gpus if gpus else np.inf)) for node in nodes)
        if not self._width:
            self.close()
            wanted = f"{gpus:g} GPUs and a core" if gpus else "a core"
            raise OodbenchError(f"this Ray cluster has no machine with {wanted}; add one, or choose another --device")
        options: dict[str, Any] = {"num_cpus": cores, "num_gpus": gpus, "max_retries": TRIES - 1}
        self._task = ray.remote(**options)(_compute)
        self._conditions = conditions._replace(device=torch.device(conditions.device.type))  # Ray shows a task its own alone
        self._name = ray.get_runtime_context().get_job_id() + f"-{id(self)}"

    @property
    def width(self) -> int:
        return self._width

    def compute(self, tasks: Sequence[Task], on_batch: passes.OnBatch) -> Sequence[Shard | FarError]:
        for key in self._references.keys() - self.packets.keys():
            del self._references[key]
        for key in self.packets.keys() - self._references.keys():
            self._references[key] = ray.put(np.frombuffer(self.packets[key], np.uint8))  # which machines share, unlike bytes
        submitted = [self._task.remote(self._name, self._conditions, self._references, task) for task in tasks]
        self._running, results = submitted, dict[Any, Shard | FarError]()
        try:
            while self._running:
                done, self._running = ray.wait(self._running)
                results |= {one: ray.get(one) for one in done}
                on_batch(sum(found.work for one in done if isinstance(found := results[one], Shard)))
        except ray.exceptions.RayError as error:
            self._cancel()
            raise OodbenchError(f"Ray could not compute a task: {reason(error)}; repeat the command to resume") from error
        return [results[one] for one in submitted]

    def _cancel(self) -> None:
        for one in self._running:
            ray.cancel(one, force=True)
        self._running = []

    def close(self) -> None:
        self._cancel()
        self._references.clear()
        if self._started:
            ray.shutdown()


def _compute(run: str, conditions: Conditions, references: dict[int, Any], task: Task) -> Shard | FarError:
    with conditions.applied(Lines()):
        if run not in _workers:
            _workers.clear()
            _workers[run] = Worker(conditions.device)
        return _workers[run].compute(task, lambda key: ray.get(references[key]))
