"""run.json and costs.json of a run folder: what they say, and a checksum, so that damage and edits are noticed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from oodbench.errors import BadData
from oodbench.paths import read_small, write_atomically
from oodbench.results.facts import finite_json
from oodbench.results.records import SCHEMA_VERSION
from oodbench.results.schema_1 import VERSION_1
from oodbench.suite import FolderName

SITE = "site.json"
SITE_FILE = r"^([a-z]+/)?[a-z0-9][a-z0-9._-]*$"  # no path leaves the folder
CHECKSUM = "sha256"  # an entry of both files
NO_COSTS = "`oodbench run` measures costs again"  # remedy
Kind = TypeVar("Kind", bound=BaseModel)
Costs = dict[str, dict[str, float | None]]


class Manifest(BaseModel):
    """What run.json says. All records of a folder share ``settings``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    settings: dict[str, Any]
    suite: dict[str, Any] = {}
    provenance: dict[str, Any] = {}


class StudyManifest(BaseModel):
    """What study.json says: the folder of each run, and why it is not finished (empty where it is)."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    name: FolderName
    title: str = ""
    axes: list[str] = []  # in what the runs differ
    runs: dict[FolderName, str]


class SiteManifest(BaseModel):
    """What site.json says: the SHA-256 of each file of a site."""

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    files: dict[Annotated[str, Field(pattern=SITE_FILE)], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]


class Cost(BaseModel):
    """What a detector costs at a setting; of two figures, how far their repeats differ (None: an earlier oodbench)."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    ms_per_image: float
    overhead: float | None
    peak_memory_mb: float | None
    ms_per_image_spread: float | None = None
    overhead_spread: float | None = None


class AllCosts(RootModel[dict[str, Cost]]):
    """What costs.json says, by ``cost_key``."""


class NewerVersion(BadData):
    """The file is of a schema version that only a newer oodbench reads: it is not damaged."""


def read_manifest(path: Path, remedy: str) -> Manifest:
    """What run.json says. Raises NewerVersion, or BadData for a damaged file, with the remedy."""
    return _validated(Manifest, _read_version(path, remedy), path, remedy)


def read_study(path: Path, remedy: str) -> StudyManifest:
    """What study.json says. Raises as ``read_manifest``."""
    return _validated(StudyManifest, _read_version(path, remedy), path, remedy)


def read_site(path: Path) -> SiteManifest:
    """What site.json says. Raises BadData for a damaged file, or one of another version."""
    remedy = "delete the folder, and write the site again"
    return _validated(SiteManifest, _read(path, remedy), path, remedy)


def _read_version(path: Path, remedy: str) -> dict[str, Any]:
    """A file with a schema version that this oodbench reads, which it has then."""
    found = _read(path, remedy)
    version = found.get("schema_version")
    if type(version) is not int or version not in (VERSION_1, SCHEMA_VERSION):
        says = f"{path} has schema version {version}, and this oodbench reads up to {SCHEMA_VERSION}"
        if type(version) is int and version > SCHEMA_VERSION:
            raise NewerVersion(f"{says}; use a newer oodbench, or choose another folder with --out")
        raise BadData(f"{says}; {remedy}")
    return found | {"schema_version": SCHEMA_VERSION}


def read_costs(path: Path) -> Costs:
    """Standalone cost by ``cost_key``. Raises BadData for a damaged file."""
    return _validated(AllCosts, _read(path, NO_COSTS), path, NO_COSTS).model_dump(exclude_unset=True)


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Write the file, with its checksum, whole or not at all."""
    write_atomically(path, _text({**value, CHECKSUM: _checksum(value)}))


def is_canonical(path: Path) -> bool:
    """Whether the bytes of a file that can be read are those that ``write`` writes, checksum included."""
    text = read_small(path)
    found = finite_json(text.decode())
    return CHECKSUM in found and text == _text(found)


def _text(whole: Mapping[str, Any]) -> bytes:
    return json.dumps(whole, indent=1, sort_keys=True, allow_nan=False).encode()


def _read(path: Path, remedy: str) -> dict[str, Any]:
    try:
        found = finite_json(read_small(path).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise BadData(f"{path} cannot be read ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise BadData(f"{path} is not what oodbench writes; {remedy}")
    return found


def _validated(kind: type[Kind], found: dict[str, Any], path: Path, remedy: str) -> Kind:
    own = {key: value for key, value in found.items() if key != CHECKSUM}
    if found.get(CHECKSUM) not in (None, _checksum(own)):  # None where an earlier oodbench wrote it
        raise BadData(f"{path} is damaged, or was edited; {remedy}")
    try:
        return kind.model_validate(own)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadData(f"{path} is not what oodbench writes ({where}: {first['msg']}); {remedy}") from error


def _checksum(value: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, however they are laid out in the file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
