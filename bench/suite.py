"""Suites: TOML files that say which sets, detectors and protocols make a benchmark, ours in the package or anyone's."""

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oodbench.errors import UsageError
from oodbench.registry import unknown

Kind = Literal["near-ood", "far-ood", "corruption", "adversarial", "anomaly"]
PROTOCOLS = ("unsupervised", "per-shift")


class ShiftSet(BaseModel):
    """One set against the in-distribution one; ``levels`` stands for one set a level, ``name@level``."""

    model_config = ConfigDict(extra="forbid")

    name: str
    kind: Kind | None = None  # None: the set's own default
    levels: list[int] = []


class Suite(BaseModel):
    """What a suite file says. Sizes in pixels; ``size`` None keeps the in-distribution set's own."""

    model_config = ConfigDict(extra="forbid")

    name: str = ""
    title: str = ""
    model: str | None = None  # None: a suite without a network
    in_distribution: str
    train_split: str = "train"
    test_split: str = "test"
    size: int | None = Field(default=None, ge=1)
    resize: str = "bilinear"
    protocols: list[Literal["unsupervised", "per-shift"]] = ["unsupervised", "per-shift"]
    detectors: list[str] = Field(min_length=1)
    parameters: dict[str, dict[str, Any]] = {}  # by detector
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=256, ge=1)
    sets: list[ShiftSet] = Field(min_length=1)

    def names_and_kinds(self) -> list[tuple[str, Kind | None]]:
        """One (name, kind) a set and level, in order."""
        return [(f"{s.name}@{level}" if level else s.name, s.kind) for s in self.sets for level in (s.levels or [0])]

    def customised(
        self,
        *,
        model: str | None = None,
        detectors: Sequence[str] | None = None,
        parameters: Mapping[str, Mapping[str, Any]] | None = None,
        datasets: Sequence[str] | None = None,
        protocols: Sequence[str] | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
    ) -> "Suite":
        """The suite with what is given instead of its own. A set that the suite names keeps its kind and levels.

        Raises UsageError for an unknown protocol, and for parameters of a detector that does not run.
        """
        known = {s.name: s for s in self.sets} | {n: ShiftSet(name=n, kind=kind) for n, kind in self.names_and_kinds()}
        run = list(dict.fromkeys(detectors or self.detectors))
        given_parameters = {name: dict(values) for name, values in (parameters or {}).items()}
        if strangers := set(given_parameters) - set(run):
            raise UsageError(f"parameters are given for {', '.join(sorted(strangers))}, which does not run; add --detector")
        for protocol in protocols or ():
            if protocol not in PROTOCOLS:
                raise UsageError(unknown("protocol", protocol, PROTOCOLS, " or ".join(PROTOCOLS)))
        changes: dict[str, Any] = {
            "model": model,
            "sets": [known.get(name, ShiftSet(name=name)) for name in dict.fromkeys(datasets or ())],
            "protocols": list(dict.fromkeys(protocols or ())),
            "seed": seed,
            "batch_size": batch_size,
        }
        given = {name: value for name, value in changes.items() if value is not None and value != []}
        own = {name: values for name, values in self.parameters.items() if name in run}
        merged = {name: own.get(name, {}) | given_parameters.get(name, {}) for name in run}
        given |= {"detectors": run, "parameters": {name: values for name, values in merged.items() if values}}
        return _validated(self.model_copy(update=given).model_dump(), self.name)


def suite_names() -> list[str]:
    """The suites in the package."""
    folder = resources.files("oodbench") / "suites"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def load_suite(name: str | Path) -> Suite:
    """A suite by name, or from a file that ends in ``.toml``.

    Raises UsageError for an unknown name and for a file that is no suite, naming the key that is wrong.
    """
    if str(name).endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"no suite file {path}")
        text, stem = path.read_text(encoding="utf-8", errors="replace"), path.stem
    elif str(name) in suite_names():
        text, stem = (resources.files("oodbench") / "suites" / f"{name}.toml").read_text(encoding="utf-8"), str(name)
    else:
        listing = "oodbench list suites, or a FILE.toml"
        raise UsageError(unknown("suite", str(name), suite_names(), listing))
    try:
        return _validated({"name": stem} | tomllib.loads(text), name)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is no TOML: {error}") from error


def _validated(values: dict[str, Any], name: object) -> Suite:
    try:
        return Suite.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"suite {name}: {place}: {first['msg']}") from error
