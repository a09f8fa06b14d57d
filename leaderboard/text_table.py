"""One leaderboard table for people, before it takes a format: what each column shows, and the notes below it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import pandas as pd

from oodbench.datasets.name import MISCLASSIFIED, heading
from oodbench.errors import BadData, counted, reason
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import (
    BENIGN,
    CONTROLS,
    COST,
    MEAN,
    METRICS,
    NAME,
    REPEATS,
    ROW,
    Tally,
    base,
    best_of,
    corruptions_of,
    cost_spreads,
    costs,
    interval_ends,
    order_of,
    tally,
    unique_cells,
)
from oodbench.leaderboard.labels import label
from oodbench.leaderboard.notes import Note, table_notes
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.leaderboard.ties import BEST_ALONE, RULE, TESTED, like_the_best
from oodbench.results.facts import NOISY

NO_CELLS = "No cells yet; oodbench run --dry-run shows which ones a run makes."
FALSE_ALARMS = (
    "Benign: false alarms ×100, the share of harmlessly changed images rejected at the threshold that accepts 95 % of the"
    " in-distribution images (5 is expected, lower is better); unsupervised only, and not part of means over sets."
)
ANSWERS = "Misclassified: images that the network gets wrong, against those it gets right; not part of means over sets."
SETS, MEANS, COSTS = PARTS = ("sets", "means", "costs")  # parts of a table
INTERVALS = "In brackets: 95 % intervals over test images, of figures that come from one cell; means have none."
NOISY_COST = (
    f"~: an unreliable cost, whose repeats differ by more than {100 * NOISY:.0f} % (interquartile range over median), as on a"
    " busy machine."
)
PAGE = 14  # columns of figures side by side in Markdown and LaTeX


@dataclass(frozen=True)
class Column:
    """One column: what it shows in each row, and its heading, kind first."""

    group: str
    lines: tuple[str, ...]
    texts: list[str]
    best: frozenset[int] = frozenset()  # rows that hold the best figure of their protocol
    is_label: bool = False  # whether it names the row

    def only(self, rows: list[int]) -> "Column":
        """The column with these rows alone."""
        best = frozenset(place for place, row in enumerate(rows) if row in self.best)
        return replace(self, texts=[self.texts[row] for row in rows], best=best)


@dataclass(frozen=True)
class TextTable:
    """One table for people, before it takes a format."""

    title: str
    caption: str
    labels: list[Column]  # detector, and protocol where each has rows of its own
    sets: list[Column]
    summary: list[Column]  # means and cost
    breaks: list[int]  # rows before which the protocol changes
    notes: list[Note | str] = field(default_factory=list)


def text_table(
    frame: pd.DataFrame,
    metric: str,
    top: int | None = None,
    sort: str = MEAN,
    parts: Sequence[str] = PARTS,
    intervals: bool = False,
    bold: bool = False,
    scores: StoredScores | None = None,
    found: Tally | None = None,
) -> TextTable:
    """The table of one model and in-distribution set; ``frame`` holds one row per cell.

    With ``top``, only that many rows per protocol, and the controls. ``sort`` as in ``tally``; ``parts`` are those of
    ``PARTS`` that it has. With ``intervals``, each figure of one cell has its interval. ``bold``: whether the format shows
    ``best``, so that the caption says what it is; with ``scores``, AUROC that does not differ from the best is of it.
    ``found``: the tally of the frame, in the order in which rows stand; by default as ``sort`` says.
    """
    cells = unique_cells(frame)
    found = tally(cells, metric, sort) if found is None else found
    keys = found.values.index.to_frame(index=False)
    shown = best_rows(keys, top)
    competing = keys[~keys["detector"].isin(CONTROLS)]
    contenders = competing.groupby(["protocol", "source"], sort=False).indices.values()
    entrants = [competing.index[places].tolist() for places in contenders]
    columns = [_figures(found, entrants, place, metric) for place in range(found.values.shape[1])]
    rule = f"{BEST_ALONE}."
    if scores is not None and metric == TESTED:
        try:
            alike = like_the_best(cells, found, entrants, scores)
            columns = [replace(column, best=column.best | also) for column, also in zip(columns, alike, strict=True)]
            rule = RULE
        except BadData as error:  # the figures are there all the same
            rule = f"{BEST_ALONE} ({reason(error)})."
    if intervals:
        columns = _with_intervals(columns, *interval_ends(cells, metric, found.values))
    figures = [column.only(shown) for column in columns]
    means = found.values.columns.get_level_values("group") == "mean"
    summary = [column for column, mean in zip(figures, means, strict=True) if mean]
    rows = keys.iloc[shown]
    paid = _paid(cells, pd.MultiIndex.from_frame(rows)) if COSTS in parts else []
    return TextTable(
        title=title_of(keys),
        caption=" ".join(
            [
                *_caption(cells, found, shown, metric, sort, parts),
                *([rule] if bold else []),
                *([INTERVALS] if intervals else []),
                *rows_shown(keys, shown),
            ]
        ),
        labels=row_labels(rows),
        sets=[column for column, mean in zip(figures, means, strict=True) if not mean and SETS in parts],
        # What rows are sorted by comes first.
        summary=[column for column in [*(summary[-1:] + summary[:-1] if MEANS in parts else []), *paid] if any(column.texts)],
        breaks=row_breaks(rows),
        notes=list(table_notes(frame, cells)),
    )


def _paid(cells: pd.DataFrame, rows: pd.MultiIndex) -> list[Column]:
    """The cost of each row; behind it the mark of its machine, where the cells have a ``mark``."""
    texts = cost_texts(costs(cells), cost_spreads(cells), rows)
    if "mark" in cells:
        measured = cells[cells[COST].notna().any(axis=1)]
        marks = measured.groupby(ROW)["mark"].agg(lambda of: "".join(sorted(of.unique()))).reindex(rows)
        texts = [[f"{text} {mark}" if text else "" for text, mark in zip(of, marks, strict=True)] for of in texts]
    return [Column("cost", (line,), of) for line, of in zip(("ms/image", "overhead"), texts, strict=True)]


def title_of(keys: pd.DataFrame) -> str:
    """The model and the in-distribution set that a table is about; ``keys`` are its rows' (``ROW``)."""
    first = keys.iloc[0]
    model, inside = label("model", first["model"] or "no network", first["network"]), label("in_distribution", *first[ROW[2:4]])
    return f"{model}, in-distribution {inside}"


