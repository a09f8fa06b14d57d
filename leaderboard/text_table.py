"""One leaderboard table for people, before it takes a format: what each column shows, and what must be said about it."""

from collections import Counter
from dataclasses import dataclass

import pandas as pd

from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import (
    CONTROL,
    COST,
    GROUP,
    METRICS,
    Tally,
    base,
    corruptions_of,
    costs,
    tally,
    unique_cells,
)

Rows = list[tuple[str, str]]  # protocol and detector of each row
CUE = 0.9  # AUROC of the control from which a table says that the image alone gives a set away


@dataclass(frozen=True)
class Column:
    """One column: what it shows in each row, and its heading, kind first."""

    group: str
    lines: tuple[str, ...]
    texts: list[str]
    best: frozenset[int] = frozenset()  # rows that hold the best figure of their protocol


@dataclass(frozen=True)
class Section:
    """One table for people, before it takes a format."""

    title: str
    caption: str
    labels: list[Column]  # detector and protocol
    sets: list[Column]
    summary: list[Column]  # means and cost
    breaks: list[int]  # rows before which the protocol changes
    notes: list[str]


def section(frame: pd.DataFrame, metric: str) -> Section:
    """The table of one model and in-distribution set; ``frame`` holds a row a cell."""
    found = tally(frame, metric)
    cells = unique_cells(frame)
    rows = list(found.values.index.to_frame()[["protocol", "detector"]].itertuples(index=False, name=None))
    title = "{}, in-distribution {}".format(*frame[GROUP].iloc[0])
    figures = [_figures(found, place, rows, METRICS[metric][1]) for place in range(found.values.shape[1])]
    is_mean = found.values.columns.get_level_values("group") == "mean"
    cost = costs(cells).reindex(found.values.index)
    means = [c for c, mean in zip(figures, is_mean, strict=True) if mean]
    paid = [
        Column("cost", ("ms/image",), [_three_digits(v) for v in cost[COST[0]]]),
        Column("cost", ("overhead",), [f"{_three_digits(v)}×" if pd.notna(v) else "" for v in cost[COST[1]]]),
    ]
    return Section(
        title=title,
        caption=_caption(cells, found, figures, metric),
        labels=row_labels(rows),
        sets=[c for c, mean in zip(figures, is_mean, strict=True) if not mean],
        summary=[means[-1], *means[:-1], *paid],  # what rows are sorted by, first
        breaks=row_breaks(rows),
        notes=[*_cue_notes(cells), *_setting_notes(cells), *_reason_notes(cells), *_repeat_notes(frame, cells)],
    )


def row_labels(rows: Rows) -> list[Column]:
    return [
        Column("", ("detector",), [f"{name} (control)" if name == CONTROL else name for _, name in rows]),
        Column("", ("protocol",), [protocol for protocol, _ in rows]),
    ]


def row_breaks(rows: Rows) -> list[int]:
    return [i for i in range(1, len(rows)) if rows[i][0] != rows[i - 1][0]]


def _figures(found: Tally, place: int, rows: Rows, higher_is_better: bool) -> Column:
    """A column of figures; the best of a protocol is that of a detector, not the control, with all its cells.

    Cells that nobody has are said once, in a mean's heading; where a row lacks others, it says so itself.
    """
    group, name = (str(level[place]) for level in map(found.values.columns.get_level_values, ("group", "name")))
    values, cells, present, filled, expected = (part.iloc[:, place].tolist() for part in found)
    whole = filled if group == "mean" else expected
    texts = []
    for value, have, there, of in zip(values, cells, present, whole, strict=True):
        figure = f"{100 * value:.1f}" if have else "–" if there else ""
        texts.append(f"{figure} ({have}/{of})" if 0 < have < of else figure)
    best = set()
    for protocol in {protocol for protocol, _ in rows}:
        entrants = [
            i for i, row in enumerate(rows) if row[0] == protocol and row[1] != CONTROL and cells[i] and cells[i] == whole[i]
        ]
        if entrants:
            champion = (max if higher_is_better else min)(entrants, key=lambda i: values[i])
            best |= {i for i in entrants if texts[i] == texts[champion]}
    lines: tuple[str, ...] = (name.removeprefix("folder:"),)
    if group == "mean":
        lacking = f"{filled[0]} of " if filled[0] < expected[0] else ""
        lines = ("all sets" if name == "all" else name, lacking + _counted(expected[0]))
    return Column(group, lines, texts, frozenset(best))


