"""Tables of a comparison of two runs."""

from typing import Any

import pandas as pd

from oodbench.errors import counted
from oodbench.leaderboard import escape
from oodbench.leaderboard.comparison.compare import (
    COLUMNS,
    FOUND,
    GONE,
    IMPROVED,
    LOST,
    NEITHER,
    NEW,
    NOISE,
    OTHER_SEED,
    REGRESSED,
    Comparison,
)
from oodbench.leaderboard.formats import cells_as, writer
from oodbench.leaderboard.notes import Note
from oodbench.leaderboard.text_table import Column, TextTable

SHOWN = (REGRESSED, LOST, IMPROVED, FOUND)  # without ``whole``
MOST = 5  # values that a note names


def render_comparison(compared: Comparison, format: str = "table", *, whole: bool = False, width: int | None = None) -> str:
    """The comparison in one of the formats of leaderboards; csv and json hold every cell, in ``COLUMNS``.

    Tables show what moved; with ``whole``, every cell. Raises UsageError for an unknown format.
    """
    if format in ("csv", "json"):
        return cells_as(format, compared.rows, list(COLUMNS))
    write = writer(format, width)
    order = {verdict: place for place, verdict in enumerate(SHOWN)}
    rows = compared.rows if whole else compared.rows[compared.rows["verdict"].isin(SHOWN)]
    rows = rows.assign(order=rows["verdict"].map(order).fillna(len(order))).sort_values(["order", "difference"], kind="stable")
    tables = [_cells(compared, rows)]
    if (moved := compared.costs[compared.costs["moved"].astype(bool)]).size:
        tables.append(_costs(compared, moved))
    return "\n".join(map(write, tables))


def _cells(compared: Comparison, rows: pd.DataFrame) -> TextTable:
    cells: list[dict[str, Any]] = [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
    names = [f"{cell['dataset']}" + ("" if pd.isna(cell["level"]) else f"@{int(cell['level'])}") for cell in cells]
    labels = [
        ("run", [cell["run"] for cell in cells]),
        ("verdict", [cell["verdict"] for cell in cells] or ["nothing judged to have moved"]),
        *zip(compared.labels, ([cell["detector"] for cell in cells], [cell["protocol"] for cell in cells], names), strict=True),
    ]
    figures = [
        ("first", [_percent(cell["first"]) for cell in cells]),
        ("second", [_percent(cell["second"]) for cell in cells]),
        ("difference", [_signed(cell) for cell in cells]),
        ("samples", [_samples(cell) for cell in cells]),
    ]
    return TextTable(
        title=escape.plain(f"{compared.second} compared with {compared.first}"),
        caption=_caption(compared),
        labels=[Column("", (name,), texts, is_label=True) for name, texts in labels if name and any(texts)],
        sets=[Column("", (name,), texts) for name, texts in figures if texts],
        summary=[],
        breaks=[],
        notes=_notes(compared),
    )


def _caption(compared: Comparison) -> str:
    counts = compared.rows["verdict"].value_counts()
    each = ", ".join(f"{number:,} {verdict}" for verdict, number in counts.items())
    allowed = f" by more than {100 * compared.tolerance:g}" if compared.tolerance else ""
    return (
        f"{compared.figure} ×100, second minus first, in brackets 95 % intervals."
        f" {counted(len(compared.rows), 'cell')}: {each}."
        f" Regressed and improved: moved{allowed} beyond noise at 5 %, of all comparisons together ({compared.test}, Holm)."
    )


def _notes(compared: Comparison) -> list[Note | str]:
    notes: list[Note | str] = []
    if compared.differs:
        notes.append(escape.plain(f"The runs differ in {'; '.join(compared.differs)}."))
    rows = compared.rows
    for verdict, what in ((GONE, "Only the first run has"), (NEW, "Only the second run has")):
        if len(of := rows[rows["verdict"] == verdict]):
            notes.append(escape.plain(f"{what} {counted(len(of), 'cell')}: {_named(of)}."))
    if len(of := rows[rows["verdict"] == OTHER_SEED]):
        notes.append(
            f"Not judged: {counted(len(of), 'cell')} that moved between different seeds. A seed changes {compared.seeds}."
            " Compare runs with the same seed."
        )
    if len(of := rows[rows["verdict"] == NEITHER]):
        notes.append(escape.plain(f"Without figures on both sides: {_named(of)}."))
    if compared.left_out:
        notes.append(f"Not compared: {counted(compared.left_out, 'cell')} of benign sets, whose figures are false alarms.")
    if compared.recognition:
        notes.append(
            "Not compared: accuracy and calibration of class probabilities; see oodbench leaderboard --table recognition."
        )
    for verdict in (LOST, FOUND):
        for reason, of in rows[rows["verdict"] == verdict].groupby("reason"):
            notes.append(escape.plain(f"{verdict.capitalize()}: {_named(of)}: {str(reason) or 'no reason given'}"))
    apart = rows[rows["verdict"].isin([REGRESSED, IMPROVED, NOISE]) & rows["basis"].str.startswith("intervals")]
    for basis, of in apart.groupby("basis"):
        why = str(basis).removeprefix("intervals (").removesuffix(")")
        notes.append(escape.plain(f"{counted(len(of), 'cell')} compared by intervals alone, because of {why}."))
    return notes


def _named(of: pd.DataFrame) -> str:
    return f"{_names(of['detector'])} on {_names(of['dataset'])}"


def _names(values: "pd.Series[str]") -> str:
    names = [str(name) for name in values.unique()]
    more = f" and {counted(len(names) - MOST, 'other')}" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more


def _costs(compared: Comparison, moved: pd.DataFrame) -> TextTable:
    rows = moved.to_dict("records")
    labels = [
        ("run", [row["run"] for row in rows]),
        ("detector", [row["detector"] for row in rows]),
        ("setting", [row["setting"] for row in rows]),
    ]
    figures = [
        ("first", [_cost(row, "first") for row in rows]),
        ("second", [_cost(row, "second") for row in rows]),
        ("ratio", [f"{row['ratio']:.2f}" for row in rows]),
    ]
    return TextTable(
        title="Costs that moved",
        caption="Standalone costs that changed by more than 20 %, and by more than their repeats differ.",
        labels=[Column("", (name,), texts, is_label=True) for name, texts in labels if any(texts)],
        sets=[Column("", (name,), texts) for name, texts in figures],
        summary=[],
        breaks=[],
    )


def _cost(row: Any, side: str) -> str:
    return f"{row[side]:.3g}" + ("×" if row["unit"] == "overhead" else " ms")


def _percent(figure: float) -> str:
    return "–" if pd.isna(figure) else f"{100 * figure:.1f}"


def _signed(cell: dict[str, Any]) -> str:
    if pd.isna(cell["difference"]):
        return ""
    ends = "" if pd.isna(cell["low"]) else f" [{100 * cell['low']:+z.1f}, {100 * cell['high']:+z.1f}]"
    return f"{100 * cell['difference']:+z.1f}{ends}"


def _samples(cell: dict[str, Any]) -> str:
    sides = [f"{int(cell[name]):,}" for name in ("n_in", "n_out") if not pd.isna(cell[name])]
    return " + ".join(sides)
