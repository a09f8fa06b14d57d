"""The scores that stand behind the cells of a frame."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from oodbench.errors import BadData
from oodbench.leaderboard import escape
from oodbench.results.schema_1 import has_cells

if TYPE_CHECKING:
    from oodbench.results.folder import RunFolder
    from oodbench.results.records import DetectionRecord

Key = tuple[Any, ...]
ROLES = ("in_scores", "out_scores", "in_test", "out_test", "in_base", "out_base")


class StoredScores:
    """Finds the scores of cells in run folders."""

    def __init__(self, folders: Sequence["RunFolder"]) -> None:
        self._folders = folders
        self._found: dict[Key, tuple[RunFolder, DetectionRecord]] | None = None

    def of(self, cell: Any) -> tuple[np.ndarray, np.ndarray]:
        """The scores (n,) of tested in-distribution images and (m,) of anomalous ones; ``cell`` is a row of the frame.

        Raises BadData where they are missing or damaged.
        """
        arrays = self.arrays(cell, ROLES[:2])
        return arrays["in_scores"], arrays["out_scores"]

    def require_quick(self) -> None:
        """Raise BadData for a run folder of an older oodbench, from which the scores of all cells would take hours to read."""
        for folder in self._folders:
            if has_cells(folder.path):
                raise BadData(
                    f"an older oodbench wrote {folder.path}, with one file per cell; `oodbench run` with the same options and"
                    " --out migrates it"
                )

    def record(self, cell: Any) -> "DetectionRecord":
        """The record that a cell was made from. Raises BadData where it is not there."""
        return self._stored(cell)[1]

    def arrays(
        self, cell: Any, roles: Sequence[str] = ROLES, known: Mapping[str, np.ndarray] = MappingProxyType({})
    ) -> dict[str, np.ndarray]:
        """The arrays of a cell by role: its scores, and which images they are of. ``known`` ones, by hash, are not read again.

        Raises BadData where the scores are missing or an array is damaged.
        """
        folder, record = self._stored(cell)
        if missing := [role for role in ROLES[:2] if role not in record.arrays]:
            raise BadData(f"{cell['detector']} on {cell['dataset']} stores no {missing[0]}; run it again")
        wanted = {role: name for role, name in record.arrays.items() if role in roles}
        unread = {role: name for role, name in wanted.items() if name not in known}
        read = folder.arrays(record.model_copy(update={"arrays": unread}))
        return {role: known[name] if name in known else read[role] for role, name in wanted.items()}

    def _stored(self, cell: Any) -> tuple["RunFolder", "DetectionRecord"]:
        if self._found is None:
            records = ((folder, record) for folder in self._folders for record in folder.records() if record.metrics)
            self._found = {_key_of_record(record): (folder, record) for folder, record in records}
        if (found := self._found.get(_key_of_cell(cell))) is None:
            where = f"{cell['detector']} on {cell['dataset']}"
            raise BadData(f"{where}: its run folder stores no scores of this figure; run it again")
        return found


def _key_of_record(record: "DetectionRecord") -> Key:
    assert record.metrics is not None
    level = -1 if record.level is None else record.level
    figures = (record.metrics.auroc, record.n_in, record.n_out, record.wall_seconds)
    return (
        escape.without_surrogates(record.row),
        record.protocol,
        escape.without_surrogates(record.dataset),
        level,
        record.seed,
        *figures,
    )


def _key_of_cell(cell: Any) -> Key:
    """As of the record that the cell was made from. The figures tell cells of several runs apart."""
    names = ("detector", "protocol", "dataset", "level", "seed", "auroc", "n_in", "n_out", "wall_seconds")
    key = {name: None if pd.isna(cell[name]) else cell[name] for name in names}
    return tuple(key.values()) if key["level"] is not None else tuple((key | {"level": -1}).values())