def _three_digits(value: float) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _caption(cells: pd.DataFrame, found: Tally, figures: list[Column], metric: str) -> str:
    name, higher_is_better = METRICS[metric]
    parts = [f"{name} ×100 ({'higher' if higher_is_better else 'lower'} is better), best mean over all sets first."]
    parts += _mean_remarks(cells)
    if (seeds := cells["seed"].nunique()) > 1:
        parts.append(f"Means of {seeds} seeds.")
    if any(" (" in text for column in figures for text in column.texts):
        parts.append("(k/n): only k of n cells have figures.")
    if (found.present.drop(columns="mean", level="group") == 0).any(axis=None):
        parts.append("Blank: not run, or what transfer learnt from." if _has_transfer(cells) else "Blank: not run.")
    if cells["overhead"].notna().any():
        parts.append("Overhead: multiples of a bare forward pass.")
    return " ".join(parts)


def _mean_remarks(cells: pd.DataFrame) -> list[str]:
    """What stands behind the figures of corruptions and attacks, and how they weigh in means over sets."""
    corrupted, attacked = (cells[cells["kind"] == kind]["dataset"].unique().tolist() for kind in ("corruption", "adversarial"))
    remarks = []
    if corrupted:
        each = (escape.plain(corruptions_of(of, corrupted)) for of in dict.fromkeys(base("corruption", n) for n in corrupted))
        remarks.append(f"Corruptions, means over levels: {'; '.join(each)}.")
    alike = [f"all {name} one base" for name, of in (("corruptions of", corrupted), ("attacks on", attacked)) if of]
    if alike:
        remarks.append(f"In means over sets {' and '.join(alike)} count as one set.")
    return remarks


def _cue_notes(cells: pd.DataFrame) -> list[str]:
    """Where the control alone tells the sets apart."""
    control = cells[cells["detector"] == CONTROL]
    if control.empty:
        return []
    found = tally(control).values.drop(columns="mean", level="group")
    notes = []
    for (_, _, protocol, _), row in zip(found.index.tolist(), found.to_numpy(), strict=True):
        named = zip(found.columns.get_level_values("name"), row, strict=True)
        high = [f"{name.removeprefix('folder:')} ({100 * value:.1f})" for name, value in named if value >= CUE]
        if high:
            notes.append(
                f"{CONTROL}, the control, never sees the network; yet ({protocol}) its AUROC ×100 is {100 * CUE:.0f} or more on"
                f" {_listed(high, at_most=6)}: a plain cue of the images gives these sets away, which any detector can pick up."
            )
    return notes


def _has_transfer(cells: pd.DataFrame) -> bool:
    return bool(cells["protocol"].str.startswith("transfer").any())


def _setting_notes(cells: pd.DataFrame) -> list[str]:
    """What rows with figures remark: hyper-parameters that are not their detector's defaults."""
    remarked = cells[(cells["status"] == "ok") & cells["reason"].fillna("").ne("")]
    return [
        f"{_listed(sorted(of['detector'].unique()), at_most=3)}: {escape.plain(remark)}"
        for remark, of in remarked.groupby("reason", sort=False)
    ]


def _reason_notes(cells: pd.DataFrame) -> list[str]:
    """Each reason of a missing figure once, with how many cells it stands for, the most frequent first."""
    missing = cells[cells["status"] != "ok"]
    keys = list(zip(missing["status"], missing["reason"].fillna("").map(escape.plain), strict=True))
    notes = []
    for (status, reason), count in Counter(keys).most_common():
        of = missing[[key == (status, reason) for key in keys]]
        detectors, sets = of["detector"].unique().tolist(), of["dataset"].unique().tolist()
        who = _listed(min(detectors, sets, key=len), at_most=3)
        notes.append(f"– {_counted(count)} {status} ({who}): {reason or 'no reason given'}")
    return notes


def _repeat_notes(frame: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    count = len(frame) - len(cells)
    return [f"Left out: {_counted(count)} that a later run holds again; the last of each is shown."] if count else []


def _counted(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _listed(names: list[str], at_most: int | None = None) -> str:
    shown = names[:at_most]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")
