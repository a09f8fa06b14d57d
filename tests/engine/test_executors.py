"""Statistics from worker processes: the same bit for bit, errors of a detector are its own, and workers may die."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from heard import Heard
from new_process import COMMAND
from new_process import oodbench as command
from run_folders import figures

import oodbench
from oodbench import passes, registry
from oodbench.batching import pieces_of
from oodbench.engine import executors
from oodbench.engine.executors import processes
from oodbench.engine.executors.processes import Processes
from oodbench.engine.executors.shards import Sharded, shards_of
from oodbench.engine.executors.worker import Conditions, Worker
from oodbench.errors import BadData, ChangedNetwork, OodbenchError, TooSlow, UsageError
from oodbench.forward.guard import Guard
from oodbench.results.folder import RunFolder

RUN = [
    "run",
    "digits",
    "--dataset",
    "digits+noise@3",
    "--protocol",
    "unsupervised",
    "--limit",
    "40",
    "--batch-size",
    "8",
    "--no-costs",
]
RUN += ["--no-report", "--plugin", "my_plugins:Waits", "--detector", "msp", "--executor", "processes:1", "--out", "run"]


@pytest.fixture
def opened():
    """opened(cell_timeout=None, count=2) -> an executor, and what it says."""
    made = []

    def it(cell_timeout=None, count=2):
        heard = Heard()
        made.append(Processes(count, Conditions.of_this_process(torch.device("cpu"), cell_timeout), heard))
        return made[-1], heard

    yield it
    for executor in made:
        executor.close()


def named(detector):
    detector.name = type(detector).__name__.lower()
    return detector


def a_pass(statistics, detectors, classifier, images, guard=None):
    """The statistics of a pass in batches of eight, at all settings of a grid, and the errors."""
    errors = {}
    found, _ = statistics(
        {detector: detector.shift_settings for detector in detectors},
        classifier,
        images,
        pieces=pieces_of(np.arange(len(images)), 8),
        signals=passes.signals_of(detectors),
        guard=guard,
        on_error=errors.__setitem__,
    )
    return found, errors


def test_a_run_has_the_same_records(plugins, tmp_path):
    """Of detectors that read logits, features and gradients, of those that give probabilities, and of those that fail."""
    bad = [registry.add_plugin(f"my_plugins:{name}") for name in ("Raises", "NaNs", "Changes", "Widths")]
    options = {
        "detectors": ["msp", "knn", "odin", "purview", registry.add_plugin("my_plugins:Sound"), *bad],
        "datasets": ["digits+noise@3", "digits+fgsm"],
        "protocols": ["unsupervised"],
    }
    options |= {"model": "my_plugins:build", "limit": 50, "batch_size": 32, "measure_costs": False}
    found = {}
    for executor in ("local", "processes:2"):
        folder = RunFolder(oodbench.run("digits", out=tmp_path / executor, executor=executor, **options).path)
        assert folder.manifest().provenance["executor"] == executor
        arrays = {
            record.place: {role: array.tobytes() for role, array in folder.arrays(record).items()}
            for record in folder.records()
        }
        found[executor] = figures(folder), arrays
    assert found["local"] == found["processes:2"]
    records = found["local"][0].values()
    assert {r["status"] for r in records if r.get("detector") not in bad} == {"ok"}
    reasons = {r["detector"]: r["reason"] for r in records if r.get("detector") in bad}
    assert reasons["raises"].startswith("OwnError: this and that (my_plugins.py, line ")
    assert "of 50 images have scores that are not finite" in reasons["nans"]
    assert "linear.bias" in reasons["changes"]
    assert "columns on different batches" in reasons["widths"]


def test_a_worker_halves_batches_that_do_not_fit(plugins, opened):
    images = oodbench.load_dataset("photos").select(torch.arange(40))
    hungry, sound = named(plugins.Hungry()), named(plugins.Plugin())
    executor, heard = opened(count=1)
    found, errors = a_pass(executor.statistics, [hungry, sound], plugins.build(), images)
    assert not errors
    np.testing.assert_allclose(found[hungry], found[sound])
    assert [line for line in heard.lines if "memory" in line] == [
        "memory of cpu is too short for batches of 8 images; using 4 from now on",
        "memory of cpu is too short for batches of 4 images; using 2 from now on",
    ]


def test_errors_come_back_as_they_are(plugins, opened, tmp_path):
    classifier = plugins.build()
    images = oodbench.load_dataset("photos").select(torch.arange(40))
    kinds = (plugins.Plugin, plugins.Raises, plugins.Changes, plugins.Locked)
    good, *bad = [named(kind()) for kind in kinds]
    odin = oodbench.load_detector("odin", temperatures=[1, 1000], epsilons=[0.0, 0.001])
    executor, heard = opened(cell_timeout=3.0, count=1)
    found, errors = a_pass(executor.statistics, [odin, good, *bad], classifier, images, Guard(classifier))
    expected, _ = a_pass(passes.statistics, [odin, good], classifier, images)
    assert list(found) == [odin, good]
    assert found[odin].shape == (40, 4, 1)
    assert all(np.array_equal(found[detector], expected[detector]) for detector in (odin, good))
    raises, changes, locked = (errors[detector] for detector in bad)
    assert type(raises).__name__ == "OwnError"
    assert "raise OwnError" in raises.__notes__[0]
    assert isinstance(changes, ChangedNetwork)
    assert str(locked).startswith("it cannot be sent to other processes (TypeError: ")
    assert str(locked).endswith("; use --executor local")
    sleeps = named(plugins.Sleeps())
    assert isinstance(a_pass(executor.statistics, [sleeps], classifier, images.select(torch.arange(8)))[1][sleeps], TooSlow)
    # A set whose images cannot be decoded, or sent, ends the pass.
    broken = oodbench.ImageSet(plugins.Broken(), name="broken")
    with pytest.raises(BadData, match=r"^some file is broken"):
        a_pass(executor.statistics, [good], classifier, broken)
    broken = oodbench.ImageSet(plugins.Broken(), name="broken")
    broken.images.lock = plugins.Locked().lock
    with pytest.raises(OodbenchError, match=r"^broken cannot be sent to other processes"):
        a_pass(executor.statistics, [good], classifier, broken)
    assert np.array_equal(a_pass(executor.statistics, [odin, good], classifier, images)[0][good], expected[good])
    assert not heard.lines  # of workers that died
    _interrupt(executor, plugins, classifier, images, tmp_path)


def _interrupt(executor, plugins, classifier, images, folder):
    """Ctrl-C ends all workers."""
    (folder / "pids").mkdir()

    def interrupt():
        _until(lambda: any((folder / "pids").iterdir()))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may let its background jobs ignore
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            a_pass(executor.statistics, [named(plugins.Waits())], classifier, images)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert not any(_runs(file.name) for file in (folder / "pids").iterdir())


def test_shards_of_a_worker_that_dies_are_computed_again(plugins, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "TRIES", 2)
    classifier = plugins.build()
    images = oodbench.ImageSet(plugins.Images(), name="decoded")
    (detector,) = detectors = [named(plugins.Dies(str(tmp_path / "deaths")))]
    expected, _ = a_pass(passes.statistics, detectors, classifier, oodbench.ImageSet(plugins.Images()[range(40)]))
    (tmp_path / "deaths").mkdir()
    (tmp_path / "deaths" / "1").touch()
    executor, heard = opened(count=1)
    plugins.Images.decoded = 0
    found, errors = a_pass(executor.statistics, detectors, classifier, images)
    assert not errors
    assert np.array_equal(found[detector], expected[detector])
    assert [line for line in heard.lines if "ended" in line] == [heard.lines[0]]
    assert heard.lines[0].startswith("a worker process ended (SIGKILL, in or after one call of dies); computing its ")
    # What workers decoded is not decoded again here.
    assert images.thumbnails.tolist() == oodbench.ImageSet(plugins.Images()[range(40)]).thumbnails.tolist()
    assert plugins.Images.decoded == 40  # of the line before
    # One that dies each time ends the pass, and the executor goes on.
    for number in range(20):
        (tmp_path / "deaths" / str(number)).touch()
    with pytest.raises(
        OodbenchError,
        match=r"^2 worker processes ended, one after another, on the same \d+ images \(SIGKILL, in or after one call of dies\);"
        r" either that code ends its process, so leave it out or correct it, or memory is short, so use fewer processes",
    ):
        a_pass(executor.statistics, detectors, classifier, images)
    for file in (tmp_path / "deaths").iterdir():
        file.unlink()
    assert np.array_equal(a_pass(executor.statistics, detectors, classifier, images)[0][detector], expected[detector])


def test_workers_end_with_a_killed_run_and_the_same_command_resumes(plugins, tmp_path):
    (tmp_path / "pids").mkdir()
    run = subprocess.Popen([sys.executable, "-P", "-c", COMMAND, *RUN], stderr=subprocess.DEVNULL)
    _until(lambda: any((tmp_path / "pids").iterdir()))
    run.kill()
    run.wait()
    _until(lambda: not any(_runs(file.name) for file in (tmp_path / "pids").iterdir()))
    shutil.rmtree(tmp_path / "pids")
    # Where statistics are computed decides no record, so another executor may go on.
    again = command(*RUN, "--executor", "local", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    whole = command(*RUN, "--executor", "local", "--out", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert figures(RunFolder(tmp_path / "run")) == figures(RunFolder(tmp_path / "whole"))


def _until(what):
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Here(Sharded):
    """Workers in this process."""

    width = 3

    def __init__(self):
        super().__init__()
        self.workers = [Worker(torch.device("cpu")) for _ in range(2)]
        self.fetched = []

    def compute(self, tasks, on_batch):
        def fetch(key):
            self.fetched.append(key)
            return self.packets[key]

        return [self.workers[number % 2].compute(task, fetch) for number, task in enumerate(tasks)]

    def close(self):
        pass


def test_what_workers_need_is_sent_once(plugins):
    classifier = plugins.build()
    sets = [oodbench.ImageSet(torch.full((40, 3, 8, 8), value, dtype=torch.uint8), name=str(value)) for value in range(3)]
    executor, first, second = Here(), named(plugins.Plugin()), named(plugins.Sound())
    for images in (sets[0], sets[1], sets[0], sets[1], sets[0]):
        a_pass(executor.statistics, [first], classifier, images)
    assert len(executor.fetched) == 3 * 2  # the network and two sets, by two workers
    a_pass(executor.statistics, [first], classifier, sets[2])
    assert len(executor.fetched) == 4 * 2
    assert len(executor.packets) == 3  # the set that was not passed for longest is gone
    assert all(len(worker._held) == 3 for worker in executor.workers)
    second._mean = torch.zeros(8)
    a_pass(executor.statistics, [first, second], classifier, sets[2])  # one more detector
    assert len(executor.fetched) == 5 * 2
    assert all(len(worker._held) == 3 for worker in executor.workers)


@pytest.mark.parametrize(("pieces", "count", "lengths"), [(5, 2, [2, 3]), (3, 8, [1, 1, 1]), (9, 4, [2, 2, 2, 3])])
def test_shards_are_runs_of_batches(pieces, count, lengths):
    numbered = [np.array([number]) for number in range(pieces)]
    shards = shards_of(numbered, count)
    assert [len(shard) for shard in shards] == lengths
    assert [int(piece[0]) for shard in shards for piece in shard] == list(range(pieces))


def test_each_worker_takes_its_own_accelerator(monkeypatch):
    monkeypatch.setattr(processes, "module_of", lambda device: type("module", (), {"device_count": lambda: 2}))
    conditions = Conditions.of_this_process(torch.device("cpu"), None)
    for device, taken in (("cuda", ["cuda:0", "cuda:1", "cuda:0"]), ("cuda:1", ["cuda:1"] * 3), ("cpu", ["cpu"] * 3)):
        executor = Processes(3, conditions._replace(device=torch.device(device)), Heard())
        assert [str(one.device) for one in executor._conditions] == taken


@pytest.mark.parametrize(
    ("name", "parsed"), [("local", ("local", None)), ("processes:3", ("processes", 3)), ("ray:gpus=0.5", ("ray", 0.5))]
)
def test_names_of_executors(name, parsed, monkeypatch):
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda module: module)
    monkeypatch.setattr(executors, "cores", lambda: 1)
    assert executors.parse(name) == parsed


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("processes:0", "--executor processes:N takes a number of processes of at least 1, not '0'"),
        ("processes:x", "--executor processes:N takes a number of processes of at least 1, not 'x'"),
        ("processes", "--executor processes:N takes a number of processes of at least 1, not ''"),
        ("processes:100000", "--executor processes:100000: this machine has 2 cores; give at most 8 processes"),
        ("processes:9", "--executor processes:9: this machine has 2 cores; give at most 8 processes"),
        ("slurm", "unknown executor 'slurm'; give local, processes:N, ray, or ray:gpus=F"),
        ("ray:gpus=1.5", "--executor ray:gpus=F takes a part of a GPU per task, such as 0.5, or a whole number, not '1.5'"),
        ("ray:gpus=x", "--executor ray:gpus=F takes a part of a GPU per task, such as 0.5, or a whole number, not 'x'"),
        ("ray", "--executor ray needs Ray, which is not installed; run: pip install 'oodbench[ray]'"),
    ],
)
def test_bad_names_say_what_to_give(name, why, monkeypatch, tmp_path):
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda module: None)
    monkeypatch.setattr(executors, "cores", lambda: 2)
    with pytest.raises(UsageError) as caught:
        executors.parse(name)
    assert str(caught.value) == why
    with pytest.raises(UsageError):
        oodbench.run("digits", executor=name, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_address_where_no_cluster_answers_is_named_at_once(monkeypatch):
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda module: module)
    with socket.socket() as free:  # bound, but it does not listen
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
        for address in (f"{host}:{port}", f"ray://{host}:{port}", "no-port", "127.0.0.1:x", "127.0.0.1:999999", "127.0.0.1:-1"):
            monkeypatch.setenv("RAY_ADDRESS", address)
            before = time.monotonic()
            with pytest.raises(UsageError, match=rf"^no Ray cluster answers at {re.escape(address)}, .*; start the"):
                executors.parse("ray")
            assert time.monotonic() - before < 10
        free.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"{host}:{port}")
        assert executors.parse("ray") == ("ray", None)
    for address in ("", "auto", "local"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert executors.parse("ray:gpus=0.5") == ("ray", 0.5)


def test_the_command_names_a_bad_executor(tmp_path):
    done = command("run", "--executor", "processes:0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["oodbench: --executor processes:N takes a number of processes of at least 1, not '0'"]
