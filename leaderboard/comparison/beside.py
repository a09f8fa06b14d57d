"""Measured figures beside those that papers published, or beside those of another run: one row per compared cell.

A published figure is matched with the cells of the same network, in-distribution set, set, level and detector, or of what
may stand in for them as ``published/papers.toml`` says. What stands in is named in each row.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from oodbench.errors import UsageError
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import BENIGN, METRICS, REPEATS
from oodbench.leaderboard.frame import frame_of
from oodbench.leaderboard.published import Figure, Names, Paper, known_tables, to_text
from oodbench.suite import PROTOCOLS

if TYPE_CHECKING:
    from oodbench.results.folder import RunFolder

NOT_RUN = "not run"
PLACE = ["detector", "protocol", "dataset", "level"]
COLUMNS = (
    "model", "in_distribution", "detector", "protocol", "dataset", "level",
    "metric", "measured", "low", "high", "published", "difference", "source", "status", "reason", "stands_in",
    "measured_spread",
)  # fmt: skip
OTHER = "other"  # in place of ``published``, beside another run


@dataclass(frozen=True)
class Beside:
    """Rows of ``COLUMNS``, and what tables of them show beside.

    ``rows`` has further columns: ``file``, ``in_runs`` (whether the runs have a cell of this table), ``paper_model``,
    ``inside`` and ``heading`` (the in-distribution set and the set, with marks), ``settings`` and ``spread``.
    """

    rows: pd.DataFrame
    name: str  # of the column that the figures are compared with
    papers: Mapping[str, Paper] = field(default_factory=dict)  # by file; empty beside another run


class _Stand(NamedTuple):
    """What was found for a name: its own, and the words for what it stands in for, if it does."""

    name: str
    marks: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """``cifar10+noise (generated)``."""
        return self.name.removeprefix("folder:") + (f" ({', '.join(self.marks)})" if self.marks else "")


def cells_of(folders: Sequence["RunFolder"], keep: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """The cells of runs with ``FACTS``, after ``keep``; of a cell that several runs hold, the last one."""
    whole = pd.concat([frame_of(folder) for folder in folders], ignore_index=True)
    same = ["model", "weights", "in_distribution", *PLACE, "seed", "fingerprint", "in_fingerprint", "non_default"]
    return keep(whole.drop_duplicates(same, keep="last"))


def beside_published(
    frame: pd.DataFrame, figures: Sequence[Figure], papers: Mapping[str, Paper], selected: bool = False
) -> Beside:
    """Compare the cells of runs (``cells_of``) with published figures.

    All figures of a file take part if the runs have a cell of one of them; where cells were ``selected``, only figures of
    these. Raises UsageError where they have none, with the
    suites and in-distribution sets that have published figures.
    """
    rows = []
    for _, of_file in groupby(figures, lambda figure: figure.file):
        found = list(_blocks(frame, list(of_file)))
        if any(row["status"] != NOT_RUN for row in found):
            rows += [row for row in found if not selected or row["status"] != NOT_RUN]
    if not rows:
        each = "; ".join(f"{suite} ({', '.join(names)})" for suite, names in known_tables(papers).items())
        raise UsageError(
            "no published figure belongs to a cell of these runs; suites with published figures, and their in-distribution"
            f" sets: {each}"
        )
    sources = {name: paper.source for name, paper in papers.items()}
    return Beside(_frame(rows, "published").assign(source=lambda of: of["file"].map(sources)), "published", papers)


def beside_run(frame: pd.DataFrame, other: pd.DataFrame, name: str, selected: bool = False) -> Beside:
    """Compare the cells of runs with those of another run, called ``name``; where they were ``selected``, these alone.
    Benign changes are left out: their figures are false alarms.

    Networks are matched by name, or whatever their names if each side has one. Raises UsageError where the runs have
    no cell in common.
    """
    name = escape.without_surrogates(name)
    models = set(frame["model"]), set(other["model"])
    any_model = ("*",) if max(map(len, models)) == 1 else ()
    figures: list[Figure] = []
    compared = other[(other["status"] == "ok") & (other["kind"] != BENIGN)]
    measured: Any = compared.groupby(["model", "in_distribution", *PLACE], sort=False, dropna=False)
    for (model, inside, detector, protocol, dataset, level), values in measured[list(METRICS)].mean().iterrows():
        number = None if pd.isna(level) else int(level)
        for metric, value in values.dropna().items():
            of_cell = (name, 0, model, (model, *any_model), inside, (inside,), dataset, ((dataset,),), number, detector)
            figures.append(Figure(*of_cell, {}, {}, protocol, str(metric), value))
    rows = [row for row in _blocks(frame, figures, each_protocol=False) if not selected or row["status"] != NOT_RUN]
    if not any(row["status"] == "ok" for row in rows):
        raise UsageError(f"{name} and these runs have no cell in common with figures in both; compare runs of the same sets")
    return Beside(_frame(rows, OTHER).assign(source=name), OTHER)


def _frame(rows: list[dict[str, Any]], name: str) -> pd.DataFrame:
    found = pd.DataFrame(rows).rename(columns={"published": name})
    return found.assign(difference=found["measured"] - found[name])


class _Cells:
    """The cells of one network and in-distribution set of the runs, by name."""

    def __init__(self, frame: pd.DataFrame) -> None:
        level = [None if pd.isna(level) else int(level) for level in frame["level"]]
        self._by_place: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for cell, at in zip(frame.to_dict("records"), level, strict=True):
            place = cell["detector"], cell["protocol"], cell["dataset"], at
            self._by_place.setdefault(place, []).append({str(name): value for name, value in cell.items()})
        self._sets: dict[int | None, dict[str, None]] = {}
        self._rows: dict[tuple[str, str], set[str]] = {}  # hyper-parameters by detector and protocol
        for (detector, protocol, dataset, at), cells in self._by_place.items():
            self._sets.setdefault(at, {})[dataset] = None
            self._rows.setdefault((detector, protocol), set()).update(cell["non_default"] or "" for cell in cells)
        self.learnt_from = set(frame["transfer_from"].dropna())
        self._parts = dict(_parts(frame))
        attacks = frame.loc[frame["attack"].fillna("") != "", ["dataset", "attack"]].drop_duplicates()
        settings = [(name, json.loads(text).get("settings", {})) for name, text in attacks.itertuples(index=False)]
        self._unfiltered = {name for name, of in settings if not of.get("filtered")}

    def sets(self, level: int | None) -> list[str]:
        return list(self._sets.get(level, ()))

    def protocols(self, figure: Figure) -> list[str]:
        """Those that the runs have the figure's detector under."""
        return [p for p in PROTOCOLS if any(_suits(figure, text) for text in self._rows.get((figure.detector, p), ()))]

    def of(self, figure: Figure, protocol: str, dataset: str) -> list[dict[str, Any]]:
        """The cells of a figure on a set: of all seeds and checkpoints."""
        found = self._by_place.get((figure.detector, protocol, dataset, figure.level), [])
        return [cell for cell in found if _suits(figure, cell["non_default"] or "")]

    def with_part(self, stand: _Stand, name: str, filtered: bool = False) -> _Stand:
        """With marks where the runs have a part of the official set alone, or an attack without the paper's filter."""
        if (words := self._parts.get(name)) is not None:
            stand = _Stand(stand.name, (*stand.marks, "part"), (*stand.words, words))
        if filtered and stand.name in self._unfiltered:
            words = f"{stand.name} without the filter that keeps only images on which the attack succeeds"
            stand = _Stand(stand.name, (*stand.marks, "unfiltered"), (*stand.words, words))
        return stand


