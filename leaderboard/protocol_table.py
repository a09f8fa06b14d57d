"""The protocols of each detector in one row, on the same images: how much of a figure came from what heads learnt.

Figures are computed again, from stored scores, on the test samples that all protocols have in common.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from oodbench.errors import BadData, UsageError, counted
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import APART, CONTROL, GROUP, unique_cells
from oodbench.leaderboard.formats import cells_as, chosen, writer
from oodbench.leaderboard.labels import label, labelled
from oodbench.leaderboard.notes import Note
from oodbench.leaderboard.paired import MeanOfSets, Pulls, Rows, SetOfCells, place_of, rows_of, set_weights, tested
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.leaderboard.text_table import Column, TextTable, row_labels, title_of
from oodbench.metrics import NORMAL_975
from oodbench.suite import PROTOCOLS

Protocol = tuple[str, str]  # and the set that transfer learnt from, where runs have several
Key = tuple[str, str, str]  # of a set: kind, name and content
Detector = tuple[str, str]  # and its settings
UNSUPERVISED = "unsupervised"
COLUMNS = (
    "model", "in_distribution", "detector", "protocol", "cells", "sets", "auroc",
    "gain", "gain_low", "gain_high", "lead", "lead_low", "lead_high",
)  # fmt: skip
FEWEST = 2  # images of a side on which an AUROC is computed


@dataclass
class _Shared:
    """What the protocols of one model and in-distribution set have in common."""

    protocols: list[Protocol]
    sets: list[Key]
    cells: int
    left_out: list[str]  # sets that not every protocol has
    pulls: dict[Protocol, dict[Detector, list[Pulls]]] = field(default_factory=dict)  # of rows with all cells
    there: dict[Protocol, set[Detector]] = field(default_factory=dict)  # rows with any cell
    mean: MeanOfSets | None = None


def protocol_rows(frame: pd.DataFrame, scores: StoredScores) -> pd.DataFrame:
    """AUROC of each detector under each protocol, on the test samples that all protocols of the frame have in common.

    One row per detector and protocol: ``auroc``, the mean over sets (fractions, as in other tables), NaN where the row lacks
    a cell; ``cells`` and ``sets``, how many it is over; ``gain``, AUROC minus that of ``unsupervised``; ``lead``, AUROC minus
    that of the control ``pixels`` under the same protocol; the ends of their 95 % intervals (DeLong's paired test, over test
    images). The best under ``unsupervised`` comes first.

    Raises BadData where scores are missing, and where the frame has one protocol alone or no samples in common.
    """
    found = [_rows(cells, shared) for cells, shared in _each(frame, scores)]
    return pd.concat(found, ignore_index=True)


def render_protocols(
    frame: pd.DataFrame,
    scores: StoredScores,
    format: str = "table",
    *,
    width: int | None = 160,
    notes: Sequence[Note | str] = (),
    columns: Sequence[str] = (),
) -> str:
    """``protocol_rows`` as text: formats, ``width`` and ``notes`` as of ``render``; ``columns`` are of csv and json.

    Raises as ``protocol_rows``, and UsageError for an unknown format or column.
    """
    if format in ("csv", "json"):
        return cells_as(format, labelled(protocol_rows(frame, scores)), chosen(list(columns), list(COLUMNS)))
    write = writer(format, width)
    if columns:
        raise UsageError("the table of protocols has no parts to show; choose columns of csv or json")
    tables = protocol_tables(frame, scores)
    tables[-1].notes.extend(notes)
    return "\n".join(map(write, tables))


def protocol_tables(frame: pd.DataFrame, scores: StoredScores) -> list[TextTable]:
    """A table for people for each model and in-distribution set. Raises as ``protocol_rows``."""
    return [_text_table(_rows(cells, shared), shared) for cells, shared in _each(frame, scores)]


def _each(frame: pd.DataFrame, scores: StoredScores) -> Iterator[tuple[pd.DataFrame, _Shared]]:
    scores.require_quick()
    cells = unique_cells(frame)
    measured = cells[(cells["status"] == "ok") & cells["auroc"].notna() & ~cells["kind"].isin(APART)]
    if measured[["protocol", "source"]].drop_duplicates().shape[0] < 2:
        raise BadData("these cells are of one protocol, so there is nothing to compare; run another with --protocol")
    for _, of in measured.groupby(GROUP, sort=False):
        yield of, _shared(of, scores)


def _shared(cells: pd.DataFrame, scores: StoredScores) -> _Shared:
    """The sets and the test samples that all protocols have, and how far these pull the figure of each row."""
    by_set: dict[Key, dict[Protocol, dict[Detector, list[dict[Any, Any]]]]] = {}
    for cell in cells.to_dict("records"):
        key, protocol = (cell["kind"], cell["dataset"], cell["content"]), (cell["protocol"], cell["source"])
        rows = by_set.setdefault(key, {}).setdefault(protocol, {})
        rows.setdefault((cell["detector"], cell["settings"]), []).append(cell)
    protocols = sorted({protocol for of in by_set.values() for protocol in of}, key=lambda p: (PROTOCOLS.index(p[0]), p[1]))
    shared = _Shared(protocols, [], 0, [])
    layouts = []
    for key, of in by_set.items():
        most = {protocol: max(rows.values(), key=len) for protocol, rows in of.items()}
        only = _common(list(most.values()), scores) if len(most) == len(protocols) else None
        if not only:
            shared.left_out.append(label("dataset", *key[1:]))
            continue
        shared.sets.append(key)
        shared.cells += len(only)
        for protocol, rows in of.items():
            layout = SetOfCells(most[protocol], scores, only)
            for detector, mine in rows.items():
                pulls = layout.pulls(mine, {})
                shared.there.setdefault(protocol, set()).add(detector)
                shared.pulls.setdefault(protocol, {}).setdefault(detector, []).extend([pulls] if pulls else [])
        layouts.append(layout)  # of any protocol: their images are the same
    if not shared.sets:
        raise BadData("the protocols have no test samples in common; run them on the same sets")
    shared.mean = MeanOfSets(layouts, set_weights(shared.sets))
    for rows_of_protocol in shared.pulls.values():
        for detector in [name for name, of in rows_of_protocol.items() if len(of) < len(shared.sets)]:
            del rows_of_protocol[detector]
    return shared


def _common(rows: list[list[dict[Any, Any]]], scores: StoredScores) -> dict[Any, Rows] | None:
    """By ``place_of``, the rows of either side that one row of each protocol was tested on; None where they are of other
    images or have too few in common."""
    places = {place_of(cell) for cell in rows[0]}
    if any({place_of(cell) for cell in cells} != places for cells in rows):
        return None
    found: dict[Any, Rows] = {}
    content: dict[Any, tuple[Any, ...]] = {}
    for cells in rows:
        for cell in cells:
            place, images = place_of(cell), tested(scores.record(cell))[:2]
            if content.setdefault(place, images) != images:
                return None
            inside, outside = rows_of(scores.arrays(cell))
            if place in found:
                inside, outside = (np.intersect1d(*pair) for pair in zip(found[place], (inside, outside), strict=True))
            if min(len(inside), len(outside)) < FEWEST:
                return None
            found[place] = inside, outside
    return found


def _rows(cells: pd.DataFrame, shared: _Shared) -> pd.DataFrame:
    """``protocol_rows`` of one model and in-distribution set."""
    assert shared.mean is not None
    group = dict(zip(GROUP, cells[GROUP].iloc[0], strict=True))
    weights = shared.mean.weights
    rows = []
    for protocol in shared.protocols:
        figures, plain = shared.pulls[protocol], shared.pulls.get((UNSUPERVISED, ""), {})
        control = figures.get((CONTROL, ""))
        for detector in sorted(shared.there[protocol]):
            row = group | dict(zip(("protocol", "source", "detector", "settings"), (*protocol, *detector), strict=True))
            row |= {"cells": shared.cells, "sets": len(shared.sets), "auroc": float("nan")}
            if detector in figures:
                mine = figures[detector]
                row["auroc"] = sum(weight * one.figure for weight, one in zip(weights, mine, strict=True))
                if protocol[0] != UNSUPERVISED and detector in plain:
                    row |= _difference("gain", shared.mean, mine, plain[detector])
                if control is not None and detector[0] != CONTROL:
                    row |= _difference("lead", shared.mean, mine, control)
            rows.append(row)
    found = pd.DataFrame(rows).reindex(columns=[*GROUP, "protocol", "source", "detector", "settings", *COLUMNS[4:]])
    first = found[found["protocol"] == shared.protocols[0][0]].set_index(["detector", "settings"])["auroc"]
    order = pd.Series(list(zip(found["detector"], found["settings"], strict=True))).map(first.to_dict())
    place = found["protocol"].map(PROTOCOLS.index)
    return found.assign(_place=place, _best=-order).sort_values(["_place", "_best"], kind="stable")[found.columns]


def _difference(name: str, mean: MeanOfSets, first: list[Pulls], second: list[Pulls]) -> dict[str, float]:
    found, spread = mean.difference(first, second)
    reach = NORMAL_975 * spread
    return {name: found, f"{name}_low": max(-1.0, found - reach), f"{name}_high": min(1.0, found + reach)}


def _text_table(rows: pd.DataFrame, shared: _Shared) -> TextTable:
    keys = rows[["detector", "settings"]].drop_duplicates()
    keys = keys.assign(protocol="", source="")
    by_row = {
        tuple(row[name] for name in ("detector", "settings", "protocol", "source")): row for row in rows.to_dict("records")
    }
    names = {protocol: label("protocol", *protocol) for protocol in shared.protocols}

    def column(group: str, protocol: Protocol, text: Any) -> Column:
        pairs = keys[["detector", "settings"]].itertuples(index=False, name=None)
        found = [by_row.get((*pair, *protocol)) for pair in pairs]
        return Column(group, (names[protocol],), ["" if row is None else text(row) for row in found])

    columns = [column("AUROC", protocol, lambda row: _figure(row["auroc"])) for protocol in shared.protocols]
    learnt = [protocol for protocol in shared.protocols if protocol[0] != UNSUPERVISED]
    for group, name, of in (("minus unsupervised", "gain", learnt), (f"lead over {CONTROL}", "lead", shared.protocols)):
        columns += [column(group, protocol, lambda row, name=name: _with_interval(row, name)) for protocol in of]
    return TextTable(
        title=f"Protocols: {title_of(rows)}",
        caption=" ".join(_caption(shared)),
        labels=row_labels(keys)[:1],
        sets=[one for one in columns if any(one.texts)],
        summary=[],
        breaks=[],
    )


def _caption(shared: _Shared) -> list[str]:
    parts = [
        f"AUROC ×100 on the test samples that all protocols have in common: the mean over {counted(shared.cells, 'cell')} of"
        f" {counted(len(shared.sets), 'set')}, weighted as in other tables."
    ]
    if shared.left_out:
        parts.append(f"Left out, because not every protocol has it: {escape.plain(', '.join(shared.left_out))}.")
    parts.append("Minus unsupervised: what heads gained by what they learnt from anomalous images.")
    parts.append("In brackets: 95 % intervals over test images (DeLong's paired test).")
    parts.append("–: some cells have no figure. Blank: not run.")
    return parts


def _figure(value: float) -> str:
    return "–" if pd.isna(value) else f"{100 * value:.1f}"


def _with_interval(row: dict[Any, Any], name: str) -> str:
    value, low, high = (row[part] for part in (name, f"{name}_low", f"{name}_high"))
    return "" if pd.isna(value) else f"{100 * value:+z.1f} [{100 * low:+z.1f}, {100 * high:+z.1f}]"
