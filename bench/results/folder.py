"""A run folder: one file a cell, written atomically once, with scores, split, provenance and schema version.

::

    runs/cifar10/
        run.json                          what the run is: suite, model, sets, versions
        costs.json                        what each detector costs, measured apart
        severity.png                      AUROC by level of corruption, drawn from the cells
        cells/knn~per-shift~textures.safetensors

Figures live in cells and costs beside them, so that a resumed run's figures are the same bit for bit.
"""

import hashlib
import json
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from oodbench import __version__, state
from oodbench.errors import BadData, OodbenchError, UsageError

SCHEMA_VERSION = 1
SEVERITY = "severity.png"

Status = Literal["ok", "skipped", "failed"]


class Cell(BaseModel):
    """One detector on one pairing under one protocol. Rates are fractions in [0, 1]."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    # What it is of.
    model: str
    weights_hash: str
    in_distribution: str
    in_fingerprint: str
    train_fingerprint: str
    detector: str
    variant: str = ""  # which of the detector's variants; empty for its own score
    parameters: dict[str, Any]
    changed: dict[str, list[Any]] = {}  # those that are not the detector's defaults: [value, default]
    protocol: str
    transfer_from: str = ""  # under transfer: the set that the head learnt from; content of it and its negatives, and kind
    transfer_fingerprint: str = ""
    dataset: str  # without its level
    level: int | None
    kind: str
    fingerprint: str  # of the set; empty where it could not be read
    seed: int
    made: dict[str, Any] = {}  # how the set was made, of an attack: its settings, success rate, mean norms
    # How it went.
    status: Status
    reason: str = ""
    # What came out; None where nothing did.
    sizes: dict[str, tuple[int, int | None]] = {}  # images here and in the official set, by set name
    n_in: int | None = None
    n_out: int | None = None
    metrics: dict[str, float] | None = None
    setting: dict[str, Any] | None = None  # the grid's setting that the head chose, or the detector's own
    head: str | None = None
    wall_seconds: float | None = None
    # Of the detector's own class probabilities on the in-distribution test images, and the network's: see calibration.py.
    # And auroc_clean, against the clean negatives alone, where a set's negatives are clean and noisy.
    extras: dict[str, float] = {}
    provenance: dict[str, Any] = {}

    @property
    def set_name(self) -> str:
        return self.dataset if self.level is None else f"{self.dataset}@{self.level}"

    @property
    def row(self) -> str:
        """What tables call the detector, or the variant of it."""
        return row_name(self.detector, self.variant)

    @property
    def remark(self) -> str:
        """Why there are no figures, or with which hyper-parameters they were had that are not the detector's defaults."""
        changes = (f"{name} {value} (default {default})" for name, (value, default) in self.changed.items())
        return self.reason or (", ".join(changes) if self.status == "ok" else "")

    @property
    def slot(self) -> str:
        """The file's stem: which place in the table this cell fills."""
        return "~".join(_slug(part) for part in (self.row, self.protocol, self.set_name))

    @property
    def key(self) -> str:
        """Hash of all that decides the figures: a cell with another key is another cell."""
        decides = self.model_dump(include=set(Cell.model_fields) & _KEY_FIELDS)
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


_KEY_FIELDS = {
    "schema_version", "model", "weights_hash", "in_fingerprint", "train_fingerprint", "detector", "variant", "parameters",
    "protocol", "transfer_from", "transfer_fingerprint", "dataset", "level", "kind", "fingerprint", "seed",
}  # fmt: skip


def row_name(detector: str, variant: str) -> str:
    """``gradcon``, or ``gradcon:recon`` for a variant."""
    return f"{detector}:{variant}" if variant else detector


def _slug(name: str) -> str:
    """A file name for any name: safe characters, and a hash where some had to go."""
    safe = re.sub(r"[^A-Za-z0-9.@+_-]", "_", name)[:80]
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def cost_key(detector: str, parameters: dict[str, Any], setting: dict[str, Any] | None) -> str:
    """Under which name a detector's cost at a setting stands in costs.json."""
    return json.dumps([detector, parameters, setting or {}], sort_keys=True)


def provenance(device: str) -> dict[str, Any]:
    """Versions and machine, as every result states them."""
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "oodbench": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
    }


def _cell_of(header: dict[str, Any], path: Path) -> Cell:
    """Raises BadData where the header is not that of a cell."""
    if header.get("schema_version") != SCHEMA_VERSION:
        raise BadData(f"{path} has schema version {header.get('schema_version')}; run again with --fresh")
    try:
        return Cell.model_validate(header)
    except ValidationError as error:
        raise BadData(f"{path} is not a cell of this oodbench; delete it and run again") from error


