"""Comparisons as text: in each format of a leaderboard, measured figures beside those that they are compared with."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from oodbench.errors import BadData, UsageError
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import METRICS, require_metric
from oodbench.leaderboard.comparison.beside import COLUMNS, NOT_RUN, OTHER, Beside
from oodbench.leaderboard.formats import cells_as, chosen, writer
from oodbench.leaderboard.labels import label
from oodbench.leaderboard.notes import Missing, Note
from oodbench.leaderboard.text_table import Column, TextTable, row_breaks, row_labels

ROW = ["protocol", "source_set", "detector", "settings"]
HEADINGS = ("measured", "published", "difference")


def render_beside(
    compared: Beside,
    format: str = "table",
    *,
    metric: str = "auroc",
    width: int | None = 160,
    columns: Sequence[str] = (),
    intervals: bool = False,
) -> str:
    """A comparison as text; formats and ``width`` as of ``render``.

    Args:
        metric: which figure the tables for people show; csv and json hold all.
        columns: show only these columns of csv and json (``COLUMNS``, with ``other`` for ``published`` beside a run).
        intervals: show the 95 % intervals of measured figures in tables.

    Raises UsageError for an unknown format, metric or column, BadData where nothing is compared in this metric.
    """
    require_metric(metric)
    if format in ("csv", "json"):
        names = [compared.name if name == "published" else name for name in COLUMNS]
        pairs = zip(compared.rows["detector"], compared.rows["settings"], strict=True)
        rows = compared.rows.assign(detector=[label("detector", *pair) for pair in pairs])
        return cells_as(format, rows, chosen(list(columns), names))
    write = writer(format, width)
    if columns:
        raise UsageError("comparisons have no parts to show; choose columns of csv or json")
    rows = compared.rows[compared.rows["metric"] == metric]
    tables = [table for _, of_file in rows.groupby("file", sort=False) for table in _tables(compared, of_file, intervals)]
    if not tables:
        raise BadData(f"no {METRICS[metric][0]} is compared here; choose another figure with --metric")
    return "\n".join(map(write, tables))


def _tables(compared: Beside, of_file: pd.DataFrame, intervals: bool) -> Iterator[TextTable]:
    """A table for each network, and for each in-distribution set unless each has one set, as classes have."""
    there = of_file[of_file["in_runs"]]
    gone = of_file[~of_file["in_runs"]].assign(source_set="")
    one_each = there.groupby("in_distribution")["heading"].nunique().max() == 1 and there["in_distribution"].nunique() > 1
    keys = ["model", "paper_model"] if one_each else ["model", "paper_model", "inside"]
    groups = [of for _, of in there.groupby(keys, sort=False)]
    for place, of in enumerate(groups):
        notes = _missing(gone) if place == len(groups) - 1 else []
        yield _table(compared, of.assign(source_set=""), one_each, intervals, notes)


def _table(compared: Beside, of: pd.DataFrame, one_each: bool, intervals: bool, notes: list[Note]) -> TextTable:
    first = of.iloc[0]
    paper = compared.papers.get(first["file"])
    if compared.name == OTHER:  # tables of runs show corruptions as means over levels, as elsewhere
        of = _over_levels(of)
    rows = of[ROW].drop_duplicates()
    order = rows["protocol"].map({name: place for place, name in enumerate(rows["protocol"].unique())})
    rows = rows.loc[order.sort_values(kind="stable").index]
    place = {key: number for number, key in enumerate(rows.itertuples(index=False, name=None))}
    of = of.assign(heading=of["inside"] + ": " + of["heading"]) if one_each else of
    columns: list[Column] = []
    for heading, cells in of.groupby("heading", sort=False):
        columns += _columns(str(heading), cells, place, compared.name, intervals)
    inside = "" if one_each else f", in-distribution {first['inside']}"
    return TextTable(
        title=f"{paper.suite if paper else first['source']}: {_network(first)}{inside}",
        caption=" ".join(_caption(compared, first, intervals)),
        labels=row_labels(rows.rename(columns={"source_set": "source"})),
        sets=columns,
        summary=[],
        breaks=row_breaks(rows.rename(columns={"source_set": "source"})),
        notes=[*_missing(of), *notes, *([paper.remark] if paper and paper.remark else [])],
    )


def _network(first: "pd.Series[Any]") -> str:
    """``resnet20-cifar10 for resnet``; the paper's network may be the detector's own."""
    model, paper_model = escape.plain(first["model"] or "no network"), first["paper_model"]
    return model if f"{model} for " not in first["stands_in"] else f"{model} for {paper_model}"


def _caption(compared: Beside, first: "pd.Series[Any]", intervals: bool) -> list[str]:
    name, higher_is_better = METRICS[first["metric"]]
    parts = [f"{name} ×100 ({'higher' if higher_is_better else 'lower'} is better)."]
    if compared.name == OTHER:
        return [
            *parts,
            f"Measured, that of {first['source']} (other), and measured minus other; corruptions are means over levels.",
        ]
    paper = compared.papers[first["file"]]
    apart = "".join(f"; {name}: {protocol}" for name, protocol in paper.protocols.items())
    parts.append(f"Measured, published by {paper.source}, and measured minus published.")
    parts.append(f"The paper's protocol: {paper.protocol}{apart}.")
    parts.append("Headings name what stands in for the paper's network or set, and mark parts of official sets.")
    return parts + (["In brackets: 95 % intervals over test images, of AUROC that comes from one cell."] if intervals else [])


def _columns(
    heading: str, cells: pd.DataFrame, place: dict[tuple[Any, ...], int], name: str, intervals: bool
) -> Iterator[Column]:
    texts = [[""] * len(place) for _ in HEADINGS]
    for cell in cells.to_dict("records"):
        row = place[tuple(cell[key] for key in ROW)]
        measured, there = cell["measured"], cell["status"] == "ok"
        ends = f" [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]" if intervals and not math.isnan(cell["low"]) else ""
        texts[0][row] = f"{100 * measured:.1f}{_plus_minus(cell['measured_spread'])}{ends}" if there else "–"
        texts[1][row] = f"{100 * cell[name]:.1f}{_plus_minus(cell['spread'])}"
        texts[2][row] = f"{100 * cell['difference']:+z.1f}" if there else ""
    for line, of in zip((HEADINGS[0], name, HEADINGS[2]), texts, strict=True):
        yield Column(heading, (line,), of)


def _plus_minus(spread: float | None) -> str:
    return "" if spread is None or pd.isna(spread) else f" ±{100 * spread:.1f}"


def _over_levels(of: pd.DataFrame) -> pd.DataFrame:
    """One row per set: the mean over its levels, or the reason why one of them has no figure."""
    apart = of.assign(heading=of["heading"].str.replace(r"@[1-5]", "", regex=True))
    found = []
    for _, levels in apart.groupby([*ROW, "heading"], sort=False):
        lacking = levels[levels["status"] != "ok"]
        numbers: Any = levels[["measured", OTHER, "difference"]].mean().to_dict()
        first = (lacking if len(lacking) else levels).iloc[[0]]
        found.append(first if len(levels) == 1 else first.assign(low=math.nan, measured_spread=math.nan, **numbers))
    return pd.concat(found)


def _missing(of: pd.DataFrame) -> list[Note]:
    """Each reason of a figure that was not measured once, the most frequent first."""
    notes: list[Missing] = []
    by_reason: Any = of[of["status"] != "ok"].groupby(["status", "reason"], sort=False)
    for (status, reason), cells in by_reason:
        detectors, sets = (tuple(cells[name].unique()) for name in ("detector", "heading"))
        set_in_reason = status == NOT_RUN and len(sets) == 1
        about = detectors if set_in_reason else min(detectors, sets, key=len)
        notes.append(Missing(about, status, reason, len(cells)))
    return [*sorted(notes, key=lambda note: -note.cells)]
