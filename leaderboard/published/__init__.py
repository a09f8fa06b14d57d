"""The figures that papers and other benchmarks published, as data: one CSV file per table, and ``papers.toml``.

``papers.toml`` says where each file is from, and which of our names its names stand for. Nothing here is measured.
"""

import csv
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from oodbench.errors import BadData
from oodbench.leaderboard.aggregate import METRICS
from oodbench.suite import PROTOCOLS

OWN = Path(__file__).parent
PAPERS = "papers.toml"

Names = tuple[str, ...]  # one thing: the name of the same thing first, then of what may stand in for it


class Figure(NamedTuple):
    """One published figure, a fraction in [0, 1], and the cell that it is of."""

    file: str
    line: int
    model: str  # the paper's name
    models: Names
    in_distribution: str  # the paper's name
    in_distributions: Names
    set: str  # the paper's name
    sets: tuple[Names, ...]  # several where the figure is a mean over sets
    level: int | None
    detector: str
    parameters: dict[str, str]  # hyper-parameters that the detector must have
    others: dict[str, frozenset[str]]  # values of hyper-parameters that it must not have: other figures are of these
    protocol: str
    metric: str
    value: float
    spread: float | None = None  # standard deviation over the paper's checkpoints
    filtered: bool = False  # whether the paper keeps only images on which an attack succeeds


class Paper(BaseModel):
    """One table of ``papers.toml``, which explains the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    columns: list[str]
    percent: bool
    values: list[str] = ["value"]
    suite: str = ""
    task: str = "detection"
    remark: str = ""
    model: str = ""
    in_distribution: str = ""
    set: str = ""
    level: str = ""
    detector: str = ""
    metric: str = ""
    protocol: str = ""
    protocols: dict[str, str] = {}
    detectors: dict[str, str] = {}
    metrics: dict[str, str] = {}
    models: dict[str, Names] = {}
    in_distributions: dict[str, Names] = {}
    sets: dict[str, Names] = {}
    means: dict[str, list[str]] = {}
    without: dict[str, str] = {}
    filtered: bool = False


def read_papers(folder: Path = OWN) -> dict[str, Paper]:
    """What each file of published figures is, by name. Raises BadData for a damaged ``papers.toml``."""
    path = folder / PAPERS
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return {f"{name}.csv": Paper.model_validate(table) for name, table in tables.items()}
    except ValidationError as error:
        first = error.errors()[0]
        raise BadData(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; mend this table") from error
    except (OSError, ValueError) as error:
        raise BadData(f"{path} cannot be read ({error}); reinstall oodbench, or repair the file") from error


def read_figures(folder: Path = OWN) -> list[Figure]:
    """The published figures of detection tables, in the order of the files and their lines.

    Files of other tasks are checked, too. Raises BadData with file and line for a column, name or number that is not what
    ``papers.toml`` says.
    """
    papers = read_papers(folder)
    if strange := sorted({path.name for path in folder.glob("*.csv")} - papers.keys()):
        raise BadData(f"{folder / strange[0]}: {PAPERS} does not say what it holds; add a table there")
    return [figure for name, paper in papers.items() for figure in _figures(folder / name, paper)]


class Recognition(NamedTuple):
    """A published accuracy on corruptions."""

    paper: Paper
    model: str  # of the paper
    models: Names  # of ours: the first is the paper's, others may stand in; empty where oodbench has none
    source: str
    accuracy: float


def recognition_figures(folder: Path = OWN) -> list[Recognition]:
    """The published accuracies on corruptions, in the order of the files and their lines. Raises as ``read_figures``."""
    found = []
    for name, paper in read_papers(folder).items():
        for line, row in _lines(folder / name, paper.columns) if paper.task == "recognition" else ():
            for column in paper.values:
                model = paper.model.format(**row)
                value = _number(row[column], folder / name, line, paper)
                found.append(Recognition(paper, model, paper.models.get(model, ()), paper.detectors[column], value))
    return found


@cache
def own_figures() -> tuple[Figure, ...]:
    """``read_figures`` of the package, read once."""
    return tuple(read_figures())


def _figures(path: Path, paper: Paper) -> Iterator[Figure]:
    for line, row in _lines(path, paper.columns):
        spread = _number(row["standard_deviation"], path, line, paper) if "standard_deviation" in row else None
        for column in paper.values:
            value = _number(row[column], path, line, paper)
            if paper.task != "detection" or paper.without.keys() & row.values():
                continue
            try:
                yield _figure(path.name, line, paper, row | {"column": column}, value, spread)
            except KeyError as error:
                raise BadData(
                    f"{path}, line {line}: {PAPERS} has no oodbench name for {error}; correct the line, or add the name there"
                ) from error


def _lines(path: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and fields of each line below the heading."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadData(f"{path} cannot be read ({error}); restore it") from error
    reader = csv.reader(text.splitlines())
    heading = next(reader, [])
    if heading != columns:
        unknown = [name for name in heading if name not in columns] or [name for name in columns if name not in heading]
        what = f"the column '{unknown[0]}' is unknown or missing" if unknown else "the columns are in another order"
        raise BadData(f"{path}, line 1: {what}; the columns are {', '.join(columns)}")
    for fields in reader:
        if len(fields) != len(columns):
            raise BadData(f"{path}, line {reader.line_num}: {len(fields)} fields in {len(columns)} columns; correct the line")
        yield reader.line_num, dict(zip(columns, fields, strict=True))


def _number(text: str, path: Path, line: int, paper: Paper) -> float:
    """A figure as a fraction; figures of other tasks may be any number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    most = (100.0 if paper.percent else 1.0) if paper.task == "detection" else math.inf
    if not 0 <= value <= most or math.isinf(value):
        wanted = "a number from 0" + (f" to {most:g}" if math.isfinite(most) else " up")
        raise BadData(f"{path}, line {line}: '{text}' is not {wanted}; correct the line")
    return value / 100 if paper.percent else value


