"""From the name of a suite, a suite file or options to the runs that they stand for."""

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from oodbench.datasets.name import canonical, recorded
from oodbench.errors import UsageError
from oodbench.models import imports_code
from oodbench.paths import read_small
from oodbench.registry import unknown
from oodbench.suite import ALL, Suite, as_names, each_detector, refuse_empty_lists, validated
from oodbench.suites.grid import expand, named_after


class UntrustedModel(UsageError):
    """The model of a suite file is code, which the file may not name unless it is trusted."""


class Study(NamedTuple):
    """The runs that a suite stands for.

    Attributes:
        name, title: those of the suite.
        runs: the suite of each run, by the name of its folder in that of the study; a study of one run has no folder of its
            own, and the name is empty.
    """

    name: str
    title: str
    runs: dict[str, Suite]

    @property
    def axes(self) -> list[str]:
        """What the runs differ in, as the keys of a suite."""
        keys = ("model", "weights", "in_distribution", "seed", "parameters")
        return [key for key in keys if len({repr(getattr(suite, key)) for suite in self.runs.values()}) > 1]

    @property
    def first(self) -> Suite:
        """The suite of the first run."""
        return next(iter(self.runs.values()))

    def override(self, datasets: str | Sequence[str] | None = None, **changes: Any) -> "Study":
        """The study with ``Suite.override`` on each run, and errors of it.

        Where the runs know several sets, none is tested against its own, and a run without a set is left out.
        """
        asked = list(dict.fromkeys(map(canonical, as_names(datasets or ()))))
        several = len({suite.in_distribution for suite in self.runs.values()}) > 1
        runs = {}
        for label, suite in self.runs.items():
            others = [name for name in asked if not (several and name == suite.in_distribution)]
            if others or not asked:
                runs[label] = suite.override(datasets=others, **changes)
        return self._replace(runs=runs)


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
    """Load a suite of one run. Arguments and errors as of ``load_study``; UsageError for a suite of several runs."""
    study = load_study(name, trust_model=trust_model)
    if len(study.runs) > 1:
        raise UsageError(f"suite {name} is a grid of {len(study.runs)} runs: {', '.join(study.runs)}; load it with load_study")
    return study.first


def load_study(name: str | Path, *, trust_model: bool = False, **axes: Sequence[Any]) -> Study:
    """Load the runs of a suite by name, or of a file that ends in ``.toml``.

    Args:
        name: of a suite in the package, or a file.
        trust_model: whether a file outside the working folder may name a model ``module:function``, which a run imports.
        axes: ``models``, ``weights`` and ``seeds`` that replace the suite's own; empty ones replace nothing. Weights of a
            suite are for its own models.

    Raises UsageError for an unknown name and for an invalid suite file, naming the wrong key, and UntrustedModel for a model
    that is not trusted. Parameters are for detectors that the suite lists.
    """
    study = read_study(suite_text(name), name, **axes)
    for suite in study.runs.values():
        if suite.model and not trust_model:
            refuse_foreign_code(suite.model, name)
    return study


def refuse_foreign_code(model: str, name: str | Path) -> None:
    """Raise UntrustedModel for a model ``module:function`` of a suite file outside the working folder."""
    if imports_code(model) and not below_working_folder(Path(name)):
        raise UntrustedModel(
            f"suite {name}: model: {model} is code, which a suite outside the working folder may not name; if you"
            " trust the file, use --trust-model (in Python trust_model=True), or copy it here"
        )


def read_study(text: str, name: str | Path, **axes: Sequence[Any]) -> Study:
    """The runs of a suite from the TOML of a file of this name. Arguments and errors as of ``load_study``."""
    try:
        values = {"name": Path(name).stem} | tomllib.loads(text)
    except ValueError as error:  # also a number of too many digits
        raise UsageError(f"{name} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{name} is nested too deeply; write its arrays and tables flat") from error
    refuse_empty_lists(values, Suite, name)
    study = _study(values, name, axes)
    for suite in study.runs.values():
        for detector in suite.parameters:
            if detector not in suite.detectors:
                listing = f"its detectors are {', '.join(suite.detectors)}"
                raise UsageError(f"suite {name}: parameters: {unknown('detector', detector, suite.detectors, listing)}")
    return study


def chosen_study(
    suite: str | Path | Suite | None,
    in_distribution: str | None = None,
    *,
    datasets: str | Sequence[str] | None = None,
    detectors: str | Sequence[str] | None = None,
    trust_model: bool = False,
    **axes: Sequence[Any],
) -> Study:
    """The runs of the given suite, else of one made of an in-distribution set and the rest, else of ``digits``.

    The one that is made has every detector by default, and the name of its in-distribution set. Of a suite with several
    in-distribution sets, ``in_distribution`` chooses the runs of one. ``axes`` as of ``load_study``.

    Raises UsageError for what is missing or given twice, and as ``load_study``.
    """
    if in_distribution is None:
        if isinstance(suite, Suite):
            return _study(suite.model_dump(), suite.name, axes)
        return load_study("digits" if suite is None else suite, trust_model=trust_model, **axes)
    if suite is not None:
        if not isinstance(suite, Suite):
            study = load_study(suite, trust_model=trust_model, **axes)
            inside = {one.in_distribution for one in study.runs.values()}
            if len(inside) > 1 and (name := canonical(in_distribution)) in inside:
                mine = {label: one for label, one in study.runs.items() if one.in_distribution == name}
                return study._replace(runs=mine if len(mine) > 1 else {"": next(iter(mine.values()))})
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
    if not axes.get("models") and not detectors:
        raise UsageError(
            f"--in-distribution {in_distribution} needs the network that knows it; add --model NAME or --model module:function,"
            " or, for a detector that needs no network, --detector NAME"
        )
    values = {
        "name": named_after(in_distribution),
        "title": title_of(in_distribution, sets),
        "in_distribution": in_distribution,
        "detectors": each_detector(detectors or ALL),
        "sets": [{"name": name} for name in sets],
    }
    return _study(values, values["name"], axes)


def title_of(in_distribution: str, sets: Sequence[str]) -> str:
    """The title of a suite made of these sets."""
    return f"{recorded(in_distribution)} against {', '.join(map(recorded, sets))}"


def below_working_folder(path: Path) -> bool:
    """Whether a file is in the working folder or below it, links followed."""
    return path.resolve().is_relative_to(Path.cwd().resolve())


def _study(values: Mapping[str, Any], name: object, axes: Mapping[str, Sequence[Any]]) -> Study:
    """The runs of a suite with these values, and with ``axes`` in place of its own."""
    given = {key: list(of) for key, of in axes.items() if of}
    values = dict(values)
    if "models" in given and given["models"] not in (values.get("models"), [values.get("model")]):
        values.pop("weights", None)  # those of the other models
    for key, single in (("models", "model"), ("seeds", "seed"), ("weights", "weights")):
        if key in given:
            values.pop(single, None)
            values[key] = given[key]
    runs = {label: validated(of, name) for label, of in expand(values, name).items()}
    first = next(iter(runs.values()))
    return Study(first.name, first.title, runs)
