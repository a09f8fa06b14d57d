"""A run folder: one file per pass over a set, each written whole or not at all.

::

    runs/cifar10/
        run.json                              what the run is: suite, model, sets, versions
        costs.json                            what each detector costs, measured separately
        severity.png                          AUROC by level of corruption
        passes/textures.safetensors           the records of one set, their scores and splits
        shared/in-distribution.safetensors    arrays that sets share: in-distribution scores, base rows
        aside/                                damaged or superseded files

There is no index: the records of 100,000 cells are read from their files in seconds.
"""

import json
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from oodbench.errors import BadData, OodbenchError, UsageError, counted, reason
from oodbench.paths import HALF_WRITTEN, gone_without, open_lock, require_own_file, require_own_folder, try_lock, visible
from oodbench.results import json_files, pass_file, site
from oodbench.results.facts import first_difference
from oodbench.results.json_files import Costs, Manifest
from oodbench.results.records import DetectionRecord, RecognitionRecord, Record
from oodbench.results.schema_1 import CELLS, cells, has_cells, migrate, read_cell

if TYPE_CHECKING:
    from oodbench.results.study import StudyFolder

SEVERITY = "severity.png"
SHARED = "in-distribution.safetensors"
ADDED_BY_SYSTEMS = re.compile(r"\._.*|\.DS_Store|Icon\r|Thumbs\.db|desktop\.ini", re.IGNORECASE)  # by file managers
FOLDERS = ("passes", "shared", "aside", CELLS)
ENTRIES = ("run.json", "costs.json", SEVERITY, site.REPORT, *FOLDERS, ".lock")  # what a run writes
Say = Callable[[str], None]
Kind = TypeVar("Kind", bound=Record)
RUN_AGAIN = "`oodbench run` with the same options and --out writes it again"  # remedies
RESTORE = "restore run.json from a copy, or choose another folder with --out"


