"""A study: the run folders of one suite in a folder, and ``study.json``, which names them all, also those that failed.

::

    runs/cifar10-study/
        study.json      name, title and runs; of a run that could not start, why
        seed-0/         run folders
        seed-1/
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from oodbench.errors import BadData, OodbenchError, UsageError, reason
from oodbench.paths import STUDY, gone_without, is_study, require_own_folder, require_run_folder
from oodbench.results import json_files
from oodbench.results.folder import SEVERITY, RunFolder, Say
from oodbench.results.site import REPORT

NOT_RUN = "not run; run the study again"
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
        """Why runs are not finished, by name."""
        begun = {folder.path.name for folder in self.runs()}
        return {name: why or NOT_RUN for name, why in self.manifest().runs.items() if why or name not in begun}

    def begin(self, name: str, title: str, axes: Sequence[str], runs: Iterable[str], say: Say = lambda line: None) -> None:
        """Write study.json. A study that is there keeps its runs, which come first; a damaged file is reported and replaced.

        ``axes`` are what the runs differ in. Raises UsageError for a study of another suite or of other axes, and for a folder
        with something else in it, NewerVersion for a study of a newer oodbench.
        """
        before: dict[str, str] = {}
        if is_study(self.path):
            try:
                found = self.manifest()
            except json_files.NewerVersion:
                raise
            except BadData as error:
                say(reason(error))
                before = dict.fromkeys(self._begun(), "")
            else:
                before = found.runs
                for here, wanted in ((found.name, name), (" and ".join(found.axes), " and ".join(axes))):
                    if here and wanted and here != wanted:
                        raise UsageError(f"{self.path} holds a study of {here}, not {wanted}; choose another folder with --out")
        elif os.path.exists(self.path):  # also where the name is too long to exist
            if not self.path.is_dir():
                raise UsageError(f"{self.path} is a file; name a folder with --out")
            if (self.path / "run.json").exists():
                raise UsageError(f"{self.path} holds a run, not a study of several; choose another folder with --out")
            before = dict.fromkeys(self._begun(), "")
            own = {*before, SEVERITY, RANKS, REPORT}
            if strangers := sorted(entry for entry in os.listdir(self.path) if not entry.startswith(".") and entry not in own):
                raise UsageError(f"{self.path} is not a study and holds {strangers[0]}; name a new folder with --out")
        for run in runs:
            require_own_folder(self.path / run)
        each = before | {run: before.get(run) or NOT_RUN for run in runs}
        self._write(json_files.StudyManifest(name=name, title=title, axes=list(axes), runs=each))

    def kept_with_runs(self) -> AbstractContextManager[None]:
        """Within this context a study runs. If an error ends it before a run has begun, what was made here is deleted."""
        return gone_without(self.path, [STUDY], lambda: any(self._begun()))

    def _begun(self) -> list[str]:
        """The run folders that are there, whatever study.json says."""
        return sorted(entry.name for entry in self.path.iterdir() if (entry / "run.json").is_file())

    def note(self, run: str, why: str) -> None:
        """Keep why a run is not finished; an empty ``why`` says that it is."""
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
