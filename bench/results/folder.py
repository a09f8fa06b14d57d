"""A run folder: one file per pass over a set, each written whole or not at all.

::

    runs/cifar10/
        run.json                              what the run is: suite, model, sets, versions
        costs.json                            what each detector costs, measured separately
        severity.png                          AUROC by level of corruption
        passes/textures.safetensors           the records of one set, their scores and splits
        shared/in-distribution.safetensors    arrays that sets share: in-distribution scores, base rows
        aside/                                damaged or superseded files

There is no index: the records of 100,000 cells are read from their files in seconds, so there is nothing to keep in step.
"""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, RootModel, ValidationError

from oodbench.errors import BadData, OodbenchError, UsageError, reason
from oodbench.paths import HALF_WRITTEN, open_lock, read_small, require_no_link, try_lock, visible, write_atomically
from oodbench.results import pass_file
from oodbench.results.records import SCHEMA_VERSION, DetectionRecord
from oodbench.results.schema_1 import CELLS, VERSION_1, cells, has_cells, migrate

CHECKSUM = "sha256"  # in run.json and costs.json
SEVERITY = "severity.png"
SHARED = "in-distribution.safetensors"
ADDED_BY_SYSTEMS = re.compile(r"\._.*|\.DS_Store|Icon\r|Thumbs\.db|desktop\.ini", re.IGNORECASE)  # by file managers
FOLDERS = ("passes", "shared", "aside", CELLS)
ENTRIES = ("run.json", "costs.json", SEVERITY, *FOLDERS, ".lock")  # what a run writes
Say = Callable[[str], None]
Kind = TypeVar("Kind", bound=BaseModel)
Costs = dict[str, dict[str, float | None]]
NO_MANIFEST = "restore it from a copy, or choose another folder with --out"  # remedies
NO_COSTS = "`oodbench run` measures costs again"


class Manifest(BaseModel):
    """What run.json says. All records of a folder share ``settings``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    settings: dict[str, Any]
    suite: dict[str, Any] = {}
    provenance: dict[str, Any] = {}


class Cost(BaseModel):
    """What a detector costs at a setting."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    ms_per_image: float
    overhead: float | None
    peak_memory_mb: float | None


class AllCosts(RootModel[dict[str, Cost]]):
    """What costs.json says, by ``cost_key``."""