class RunFolder:
    """Reads and writes one run folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.cells_path = self.path / "cells"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the lock goes with the process, however it ends.

        Raises UsageError for a folder with something else in it, OodbenchError where it is held or cannot be written.
        """
        own = {"run.json", "costs.json", SEVERITY, "cells", ".lock"}
        there = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        if "run.json" not in there and (strangers := sorted(there - own)):
            raise UsageError(f"{self.path} is no run folder and holds {strangers[0]}; name a new folder with --out")
        try:
            self.cells_path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "w")  # noqa: SIM115  # held until the run ends
        except OSError as error:
            raise OodbenchError(f"cannot write to {self.path}: {error.strerror}; choose another folder with --out") from error
        try:
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OodbenchError(f"another run is writing to {self.path}; wait for it or choose another --out") from error
        except ModuleNotFoundError:  # no such lock on this system: two runs in one folder are the user's to avoid
            pass
        try:
            for half_written in [found for name in own - {"cells"} for found in self.path.glob(f".{name}.*")]:
                half_written.unlink()
            for half_written in self.cells_path.glob(".*.safetensors.*"):
                half_written.unlink()
            yield
        finally:
            lock.close()

    def clear(self) -> None:
        """Delete what a run wrote, and nothing else."""
        own = [self.path / name for name in ("run.json", "costs.json", SEVERITY)]
        for path in [*self.cells_path.glob("*.safetensors"), *own]:
            path.unlink(missing_ok=True)

    def settle(self, settings: dict[str, Any], about: dict[str, Any]) -> None:
        """Write run.json, or check that a run with the same settings lies here already.

        ``settings`` are what all cells of a folder share; where they differ, UsageError names the first difference.
        """
        settings = json.loads(json.dumps(settings))  # as they come back: a tuple is a list there
        if (self.path / "run.json").exists():
            before = self.about()["settings"]
            for name, value in settings.items():
                if name in before and before[name] != value:
                    raise UsageError(
                        f"{self.path} holds a run with {name} = {before[name]}, not {value};"
                        " choose another folder with --out, or start over with --fresh"
                    )
            settings = before | settings
        self._write_json("run.json", {"schema_version": SCHEMA_VERSION, "settings": settings, **about})

    def about(self) -> dict[str, Any]:
        """What run.json says. Raises BadData for another schema version."""
        found = self._read_json("run.json")
        if found.get("schema_version") != SCHEMA_VERSION:
            raise BadData(
                f"{self.path} has schema version {found.get('schema_version')} and this oodbench reads {SCHEMA_VERSION};"
                " run again with --fresh"
            )
        return found

    def write(self, cell: Cell, arrays: dict[str, np.ndarray] | None = None) -> bool:
        """Write one cell with its scores and split, whole or not at all, and say whether it was.

        A cell with figures is only replaced by one with figures: what is finished is not lost to a set or a plug-in
        that cannot be had today.
        """
        import torch

        path = self._file(cell)
        if cell.status != "ok" and path.exists() and _cell_of(state.load_header(path), path).status == "ok":
            return False
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in (arrays or {}).items()}
        state.save(path, json.loads(cell.model_dump_json()), tensors)
        return True

    def finished(self, cell: Cell) -> bool:
        """Whether the cell lies here with figures, made from the same inputs."""
        path = self._file(cell)
        if not path.exists():
            return False
        found = _cell_of(state.load_header(path), path)
        return found.status == "ok" and found.key == cell.key

    def read(self, path: Path) -> tuple[Cell, dict[str, np.ndarray]]:
        """One cell and its arrays: in_scores, out_scores, and the rows of the split."""
        header, tensors = state.load(path)
        return _cell_of(header, path), {name: tensor.numpy() for name, tensor in tensors.items()}

    def cells(self) -> list[Cell]:
        """All cells, by file name, without their arrays."""
        return [_cell_of(state.load_header(path), path) for path in sorted(self.cells_path.glob("*.safetensors"))]

    def costs(self) -> dict[str, dict[str, float | None]]:
        """Standalone cost by ``cost_key``: ms_per_image, overhead, peak_memory_mb."""
        return self._read_json("costs.json") if (self.path / "costs.json").exists() else {}

    def write_costs(self, costs: dict[str, dict[str, float | None]]) -> None:
        self._write_json("costs.json", costs)

    def write_severity(self, picture: bytes) -> Path:
        """Where it lies."""
        state.write_atomically(self.path / SEVERITY, picture)
        return self.path / SEVERITY

    def _file(self, cell: Cell) -> Path:
        return self.cells_path / f"{cell.slot}.safetensors"

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadData(f"{self.path / name} cannot be read ({error}); start over with --fresh") from error
        if not isinstance(found, dict):
            raise BadData(f"{self.path / name} is not what oodbench writes; start over with --fresh")
        return found

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        state.write_atomically(self.path / name, json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode())
