"""Suites: TOML files, in the package or your own, that list the sets, detectors and protocols of a benchmark."""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from oodbench import registry
from oodbench.datasets.name import FOLDER, MISCLASSIFIED, canonical, folder_name, parse, recorded
from oodbench.errors import UsageError
from oodbench.models import imports_code
from oodbench.paths import read_small
from oodbench.registry import unknown

Kind = Literal["near-ood", "far-ood", "corruption", "adversarial", "anomaly", "benign"]
Protocol = Literal["unsupervised", "per-shift", "transfer"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
ALL = "all"  # in place of a detector's name
MOST_SEED = 2**63 - 1  # the largest whole number of a tensor
SetName = Annotated[str, AfterValidator(canonical)]


def _folder_name(name: str) -> str:
    """Refuse a name that is a path: the run folder is ``runs/NAME``."""
    if name and (name == ".." or name != PurePosixPath(name).name or name != PureWindowsPath(name).name):
        why = "'{name}' is not the name of one folder; leave out / and the like, or name the run folder with --out"
        raise PydanticCustomError("folder_name", why, {"name": name})
    return name


FolderName = Annotated[str, AfterValidator(_folder_name)]


class UntrustedModel(UsageError):
    """The model of a suite file is code, which the file may not name unless it is trusted."""


class TestSet(BaseModel):
    """One set to tell from the in-distribution set; ``levels`` expands to one set per level, ``name@level``.

    ``first``: use only the first ``first`` images of the set that it is made from; the limit of a run takes precedence.
    ``settings``: settings of an attack.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    __test__ = False  # keeps pytest from collecting it because of its name

    name: SetName
    kind: Kind | None = None  # None: the set's own default
    levels: list[int] = []
    first: int | None = Field(default=None, ge=1)
    settings: dict[str, Any] = {}
    tested: bool = True  # False: only used as the set that transfer learns from

    def each(self) -> list["TestSet"]:
        """One set per level, with its full name."""
        return [self.model_copy(update={"name": f"{self.name}@{level}", "levels": []}) for level in self.levels] or [self]


class Suite(BaseModel):
    """The content of a suite file. Sizes are in pixels; ``size`` None keeps the size of the in-distribution set."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: FolderName = ""
    title: str = ""
    model: str | None = None  # None: a suite without a network
    weights: str | None = None  # file of the model's weights, from the working folder
    in_distribution: SetName
    train_split: str = "train"
    test_split: str = "test"
    validation: int = Field(default=0, ge=0)  # test images set apart to calibrate heads and detectors
    size: int | None = Field(default=None, ge=1)
    resize: str = "bilinear"
    protocols: list[Protocol] = ["unsupervised", "per-shift"]
    learnt_share: float = Field(default=0.5, ge=0.01, le=0.5)  # of a set's images, what heads may learn from
    transfer_from: SetName | None = None  # full name (with level) of the set that transfer learns from
    detectors: list[str] = Field(min_length=1)
    parameters: dict[str, dict[str, Any]] = {}  # by detector
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    batch_size: int = Field(default=256, ge=1)
    sets: list[TestSet] = Field(min_length=1)

    @field_validator("detectors", mode="before")
    @classmethod
    def _each_detector(cls, value: Any) -> Any:
        return _each(value) if isinstance(value, str | list) else value

    def recorded(self) -> dict[str, Any]:
        """The suite as JSON values, with the names of sets that results have, and without paths."""
        values = self.model_dump(mode="json", exclude={"weights"})
        values["sets"] = [one | {"name": recorded(one["name"])} for one in values["sets"]]
        names = {key: values[key] and recorded(values[key]) for key in ("in_distribution", "transfer_from")}
        return values | names

    def each_set(self) -> dict[str, TestSet]:
        """All sets by full name, one per level, in order, including a set that only transfer reads."""
        return {one.name: one for several in self.sets for one in several.each()}

    def tested_sets(self) -> list[TestSet]:
        """The sets of ``each_set`` that have cells."""
        return [one for one in self.each_set().values() if one.tested]

    def override(
        self,
        *,
        model: str | None = None,
        detectors: str | Sequence[str] | None = None,
        parameters: Mapping[str, Mapping[str, Any]] | None = None,
        datasets: str | Sequence[str] | None = None,
        protocols: str | Sequence[str] | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        size: int | None = None,
    ) -> "Suite":
        """The suite with the given values in place of its own. A set that the suite lists keeps its kind and levels.

        The set that transfer learns from is kept, tested or not. Raises UsageError for an unknown protocol, for transfer
        from a set that the suite does not list, and for parameters of a detector that does not run.
        """
        known = {one.name: one for one in self.sets} | self.each_set()
        run = list(dict.fromkeys(_each(detectors or self.detectors)))
        given_parameters = {name: dict(values) for name, values in (parameters or {}).items()}
        if strangers := set(given_parameters) - set(run):
            raise UsageError(f"parameters given for {', '.join(sorted(strangers))}, which does not run; add --detector")
        protocols = as_names(protocols or ())
        for protocol in protocols:
            if protocol not in PROTOCOLS:
                raise UsageError(unknown("protocol", protocol, PROTOCOLS, " or ".join(PROTOCOLS)))
        wanted = [known.get(name, TestSet(name=name)) for name in map(canonical, as_names(datasets or ()))]
        asked = {one.name: one for several in wanted for one in several.each()}
        changes: dict[str, Any] = {
            "model": model,
            "sets": list(asked.values()),
            "protocols": list(dict.fromkeys(protocols)),
            "seed": seed,
            "batch_size": batch_size,
            "size": size,
        }
        given = {name: value for name, value in changes.items() if value is not None and value != []}
        own = {name: values for name, values in self.parameters.items() if name in run}
        merged = {name: own.get(name, {}) | given_parameters.get(name, {}) for name in run}
        if "sets" in given:
            given["sets"] = [one.model_copy(update={"tested": True}) for one in given["sets"]]
            if self.transfer_from in known and self.transfer_from not in asked:
                given["sets"].append(known[self.transfer_from].model_copy(update={"tested": False}))
        if model is not None and model != self.model:
            given["weights"] = None  # those of the other model
        given |= {"detectors": run, "parameters": {name: values for name, values in merged.items() if values}}
        return _validated(self.model_copy(update=given).model_dump(), self.name)


def _each(detectors: str | Sequence[str]) -> list[str]:
    """The names, with ``all``, alone or among them, replaced by every detector that is available."""
    detectors = as_names(detectors)
    available = [name for name, record in registry.records("detectors").items() if not record.error] if ALL in detectors else []
    return list(dict.fromkeys(name for one in detectors for name in (available if one == ALL else [one])))


def as_names(names: str | Sequence[str]) -> list[str]:
    """The names as a list; a text is one name, not its letters."""
    return [names] if isinstance(names, str) else list(names)


def suite_names() -> list[str]:
    """Names of the suites in the package."""
    folder = resources.files("oodbench") / "suites"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def suite_text(name: str | Path) -> str:
    """The TOML of a suite in the package, or of a file that ends in ``.toml``. Raises UsageError if there is none."""
    if str(name).endswith(".toml"):
        path = Path(name)
        if not path.exists():
            raise UsageError(f"suite file {path} does not exist")
        return read_small(path).decode("utf-8-sig", "replace")
    if str(name) in suite_names():
        return (resources.files("oodbench") / "suites" / f"{name}.toml").read_text(encoding="utf-8")
    raise UsageError(unknown("suite", str(name), suite_names(), "oodbench list suites, or a FILE.toml"))


def load_suite(name: str | Path, *, trust_model: bool = False) -> Suite:
    """Load a suite by name, or from a file that ends in ``.toml``.

    ``trust_model``: whether a file outside the working folder may name a model ``module:function``, which a run imports.

    Raises UsageError for an unknown name and for an invalid suite file, naming the wrong key, and UntrustedModel for a model
    that is not trusted. Parameters are for detectors that the suite lists.
    """
    suite = read_suite(suite_text(name), name)
    if suite.model and imports_code(suite.model) and not (trust_model or below_working_folder(Path(name))):
        raise UntrustedModel(
            f"suite {name}: model: {suite.model} is code, which a suite outside the working folder may not name; if you trust"
            " the file, use --trust-model (in Python trust_model=True), or copy it here"
        )
    return suite


def read_suite(text: str, name: str | Path) -> Suite:
    """A suite from the TOML of a file of this name. Raises UsageError as ``load_suite``."""
    try:
        suite = _validated({"name": Path(name).stem} | tomllib.loads(text), name)
    except ValueError as error:  # also a number of too many digits
        raise UsageError(f"{name} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{name} is nested too deeply; write its arrays and tables flat") from error
    for detector in suite.parameters:
        if detector not in suite.detectors:
            listing = f"its detectors are {', '.join(suite.detectors)}"
            raise UsageError(f"suite {name}: parameters: {unknown('detector', detector, suite.detectors, listing)}")
    return suite


def chosen_suite(
    suite: str | Path | Suite | None,
    in_distribution: str | None = None,
    *,
    model: str | None = None,
    datasets: str | Sequence[str] | None = None,
    detectors: str | Sequence[str] | None = None,
    trust_model: bool = False,
) -> Suite:
    """The suite to run: the given one, else one made of an in-distribution set and the rest, else ``digits``.

    The one that is made has every detector by default, and the name of its in-distribution set.

    Raises UsageError for what is missing or given twice, and as ``load_suite``.
    """
    if in_distribution is None:
        return suite if isinstance(suite, Suite) else load_suite("digits" if suite is None else suite, trust_model=trust_model)
    if suite is not None:
        raise UsageError(
            f"--in-distribution {in_distribution} takes the place of a suite; leave out the suite, or change its"
            " in_distribution in a file (oodbench list suites --show NAME)"
        )
    sets = list(dict.fromkeys(map(canonical, as_names(datasets or ()))))
    if not sets:
        raise UsageError(
            f"--in-distribution {in_distribution} needs a set to tell it from; add --dataset SET, such as folder:PATH,"
            f" uniform or {canonical(in_distribution)}+noise@3"
        )
    if model is None and not detectors:
        raise UsageError(
            f"--in-distribution {in_distribution} needs the network that knows it; add --model NAME or --model module:function,"
            " or, for a detector that needs no network, --detector NAME"
        )
    values = {
        "name": named_after(in_distribution),
        "title": title_of(in_distribution, sets),
        "model": model,
        "in_distribution": in_distribution,
        "detectors": _each(detectors or ALL),
        "sets": [{"name": name} for name in sets],
    }
    return _validated(values, values["name"])


def named_after(in_distribution: str) -> str:
    """The name of a suite made of this in-distribution set: ``mydata`` for ``folder:/home/me/mydata``."""
    name = parse(in_distribution).original.removeprefix(f"{FOLDER}:")
    return re.sub(r"[/\\:]+", "-", name).replace("++", "+")


def title_of(in_distribution: str, sets: Sequence[str]) -> str:
    """The title of a suite made of these sets."""
    return f"{recorded(in_distribution)} against {', '.join(map(recorded, sets))}"


def below_working_folder(path: Path) -> bool:
    """Whether a file is in the working folder or below it, links followed."""
    return path.resolve().is_relative_to(Path.cwd().resolve())


def _validated(values: dict[str, Any], name: object) -> Suite:
    try:
        suite = Suite.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"suite {name}: {_complaint(error.errors(), values)}") from error
    sets = suite.each_set()
    paths: dict[str, str] = {}
    for path in (parse(one).path for one in (suite.in_distribution, *sets) if one.startswith(f"{FOLDER}:")):
        other = paths.setdefault(recorded(folder_name(path)), path)
        if other != path:
            raise UsageError(
                f"suite {name}: {other} and {path} would both be {recorded(folder_name(path))} in results; rename one, or name"
                " it from a folder above it: --data DIR and folder:PATH"
            )
    if len(sets) < sum(len(one.each()) for one in suite.sets):
        twice = Counter(one.name for several in suite.sets for one in several.each()).most_common(1)[0][0]
        raise UsageError(f"suite {name}: lists the set {twice} twice; remove one, or write another suite")
    if suite.transfer_from is not None and suite.transfer_from not in sets:
        listing = f"its sets are {', '.join(sets)}"
        raise UsageError(f"suite {name}: transfer_from: {unknown('set', suite.transfer_from, sets, listing)}")
    source = suite.transfer_from
    if source is not None and (kind := sets[source].kind or parse(source).kind) in ("benign", MISCLASSIFIED):
        raise UsageError(f"suite {name}: transfer_from: nothing can be learnt from {source}, which is {kind}; name another set")
    if "transfer" in suite.protocols and suite.transfer_from is None:
        raise UsageError(f"suite {name}: transfer needs transfer_from, the name of one of its sets to learn from, in its file")
    return suite


