"""Bundles: a verified run or study in one file, to submit it or to publish it.

A zip archive::

    manifest.json                       what is in it: size and SHA-256 of each file, and of each run what made it
    run.json, passes/…, shared/…        the files of a run; of a study study.json, and each run in a folder of its own

Members are stored, not compressed: so the bytes of a bundle do not depend on a version of zlib, and no member can be larger
than the file. A bundle is read as if it were hostile. It must be, to the byte, what ``write_bundle`` makes of its content.
"""

import hashlib
import json
import re
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oodbench.datasets.name import recorded
from oodbench.errors import BadData, OodbenchError, UsageError, counted, reason
from oodbench.paths import MOST_TEXT, is_study, require_regular, write_atomically
from oodbench.progress import Progress
from oodbench.results.facts import finite_json
from oodbench.results.folder import SEVERITY, RunFolder, Say
from oodbench.results.records import ActiveLearningRecord
from oodbench.results.study import RANKS, run_folders
from oodbench.results.verify import Verification, verify_folder
from oodbench.suite import Suite

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
MOST_FILES = 1_000_000
CHUNK = 2**20
ENVIRONMENT = ("oodbench", "torch", "numpy", "python", "platform", "device", "threads")  # of a run's provenance
OF_RUN = r"run\.json|costs\.json|severity\.png|passes/[A-Za-z0-9@+_-][A-Za-z0-9.@+_-]*\.safetensors|shared/[a-z-]+\.safetensors"
MEMBER = re.compile(rf"study\.json|critical-difference\.png|(?:(?!\.)[\w.+-]{{1,200}}/)?(?:{OF_RUN})")
AGAIN = "get it again from where it came from, or make it again with `oodbench bundle`"  # remedy
_unpacked: dict[str, tempfile.TemporaryDirectory[str]] = {}  # by SHA-256 of the bundle; removed when the process ends