class RunFolder:
    """Reads and writes one run folder.

    ``without_costs`` is told why costs are left out, where costs.json is damaged; without it they raise BadData.
    """

    def __init__(self, path: str | Path, without_costs: Say | None = None) -> None:
        self.path, self._without_costs = Path(path), without_costs
        self.name = str(self.path)  # what notes call the run
        self.study: StudyFolder | None = None  # that it was found in
        self.passes_path = self.path / "passes"
        self.shared_path = self.path / "shared" / SHARED
        self._written: dict[str, dict[tuple[str, str], Record]] | None = None  # by set; while a run writes here
        self._settings: dict[str, Any] = {}  # while a run writes here: those of all records
        self._provenance: dict[str, Any] = {}  # of an earlier run here
        self._lost: BadData | None = None  # why run.json does not hold them

    # Reading

    def manifest(self) -> Manifest:
        """What run.json says. Raises BadData for a damaged or missing file, or one of a newer schema version."""
        path, remedy = self.path / "run.json", RESTORE if has_cells(self.path) else RUN_AGAIN
        if not os.path.lexists(path):
            raise BadData(f"{self.path} has no run.json; {remedy}")
        return json_files.read_manifest(path, remedy)

    def records(self) -> Iterator[DetectionRecord]:
        """The records of detection, set by set in order of name, without their arrays. Raises BadData for a damaged file."""
        return (of for of, _ in cells(self.path)) if has_cells(self.path) else self.of_task(DetectionRecord)

    def recognition(self) -> Iterator[RecognitionRecord]:
        """The records of recognition, set by set in order of name. Raises BadData for a damaged file."""
        return self.of_task(RecognitionRecord)

    def of_task(self, kind: type[Kind]) -> Iterator[Kind]:
        """The records of one task, file by file in order of name. Raises BadData for a damaged file."""
        for path in self.pass_files():
            yield from (one for one in self.records_of(path) if isinstance(one, kind))

    def arrays(self, record: Record) -> dict[str, np.ndarray]:
        """The arrays of a record by role. Raises BadData where one is missing or damaged."""
        if has_cells(self.path):
            same = (of for one, of in cells(self.path) if (one.set_name, one.place) == (record.set_name, record.place))
            return {role: array for role, array in next(same, {}).items() if role in record.arrays}
        wanted = set(record.arrays.values())
        path = self._pass_file(record.set_name)
        own = wanted & pass_file.array_names(path)
        found = pass_file.read_arrays(path, own)
        if wanted - own:
            found |= pass_file.read_arrays(self.shared_path, wanted - own)
        return {role: found[name] for role, name in record.arrays.items()}

    def costs(self) -> Costs:
        """Standalone cost by ``cost_key``, as ``timing.standalone_costs`` gives it. Damaged ones as the constructor says."""
        try:
            return self._costs()
        except BadData as error:
            if self._without_costs is None:
                raise
            self._without_costs(f"{reason(error)}; until then they are left out")
            return {}

    def _costs(self) -> Costs:
        path = self.path / "costs.json"
        return json_files.read_costs(path) if os.path.lexists(path) else {}

    # Writing

    @contextmanager
    def locked(self, say: Say = lambda line: None, fresh: bool = False) -> Iterator[None]:
        """Hold the folder for this process; the lock goes with the process, however it ends.

        Damaged files are moved to ``aside`` and reported, and a folder of schema version 1 is migrated. With ``fresh``
        nothing is read and nothing is changed before ``clear``. A folder on a drive without locks is reported, and not held.

        Raises BadData for a folder of a newer schema version or with a link in place of a folder or of the lock, UsageError
        for a folder with something else in it, and OodbenchError where it is held or cannot be written.
        """
        if not os.path.lexists(run := self.path / "run.json"):
            self._refuse_strangers()
        with (
            ExitStack() as end,
            # What another process makes here stays: that holds the lock, so nothing is read.
            gone_without(self.path, [".lock", "passes"], lambda: self._written is None or os.path.lexists(run)),
        ):
            try:
                for name in FOLDERS:
                    require_own_folder(self.path / name)
                self.passes_path.mkdir(parents=True, exist_ok=True)
                lock = end.enter_context(open_lock(self.path / ".lock"))  # held until the run ends
            except OSError as why:
                raise OodbenchError(f"cannot write to {self.path}: {why.strerror}; choose another folder with --out") from why
            _hold(lock, self.path, say)
            end.callback(setattr, self, "_written", None)
            self._written, self._settings, self._provenance, self._lost = {}, {}, {}, None
            for name in ("run.json", "costs.json", SEVERITY, "passes/*", f"shared/{SHARED}"):
                parent, _, stem = name.rpartition("/")
                for path in (self.path / parent).glob(f".{stem}.*"):
                    if HALF_WRITTEN.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                        path.unlink()
            if not fresh:
                self._open(say)
            yield

    def _open(self, say: Say) -> None:
        """Read what is there, and set aside what is damaged."""
        assert self._written is not None
        if os.path.lexists(self.path / "run.json") or self.pass_files() or has_cells(self.path):
            try:
                found = self.manifest()
                self._settings, self._provenance = found.settings, found.provenance
            except json_files.NewerVersion:
                raise
            except BadData as error:
                self._settings, self._lost = self._settings_of_records(), error
                self._refuse_strangers()
                if not self._settings and not os.path.lexists(self.path / "run.json"):
                    raise BadData(f"{self.path} holds no file of a run that can be read; {RESTORE}") from error
        for name, check in {"costs.json": self._costs, SEVERITY: lambda: require_own_file(self.path / SEVERITY)}.items():
            try:
                check()
            except BadData as error:
                self._replace(self.path / name, error, say)
        migrate(self.path, self._pass_file, self._settings, say)
        available = self._checked_arrays(self.shared_path, say) if os.path.lexists(self.shared_path) else set()
        for path in self.pass_files():
            names = self._checked_arrays(path, say)
            if not path.exists():
                continue
            records = self.records_of(path)
            whole = [record for record in records if set(record.arrays.values()) <= names | available]
            if len(whole) < len(records):
                self._drop_records(path, whole, len(records) - len(whole), say)
            for record in whole:
                self._written.setdefault(record.set_name, {})[record.place] = record

    def _refuse_strangers(self) -> None:
        """Raise UsageError for a folder with something else in it, unless records show that it is a run's."""
        there = {*os.listdir(self.path)} if os.path.isdir(self.path) else set()  # none where the name is too long to exist
        strangers = sorted(name for name in there - {*ENTRIES} if not ADDED_BY_SYSTEMS.fullmatch(name))
        if strangers and not self._settings_of_records():
            damaged = os.path.lexists(self.path / "run.json") and self.pass_files()
            whose = "holds no file of a run that can be read, but" if damaged else "is not a run folder and holds"
            raise UsageError(f"{self.path} {whose} {strangers[0]}; name a new folder with --out")

    def _settings_of_records(self) -> dict[str, Any]:
        """The settings of all records, as their files say. Raises BadData where some do not, or say different things."""
        found: dict[str, Any] = {}
        for path in [*self.pass_files(), *visible(self.path / CELLS, "*.safetensors")]:
            try:
                own = pass_file.read_settings(path) if path.parent == self.passes_path else {}
            except BadData:
                continue  # set aside later
            if not own:
                raise BadData(f"{path} does not contain its settings, and run.json is damaged or missing; {RESTORE}")
            for name, value in own.items():
                if found.setdefault(name, value) != value:
                    whose = f"belongs to a run with {name} = {value}, but other files to one with {found[name]}"
                    raise BadData(f"{path} {whose}; {RESTORE}")
        return found

    def _drop_records(self, path: Path, whole: list[Record], lost: int, say: Say) -> None:
        """Leave only the whole records in a file: nobody can compute the figures of the others again."""
        aside = pass_file.free_path(self.path / "aside" / path.name)
        shutil.copyfile(path, aside)
        wanted = {hash for record in whole for hash in record.arrays.values()}
        pass_file.write(path, whole, pass_file.read_arrays(path, wanted & pass_file.array_names(path)), self._settings)
        say(f"{path.name}: dropped {counted(lost, 'cell')} without arrays (copied to {aside}); run the detectors again")

    def _checked_arrays(self, path: Path, say: Say) -> set[str]:
        """The names of the arrays of a file that is whole; a damaged one is moved aside, and none."""
        try:
            self.records_of(path)
            return set(pass_file.read_arrays(path))
        except BadData as error:
            self._replace(path, error, say)
            return set()

    def clear(self, say: Say = lambda line: None) -> None:
        """Delete what a run wrote, and nothing else. A file of that name that oodbench did not write moves to ``aside``."""
        passes, costs = pass_file.read_records, json_files.read_costs
        checks: list[tuple[str, Callable[[Path], object]]] = [
            ("aside/*.[0-9]*.safetensors", passes),
            ("aside/costs.*.json", costs),
            (f"aside/{CELLS}.*/*.safetensors", read_cell),
            ("passes/*.safetensors", self.records_of),
            (f"shared/{SHARED}", passes),
            (f"{CELLS}/*.safetensors", read_cell),
            ("costs.json", costs),
            (SEVERITY, require_own_file),
            ("run.json", lambda _: self.manifest()),  # without it, records are nobody's
        ]
        for pattern, check in checks:
            for path in visible(self.path, pattern) if "*" in pattern else [self.path / pattern]:
                if path.parent.is_symlink() or not os.path.lexists(path):
                    continue
                try:
                    require_own_file(path)
                    check(path)
                except BadData as error:
                    if not pattern.startswith("aside/"):
                        self._replace(path, error, say)
                else:
                    path.unlink()
        self._written = {}

    def check_settings(self, settings: Mapping[str, Any], say: Say = lambda line: None, **about: Any) -> None:
        """Write run.json, or check that a run with the same settings is there already, whose facts stay in the provenance.

        Where run.json is damaged or missing, the settings that the records' files hold decide. The damaged one is moved to
        ``aside`` and reported.

        Raises UsageError that names the first setting that differs.
        """
        assert self._written is not None, "the folder is not locked"
        own: dict[str, Any] = json.loads(json.dumps(settings))  # as they come back: a tuple is a list there
        before, path = {"precision": "float32"} | self._settings if self._settings else {}, self.path / "run.json"
        if other := first_difference(before, own):
            remedy = "choose another folder with --out, or start over with --fresh"
            raise UsageError(f"{self.path} holds a run with {other}; {remedy}")
        self._settings = before | own
        if self._lost:
            if os.path.lexists(path):
                self._replace(path, self._lost, say)
            else:
                say(f"{_cause(self._lost)}; it is written again")
        about["provenance"] = self._provenance | about.get("provenance", {})
        json_files.write(path, Manifest(settings=self._settings, **about).model_dump(mode="json"))

    def add_provenance(self, **facts: Any) -> None:
        """Write facts of the run into run.json that are the same for all its records."""
        found = self.manifest()
        json_files.write(self.path / "run.json", found.model_copy(update={"provenance": found.provenance | facts}).model_dump())

    def finished(self, record: Record) -> bool:
        """Whether the record is there with figures, made from the same inputs by the same code."""
        found = self.earlier(record)
        return found is not None and found.status == "ok" and found.key == record.key

    def earlier(self, record: Kind) -> Kind | None:
        """The record that is in its place, whatever it was made from."""
        assert self._written is not None, "the folder is not locked"
        found = self._written.get(record.set_name, {}).get(record.place)
        return found if isinstance(found, type(record)) else None

    def outdated(self, codes: Mapping[str, str]) -> Counter[str]:
        """How many records of detection with figures are of other code of these detectors than ``codes`` (hash by name)."""
        assert self._written is not None, "the folder is not locked"
        there = (one for of_set in self._written.values() for one in of_set.values() if isinstance(one, DetectionRecord))
        return Counter(one.detector for one in there if one.status == "ok" and one.code != codes.get(one.detector, one.code))

    def write(
        self,
        records: Sequence[Record],
        arrays: Mapping[str, np.ndarray],
        shared: Mapping[str, np.ndarray] | None = None,
        say: Say = lambda line: None,
    ) -> list[Record]:
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
        pass_file.write(path, list(merged.values()), own, self._settings)
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
        json_files.write(self.path / "costs.json", costs)

    # Files

    def pass_files(self) -> list[Path]:
        return visible(self.passes_path, "*.safetensors")

    def records_of(self, path: Path) -> list[Record]:
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

    def _replace(self, path: Path, why: BadData, say: Say) -> None:
        """Move a file aside, and say why. Not the error's remedy: this run follows it, or the file is no longer there."""
        say(f"{_cause(why)} (moved to {self._set_aside(path)})")

    def _set_aside(self, path: Path) -> Path:
        """Move a file to ``aside``, under a name that is free there."""
        return Path(shutil.move(path, pass_file.free_path(self.path / "aside" / path.name)))


def _cause(error: BadData) -> str:
    """An error's message without its remedy."""
    return reason(error).rsplit("; ", 1)[0]


def _is_better(before: Record | None, new: Record) -> bool:
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
