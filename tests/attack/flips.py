"""Single bits of what the product wrote, flipped."""

import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import made
import numpy as np
import torch
from trial import Row, forked

import oodbench
from oodbench import state
from oodbench.errors import OodbenchError
from oodbench.leaderboard.gather import gather
from oodbench.models import weights
from oodbench.results.folder import RunFolder


def attack(times: int, seed: int) -> Row:
    """Each try: flip one bit of one file, and read it: an error names it, or all is as before."""
    generator, faults, worst, memory = random.Random(seed), [], 0.0, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = made.everything(folder)
        files = [(path, read) for pattern, read in readers(folder, network).items() for path in sorted(folder.glob(pattern))]
        before = {path: read(path) for path, read in files}
        for _ in range(times):
            path, read = generator.choice(files)
            whole = path.read_bytes()
            place, bit = generator.randrange(len(whole)), generator.randrange(8)
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            found = forked(partial(_outcome, path, read, before[path]))
            path.write_bytes(whole)
            worst, memory = max(worst, found.seconds), max(memory, found.megabytes)
            if found.fault or found.value == "silent":
                faults.append(f"{path.relative_to(folder)}, bit {bit} of byte {place}: {found.fault or 'nobody notices'}")
    return Row("flips", times, times - len(faults), worst, memory, faults)


def readers(folder: Path, network: oodbench.Classifier) -> dict[str, Callable[[Path], Any]]:
    """By pattern, how each kind of file is read: to something that can be compared."""
    images = oodbench.load_dataset("digits").images[:8]

    def run_folder(path: Path) -> Any:
        said: list[str] = []
        run = RunFolder(folder / "run", said.append)
        frame, notes = gather([run])
        if said:
            raise OodbenchError(said[0])
        arrays = [
            (record.row, record.set_name, role, array.tobytes())
            for record in run.records()
            for role, array in run.arrays(record).items()
        ]
        return frame.to_csv(), [str(note) for note in notes], arrays, run.manifest().model_dump()

    return {
        "run/run.json": run_folder,
        "run/costs.json": run_folder,
        "run/passes/*": run_folder,
        "run/shared/*": run_folder,
        "fitted.safetensors": lambda path: [array.tobytes() for array in oodbench.load_fitted(path, network)(images)],
        "cache/prepared/*": lambda path: _plain(state.load(path)),
        "cache/adversarial/*/*": lambda path: _plain(state.load(path)),
        "net.safetensors": lambda path: _plain(weights.read(path)),
    }


def _outcome(path: Path, read: Callable[[Path], Any], before: Any) -> str:
    try:
        return "harmless" if read(path) == before else "silent"
    except OodbenchError as error:
        if "\n" in str(error) or len(str(error)) > 1000:
            raise AssertionError(f"not one line: {error}") from error
        return "noticed"


def _plain(value: Any) -> Any:
    """Tensors as bytes, so that everything compares by content."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
