"""Work that is killed at random moments, and done again.

Each stage is killed on its own, so that short ones are hit too; of fifty kills, the stages get as many as ``STAGES`` says:

    run         a whole run: a detector is trained, sets attacked, detectors fitted, all protocols, costs
    network     the training of a network, with its checkpoints
    detector    the training of a detector, and its file in ``prepared``
    attack      attacked sets, and their files in ``adversarial``
    costs       the costs at the end of a finished run
    picture     the picture of the severity curves
    fit         fitting a detector with its threshold to a file, and scoring images with it
    download    fetching a set: its download, its unpacking, and its move into place

and of fifty more, as ``UNDER_EXECUTORS`` says:

    driver      a whole run whose statistics two worker processes compute
    worker      one of its workers, while the run goes on
"""

import hashlib
import importlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import made
import numpy as np
import web_server
from hostile import tar_of
from PIL import Image
from trial import Row, forked

import oodbench
from oodbench import state
from oodbench.datasets.fetching.catalogue import Download, Item
from oodbench.datasets.fetching.expected_files import File
from oodbench.datasets.fetching.fetch import WORK_FOLDER, fetch
from oodbench.inference import thresholds
from oodbench.inference.score_files import score_files
from oodbench.leaderboard.gather import gather
from oodbench.leaderboard.plots import draw
from oodbench.models import weights
from oodbench.models.train import train
from oodbench.results.folder import RunFolder

# What the stages import, which takes longer than most of them: before the forks, or most kills would meet an import.
IMPORTED = (
    *(f"oodbench.detectors.{name}" for name in ("duq", "knn", "mahalanobis", "msp", "purview")),
    *("oodbench.datasets.adversarial.adversarial_sets", "oodbench.engine.run", "safetensors.torch"),
    *("rich.progress", "sklearn.covariance", "sklearn.datasets", "sklearn.linear_model", "threadpoolctl", "torch._dynamo"),
)


class Stage(NamedTuple):
    """``work`` is killed and done again in a folder; it returns what must not differ. ``before`` makes what it begins with.

    ``worker``: a process that the work started is killed instead, and the work ends by itself first.
    """

    kills: int  # of fifty
    work: Callable[[Path], Any]
    before: Callable[[Path], Any] = lambda place: None
    worker: bool = False


def attack(name: str, times: int, seed: int) -> Row:
    """Each try: kill a stage with SIGKILL, read all that it left, do it again, and compare it with an undisturbed one."""
    stages = {"kills": STAGES, "executors": UNDER_EXECUTORS}[name]
    generator, faults, worst, memory = random.Random(seed), [], 0.0, 0.0
    names = list(chain.from_iterable([stage] * stages[stage].kills for stage in stages))
    generator.shuffle(names)
    chosen = [names[number % len(names)] for number in range(times)]
    for module in IMPORTED:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder, _served() as url:
        os.environ["OODBENCH_ATTACK_URL"] = url
        for which in dict.fromkeys(chosen):
            stage, tried, base, whole = stages[which], chosen.count(which), Path(folder, "base"), Path(folder, "whole")
            begun = forked(partial(_begun, base, stage.before), seconds=600, megabytes=8192)
            shutil.copytree(base, whole)
            expected = forked(partial(_in, whole, stage.work), seconds=600, megabytes=8192)
            if fault := begun.fault or expected.fault:
                faults += [f"{which}, undisturbed: {fault}"] * tried
            for number in range(0 if fault else tried):
                place, after = Path(folder, str(number)), generator.uniform(0, expected.seconds)
                shutil.copytree(base, place)
                kill = _killed_worker if stage.worker else _killed
                code = kill(partial(_in, place, stage.work), after)
                found = forked(partial(_again, place, stage.work), seconds=600, megabytes=8192)
                worst, memory = max(worst, found.seconds), max(memory, found.megabytes)
                if stage.worker and code:
                    faults.append(f"{which}, killed after {after:.2f} s: the run ended with {code}")
                elif found.fault or found.value != expected.value:
                    faults.append(f"{which}, killed after {after:.2f} s: {found.fault or 'the result differs'}")
                shutil.rmtree(place)
            shutil.rmtree(base)
            shutil.rmtree(whole)
    return Row(name, times, times - len(faults), worst, memory, faults)


def _in(place: Path, work: Callable[[Path], Any]) -> Any:
    os.environ["OODBENCH_CACHE"] = str(place / "cache")
    (place / "cache").mkdir(parents=True, exist_ok=True)
    return work(place)


def _begun(place: Path, before: Callable[[Path], Any]) -> None:
    _in(place, before)


def _killed(work: Callable[[], Any], after: float) -> int:
    child = _started(work)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _killed_worker(work: Callable[[], Any], after: float) -> int:
    """Kill a worker after so many seconds, or the first that starts later, and let the work end. Returns its exit code."""
    child, end = _started(work), time.monotonic() + after
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.01)
        if time.monotonic() > end and (workers := _children(child)):
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(random.choice(workers), signal.SIGKILL)
            break
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _started(work: Callable[[], Any]) -> int:
    if child := os.fork():
        return child
    os.setsid()
    devnull = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(devnull, stream)
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def _children(process: int) -> list[int]:
    """The processes that any thread of a process started."""
    found: list[int] = []
    with suppress(FileNotFoundError):  # a thread has just ended
        for task in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _again(place: Path, work: Callable[[Path], Any]) -> Any:
    """What the work gives in a folder where it was killed. Raises what a damaged file raises."""
    _check(place)
    found = _in(place, work)
    if (place / "run" / "aside").exists():
        raise AssertionError(f"set aside: {os.listdir(place / 'run' / 'aside')}")
    if hidden := [path for path in (place / "run").rglob(".*") if path.name != ".lock"]:
        raise AssertionError(f"left over: {hidden}")
    return found