class BundledFile(BaseModel):
    """One file of a bundle."""

    model_config = ConfigDict(extra="forbid", strict=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class BundledRun(BaseModel):
    """What made a run: for readers of the manifest alone. All of it is in the files too."""

    model_config = ConfigDict(extra="forbid", strict=True)

    suite: str
    model: str
    weights: str | None  # hash of the weights
    model_card: dict[str, Any] | None  # of weights that `oodbench train` made
    in_distribution: str
    seed: int
    records: int
    environment: dict[str, Any]
    code: dict[str, str]  # hash of each detector's code


class BundleManifest(BaseModel):
    """What manifest.json says."""

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: int = SCHEMA_VERSION
    files: dict[str, BundledFile]
    runs: dict[str, BundledRun]  # by folder; a run that is not a study has the folder "."


def write_bundle(path: str | Path, out: str | Path, progress: Progress | None = None) -> Verification:
    """Verify a run or study, and pack it into the file ``out``, which ends in .zip. The same files give the same bytes.

    Returns what was verified. Raises BadData where something disagrees, UsageError for another name or for a folder that is
    neither, and CannotWrite.
    """
    out = Path(out)
    if out.suffix != ".zip":
        raise UsageError(f"{out} does not end in .zip; name a file that does with --out")
    found = verify_folder(path, progress)
    require_verified(path, found, "pack")
    pack(found.path, out)
    return found


def require_verified(path: str | Path, found: Verification, verb: str) -> None:
    """Raise BadData for a run that does not verify, or has nothing to pack or publish (``verb``)."""
    if not found.ok:
        more = f", and {counted(len(found.problems) - 1, 'more problem')}" if len(found.problems) > 1 else ""
        raise BadData(f"{path} does not verify: {found.problems[0]}{more}; see `oodbench verify {path}`")
    if found.records and not found.figures:
        raise BadData(f"no cell of {path} has a figure, so there is nothing to {verb}; see `oodbench leaderboard {path}`")
    if not found.figures:
        raise BadData(f"{path} has no figures yet, so there is nothing to {verb}; run it first")


def pack(path: Path, out: Path) -> None:
    """Pack a verified run or study into the file ``out``; a bundle is copied. Raises CannotWrite."""
    if path.is_file():
        write_atomically(out, path.read_bytes())
    else:
        write_atomically(out, lambda file: _pack(path, file))


def gaps(path: str | Path) -> list[str]:
    """What a run or study lacks, one line per run: cells that failed or were skipped, sets without cells, and runs of a study.

    Raises UsageError and BadData as ``run_folders``.
    """
    lines = []
    for folder in (folders := run_folders(Path(path))):
        records = [record for file in folder.pass_files() for record in folder.records_of(file)]
        found = [(sum(record.status == status for record in records), status) for status in ("failed", "skipped")]
        parts = [f"{counted(count, 'cell')} {status}" for count, status in found if count]
        suite = folder.manifest().suite
        parts += _missing_rounds(record for record in records if isinstance(record, ActiveLearningRecord))
        try:  # other runs of other tasks have a record of all that their suite asks for
            tested = set() if "task" in suite else {recorded(one.name) for one in Suite.model_validate(suite).tested_sets()}
            without = sorted(tested - {record.set_name for record in records})
            parts += [f"no cell of {', '.join(without)}"] if without else []
        except ValidationError:
            parts.append("another version of oodbench wrote its suite, so sets without cells are not known")
        if parts:
            lines.append(f"{folder.path}: {', '.join(parts)}")
    study = folders[0].study
    missing = study.missing() if study else {}
    return lines + [f"{path}: the run {name} is not finished ({why})" for name, why in missing.items()]


def _missing_rounds(records: Iterable[ActiveLearningRecord]) -> list[str]:
    """The strategies whose rounds do not reach the last one of their protocol, as in a run that was killed."""
    last: dict[str, ActiveLearningRecord] = {}
    for record in sorted(records, key=lambda one: one.round):
        last[record.set_name] = record
    return [
        f"{name} ends at round {record.round} of {record.last_round}"
        for name, record in last.items()
        if record.last_round is not None and record.round < record.last_round
    ]


def unpack(path: str | Path) -> Path:
    """The folder that a bundle holds, unpacked for as long as this process runs. A path to a folder is returned as it is.

    Raises BadData for a file that is not, to the byte, a bundle, and one of a newer schema version. Figures are not verified.
    """
    path = Path(path)
    if not path.is_file():
        return path
    require_regular(path)
    digest = _sha256(path)
    if digest not in _unpacked:
        temporary = tempfile.TemporaryDirectory(prefix="oodbench-")
        folder = Path(temporary.name, path.stem or "bundle")
        folder.mkdir()
        _unpack_into(folder, path)
        with tempfile.TemporaryFile() as again:
            try:
                _pack(folder, again)
            except OodbenchError as error:
                raise _refused(path, _inside(reason(error), folder)) from error
            again.seek(0)
            if hashlib.file_digest(again, "sha256").hexdigest() != digest:
                raise _refused(path, "it is not laid out as oodbench writes it, so it was edited")
        _unpacked[digest] = temporary
    return next(Path(_unpacked[digest].name).iterdir())


def verify(path: str | Path, progress: Progress | None = None) -> Verification:
    """Compute every figure of a run, study or bundle again from its stored scores, and compare all that it says with itself.

    Figures must agree within 1e-9. A study is verified run by run. Problems of a bundle name files by their path in it.

    Raises UsageError for a folder that no run wrote, BadData for a study whose study.json is damaged, and for a file that is
    not, to the byte, a bundle.
    """
    path, folder = Path(path), unpack(path)
    found = verify_folder(folder, progress)
    if folder == path:
        return found
    return found._replace(path=path, problems=[_inside(problem, folder) for problem in found.problems])


def opened(path: Path, progress: Progress | None = None) -> Path:
    """The folder of a run or study, also of a bundle, which must verify first. Raises BadData as ``unpack``."""
    if not path.is_file():
        return path
    found = verify(path, progress)
    if not found.ok:
        more = f" and {counted(len(found.problems) - 1, 'more problem')}" if len(found.problems) > 1 else ""
        raise BadData(f"{path} does not verify ({found.problems[0]}{more}); {AGAIN}")
    return unpack(path)


def open_folders(
    path: Path, without_costs: Say | None = None, progress: Progress | None = None, verified: bool = False
) -> list[RunFolder]:
    """As ``run_folders``, also of a bundle, after which they are called, and which must verify unless it was ``verified``."""
    found = run_folders(folder := unpack(path) if verified else opened(path, progress), without_costs)
    for run in found:
        run.name = str(path / run.path.relative_to(folder))
    return found


def _unpack_into(folder: Path, path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _check_members(archive, path)
            for name, told in manifest.files.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                digest, left = hashlib.sha256(), told.bytes
                with archive.open(name) as source, target.open("xb") as file:
                    while chunk := source.read(min(CHUNK, left + 1)):
                        left -= len(chunk)
                        digest.update(chunk)
                        file.write(chunk)
                if left or digest.hexdigest() != told.sha256:
                    raise _refused(path, f"{name} is damaged, or was edited")
    except OodbenchError:
        raise
    except OSError as error:
        raise OodbenchError(f"cannot unpack {path}: {error.strerror or error}; free space in {folder.parent.parent}") from error
    except Exception as error:  # zipfile raises errors of many kinds
        raise _refused(path, f"it is truncated, or not a bundle of oodbench ({reason(error)})") from error


def _check_members(archive: zipfile.ZipFile, path: Path) -> BundleManifest:
    """Check all members before any is read, and return the manifest."""
    members = archive.infolist()
    if len(members) > MOST_FILES or sum(member.file_size for member in members) > path.stat().st_size:
        raise _refused(path, "it claims to hold more files or bytes than its size allows")
    for member in members:
        if not MEMBER.fullmatch(member.filename) and member.filename != MANIFEST:
            raise _refused(path, f"it holds {member.filename[:80]!r}, which no run has")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _refused(path, f"{member.filename} is not a regular file")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise _refused(path, f"{member.filename} is compressed or encrypted, which no bundle is")
    names = {member.filename for member in members}
    if MANIFEST not in names or archive.getinfo(MANIFEST).file_size > MOST_TEXT:
        raise _refused(path, f"it has no {MANIFEST} of oodbench")
    told = finite_json(archive.read(MANIFEST))
    version = told.get("schema_version") if isinstance(told, dict) else None
    if type(version) is int and version > SCHEMA_VERSION:
        raise BadData(f"{path} has schema version {version}, and this oodbench reads {SCHEMA_VERSION}; use a newer oodbench")
    try:
        manifest = BundleManifest.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        raise _refused(path, f"{MANIFEST}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if len(names) < len(members) or (differ := names ^ {MANIFEST, *manifest.files}):
        name = min(differ) if len(names) == len(members) else "a name that it holds twice"
        raise _refused(path, f"its files are not those of its {MANIFEST} ({name})")
    return manifest


def _pack(folder: Path, out: IO[bytes]) -> None:
    """Write a bundle of a verified folder."""
    files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    about = {name: BundledFile(bytes=path.stat().st_size, sha256=_sha256(path)) for name, path in sorted(files.items())}
    runs = {run.path.relative_to(folder).as_posix(): _about(run) for run in run_folders(folder)}
    manifest = BundleManifest(files=about, runs=runs).model_dump(mode="json")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member(MANIFEST), json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False))
        for name, told in about.items():
            with files[name].open("rb") as source, archive.open(_member(name, told.bytes), "w") as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)


