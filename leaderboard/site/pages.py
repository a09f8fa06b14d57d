"""The pages of a site: what the templates show of detectors, sets and runs, from cells as ``gather`` gives them."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from oodbench.datasets.name import base_of, heading
from oodbench.errors import BadData, counted, reason
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import BENIGN, CONTROL, PLACE, REPEATS, ROW, unique_cells
from oodbench.leaderboard.frame import machine_of
from oodbench.leaderboard.labels import label
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.leaderboard.site import charts
from oodbench.leaderboard.site.about import about_detector, about_set
from oodbench.leaderboard.site.board import Board, Row
from oodbench.leaderboard.site.tasks import Section
from oodbench.leaderboard.site.thumbnails import Strip, Thumbnails, misses, samples
from oodbench.results.folder import RunFolder
from oodbench.results.network import stored
from oodbench.results.records import ActiveLearningRecord, DetectionRecord, QualityRecord, RecognitionRecord, Record

FEW = 6  # names that a sentence lists
MOST_TEXT = 400  # characters of a setting
LONGEST = 80  # characters of the name of a file


class Figure(NamedTuple):
    """One figure as pages show it."""

    text: str
    interval: str = ""
    reason: str = ""  # why there is none
    value: float = float("nan")


class Line(NamedTuple):
    """A line of a table: what it is of, and its figures."""

    name: str
    href: str
    kind: str
    figures: list[Figure]
    control: Figure | None = None
    worse: bool = False  # whether the first figure is worse than the control's


@dataclass
class Names:
    """Names of files by what they are of: made of harmless characters, and each once."""

    folder: str
    suffix: str = ".html"
    _taken: dict[str, str] = field(default_factory=dict)

    def __call__(self, name: str) -> str:
        if name not in self._taken:
            spelt = name.lower().replace("++", "-plus-plus")  # rmd++ beside rmd
            stem = re.sub(r"[^a-z0-9]+", "-", spelt).strip("-")[:LONGEST] or "unnamed"
            paths = (f"{self.folder}/{stem}{f'-{n}' if n else ''}{self.suffix}" for n in range(len(self._taken) + 1))
            used = {*self._taken.values()}
            self._taken[name] = next(path for path in paths if path not in used)
        return self._taken[name]

    def all(self) -> list[tuple[str, str]]:
        """All names and their files."""
        return list(self._taken.items())


class Cells:
    """The cells of a board, by row and place."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.by_row: dict[tuple[Any, ...], dict[tuple[Any, ...], Mapping[Any, Any]]] = {}
        for cell in unique_cells(board.frame).to_dict("records"):
            place = tuple(None if pd.isna(cell[name]) else cell[name] for name in PLACE)
            self.by_row.setdefault(tuple(cell[name] for name in ROW), {})[place] = cell

    @cached_property
    def places(self) -> list[tuple[Any, ...]]:
        """All places, in the order of the table."""
        return list(dict.fromkeys(place for of in self.by_row.values() for place in of))

    @cached_property
    def lines(self) -> charts.Lines:
        """AUROC by level, by row."""
        return charts.lines_of(self.board)

    @cached_property
    def repeated(self) -> bool:
        """Whether cells are of several checkpoints or seeds."""
        return len({place[-len(REPEATS) :] for place in self.places}) > 1

    def at(self, key: tuple[Any, ...], place: tuple[Any, ...]) -> Mapping[Any, Any] | None:
        return self.by_row.get(key, {}).get(place)

    def name_of(self, place: tuple[Any, ...]) -> str:
        """What a page calls a place: the set with its level and, where there are several, the checkpoint and seed."""
        _, dataset, content, level, checkpoint, seed = place
        name = heading(label("dataset", dataset if level is None else f"{dataset}@{level:.0f}", content))
        return f"{name} ({str(checkpoint)[:6]}, seed {seed})" if self.repeated else name


