"""Workers in processes of this machine: each takes its own accelerator, in turn, where there are several.

A worker is a new Python process that is spoken to through its standard input and output. It ends when its input does, so
also with a killed run.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any, NamedTuple

import torch

from oodbench import passes
from oodbench.engine.executors.far_errors import FarError
from oodbench.engine.executors.shards import TRIES, Sharded
from oodbench.engine.executors.worker import Conditions, Shard, Task, Worker
from oodbench.errors import OodbenchError, counted
from oodbench.models.device import module_of
from oodbench.progress import Progress

BEGIN = "import sys; sys.path[:] = sys.argv[1:]; from oodbench.engine.executors.processes import work; work()"
# As the command line does for itself: glibc keeps freed memory for the next pass.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


class WorkerDied(Exception):
    """A worker process ended; the message says how, and which call of third-party code had begun last."""


class Calling(NamedTuple):
    """What a worker tells before such a call."""

    what: str


class Processes(Sharded):
    """``count`` workers, which start with the first tasks."""

    def __init__(self, count: int, conditions: Conditions, progress: Progress) -> None:
        super().__init__()
        self._progress, self._closed, self._lock = progress, False, threading.Lock()
        devices = devices_of(conditions.device)
        self._conditions = [conditions._replace(device=devices[number % len(devices)]) for number in range(count)]
        self._workers: list[_Process | None] = [None] * count

    @property
    def width(self) -> int:
        return len(self._workers)

    def compute(self, tasks: Sequence[Task], on_batch: passes.OnBatch) -> Sequence[Shard | FarError]:
        waiting, results = deque(enumerate(tasks)), dict[int, Shard | FarError]()

        def serve(place: int) -> None:
            while not self._closed:
                with self._lock:
                    if not waiting:
                        return
                    number, task = waiting.popleft()
                result = self._computed(place, task)
                with self._lock:
                    results[number] = result
                    if isinstance(result, FarError):
                        waiting.clear()  # the pass has failed
                    else:
                        on_batch(result.work)

        with ThreadPoolExecutor(self.width) as threads:
            try:
                for future in [threads.submit(serve, place) for place in range(min(self.width, len(tasks)))]:
                    future.result()
            except BaseException:
                self.close()
                raise
        return [results[number] for number in sorted(results)]

    def _computed(self, place: int, task: Task) -> Shard | FarError:
        for left in reversed(range(TRIES)):
            worker = self._workers[place]
            try:
                if worker is None:
                    with self._lock:  # so that none is started while all are ended
                        if self._closed:
                            raise WorkerDied("the run ends")
                        worker = self._workers[place] = _Process(self._conditions[place])
                return worker.ask(task, self.packets, self._progress)
            except WorkerDied as error:
                self._workers[place] = None
                images = counted(sum(map(len, task.pieces)), "image")
                if not self._closed and left:
                    self._progress.say(f"a worker process ended ({error}); computing its {images} again")
                    continue
                return FarError.of(
                    OodbenchError(
                        f"{TRIES} worker processes ended, one after another, on the same {images} ({error}); either that code"
                        " ends its process, so leave it out or correct it, or memory is short, so use fewer processes or a"
                        " smaller --batch-size"
                    )
                )
        raise AssertionError

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for worker in self._workers:
                if worker is not None:
                    worker.end()


def devices_of(device: torch.device) -> list[torch.device]:
    """All devices of its kind, or the one that its index names."""
    if device.type == "cpu" or device.index is not None:
        return [device]
    return [torch.device(device.type, number) for number in range(module_of(device).device_count())]


class _Process:
    """A worker process, as the process of the run sees it."""

    def __init__(self, conditions: Conditions) -> None:
        own = {} if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ) else KEEP_MEMORY
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", BEGIN, *conditions.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | own,
            process_group=0 if sys.platform != "win32" else None,  # so that Ctrl-C ends it through the run
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        self._held: set[int] = set()
        with suppress(BrokenPipeError):  # the first task tells
            self._send(conditions)

    def ask(self, task: Task, packets: dict[int, bytes], progress: Progress) -> Shard | FarError:
        """The result of a task. Raises WorkerDied."""
        last = ""
        try:
            self._held &= set(task.alive)
            missing = {task.fit, task.images} - self._held
            self._send((task, {key: packets[key] for key in missing}))
            self._held |= missing
            # Our own worker wrote it, and what runs there has run in this process before.
            while isinstance(answer := pickle.load(self._replies), str | Calling):  # noqa: S301
                if isinstance(answer, Calling):
                    last = answer.what
                else:
                    progress.say(answer)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self.end()
            how = _how_it_ended(self._process.returncode)
            raise WorkerDied(f"{how}, in or after {last}" if last else how) from error
        found: Shard | FarError = answer
        return found

    def _send(self, message: Any) -> None:
        pickle.dump(message, self._requests)
        self._requests.flush()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._requests, self._replies):
            with suppress(OSError):  # what it was not sent yet
                pipe.close()


def _how_it_ended(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def work() -> None:
    """The main program of a worker."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what plug-ins print
    sys.stdout = sys.stderr
    requests = SimpleQueue[Any]()
    threading.Thread(target=_receive, args=(incoming, requests), daemon=True).start()
    conditions: Conditions = requests.get()
    replies, worker = _Replies(outgoing), Worker(conditions.device)
    with conditions.applied(replies):
        while True:
            task, packets = requests.get()
            replies.send(worker.compute(task, packets.pop))


def _receive(stream: IO[bytes], requests: SimpleQueue[Any], leave: Any = os._exit) -> None:
    """Pass requests on, and end the process when they end, even in the middle of a task."""
    try:
        while True:
            requests.put(pickle.load(stream))  # noqa: S301  # only the process that started this one writes here
    finally:
        leave(0)


class _Replies(Progress):
    """Sends results, which call begins, and the lines that name a slow one, to the process of the run."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def send(self, reply: Any) -> None:
        with self._lock:
            pickle.dump(reply, self._stream)
            self._stream.flush()

    def say(self, line: str) -> None:
        self.send(line)

    def calling(self, what: str) -> None:
        self.send(Calling(what))