def _member(name: str, size: int = 0) -> zipfile.ZipInfo:
    """A member whose header says nothing of this machine or of today."""
    member = zipfile.ZipInfo(name)  # of 1980
    member.create_system = 3  # Unix, on every system
    member.external_attr = (stat.S_IFREG | 0o644) << 16
    member.file_size = size
    return member


def _files(folder: Path) -> Iterator[Path]:
    """The files of a run or study that ``verify`` checks."""
    if is_study(folder):
        yield folder / "study.json"
        yield from (folder / name for name in (SEVERITY, RANKS) if (folder / name).exists())
    for run in run_folders(folder):
        yield from (run.path / name for name in ("run.json", "costs.json", SEVERITY) if (run.path / name).exists())
        yield from run.pass_files()
        if run.shared_path.exists():
            yield run.shared_path


def _about(run: RunFolder) -> BundledRun:
    manifest = run.manifest()
    records = [record for path in run.pass_files() for record in run.records_of(path)]
    settings, provenance = manifest.settings, manifest.provenance
    try:
        return BundledRun(
            suite=str(manifest.suite.get("name", "")),
            model=str(settings.get("model", "")),
            weights=settings.get("weights"),
            model_card=provenance.get("model_card"),
            in_distribution=str(settings.get("in_distribution", "")),
            seed=settings.get("seed", 0),
            records=len(records),
            environment={name: provenance[name] for name in ENVIRONMENT if name in provenance},
            code={one.plugin: one.code for one in records if one.plugin and one.status == "ok"},
        )
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise BadData(f"{run.path / 'run.json'} is not what oodbench writes ({what}); run it again") from error


def _inside(message: str, folder: Path) -> str:
    """A message without the temporary folder."""
    return message.replace(f"{folder}/", "").replace(str(folder), folder.name)


def _refused(path: Path, why: str) -> BadData:
    return BadData(f"{path} is refused: {why}; {AGAIN}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