def best_rows(keys: pd.DataFrame, top: int | None) -> list[int]:
    """Places of the first ``top`` rows of each protocol, and of the controls'; ``keys`` are the rows' in their order."""
    rank = keys.groupby([*ROW[:4], "protocol", "source"], sort=False).cumcount()
    shown = (rank < (len(keys) if top is None else top)) | keys["detector"].isin(CONTROLS)
    return shown.to_numpy().nonzero()[0].tolist()


def rows_shown(keys: pd.DataFrame, shown: list[int]) -> list[str]:
    """What a caption says where rows are left out."""
    whole = len(shown) == len(keys)
    return [] if whole else [f"Shown: {len(shown)} of {len(keys)} rows, the best of each protocol and the controls."]


def row_labels(rows: pd.DataFrame) -> list[Column]:
    """Detector and protocol of each row (``ROW``)."""
    detectors = (
        f"{name} (control)" if name in CONTROLS else label("detector", name, settings)
        for name, settings in zip(rows["detector"], rows["settings"], strict=True)
    )
    protocols = [label("protocol", *pair) for pair in zip(rows["protocol"], rows["source"], strict=True)]
    return [Column("", (name,), of, is_label=True) for name, of in (("detector", list(detectors)), ("protocol", protocols))]


def row_breaks(rows: pd.DataFrame) -> list[int]:
    """Places of the rows before which the protocol changes."""
    protocols = list(zip(rows["protocol"], rows["source"], strict=True))
    return [place for place in range(1, len(protocols)) if protocols[place] != protocols[place - 1]]


def side_by_side(table: TextTable, needed: Callable[[list[Column]], int] = len, room: float = PAGE) -> list[list[Column]]:
    """Columns of figures in blocks of ``room``: all in one, or first means, then cost, then kind by kind, split late."""
    if needed([*table.sets, *table.summary]) <= room:
        return [[*table.sets, *table.summary]]
    blocks: list[list[Column]] = [[]]
    for columns in (list(of) for _, of in groupby([*table.summary, *table.sets], lambda column: column.group)):
        if blocks[-1] and needed([*blocks[-1], *columns]) > room:
            blocks.append([])
        for column in columns:
            if blocks[-1] and needed([*blocks[-1], column]) > room:
                blocks.append([])
            blocks[-1].append(column)
    return blocks


def alignment(columns: Sequence[Column]) -> list[str]:
    """Labels to the left, figures to the right."""
    return ["left" if column.is_label else "right" for column in columns]


def _figures(found: Tally, entrants: list[list[int]], place: int, metric: str) -> Column:
    """A column of figures; ``entrants`` are the rows of each protocol without the control's.

    The best of a protocol must have all its cells. Cells that no row has are reported once, in a mean's heading; where a
    row lacks others, its figure says so.
    """
    group, name, content = (str(part) for part in found.values.columns[place])
    values, spread, cells, present, filled, expected = (part.iloc[:, place].tolist() for part in found)
    whole = filled if group == "mean" else expected
    texts = []
    for value, have, there, of in zip(values, cells, present, whole, strict=True):
        figure = f"{100 * value:.1f}" if have else "–" if there else ""
        texts.append(f"{figure} ({have}/{of})" if 0 < have < of else figure)
    best = set()
    for rows in entrants:
        champion, complete = best_of(found, place, rows, metric)
        best |= {i for i in complete if champion is not None and texts[i] == texts[champion]}
    texts = [text + plus_minus(value) for text, value in zip(texts, spread, strict=True)]
    lines: tuple[str, ...] = (heading(label("dataset", name, content)),)
    if group == "mean":
        lacking = f"{filled[0]} of " if filled[0] < expected[0] else ""
        lines = ("all sets" if name == "all" else name, lacking + counted(expected[0], "cell"))
    return Column(group, lines, texts, frozenset(best))