def _check(place: Path) -> None:
    """Read every file that a stage writes; whatever has its final name must be whole."""
    folder = RunFolder(place / "run")
    if (folder.path / "run.json").exists():
        folder.manifest()
        folder.costs()
        for record in folder.records():
            folder.arrays(record)
    for path in chain(place.glob("cache/prepared/*.safetensors"), place.glob("cache/adversarial/*/*.safetensors")):
        state.load(path)
    for path in place.glob("net.safetensors"):
        weights.read(path, written_here=True)
    for path in place.glob("fitted.safetensors"):
        state.load(path)
    for path in place.glob("run/severity.png"):
        with Image.open(path) as image:
            image.load()
    for name in PATHS:  # each moves into place in one step
        if (place / "data" / name).exists() and _files(place / "data" / name) != {
            path.removeprefix(f"{name}/"): hashlib.sha256(content).hexdigest()
            for path, content in SET.items()
            if path.startswith(f"{name}/")
        }:
            raise AssertionError(f"{name} is there and not whole")
    if _item().survey(place / "data")[0] == "present" and not all((place / "data" / name).exists() for name in PATHS):
        raise AssertionError("a part is taken for the whole")


def _run(place: Path) -> Any:
    return made.figures(made.run(place))


def _run_in_processes(place: Path) -> Any:
    return made.figures(made.run(place, executor="processes:2"))


def _network(place: Path) -> str:
    digits = oodbench.load_dataset("digits", split="train")
    train("resnet8-digits", digits, out=place / "net.safetensors", epochs=4, device="cpu", progress=False)
    return hashlib.sha256((place / "net.safetensors").read_bytes()).hexdigest()


def _detector(place: Path) -> Any:
    options: dict[str, Any] = {"parameters": {"duq": {"epochs": 6}}, "measure_costs": False}
    return made.figures(made.digits(place, detectors=["duq"], datasets=["photos"], **options))


def _attack(place: Path) -> Any:
    sets = ["digits+pgd", "digits+fgsm"]
    return made.figures(made.digits(place, detectors=["msp"], datasets=sets, measure_costs=False))


def _costs(place: Path) -> Any:
    folder = made.run(place)
    return made.figures(folder), sorted(folder.costs())


def _uncosted(place: Path) -> None:
    (made.run(place).path / "costs.json").unlink()


def _levels(place: Path) -> None:
    made.digits(place, detectors=["msp", "knn"], datasets=["digits+noise@1", "digits+noise@3"], measure_costs=False)


def _picture(place: Path) -> str:
    folder = RunFolder(place / "run")
    frame, _ = gather([folder])
    return hashlib.sha256(draw("severity", frame)).hexdigest()


def _images(place: Path) -> None:
    (place / "images").mkdir()
    for number, image in enumerate(oodbench.load_dataset("digits").images[:50]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / "images" / f"{number}.png")


def _fit(place: Path) -> Any:
    thresholds.fit("knn", model="resnet8-digits", dataset="digits").save(place / "fitted.safetensors")
    fitted = oodbench.load_fitted(place / "fitted.safetensors")
    return fitted.threshold, [(Path(row.path).name, row.score) for row in score_files(fitted, [place / "images"], 16)]


PATHS = ("set", "other/half")
RANDOM = np.random.default_rng(0)
SET = {f"{path}/{number}.bin": RANDOM.bytes(2_000) for path in PATHS for number in range(1_000)}
ARCHIVE = tar_of(*SET.items(), mode="w:gz")


def _item() -> Item:
    expected = tuple(File(path, min_size=len(content)) for path, content in SET.items())
    digest = f"md5:{hashlib.md5(ARCHIVE).hexdigest()}"
    return Item("some", downloads=(Download(f"{os.environ['OODBENCH_ATTACK_URL']}/set.tar.gz", digest, expected, PATHS),))


def _download(place: Path) -> Any:
    data = place / "data"
    fetch(_item(), data)
    left = [path.name for path in (data / WORK_FOLDER).iterdir() if path.suffix != ".lock"]
    return _files(data, "set", "other"), left


def _files(folder: Path, *below: str) -> dict[str, str]:
    """The hash of each file, by its path in the folder."""
    paths = chain.from_iterable((folder / name).rglob("*") for name in below or (".",))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


@contextmanager
def _served() -> Iterator[str]:
    """The address of a server of the archive, in a process of its own, for threads do not survive forks."""
    os.environ["NO_PROXY"] = "127.0.0.1"
    reading, writing = os.pipe()
    if not (child := os.fork()):
        with web_server.serving() as server:
            server.body, server.usual = ARCHIVE, web_server.slowly(0.005)
            os.write(writing, server.url.encode())
            signal.pause()
        os._exit(0)
    try:
        yield os.read(reading, 100).decode()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


STAGES = {
    "run": Stage(18, _run),
    "network": Stage(4, _network),
    "detector": Stage(3, _detector),
    "attack": Stage(3, _attack),
    "costs": Stage(4, _costs, before=_uncosted),
    "picture": Stage(3, _picture, before=_levels),
    "fit": Stage(5, _fit, before=_images),
    "download": Stage(10, _download),
}
UNDER_EXECUTORS = {
    "driver": Stage(25, _run_in_processes),
    "worker": Stage(25, _run_in_processes, worker=True),
}