class RunFolder:
    """Reads and writes one run folder.

    ``without_costs`` is told why costs are left out, where costs.json is damaged; without it they raise BadData.
    """

    def __init__(self, path: str | Path, without_costs: Say | None = None) -> None:
        self.path, self._without_costs = Path(path), without_costs
        self.passes_path = self.path / "passes"
        self.shared_path = self.path / "shared" / SHARED
        self._written: dict[str, dict[tuple[str, str], DetectionRecord]] | None = None  # by set; while a run writes here

    # Reading

    def manifest(self) -> Manifest:
        """What run.json says. Raises BadData for a damaged file, or one of a newer schema version."""
        found = self._read_json("run.json", NO_MANIFEST)
        version = found.get("schema_version")
        if type(version) is not int or version not in (VERSION_1, SCHEMA_VERSION):
            raise BadData(
                f"{self.path / 'run.json'} has schema version {version}, and this oodbench reads up to {SCHEMA_VERSION};"
                " use a newer oodbench, or choose another folder with --out"
            )
        return self._validated(Manifest, found | {"schema_version": SCHEMA_VERSION}, "run.json", NO_MANIFEST)

    def records(self) -> Iterator[DetectionRecord]:
        """All records, set by set in order of name, without their arrays. Raises BadData for a damaged file."""
        if has_cells(self.path):  # schema version 1; nothing else is there before it is migrated
            yield from (record for record, _ in cells(self.path))
            return
        for path in self._pass_files():
            yield from self._records_of(path)

    def arrays(self, record: DetectionRecord) -> dict[str, np.ndarray]:
        """The arrays of a record by role. Raises BadData where one is missing or damaged."""
        wanted = set(record.arrays.values())
        path = self._pass_file(record.set_name)
        own = wanted & pass_file.array_names(path)
        found = pass_file.read_arrays(path, own)
        if wanted - own:
            found |= pass_file.read_arrays(self.shared_path, wanted - own)
        return {role: found[name] for role, name in record.arrays.items()}

    def costs(self) -> Costs:
        """Standalone cost by ``cost_key``: ms_per_image, overhead, peak_memory_mb. Damaged ones as the constructor says."""
        try:
            found = self._read_json("costs.json", NO_COSTS) if (self.path / "costs.json").exists() else {}
            return self._validated(AllCosts, found, "costs.json", NO_COSTS).model_dump()
        except BadData as error:
            if self._without_costs is None:
                raise
            self._without_costs(f"{reason(error)}; until then they are left out")
            return {}

    # Writing

    @contextmanager
    def locked(self, say: Say = lambda line: None, fresh: bool = False) -> Iterator[None]:
        """Hold the folder for this process; the lock goes with the process, however it ends.

        Damaged files are moved to ``aside`` and reported, and a folder of schema version 1 is migrated. With ``fresh``
        nothing is read and nothing is changed before ``clear``. A folder on a drive without locks is reported, and not held.

        Raises BadData for a folder of a newer schema version or with a link in place of a folder or of the lock, UsageError
        for a folder with something else in it, and OodbenchError where it is held or cannot be written.
        """
        there = {*os.listdir(self.path)} if os.path.isdir(self.path) else set()  # none where the name is too long to exist
        strangers = sorted(name for name in there - {*ENTRIES} if not ADDED_BY_SYSTEMS.fullmatch(name))
        if "run.json" not in there and strangers:
            raise UsageError(f"{self.path} is not a run folder and holds {strangers[0]}; name a new folder with --out")
        try:
            for name in FOLDERS:
                require_no_link(self.path / name)
            self.passes_path.mkdir(parents=True, exist_ok=True)
            lock = open_lock(self.path / ".lock")  # held until the run ends
        except OSError as error:
            raise OodbenchError(f"cannot write to {self.path}: {error.strerror}; choose another folder with --out") from error
        try:
            _hold(lock, self.path, say)
            for name in ("run.json", "costs.json", SEVERITY, "passes/*", f"shared/{SHARED}"):
                parent, _, stem = name.rpartition("/")
                for path in (self.path / parent).glob(f".{stem}.*"):
                    if HALF_WRITTEN.fullmatch(path.name):
                        path.unlink()
            self._written = {}
            if not fresh:
                self._open(say)
            yield
        finally:
            self._written = None
            lock.close()

    def _open(self, say: Say) -> None:
        """Read what is there, and set aside what is damaged."""
        assert self._written is not None
        if (self.path / "run.json").exists():
            self.manifest()
        elif self._pass_files() or has_cells(self.path):
            raise BadData(f"{self.path} holds records but no run.json; restore that file, or choose another folder with --out")
        try:
            self.costs()
        except BadData as error:
            say(f"{reason(error)} (moved to {self._set_aside(self.path / 'costs.json')})")
        migrate(self.path, self._pass_file, say)
        available = self._checked_arrays(self.shared_path, say) if self.shared_path.exists() else set()
        for path in self._pass_files():
            names = self._checked_arrays(path, say)
            if not path.exists():
                continue
            records = self._records_of(path)
            whole = [record for record in records if set(record.arrays.values()) <= names | available]
            if len(whole) < len(records):
                self._drop_records(path, whole, len(records) - len(whole), say)
            for record in whole:
                self._written.setdefault(record.set_name, {})[record.place] = record

    def _drop_records(self, path: Path, whole: list[DetectionRecord], lost: int, say: Say) -> None:
        """Leave only the whole records in a file: nobody can compute the figures of the others again."""
        aside = pass_file.free_path(self.path / "aside" / path.name)
        shutil.copyfile(path, aside)
        wanted = {hash for record in whole for hash in record.arrays.values()}
        pass_file.write(path, whole, pass_file.read_arrays(path, wanted & pass_file.array_names(path)))
        say(f"{path.name}: {lost} cells lack arrays and are void (copied to {aside}); running their detectors restores them")

    def _checked_arrays(self, path: Path, say: Say) -> set[str]:
        """The names of the arrays of a file that is whole; a damaged one is moved aside, and none."""
        try:
            self._records_of(path)
            return set(pass_file.read_arrays(path))
        except BadData as error:
            say(f"{reason(error)} (moved to {self._set_aside(path)})")
            return set()

    def clear(self) -> None:
        """Delete what a run wrote, and nothing else."""
        names = (f"{CELLS}/*.safetensors", f"aside/{CELLS}.*/*.safetensors", "aside/*.[0-9]*.safetensors", "aside/costs.*.json")
        old = [path for name in names for path in visible(self.path, name) if not path.parent.is_symlink()]
        last = (self.path / name for name in ("costs.json", SEVERITY, "run.json"))  # without run.json, records are nobody's
        for path in [*self._pass_files(), self.shared_path, *old, *last]:
            path.unlink(missing_ok=True)
        self._written = {}

    def check_settings(self, settings: Mapping[str, Any], **about: Any) -> None:
        """Write run.json, or check that a run with the same settings is there already.

        Raises UsageError that names the first setting that differs.
        """
        own: dict[str, Any] = json.loads(json.dumps(settings))  # as they come back: a tuple is a list there
        if (self.path / "run.json").exists():
            before = self.manifest().settings
            for name, value in own.items():
                if name in before and before[name] != value:
                    raise UsageError(
                        f"{self.path} holds a run with {name} = {before[name]}, not {value};"
                        " choose another folder with --out, or start over with --fresh"
                    )
            own = before | own
        self._write_json("run.json", Manifest(settings=own, **about).model_dump(mode="json"))

    def finished(self, record: DetectionRecord) -> bool:
        """Whether the record is there with figures, made from the same inputs by the same code."""
        found = self.earlier(record)
        return found is not None and found.status == "ok" and found.key == record.key

    def earlier(self, record: DetectionRecord) -> DetectionRecord | None:
        """The record that is in its place, whatever it was made from."""
        assert self._written is not None, "the folder is not locked"
        return self._written.get(record.set_name, {}).get(record.place)

    def outdated(self, codes: Mapping[str, str]) -> Counter[str]:
        """How many records with figures are of other code of these detectors than ``codes`` (hash by name)."""
        assert self._written is not None, "the folder is not locked"
        there = (record for of_set in self._written.values() for record in of_set.values() if record.status == "ok")
        return Counter(one.detector for one in there if one.code != codes.get(one.detector, one.code))

    def write(
        self,
        records: Sequence[DetectionRecord],
        arrays: Mapping[str, np.ndarray],
        shared: Mapping[str, np.ndarray] | None = None,
        say: Say = lambda line: None,
    ) -> list[DetectionRecord]:
        """Write the records of one set, with their arrays by hash, and return those that gave way to existing ones.

        A record without figures does not replace one with figures of the same code, so that a set or a plug-in that is
        unavailable today loses nothing. Records of other detectors stay; where the set's content has changed since, the
        earlier file is moved aside.

        ``shared`` are arrays that many sets use; they are kept once, in a file of their own.
        """
        assert self._written is not None, "the folder is not locked"
        name = records[0].set_name
        path = self._pass_file(name)
        before = self._written.get(name, {})
        contents = {record.fingerprint for record in before.values()} - {""}
        if any(record.fingerprint and record.fingerprint not in contents for record in records) and contents:
            say(f"{name} has changed since: its earlier records are void (moved to {self._set_aside(path)})")
            before = {}
        kept = [new for new in records if _is_better(before.get(new.place), new)]
        merged = before | {new.place: new for new in records if new not in kept}
        if shared:
            self._add_shared(shared)
        wanted = {hash for record in merged.values() for hash in record.arrays.values()}
        stored = pass_file.read_arrays(path) if path.exists() else {}
        common = pass_file.array_names(self.shared_path) if self.shared_path.exists() else set()
        own = {hash: array for hash, array in (stored | dict(arrays)).items() if hash in wanted - common}
        pass_file.write(path, list(merged.values()), own)
        self._written[name] = merged
        return kept

    def tidy(self) -> None:
        """Drop shared arrays that no record uses any more."""
        assert self._written is not None, "the folder is not locked"
        if not self.shared_path.exists():
            return
        used = {hash for of_set in self._written.values() for one in of_set.values() for hash in one.arrays.values()}
        found = pass_file.read_arrays(self.shared_path)
        if found.keys() - used:
            pass_file.write(self.shared_path, [], {hash: array for hash, array in found.items() if hash in used})

    def _add_shared(self, arrays: Mapping[str, np.ndarray]) -> None:
        stored = pass_file.read_arrays(self.shared_path) if self.shared_path.exists() else {}
        if arrays.keys() - stored.keys():
            pass_file.write(self.shared_path, [], stored | dict(arrays))

    def write_costs(self, costs: Costs) -> None:
        """Write costs.json."""
        self._write_json("costs.json", costs)

    def write_severity(self, picture: bytes) -> Path:
        """Write the picture of the severity curves and return its path."""
        write_atomically(self.path / SEVERITY, picture)
        return self.path / SEVERITY

    # Files

    def _pass_files(self) -> list[Path]:
        return visible(self.passes_path, "*.safetensors")

    def _records_of(self, path: Path) -> list[DetectionRecord]:
        """The records of a pass file. Raises BadData where they are another set's, as in a file that was copied or renamed."""
        records = pass_file.read_records(path)
        for name in {record.set_name for record in records}:
            if path != self.shared_path and self._pass_file(name) != path:
                raise BadData(
                    f"{path} holds records of {name}; rename it to {self._pass_file(name).name}, or move it elsewhere"
                )
        return records

    def _pass_file(self, set_name: str) -> Path:
        return self.passes_path / f"{pass_file.file_stem(set_name)}.safetensors"

    def _set_aside(self, path: Path) -> Path:
        """Move a file to ``aside``, under a name that is free there."""
        return Path(shutil.move(path, pass_file.free_path(self.path / "aside" / path.name)))

    def _validated(self, kind: type[Kind], found: dict[str, Any], name: str, remedy: str) -> Kind:
        own = {key: value for key, value in found.items() if key != CHECKSUM}
        if found.get(CHECKSUM) not in (None, _checksum(own)):  # None where an earlier oodbench wrote it
            raise BadData(f"{self.path / name} is damaged, or was edited; {remedy}")
        try:
            return kind.model_validate(own)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise BadData(f"{self.path / name} is not what oodbench writes ({where}: {first['msg']}); {remedy}") from error

    def _read_json(self, name: str, remedy: str) -> dict[str, Any]:
        try:
            found = pass_file.finite_json(read_small(self.path / name).decode())
        except (OSError, ValueError, RecursionError) as error:
            raise BadData(f"{self.path / name} cannot be read ({error}); {remedy}") from error
        if not isinstance(found, dict):
            raise BadData(f"{self.path / name} is not what oodbench writes; {remedy}")
        return found

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        whole = {**value, CHECKSUM: _checksum(value)}
        write_atomically(self.path / name, json.dumps(whole, indent=1, sort_keys=True, allow_nan=False).encode())


def _checksum(value: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, however they are laid out in the file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _is_better(before: DetectionRecord | None, new: DetectionRecord) -> bool:
    """Whether the record that is there has figures, the new one has none, and the detector's code is not known to differ."""
    return before is not None and before.status == "ok" and new.status != "ok" and new.code in ("", before.code)


def _hold(lock: IO[str], path: Path, say: Say) -> None:
    try:
        alone = try_lock(lock)
    except OSError as error:
        say(f"{path} cannot be locked ({error.strerror}): do not start a second run in this folder")
        return
    if not alone:
        raise OodbenchError(f"another run is writing to {path}; wait for it or choose another --out")
