"""Suites: what one run of a benchmark is made of. ``oodbench.suites`` reads them from files."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from oodbench import registry
from oodbench.datasets.name import MISCLASSIFIED, Name, canonical, parse, recorded
from oodbench.errors import UsageError
from oodbench.registry import unknown

Kind = Literal["near-ood", "far-ood", "csid", "corruption", "adversarial", "anomaly", "benign"]
Protocol = Literal["unsupervised", "per-shift", "transfer", "validation"]
Precision = Literal["float32", "bf16", "fp16"]
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


class TestSet(BaseModel):
    """One set to tell from the in-distribution set; ``levels`` expands to one set per level, ``name@level``.

    ``NAME/*`` stands for all parts of a set that are there and that the suite does not list otherwise.

    ``first``: use only the first ``first`` images of the set that it is made from; the limit of a run takes precedence.
    ``settings``: settings of an attack. ``otherwise``: the set that is used instead where this one's files are missing.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    __test__ = False  # keeps pytest from collecting it because of its name

    name: SetName
    kind: Kind | None = None  # None: the set's own default
    levels: list[int] = []
    first: int | None = Field(default=None, ge=1)
    settings: dict[str, Any] = {}
    otherwise: SetName | None = None
    tested: bool = True  # False: only used as the set that transfer learns from

    def each(self) -> list["TestSet"]:
        """One set per level, with its full name."""

        def at(name: str | None, level: int) -> str | None:
            return name and f"{name}@{level}"

        names = ("name", "otherwise")
        each = ({name: at(getattr(self, name), level) for name in names} for level in self.levels)
        return [self.model_copy(update={**of, "levels": []}) for of in each] or [self]


class ValidationSet(BaseModel):
    """The anomalous images on which the protocol ``validation`` chooses hyper-parameters, and which are never tested.

    ``images``: how many are drawn, the same for every seed of a run; None for all.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    name: SetName
    split: str = "test"
    images: int | None = Field(default=None, ge=1)

    @property
    def label(self) -> str:
        """What results call it: the name and the split."""
        return f"{recorded(self.name)} ({self.split})"


class Suite(BaseModel):
    """The content of a suite file.

    ``size``, ``resize`` and ``shorter_side`` are those of ``Transform``, in place of what the network states. Where neither
    does, all sets get the size of the in-distribution set.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    name: FolderName = ""
    title: str = ""
    model: str | None = None  # None: a suite without a network
    network: str | None = Field(default=None, min_length=1, max_length=60)  # its name, if its weights have no card
    weights: str | None = None  # file of the model's weights, from the working folder
    layers: list[str] | None = Field(default=None, min_length=1)  # that layered detectors read; None: the network's own
    in_distribution: SetName
    train_split: str = "train"
    test_split: str = "test"
    validation: int = Field(default=0, ge=0)  # test images set apart to calibrate heads and detectors
    validation_split: str | None = None  # of the in-distribution set: images that the protocol validation chooses on
    validation_set: ValidationSet | None = None  # anomalous images that the protocol validation chooses on
    size: int | None = Field(default=None, ge=1)
    resize: str | None = None
    shorter_side: int | None = Field(default=None, ge=1)
    protocols: list[Protocol] = ["unsupervised", "per-shift"]
    fit_images: int | None = Field(default=None, ge=1)  # training images to learn from, drawn by the seed; None for all
    full_spectrum: bool = False  # whether sets of the kind csid are part of the in-distribution test images
    learnt_share: float = Field(default=0.5, ge=0.01, le=0.5)  # of a set's images, what heads may learn from
    transfer_from: SetName | None = None  # full name (with level) of the set that transfer learns from
    detectors: list[str] = Field(min_length=1)
    parameters: dict[str, dict[str, Any]] = {}  # by detector
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    batch_size: int | None = Field(default=None, ge=1)  # ``batching.default_batch_size`` if None
    precision: Precision = "float32"  # of the forward passes of detectors that need no gradients
    sets: list[TestSet] = Field(min_length=1)

    @field_validator("detectors", mode="before")
    @classmethod
    def _each_detector(cls, value: Any) -> Any:
        return each_detector(value) if isinstance(value, str | list) else value

    def recorded(self) -> dict[str, Any]:
        """The suite as JSON values, with the names of sets that results have, and without paths."""
        values = self.model_dump(mode="json", exclude={"weights"})
        sets = ({key: value for key, value in one.items() if key != "otherwise"} for one in values["sets"])
        values["sets"] = [one | {"name": recorded(one["name"])} for one in sets]
        names = {key: values[key] and recorded(values[key]) for key in ("in_distribution", "transfer_from")}
        if values["validation_set"]:
            values["validation_set"]["name"] = recorded(values["validation_set"]["name"])
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
        detectors: str | Sequence[str] | None = None,
        parameters: Mapping[str, Mapping[str, Any]] | None = None,
        datasets: str | Sequence[str] | None = None,
        protocols: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        precision: str | None = None,
        size: int | None = None,
        resize: str | None = None,
        shorter_side: int | None = None,
        layers: str | Sequence[str] | None = None,
        fit_images: int | None = None,
    ) -> "Suite":
        """The suite with the given values in place of its own. A set that the suite lists keeps its kind and levels.

        The set that transfer learns from is kept, tested or not. Raises UsageError for an unknown protocol, for transfer
        from a set that the suite does not list, and for parameters of a detector that does not run.
        """
        known = {one.name: one for one in self.sets} | self.each_set()
        run = list(dict.fromkeys(each_detector(detectors or self.detectors)))
        given_parameters = {name: dict(values) for name, values in (parameters or {}).items()}
        if strangers := set(given_parameters) - set(run):
            raise UsageError(f"parameters given for {', '.join(sorted(strangers))}, which does not run; add --detector")
        if precision not in (None, *get_args(Precision)):
            raise UsageError(unknown("precision", str(precision), get_args(Precision), " or ".join(get_args(Precision))))
        protocols = as_names(protocols or ())
        for protocol in protocols:
            if protocol not in PROTOCOLS:
                raise UsageError(unknown("protocol", protocol, PROTOCOLS, " or ".join(PROTOCOLS)))
        wanted = [known.get(name, TestSet(name=name)) for name in map(canonical, as_names(datasets or ()))]
        asked = {one.name: one for several in wanted for one in several.each()}
        changes: dict[str, Any] = {
            "sets": list(asked.values()),
            "protocols": list(dict.fromkeys(protocols)),
            "batch_size": batch_size,
            "precision": precision,
            "size": size,
            "resize": resize,
            "shorter_side": shorter_side,
            "layers": as_names(layers or ()),
            "fit_images": fit_images,
        }
        given = {name: value for name, value in changes.items() if value is not None and value != []}
        own = {name: values for name, values in self.parameters.items() if name in run}
        merged = {name: own.get(name, {}) | given_parameters.get(name, {}) for name in run}
        if "sets" in given:
            given["sets"] = [one.model_copy(update={"tested": True}) for one in given["sets"]]
            if self.transfer_from in known and self.transfer_from not in asked:
                given["sets"].append(known[self.transfer_from].model_copy(update={"tested": False}))
        given |= {"detectors": run, "parameters": {name: values for name, values in merged.items() if values}}
        return validated(self.model_copy(update=given).model_dump(), self.name)


def each_detector(detectors: str | Sequence[str]) -> list[str]:
    """The names, with ``all``, alone or among them, replaced by every detector that is available."""
    detectors = as_names(detectors)
    available = [name for name, record in registry.records("detectors").items() if not record.error] if ALL in detectors else []
    return list(dict.fromkeys(name for one in detectors for name in (available if one == ALL else [one])))


def as_names(names: str | Sequence[str]) -> list[str]:
    """The names as a list; a text is one name, not its letters."""
    return [names] if isinstance(names, str) else list(names)


Model = TypeVar("Model", bound=BaseModel)


def parsed_as(kind: type[Model], values: Mapping[str, Any], name: object) -> Model:
    """The values of a suite file as this model. Raises UsageError that names the suite and the wrong key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"suite {name}: {_complaint(error.errors(), values, kind)}") from error


def refuse_empty_lists(values: Mapping[str, Any], model: type[BaseModel], name: object) -> None:
    """Raise UsageError for a list without items in a suite file: the default that is used for it is not what it says.

    The values need not be valid. A list without a default, such as ``detectors``, is left to the model.
    """
    sets = values.get("sets") if "sets" in model.model_fields else None
    tables: list[tuple[str, Mapping[str, Any], type[BaseModel]]] = [("", values, model)]
    for place, one in enumerate(sets, 1) if isinstance(sets, list) else ():
        if isinstance(one, dict):
            tables.append((f" of set {one.get('name', place)}", one, TestSet))
    for of, table, kind in tables:
        for key, value in table.items():
            if value == [] and key in kind.model_fields and not kind.model_fields[key].is_required():
                raise UsageError(f"suite {name}: {key}{of} is empty; name at least one, or leave it out")


def validated(values: dict[str, Any], name: object) -> Suite:
    """A suite with these values. Raises UsageError that names the suite and the wrong key."""
    suite = parsed_as(Suite, values, name)
    if doubled := [protocol for protocol, count in Counter(suite.protocols).items() if count > 1]:
        raise UsageError(f"suite {name}: protocols names {doubled[0]} twice; remove one")
    sets = suite.each_set()
    paths: dict[str, str] = {}
    for parsed in map(parse, (suite.in_distribution, *sets)):
        in_results = recorded(parsed.whole)
        other = paths.setdefault(in_results, parsed.path)
        if other != parsed.path:
            raise UsageError(
                f"suite {name}: {other} and {parsed.path} would both be {in_results} in results; rename one, or name it from a"
                f" folder above it: --data DIR and {parsed.base}:PATH"
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
    _check_validation_set(suite, name)
    return suite


def _check_validation_set(suite: Suite, name: object) -> None:
    """Raise UsageError where the protocol ``validation`` has no set, or one that no detector may choose on."""
    one = suite.validation_set
    if one is None:
        if "validation" in suite.protocols:
            raise UsageError(
                f"suite {name}: the protocol validation needs anomalous images that are not tested; name them in its file under"
                " [validation_set], with name and split"
            )
        return
    parsed = parse(one.name)
    if parsed.attack or parsed.kind in ("benign", MISCLASSIFIED):
        raise UsageError(f"suite {name}: validation_set: {one.name} is {parsed.kind}; name a set without that change")
    tested = [other for other in suite.each_set() if one.split == "test" and _share_images(parsed, parse(other))]
    if tested:
        raise UsageError(
            f"suite {name}: validation_set: {one.label} is also tested, as {recorded(tested[0])}, and hyper-parameters must not"
            f" be chosen on tested images; leave out {recorded(tested[0])}, or name another set or split to choose on"
        )
    if suite.validation_split in (suite.train_split, suite.test_split):
        raise UsageError(
            f"suite {name}: validation_split: the split {suite.validation_split} is fitted or tested on; name another, or leave"
            " it out to choose on a part of the test images"
        )


def _share_images(one: Name, other: Name) -> bool:
    """Whether sets of these names have images in common: parts of one set do, unless they are two classes of it."""
    whole = {(name.base, name.path) for name in (one, other)}
    parts = {name.part for name in (one, other)}
    classes = {name.wanted_class for name in (one, other)}
    return len(whole) == 1 and (len(parts) == 1 or "*" in parts) and (len(classes) == 1 or "" in classes)


TAKES = {  # by pydantic's type of error
    "string_type": "a text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}


def _complaint(errors: Sequence[Mapping[str, Any]], values: Mapping[str, Any], model: type[BaseModel]) -> str:
    """What is wrong with a key of a suite file; an unknown key goes first, because another may be missing for it."""
    error = min(errors, key=lambda one: one["type"] != "extra_forbidden")
    kind, place, limits, given = error["type"], error["loc"], error.get("ctx", {}), error["input"]
    key, of_set = str(place[-1]), place[0] == "sets" and len(place) > 1
    if kind == "extra_forbidden":
        grid = ["models", "networks", "seeds", "normal_class"] if model is Suite else []
        known = [*TestSet.model_fields, "of"] if of_set else [*model.model_fields, *grid]
        known = [*ValidationSet.model_fields] if place[0] == "validation_set" and len(place) > 1 else known
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
        return unknown(parts[-1], given, known, ", ".join(known), of=" of ".join(reversed(parts[:-1])))
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
