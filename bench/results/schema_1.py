"""Run folders of schema version 1: one file per cell, in ``cells``. They are read as they are, and migrated by a run.

Version 1 did not store what intervals are clustered by, nor the code of detectors: its records cannot be recomputed, and a
run computes those that it needs again.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from oodbench.errors import BadData, counted
from oodbench.paths import require_regular, visible
from oodbench.results import pass_file
from oodbench.results.facts import AttackRecord, CalibrationRecord, ProbabilityFigures, finite_json
from oodbench.results.records import SPLIT_ROLES, DetectionRecord, corruption_record

VERSION_1 = 1
CELLS = "cells"
SCORING_VERSION = 0  # of records that cannot be recomputed
RENAMED = {"changed": "non_default"}
GONE = ("schema_version", "made", "extras")  # kept in typed parts now


def has_cells(folder: Path) -> bool:
    """Whether a run folder holds cells of schema version 1."""
    return bool(visible(folder / CELLS, "*.safetensors"))


def cells(folder: Path) -> Iterator[tuple[DetectionRecord, dict[str, np.ndarray]]]:
    """The cells of a run folder as records, in order of file name, each with its arrays by role."""
    for path in visible(folder / CELLS, "*.safetensors"):
        yield read_cell(path)


def read_cell(path: Path) -> tuple[DetectionRecord, dict[str, np.ndarray]]:
    """One cell as a record, with its arrays by role. Raises BadData for a damaged file, or one that is not a cell."""
    from safetensors import safe_open

    try:
        require_regular(path)
        with safe_open(path, "np") as file:
            header = finite_json((file.metadata() or {})["oodbench"])["header"]
            if header.get("schema_version") != VERSION_1:
                raise BadData(f"{path} has schema version {header.get('schema_version')}; delete that cell, and run again")
            arrays = {role: file.get_tensor(role) for role in file.keys()}  # noqa: SIM118  # it has no iterator
        return _record(header, arrays), arrays
    except pass_file.FILE_ERRORS as error:
        raise BadData(f"{path} is damaged, or not a cell of oodbench; delete it and run again") from error


def migrate(folder: Path, pass_file_of: Callable[[str], Path], settings: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Turn the cells of schema version 1 into pass files, and delete them once these are written and read back."""
    if not has_cells(folder):
        return
    records: dict[str, list[DetectionRecord]] = {}
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for record, found in cells(folder):
        records.setdefault(record.set_name, []).append(record)
        arrays.setdefault(record.set_name, {}).update({record.arrays[role]: found[role] for role in record.arrays})
    for name, of_set in records.items():
        path = pass_file_of(name)
        pass_file.write(path, of_set, arrays[name], settings)
        if pass_file.read_records(path) != of_set or pass_file.read_arrays(path).keys() != arrays[name].keys():
            raise BadData(f"{path} does not read as it was written; choose another folder with --out")
    # Moved in one step, so that a killed migration leaves either all cells or none.
    old = pass_file.free_path(folder / "aside" / CELLS)
    (folder / CELLS).rename(old)
    for path in old.glob("*.safetensors"):
        path.unlink()
    with suppress(OSError):  # something else is in there
        old.rmdir()
        old.parent.rmdir()
    say(f"{folder}: migrated {counted(sum(map(len, records.values())), 'cell')} of an older oodbench")


def _record(cell: dict[str, Any], arrays: dict[str, np.ndarray]) -> DetectionRecord:
    fields = {RENAMED.get(name, name): value for name, value in cell.items() if name not in GONE}
    made, extras = cell.get("made", {}), dict(cell.get("extras", {}))
    split = () if cell["protocol"] == "unsupervised" else SPLIT_ROLES  # without one, all rows are tested
    return DetectionRecord(
        **fields,
        scoring_version=SCORING_VERSION,
        corruption=corruption_record(cell["dataset"], cell["level"], cell["kind"], cell["seed"]),
        attack=AttackRecord(**made) if made else None,
        auroc_clean=extras.pop("auroc_clean", None),
        calibration=_calibration(extras),
        arrays={role: pass_file.hash_of(arrays[role]) for role in ("in_scores", "out_scores", *split) if role in arrays},
    )


def _calibration(extras: dict[str, float]) -> CalibrationRecord | None:
    if not extras:
        return None
    network = {name.removeprefix("network_"): value for name, value in extras.items() if name.startswith("network_")}
    own = {name: value for name, value in extras.items() if not name.startswith("network_")}
    return CalibrationRecord(detector=ProbabilityFigures(**own), network=ProbabilityFigures(**network) if network else None)