def _figure(file: str, line: int, paper: Paper, row: dict[str, str], value: float, spread: float | None) -> Figure:
    """Raises KeyError for a name that ``papers.toml`` does not have."""
    named = {field: getattr(paper, field).format(**row) for field in ("model", "in_distribution", "set", "detector", "metric")}
    detector = paper.detectors.get(named["detector"], named["detector"])
    metric = _one_of(METRICS, paper.metrics.get(named["metric"], named["metric"]))
    name, parameters = _with_parameters(detector)
    return Figure(
        file=file,
        line=line,
        model=named["model"],
        models=paper.models[named["model"]],
        in_distribution=named["in_distribution"],
        in_distributions=paper.in_distributions[named["in_distribution"]],
        set=named["set"],
        sets=tuple(paper.sets[of] for of in paper.means.get(named["set"], [named["set"]])),
        level=int(_one_of(("1", "2", "3", "4", "5"), row["level"])) if paper.level else None,
        detector=name,
        parameters=parameters,
        others=_others(name, parameters, paper.detectors),
        protocol=_one_of(PROTOCOLS, paper.protocols.get(detector, paper.protocol)),
        metric=metric,
        value=value,
        spread=spread,
        filtered=paper.filtered,
    )


def _one_of(known: Iterable[str], name: str) -> str:
    if name not in known:
        raise KeyError(name)
    return name


def _with_parameters(detector: str) -> tuple[str, dict[str, str]]:
    """``gradcon:recon alpha=0`` -> ("gradcon:recon", {"alpha": "0"})."""
    name, *given = detector.split()
    return name, dict(one.split("=", 1) for one in given)


def _others(name: str, parameters: Mapping[str, str], detectors: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """What other figures of a detector are of, by hyper-parameter."""
    found: dict[str, frozenset[str]] = {}
    for other, given in map(_with_parameters, detectors.values()):
        for parameter, value in given.items():
            if other == name and parameter not in parameters:
                found[parameter] = found.get(parameter, frozenset()) | {value}
    return found


def known_tables(papers: Mapping[str, Paper]) -> dict[str, list[str]]:
    """The in-distribution sets that each suite has published detection figures for, by our names."""
    found: dict[str, list[str]] = {}
    for paper in papers.values():
        if paper.task == "detection":
            found.setdefault(paper.suite, []).extend(names[0].partition(":")[0] for names in paper.in_distributions.values())
    return {suite: list(dict.fromkeys(names)) for suite, names in found.items()}


def to_text(value: Any) -> str:
    """A hyper-parameter as ``papers.toml`` writes it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