def _parts(frame: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Test sets that are parts of official ones, by name with level, and in words how large they are."""
    for sizes in map(json.loads, frame.loc[frame["sizes"].fillna("") != "", "sizes"].unique()):
        for of, (here, official) in sizes.items():
            name, _, split = of.rpartition(" ")
            if split != "(train)" and official not in (None, here):
                yield name, f"{here:,} of {official:,} images of {name}"


def _blocks(frame: pd.DataFrame, figures: list[Figure], each_protocol: bool = True) -> Iterator[dict[str, Any]]:
    """Rows of the figures of one file, by network and in-distribution set of the paper and of the runs."""
    grouped: Any = frame.groupby(["model", "in_distribution"], sort=False)
    runs = [(model, inside, _Cells(of)) for (model, inside), of in grouped]
    for _, of_block in groupby(figures, lambda figure: (figure.model, figure.in_distribution)):
        block, found = list(of_block), False
        for model, inside, cells in runs:
            network = _stand(model, block[0].models, block[0].model)
            within = _stand(inside, block[0].in_distributions, inside)
            if network is not None and within is not None:
                within = cells.with_part(within, inside)
                rows = [row for figure in block for row in _rows(cells, figure, network, within, each_protocol)]
                if any(row["status"] != NOT_RUN for row in rows):
                    found = True
                    yield from rows
        if not found:
            names = block[0].in_distributions
            reason = f"no run of {block[0].model} with in-distribution {names[0]} has a cell of this table"
            for figure in block:
                name = _Stand(figure.set if len(figure.sets) > 1 else figure.sets[0][0] or figure.set)
                yield _row(figure, None, _Stand(names[0]), figure.protocol, name, NOT_RUN, reason)


def _rows(cells: _Cells, figure: Figure, model: _Stand, inside: _Stand, each_protocol: bool) -> Iterator[dict[str, Any]]:
    """One row for each protocol that the runs have the detector under; else one for the paper's."""
    known = cells.protocols(figure) if each_protocol else []
    at = _at(figure.level)
    found = [_found(cells.sets(figure.level), names) for names in figure.sets]
    lacking = [names[0] or figure.set for names, of in zip(figure.sets, found, strict=True) if of is None]
    stands = [cells.with_part(of, f"{of.name}{at}", figure.filtered) for of in found if of is not None]
    marks, words = (tuple(dict.fromkeys(m for of in stands for m in of[place])) for place in (1, 2))
    shown = _Stand(figure.set if len(found) > 1 else lacking[0] if lacking else stands[0].name, marks, words)
    for protocol in known or [figure.protocol]:
        if lacking:
            reason = f"the runs do not have {', '.join(lacking)}{at}"
            yield _row(figure, model, inside, protocol, shown, NOT_RUN, reason)
            continue
        records = [cells.of(figure, protocol, of.name) for of in stands]
        status, reason = _status(records, stands, cells, protocol)
        yield _row(figure, model, inside, protocol, shown, status, reason, records if status == "ok" else ())


def _status(records: list[list[dict[str, Any]]], sets: list[_Stand], cells: _Cells, protocol: str) -> tuple[str, str]:
    """``ok``, or why there is no figure."""
    for of, stand in zip(records, sets, strict=True):
        if not of:
            learnt = protocol == "transfer" and stand.name in cells.learnt_from
            return NOT_RUN, f"transfer learnt from {stand.name}" if learnt else f"no cell under {protocol} on {stand.name}"
        if not _measured(of):
            return of[0]["status"], of[0]["reason"] or "no reason given"
    return "ok", ""


def _measured(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for cell in records if cell["status"] == "ok"]


def _at(level: int | None) -> str:
    return "" if level is None else f"@{level}"


def _row(
    figure: Figure,
    model: _Stand | None,
    inside: _Stand,
    protocol: str,
    dataset: _Stand,
    status: str,
    reason: str,
    records: Sequence[list[dict[str, Any]]] = (),
) -> dict[str, Any]:
    metric = figure.metric
    by_set = [[cell[metric] for cell in _measured(of)] for of in records]
    single = records[0][0] if len(records) == 1 and len(records[0]) == 1 else {}
    return {
        "model": model.name if model else "", "in_distribution": inside.name, "detector": figure.detector, "protocol": protocol,
        "dataset": dataset.name, "level": figure.level, "metric": metric,
        "measured": fmean(map(fmean, by_set)) if by_set else math.nan, "measured_spread": _spread(records, metric),
        "low": single.get(f"{metric}_low", math.nan), "high": single.get(f"{metric}_high", math.nan),
        "published": figure.value, "status": status, "reason": reason,
        "stands_in": "; ".join((*(model.words if model else ()), *inside.words, *dataset.words)),
        "file": figure.file, "in_runs": model is not None, "paper_model": figure.model, "inside": inside.heading,
        "heading": _Stand(f"{dataset.name}{_at(figure.level)}", dataset.marks).heading,
        "settings": json.dumps(figure.parameters) if figure.parameters else "", "spread": figure.spread,
    }  # fmt: skip


def _spread(records: Sequence[list[dict[str, Any]]], metric: str) -> float:
    """The standard deviation of a figure over the repeats (seeds and checkpoints) that all of its sets have; NaN for one."""
    repeats: dict[tuple[Any, ...], list[float]] = {}
    for of in records:
        for cell in _measured(of):
            repeats.setdefault(tuple(cell[name] for name in REPEATS), []).append(cell[metric])
    figures = [fmean(of_sets) for of_sets in repeats.values() if len(of_sets) == len(records)]
    return float(np.std(figures, ddof=1)) if len(figures) > 1 else math.nan


def _suits(figure: Figure, non_default: str) -> bool:
    """Whether a row has the hyper-parameters that a figure is of."""
    values = {name: to_text(value) for name, (value, _) in json.loads(non_default or "{}").items()}
    return all(values.get(name) == value for name, value in figure.parameters.items()) and not any(
        values.get(name) in of for name, of in figure.others.items()
    )


def _stand(name: str, names: Names, wanted: str) -> _Stand | None:
    """A name that is one of these: the first is the thing itself, the others stand in for it."""
    for place, pattern in enumerate(names):
        if _matches(name, pattern):
            if not place:
                return _Stand(name)
            original = names[0] or wanted
            generated = "+" in name and "+" not in original
            return _Stand(name, ("generated" if generated else f"for {original}",), (f"{name} for {original}",))
    return None


def _found(here: list[str], names: Names) -> _Stand | None:
    """The first of these names that the runs have."""
    for pattern in names:
        for name in here:
            if _matches(name, pattern):
                return _stand(name, names, name)
    return None


def _matches(name: str, pattern: str) -> bool:
    """A pattern is not a change of what it matches: ``cifar10:*`` is not ``cifar10:cat+haze``."""
    if "*" not in pattern:
        return bool(pattern) and name == pattern
    return fnmatchcase(name, pattern) and ("+" in pattern or "+" not in name)