TAKES = {  # by pydantic's type of error
    "string_type": "a text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}


def _complaint(errors: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> str:
    """What is wrong with a key of a suite file; an unknown key goes first, because another may be missing for it."""
    error = min(errors, key=lambda one: one["type"] != "extra_forbidden")
    kind, place, limits, given = error["type"], error["loc"], error.get("ctx", {}), error["input"]
    key, of_set = str(place[-1]), place[0] == "sets" and len(place) > 1
    if kind == "extra_forbidden":
        known = list((TestSet if of_set else Suite).model_fields)
        return unknown("key", key, known, ", ".join(known))
    parts = [part if isinstance(part, str) else f"item {part + 1}" for part in place]
    if of_set:
        one = values["sets"][place[1]]
        name = one.get("name") if isinstance(one, dict) else None
        parts[:2] = [f"set {name if isinstance(name, str) else place[1] + 1}"]
    what = " of ".join(reversed(parts))
    if kind == "missing":
        return f"{what} is missing; add {'[[sets]], each with a name' if key == 'sets' else f'{key} = …'}"
    if kind == "too_short":
        return f"{what} is empty; name at least one"
    if kind == "literal_error" and isinstance(given, str):
        known = re.findall("'(.*?)'", limits["expected"])
        return unknown(what, given, known, ", ".join(known))
    bounds = [f"{words} {limits[bound]}" for bound, words in (("ge", "at least"), ("le", "at most")) if bound in limits]
    if not (takes := TAKES.get(kind) or limits.get("expected") or " ".join(bounds)):
        return f"{what}: {error['msg']}"
    shown, remedy = _shortened(given), ""
    if kind == "list_type" and isinstance(given, str) and key != "sets":
        remedy = f"; write {key} = [{shown}]"
    elif place[0] == "sets" and len(place) < 3:
        remedy = "; write [[sets]] above the name of each set"
    return f"{what} takes {takes}, not {shown}{remedy}"


def _shortened(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:60]}…"