def figure_of(cell: Mapping[Any, Any] | None) -> Figure:
    """AUROC ×100 of a cell with its interval; of a benign change, the rate of false alarms ×100."""
    if cell is None:
        return Figure("")
    if cell["status"] != "ok":
        return Figure("–", reason=f"{cell['status']}: {cell['reason']}")
    if cell["kind"] == BENIGN:
        return Figure(f"{100 * (1 - cell['fpr95']):.1f}", value=1 - cell["fpr95"])
    ends = cell["auroc_low"], cell["auroc_high"]
    interval = "" if pd.isna(ends[0]) else f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
    return Figure(f"{100 * cell['auroc']:.1f}", interval, value=cell["auroc"])


@dataclass
class Site:
    """All that pages are made of."""

    title: str
    boards: list[Board]
    folders: list[RunFolder]
    scores: StoredScores
    verified: bool
    bundle_of: Mapping[Path, str]  # the bundle by path of a run folder; empty without bundles
    notes: list[str]
    thumbnails: Thumbnails | None = None  # None: show no images
    sections: list[Section] = field(default_factory=list)  # of other tasks than detection
    strips: list[Strip] = field(default_factory=list)  # those that pages show

    def __post_init__(self) -> None:
        self.detector_file, self.set_file, self.run_file = Names("detectors"), Names("sets"), Names("runs")
        self.cells = [Cells(board) for board in self.boards]
        for board in self.boards:
            for row in board.rows:
                self.detector_file(row.of)
            for name in board.frame["dataset"].unique():
                self.set_file(name)
        for folder in self.folders:
            self.run_file(folder.name)

    def detectors(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The file and the context of each detector's page."""
        packages = self._packages()
        for name, path in self.detector_file.all():
            parts = [part for cells in self.cells for part in self._of_detector(cells, name)]
            about = about_detector(name)
            yield path, {"name": name, "about": about, "package": packages.get(name, about.owner), "parts": parts}

    def _packages(self) -> dict[str, str]:
        """Packages of third-party detectors and sets, by name: those of the runs, which need not be installed here."""
        found: dict[str, dict[str, None]] = {}
        for folder in self.folders:
            for name, owner in _facts(folder.manifest().provenance.get("plugins")).items():
                found.setdefault(name, {})[owner] = None
        return {name: ", ".join(owners) for name, owners in found.items()}

    def _of_detector(self, cells: Cells, name: str) -> Iterator[dict[str, Any]]:
        board = cells.board
        rows = [row for row in board.rows if row.of == name]
        for detector in sorted(dict.fromkeys(row.detector for row in rows), key=lambda one: one != name):  # itself first
            mine = [row for row in rows if row.detector == detector]
            blocks = [self._block(cells, row) for row in mine]
            yield {"title": board.title, "detector": detector, "blocks": blocks, "cost": mine[0].cost}

    def _block(self, cells: Cells, row: Row) -> dict[str, Any]:
        """The figures of one row on every set, beside the control's."""
        control = (*row.key[: ROW.index("detector")], CONTROL, "")
        lines = []
        for place in cells.places:
            if (cell := cells.at(row.key, place)) is None:
                continue
            own, other = figure_of(cell), figure_of(cells.at(control, place))
            benign = place[0] == BENIGN
            rate = Figure("") if cell["status"] != "ok" else Figure(f"{100 * cell['fpr95']:.1f}")
            worse = own.value > other.value if benign else own.value < other.value
            href = self.set_file(place[1])
            figures = [own, Figure("") if benign else rate, Figure(_count(cell["n_in"])), Figure(_count(cell["n_out"]))]
            lines.append(Line(cells.name_of(place), href, place[0], figures, other, worse and not row.control))
        drawn, sets = charts.histograms(cells.board, row.key, self.scores)
        return {
            "protocol": row.protocol,
            "lines": lines,
            "worse": _listed([line.name for line in lines if line.worse], len(lines)),
            "compared": not row.control and any(line.control and line.control.text for line in lines),
            "control": row.control,
            "curves": charts.curves(cells.lines, row.key),
            "histograms": drawn,
            "sets": sets,
        }

    def sets(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The file and the context of each set's page."""
        sources: dict[str, dict[str, str]] = {}
        packages = self._packages()
        for folder in self.folders:
            found = folder.manifest().provenance.get("sources")
            sources |= {name: _facts(of) for name, of in found.items()} if isinstance(found, dict) else {}
        for name, path in self.set_file.all():
            summary, homepage, owner = about_set(base_of(name))
            parts = [part for cells in self.cells for part in self._of_set(cells, name)]
            about = {"summary": summary, "homepage": homepage, "source": sources.get(base_of(name), {})}
            about["package"] = packages.get(base_of(name), owner)
            pictures = self._pictures(name) if self.thumbnails else {"samples": None, "misses": [], "why": ""}
            yield path, {"name": name, "base": base_of(name), "parts": parts, **about, **pictures}

    def _pictures(self, name: str) -> dict[str, Any]:
        """Samples of a set, and of its highest level what each detector misses; or why there are none."""
        assert self.thumbnails is not None
        stem = f"images/{Path(self.set_file(name)).stem}"
        cells = next(cells for cells in self.cells if any(place[1] == name for place in cells.places))
        levels = sorted({-1 if place[3] is None else int(place[3]) for place in cells.places if place[1] == name})
        names = [name if level < 0 else f"{name}@{level}" for level in levels]
        try:
            shown = samples(f"{stem}.png", names, self.thumbnails)
            rows = [row for row in cells.board.rows if row.protocol == "unsupervised" and row.detector == row.of]
            place = next(one for one in cells.places if one[1] == name and (one[3] is None or int(one[3]) == levels[-1]))
            found = [(row, cell) for row in rows if (cell := cells.at(row.key, place)) and cell["status"] == "ok"]
            missed = [
                misses(f"{stem}-{number}.png", cell, names[-1], self.thumbnails, self.scores)
                for number, (_, cell) in enumerate(found, 1)
            ]
        except BadData as error:
            return {"samples": None, "misses": [], "why": f"No images are shown: {reason(error)}."}
        self.strips += [shown, *missed]
        return {"samples": shown, "misses": missed, "why": ""}

    def _of_set(self, cells: Cells, name: str) -> Iterator[dict[str, Any]]:
        board = cells.board
        mine = [place for place in cells.places if place[1] == name]
        if not mine:
            return
        for protocol, rows in board.protocols.items():
            of_protocol = [place for place in mine if any(cells.at(board.rows[row].key, place) for row in rows)]
            columns = [one for one in board.first.columns if not one.is_mean and one.name == name]
            if not of_protocol:
                continue
            in_order = sorted(rows, key=lambda row: columns[0].order.ranks[row]) if columns else rows
            lines = [
                Line(
                    board.rows[row].detector,
                    self.detector_file(board.rows[row].of),
                    "control" if board.rows[row].control else "",
                    [figure_of(cells.at(board.rows[row].key, place)) for place in of_protocol],
                )
                for row in in_order
            ]
            yield {
                "title": board.title,
                "protocol": protocol,
                "kind": mine[0][0],
                "heads": [cells.name_of(place) for place in of_protocol],
                "counts": [_counts(cells, rows, place) for place in of_protocol],
                "lines": [line for line in lines if any(figure.text for figure in line.figures)],
            }

    def runs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The file and the context of each run's page."""
        for folder in self.folders:
            yield self.run_file(folder.name), self._of_run(folder)

    def _of_run(self, folder: RunFolder) -> dict[str, Any]:
        manifest = folder.manifest()
        every = [record for path in folder.pass_files() for record in folder.records_of(path)]
        accuracy = stored(manifest.provenance)
        settings = {name: value for name, value in manifest.settings.items() if not name.startswith("set ") and value != {}}
        environment = {name: value for name, value in manifest.provenance.items() if not isinstance(value, dict | list)}
        return {
            "name": folder.name,
            "suite": manifest.suite.get("name", ""),
            "machine": machine_of(manifest),
            "bundle": self.bundle_of.get(folder.path, ""),
            "accuracy": accuracy.sentence() if accuracy else None,
            "card": _facts(manifest.provenance.get("model_card")),
            "settings": _facts(settings),
            "environment": _facts(environment),
            "plugins": _facts(manifest.provenance.get("plugins")),
            "sets": list(_sets_of(every)),
            "code": {one.plugin: one.code for one in every if one.plugin and one.status == "ok"},
            "left_out": list(_left_out(every)),
            "records": counted(len(every), "record"),
        }

    @property
    def used(self) -> list[str]:
        """Names of the detectors and sets, for citations."""
        detectors = [name for name, _ in self.detector_file.all()]
        inside = [name for board in self.boards for name in board.frame["in_distribution"].unique()]
        return [*detectors, *dict.fromkeys(base_of(name) for name in [*inside, *(name for name, _ in self.set_file.all())])]


def _sets_of(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """The sets that a run tested, once each, with as many images as it used of each."""
    seen = set()
    for record in records:
        if isinstance(record, DetectionRecord):
            of = [_size(*size) for name, size in record.sizes.items() if name.startswith(f"{record.set_name} (")]
            name, kind, sizes = record.set_name, record.kind, ", ".join(of)
        elif isinstance(record, QualityRecord) and record.n is not None and record.size is not None:
            name, kind, sizes = record.database, "database", _size(record.n, record.size[1] or record.size[0])
        elif isinstance(record, ActiveLearningRecord) and record.n is not None:
            name, kind, sizes = record.dataset, "test set, hashed with the pool", _size(record.n, None)
        else:
            continue
        if name not in seen and record.fingerprint:
            seen.add(name)
            yield {"name": name, "kind": kind, "fingerprint": record.fingerprint.partition(" ")[0], "sizes": sizes}


def _size(here: int, official: int | None) -> str:
    return counted(here, "image") if official in (None, here) else f"{here:,} of {official:,} images"


def _left_out(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """Records without figures, those of one detector, metric or strategy with one reason together."""
    together: dict[tuple[str, str, str], list[str]] = {}
    for record in records:
        if record.status != "ok" and not isinstance(record, RecognitionRecord):  # which fails with its detector
            where = record.dataset if isinstance(record, ActiveLearningRecord) else record.set_name
            together.setdefault((record.row, record.status, record.reason), []).append(where)
    for (row, status, why), sets in together.items():
        names = list(dict.fromkeys(sets))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        yield {
            "row": row, "status": status, "reason": why, "cells": len(sets), "sets": ", ".join(names[:5]) + more,
        }  # fmt: skip


def _listed(names: list[str], of: int) -> str:
    """These names, or if there are many, how many of how many."""
    return ", ".join(names) if len(names) <= FEW else f"{len(names)} of {of} sets and levels"


def _facts(of: Any) -> dict[str, str]:
    """What is known, as short texts; nothing where a file holds something else than facts by name."""
    known = {name: value for name, value in of.items() if value is not None} if isinstance(of, dict) else {}
    texts = {name: value if isinstance(value, str) else json.dumps(value, sort_keys=True) for name, value in known.items()}
    return {name: escape.shortened(text, MOST_TEXT) for name, text in texts.items()}


def _count(value: Any) -> str:
    return "" if value is None or pd.isna(value) else f"{int(value):,}"


def _counts(cells: Cells, rows: Iterable[int], place: tuple[Any, ...]) -> str:
    """How many images of either side the figures of a place are of; empty where there are none."""
    for row in rows:
        cell = cells.at(cells.board.rows[row].key, place)
        if cell is not None and cell["status"] == "ok":
            return f"{_count(cell['n_in'])} + {_count(cell['n_out'])}"
    return ""