def plus_minus(deviation: float) -> str:
    """What stands behind a figure for its standard deviation over repeats; empty where there is none."""
    return "" if pd.isna(deviation) else f" ±{100 * deviation:.1f}"


def _with_intervals(columns: list[Column], low: pd.DataFrame, high: pd.DataFrame) -> list[Column]:
    """The columns with intervals behind the figures that have one."""
    found = []
    for place, column in enumerate(columns):
        ends = zip(low.iloc[:, place], high.iloc[:, place], strict=True)
        added = ["" if pd.isna(a) else f" [{100 * a:.1f}, {100 * b:.1f}]" for a, b in ends]
        found.append(replace(column, texts=[text + end for text, end in zip(column.texts, added, strict=True)]))
    return found


def cost_texts(values: pd.DataFrame, spreads: pd.DataFrame, rows: pd.Index) -> list[list[str]]:
    """Milliseconds per image, and multiples of a bare forward pass, of each row; ``~`` stands before unreliable ones."""
    shown = []
    for name, text in zip(COST, (three_digits, times), strict=True):
        pairs = zip(values[name].reindex(rows), spreads[name].reindex(rows), strict=True)
        shown.append(["~" * (spread > NOISY) + text(value) for value, spread in pairs])
    return shown


def three_digits(value: float) -> str:
    """Empty where nothing is known."""
    if pd.isna(value):
        return ""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def times(value: float) -> str:
    """``1.50×``; empty where nothing is known."""
    return f"{three_digits(value)}×" if pd.notna(value) else ""


def _caption(
    cells: pd.DataFrame, found: Tally, shown: list[int], metric: str, sort: str, shown_parts: Sequence[str]
) -> list[str]:
    name, higher_is_better = METRICS[metric]
    parts = [f"{name} ×100 ({'higher' if higher_is_better else 'lower'} is better), {_order(cells, sort)}."]
    parts += _mean_remarks(cells, MEANS in shown_parts)
    if (cells["kind"] == BENIGN).any():
        parts.append(FALSE_ALARMS)
    if (cells["kind"] == MISCLASSIFIED).any():
        parts.append(ANSWERS)
    if repeats := repeats_of(cells):
        parts.append(f"Means of {repeats}, ± their standard deviation.")
    whole = found.expected.copy()
    whole["mean"] = found.filled["mean"]
    if ((found.cells > 0) & (found.cells < whole)).iloc[shown].any(axis=None):
        parts.append("(k/n): only k of n cells have figures.")
    if (found.present.drop(columns="mean", level="group") == 0).any(axis=None):
        transfers = (cells["protocol"] == "transfer").any()
        parts.append("Blank: not run, or what transfer learnt from." if transfers else "Blank: not run.")
    if cells["overhead"].notna().any() and COSTS in shown_parts:
        parts.append("Overhead: multiples of a bare forward pass.")
    if COSTS in shown_parts and (cost_spreads(cells).reindex(found.values.index).iloc[shown] > NOISY).any(axis=None):
        parts.append(NOISY_COST)
    return parts


def repeats_of(cells: pd.DataFrame) -> str:
    """What a table's means are over beside sets: ``3 checkpoints``; empty where nothing is repeated."""
    counts = {name: cells[name].nunique() for name in REPEATS}
    several = [counted(count, name) for name, count in counts.items() if count > 1]
    runs = len(cells[REPEATS].drop_duplicates())
    return f"{' and '.join(several)} ({runs} runs)" if len(several) > 1 else "".join(several)


def _order(cells: pd.DataFrame, sort: str) -> str:
    """What comes first."""
    sort = order_of(cells, sort)
    if sort == NAME:
        return "sorted by name"
    if sort in COST:
        return "lowest cost first"
    if sort in cells["kind"].values:
        return f"best mean over {sort} sets first"
    return f"best on {escape.plain(sort)} first" if sort in cells["dataset"].values else "best mean over all sets first"


def _mean_remarks(cells: pd.DataFrame, over_sets: bool) -> list[str]:
    """What the figures of corruptions and attacks are means of, and how they weigh in means over sets."""
    corrupted, attacked = (cells[cells["kind"] == kind]["dataset"].unique().tolist() for kind in ("corruption", "adversarial"))
    remarks = []
    if corrupted:
        each = (escape.plain(corruptions_of(of, corrupted)) for of in dict.fromkeys(base("corruption", n) for n in corrupted))
        remarks.append(f"Corruptions, means over levels: {'; '.join(each)}.")
    alike = [f"all {name} one base" for name, of in (("corruptions of", corrupted), ("attacks on", attacked)) if of]
    if alike and over_sets:
        remarks.append(f"In means over sets {' and '.join(alike)} count as one set.")
    return remarks
