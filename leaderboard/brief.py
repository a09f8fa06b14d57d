"""What a run ends with on a terminal: the best rows of each protocol, the controls, means by kind, and what went wrong."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import pandas as pd

from oodbench.errors import counted
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import (
    BENIGN,
    CONTROL,
    CONTROLS,
    COST,
    GROUP,
    METRICS,
    SPREAD,
    Tally,
    cost_spreads,
    costs,
    qualified,
    tally,
    unique_cells,
)
from oodbench.leaderboard.labels import label
from oodbench.leaderboard.notes import (
    CUE,
    Cue,
    LookAlikes,
    Missing,
    MixedCode,
    NetworkNote,
    Note,
    NotRun,
    PrecisionNote,
    Subsets,
    table_notes,
)
from oodbench.leaderboard.sentences import listed, parts_of
from oodbench.leaderboard.text import GAP, broken, noted, wrapped
from oodbench.leaderboard.text_table import (
    NO_CELLS,
    NOISY_COST,
    best_rows,
    cost_texts,
    plus_minus,
    repeats_of,
    row_labels,
    title_of,
)

MOST, FEWEST = 10, 3  # rows of a protocol
NAME = 16  # characters that a detector's name has at least, where columns compete for the width


def brief(frame: pd.DataFrame, notes: Sequence[Note | str] = (), *, width: int = 80, lines: int = 42) -> str:
    """The best rows of each protocol and the notes that matter at once, in ``lines`` lines of ``width`` characters.

    Where that is little room, there are fewer rows, then fewer reasons of missing figures; what is shown is whole. The best
    row of each table is always shown, also where many tables need more lines. ``frame`` and ``notes`` are what ``gather``
    gives; any frame with ``COLUMNS`` will do.
    """
    frame = qualified(frame)
    if frame.empty:
        return f"{NO_CELLS}\n"
    tables, paragraphs, missing = [], [], []
    for _, cells in frame.groupby(GROUP, sort=False):
        unique = unique_cells(cells)
        of_rows = tally(unique)
        tables.append((unique, of_rows, cost_texts(costs(unique), cost_spreads(unique), of_rows.values.index)[1]))
        found = table_notes(cells, unique)
        paragraphs += _cues([note for note in found if isinstance(note, Cue)])
        missing += [noted(note) for note in found if isinstance(note, Missing)]
    paragraphs[:0] = [noted(note) for note in notes if isinstance(note, NotRun | NetworkNote | PrecisionNote)]
    paragraphs += [noted(note) for note in notes if isinstance(note, MixedCode | LookAlikes)]
    paragraphs += [_subsets(note) for note in notes if isinstance(note, Subsets)]

    def attempt(rows: int, reasons: int) -> list[str]:
        text = [line for table in tables for line in _table(*table, rows, width)]
        left_out = len(missing) - reasons
        rest = f"and {counted(left_out, 'more reason')}" if reasons else counted(left_out, "reason")
        more = [f"– {rest} for missing figures"] if left_out else []
        return text + [line for note in [*paragraphs, *missing[:reasons], *more] for line in wrapped(note, width).splitlines()]

    attempts = [(rows, len(missing)) for rows in range(MOST, FEWEST - 1, -1)]
    attempts += [(FEWEST, reasons) for reasons in range(len(missing) - 1, 0, -1)]
    attempts += [(rows, min(1, len(missing))) for rows in range(FEWEST - 1, 0, -1)]
    attempts += [(rows, 0) for rows in range(FEWEST, 0, -1)]
    for rows, reasons in attempts:
        if len(text := attempt(rows, reasons)) <= lines:
            break
    return "\n".join(text) + "\n"


def brief_costs(frame: pd.DataFrame, *, width: int = 80, lines: int = 6) -> str:
    """What each detector costs by itself, the cheapest first, in ``lines`` lines of ``width``; empty where nothing is known."""
    cells = unique_cells(frame)
    detectors = cells["detector"].str.partition(":")[0]  # a variant costs what its detector does
    grouped = cells.groupby(detectors)
    values, spreads = grouped[COST].median(), grouped[SPREAD].max().set_axis(COST, axis=1)
    place = 1 if values[COST[1]].notna().any() else 0
    known = values[COST[place]].dropna().sort_values(kind="stable").index
    texts = [f"{name} {text}" for name, text in zip(known, cost_texts(values, spreads, known)[place], strict=True)]
    if not texts:
        return ""
    unit = ("in ms per image", "in multiples of a bare forward pass")[place]
    remark = wrapped(NOISY_COST, width).splitlines() if any("~" in text for text in texts) else []
    for most in range(len(texts), 0, -1):
        text = wrapped(escape.plain(f"Cost of each detector alone, {unit}: {listed(texts, most)}"), width).splitlines()
        if len(text) + len(remark) <= lines:
            break
    return "\n".join([*text, *remark]) + "\n"


def _table(cells: pd.DataFrame, found: Tally, overhead: list[str], rows: int, width: int) -> list[str]:
    """One heading for all protocols, then for each its name, how many rows it has, and the best of them."""
    keys = found.values.index.to_frame(index=False)
    shown = best_rows(keys, rows)
    names = row_labels(keys.iloc[shown])[0].texts
    columns = _columns(found, overhead, shown)
    while len(columns) > 1 and _needed(columns) > width - min(NAME, max(map(len, names))):
        del columns[-1]
    name_width = min(width - _needed(columns), max(map(len, [*names, "detector"])))

    def line(name: str, texts: Sequence[str]) -> list[str]:
        figures = (" " * GAP + text.rjust(_needed([column]) - GAP) for text, column in zip(texts, columns, strict=True))
        first, *others = broken(escape.plain(name), name_width, name_width) or [""]
        return [(first.ljust(name_width) + "".join(figures)).rstrip(), *(f"  {other}" for other in others)]

    higher = "higher" if METRICS["auroc"][1] else "lower"
    text = wrapped(escape.plain(f"{title_of(keys)}: {METRICS['auroc'][0]} ×100, {higher} is better"), width).splitlines()
    text += [*line("", [head[0] for head, _ in columns]), *line("detector", [head[1] for head, _ in columns])]
    texts = list(zip(names, zip(*(figures for _, figures in columns), strict=True), strict=True))
    by_protocol: Any = keys.groupby(["protocol", "source"], sort=False)
    for (protocol, source), of in by_protocol:
        mine = [place for place, row in enumerate(shown) if row in of.index]
        counted = _counted(keys.iloc[shown].iloc[mine]["detector"], len(of))
        *others, last = wrapped(escape.plain(f"--- {label('protocol', protocol, source)}: {counted}"), width - 1).splitlines()
        text += [*others, f"{last} ".ljust(width, "-")]
        text += [part for place in mine for part in line(*texts[place])]
    if repeats := repeats_of(cells):
        text.append(f"Means of {repeats}, ± their standard deviation.")
    if any(figure.endswith("*") for _, figures in columns for figure in figures):
        text.append("*: mean of fewer cells, because some have no figure")
    if any(figure.startswith("~") for _, figures in columns for figure in figures):
        text += wrapped(NOISY_COST, width).splitlines()
    if BENIGN in found.values["mean"].columns:
        text += wrapped("benign: false alarms ×100 at the threshold that accepts 95 % (5 is expected)", width).splitlines()
    return text


def _counted(shown: "pd.Series[str]", count: int) -> str:
    """``7 rows``, or ``best 10 of 39 rows, and the controls``."""
    if len(shown) == count:
        return f"{count} rows" if count > 1 else "1 row"
    extra = len(list(takewhile(CONTROLS.__contains__, reversed(shown.tolist()))))
    added = ("", ", and the control", ", and the controls")[extra]
    return f"best {len(shown) - extra} of {count} rows{added}"


def _columns(found: Tally, overhead: list[str], shown: list[int]) -> list[tuple[tuple[str, str], list[str]]]:
    """Headings of two lines, and figures of the rows that are shown: over all sets, by kind, and the cost."""
    parts = found.values, found.cells, found.present, found.filled, found.spread
    values, cells, present, filled, spread = (pd.DataFrame(part["mean"]).iloc[shown] for part in parts)
    columns = []
    for place, kind in enumerate(values.columns.get_level_values(0)):
        figures = []
        of_place = (part.iloc[:, place] for part in (values, cells, present, filled, spread))
        for value, have, there, of, deviation in zip(*of_place, strict=True):
            figure = f"{100 * value:.1f}{plus_minus(deviation)}"
            figures.append(figure + ("*" if have < of else "") if have else "–" if there else "")
        first, dash, second = escape.shortened(kind, 14).partition("-")
        head = ("all", "sets") if kind == "all" else (first + dash, second) if second else ("", first)
        columns.append((head, figures))
    paid = [overhead[row] for row in shown]
    return [columns[-1], *columns[:-1], *([(("", "overhead"), paid)] if any(paid) else [])]


def _needed(columns: Sequence[tuple[tuple[str, str], list[str]]]) -> int:
    return sum(GAP + max(map(len, (*head, *figures))) for head, figures in columns)


def _cues(cues: list[Cue]) -> list[str]:
    """Where the control does well without the network, all protocols in one sentence."""
    if not cues:
        return []
    each = listed(f"{len(cue.about)} of {counted(cue.sets, 'set')} ({cue.protocol})" for cue in cues)
    return [
        f"{CONTROL}, the control, does not use the network, but reaches {100 * CUE:.0f} on {each}:"
        " simple image statistics separate these sets."
    ]


def _subsets(note: Subsets) -> str:
    return f"Parts of official sets, so not the whole sets' figures: {listed(parts_of(note), 2)}."
