"""A run on a Ray cluster of several nodes, on this machine: the same records, and nodes and drivers may die."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from new_process import COMMAND
from run_folders import figures

import oodbench
from oodbench import registry
from oodbench.engine.executors.worker import Conditions
from oodbench.errors import OodbenchError
from oodbench.results.folder import RunFolder

ray = pytest.importorskip("ray", reason="Ray is not installed: run make test-cluster")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster():
    """A head that computes nothing, and two nodes of one core."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def connected(cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    return cluster


def run(out, detectors, **options):
    options = {"protocols": ["unsupervised"], "limit": 50, "batch_size": 8, "measure_costs": False} | options
    return RunFolder(oodbench.run("digits", out=out, detectors=detectors, model="my_plugins:build", **options).path)


def everything(folder):
    """All figures and all arrays."""
    arrays = {(record.set_name, record.place): _bytes(folder.arrays(record)) for record in folder.records()}
    return figures(folder), arrays


def _bytes(arrays):
    return {role: array.tobytes() for role, array in arrays.items()}


def test_a_run_has_the_same_records_though_a_node_is_killed(plugins, connected, tmp_path):
    added = [registry.add_plugin(f"my_plugins:{name}") for name in ("Waits", "Sound", "Raises", "Changes")]
    detectors, sets = ["msp", "knn", "odin", "purview", *added], ["digits+noise@3", "digits+fgsm"]
    expected = everything(run(tmp_path / "local", detectors, datasets=sets))
    (tmp_path / "nodes").mkdir()
    killed = []

    def kill():
        _until(lambda: len(list((tmp_path / "nodes").iterdir())) == 2)
        name = min(file.name for file in (tmp_path / "nodes").iterdir())
        (node,) = (one for one in connected.worker_nodes if one.node_id == name)
        connected.remove_node(node, allow_graceful=False)
        killed.append(node)
        shutil.rmtree(tmp_path / "nodes")

    thread = threading.Thread(target=kill)
    thread.start()
    found = everything(run(tmp_path / "ray", detectors, datasets=sets, executor="ray"))
    thread.join()
    assert len(killed) == 1
    assert found == expected
    assert not ray.is_initialized()  # what the run has opened it closes
    connected.add_node(num_cpus=1)


def test_a_worker_that_dies_each_time_ends_the_run(plugins, connected, tmp_path):
    (tmp_path / "deaths").mkdir()
    for number in range(50):
        (tmp_path / "deaths" / str(number)).touch()
    options = {"datasets": ["digits+noise@3"], "batch_size": 64, "executor": "ray"}  # one task
    with pytest.raises(OodbenchError, match=r"^Ray could not compute a task: .*; repeat the command to resume"):
        run(tmp_path / "run", ["msp", registry.add_plugin("my_plugins:Dies")], **options)
    assert len(list((tmp_path / "deaths").iterdir())) == 50 - 3
    assert not ray.is_initialized()


def test_a_killed_driver_leaves_no_worker_and_its_run_is_resumed(plugins, connected, tmp_path):
    (tmp_path / "pids").mkdir()
    options = ["--dataset", "digits+noise@3", "--protocol", "unsupervised", "--limit", "50", "--batch-size", "8", "--no-costs"]
    options += [
        "--no-report",
        "--model",
        "my_plugins:build",
        "--plugin",
        "my_plugins:Waits",
        "--detector",
        "msp",
        "--out",
        "run",
    ]
    command = [sys.executable, "-P", "-c", COMMAND, "run", "digits", *options, "--executor", "ray"]
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _until(lambda: any((tmp_path / "pids").iterdir()))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    _until(lambda: not any(Path("/proc", file.name).exists() for file in (tmp_path / "pids").iterdir()))
    shutil.rmtree(tmp_path / "pids")
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    detectors = ["msp", registry.add_plugin("my_plugins:Waits")]
    expected = figures(run(tmp_path / "whole", detectors, datasets=["digits+noise@3"]))
    assert figures(RunFolder(tmp_path / "run")) == expected


def test_gpus_that_no_machine_has(connected):
    from oodbench.engine.executors.ray_tasks import RayTasks

    conditions = Conditions.of_this_process(oodbench.load_model("resnet8-digits").device, None)
    with pytest.raises(OodbenchError, match=r"^this Ray cluster has no machine with 0.5 GPUs and a core"):
        RayTasks(0.5, conditions)
    assert not ray.is_initialized()


def _until(what):
    end = time.monotonic() + 90
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)
