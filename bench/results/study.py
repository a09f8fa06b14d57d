"""A study: the run folders of one suite in a folder, and ``study.json``, which names them all, also those that failed.

::

    runs/cifar10-study/
        study.json      name, title and runs; of a run that could not start, why
        seed-0/         run folders
        seed-1/
"""

import os
from collections.abc import Iterable
from pathlib import Path

from oodbench.errors import BadData, OodbenchError, UsageError
from oodbench.paths import STUDY, is_study, require_own_folder, require_run_folder
from oodbench.results import json_files
from oodbench.results.folder import RunFolder, Say

RANKS = "critical-difference.png"
AGAIN = "`oodbench run` with the same options and --out writes it again"  # remedy


class StudyFolder:
    """Reads and writes the folder of a study."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def manifest(self) -> json_files.StudyManifest:
        """What study.json says. Raises BadData for a damaged file, or one of a newer schema version."""
        return json_files.read_study(self.path / STUDY, AGAIN)

    def runs(self, without_costs: Say | None = None) -> list[RunFolder]:
        """The folders of its runs that have begun, in the order of the study. Raises BadData as ``manifest``."""
        found = []
        for name in self.manifest().runs:
            if (self.path / name / "run.json").exists():
                found.append(RunFolder(self.path / name, without_costs))
                found[-1].study = self
        return found

    def missing(self) -> dict[str, str]:
        """Why runs have no folder, by name."""
        begun = {folder.path.name for folder in self.runs()}
        return {name: why or "not run" for name, why in self.manifest().runs.items() if name not in begun}

    def begin(self, name: str, title: str, runs: Iterable[str]) -> None:
        """Write study.json. A study that is there keeps its runs, which come first.

        Raises UsageError for a folder with something else in it, BadData as ``manifest``.
        """
        before: dict[str, str] = {}
        if is_study(self.path):
            found = self.manifest()
            if found.name != name:
                raise UsageError(f"{self.path} holds a study of {found.name}, not {name}; choose another folder with --out")
            before = found.runs
        elif os.path.exists(self.path):  # also where the name is too long to exist
            if (self.path / "run.json").exists():
                raise UsageError(f"{self.path} holds a run, not a study of several; choose another folder with --out")
            if strangers := sorted(entry for entry in os.listdir(self.path) if not entry.startswith(".")):
                raise UsageError(f"{self.path} is not a study and holds {strangers[0]}; name a new folder with --out")
        for run in runs:
            require_own_folder(self.path / run)
        self._write(json_files.StudyManifest(name=name, title=title, runs=before | dict.fromkeys(runs, "")))

    def note(self, run: str, why: str) -> None:
        """Keep why a run could not start; an empty ``why`` says that it could."""
        found = self.manifest()
        self._write(found.model_copy(update={"runs": found.runs | {run: why}}))

    def _write(self, manifest: json_files.StudyManifest) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OodbenchError(f"cannot write to {self.path}: {error.strerror}; choose another folder with --out") from error
        json_files.write(self.path / STUDY, manifest.model_dump(mode="json"))


def run_folders(path: Path, without_costs: Say | None = None) -> list[RunFolder]:
    """The run folder itself, or all that have begun of a study.

    Raises UsageError for a folder that is neither, BadData for a study without any.
    """
    if not is_study(path):
        require_run_folder(path)
        return [RunFolder(path, without_costs)]
    study = StudyFolder(path)
    if not (found := study.runs(without_costs)):
        raise BadData(f"{path} has no run yet ({'; '.join(f'{name}: {why}' for name, why in study.missing().items())})")
    return found
