"""The numbers of a leaderboard: figures by set, means over sets, and how many cells stand behind each.

A frame holds one row per cell, in ``COLUMNS``. A mean is taken step by step, so that no set weighs more because it has more
cells: over repeats (the checkpoints of a study and seeds), then levels of one corruption, then corruptions of one base set
(and attacks on it), then sets.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from oodbench.datasets.name import EXTRA_CORRUPTIONS_C as EXTRA
from oodbench.datasets.name import MAIN_CORRUPTIONS_C as MAIN
from oodbench.datasets.name import MISCLASSIFIED, source_and_change
from oodbench.errors import BadData, UsageError, counted
from oodbench.registry import unknown
from oodbench.suite import PROTOCOLS

COLUMNS = (
    "model", "in_distribution", "detector", "protocol", "dataset", "kind", "level", "seed", "n_in", "n_out",
    "auroc", "auroc_low", "auroc_high", "aupr_out", "aupr_in", "fpr95", "detection_accuracy", "detection_error",
    "ms_per_image", "overhead", "peak_memory_mb", "wall_seconds", "status", "reason",
    "ms_per_image_spread", "overhead_spread", "checkpoint", "aurc", "excess_aurc",
)  # fmt: skip
# Further columns, which a frame may lack: the ends of 95 % intervals, as ``gather`` computes them when asked.
ENDS = ("aupr_out_low", "aupr_out_high", "aupr_in_low", "aupr_in_high", "fpr95_low", "fpr95_high")
# Further key columns, which a frame may lack: what tells apart things of one name in several runs, by the column that
# holds the name. Empty where the name is enough. ``labels`` makes what people read of the two.
QUALIFIERS = {
    "model": "network",  # hash of the weights
    "in_distribution": "images",  # hash of the test images
    "protocol": "source",  # the set that transfer learnt from
    "detector": "settings",  # JSON of the hyper-parameters
    "dataset": "content",  # hash of the images
}
METRICS = {  # column: (what tables call it, whether higher is better)
    "auroc": ("AUROC", True),
    "aupr_out": ("AUPR of the anomalous side", True),
    "aupr_in": ("AUPR of the in-distribution side", True),
    "fpr95": ("FPR95", False),
    "detection_accuracy": ("detection accuracy", True),
    "detection_error": ("detection error", False),
}
KINDS = ("near-ood", "far-ood", "csid", "corruption", "adversarial", "anomaly", "misclassified", "benign")
BENIGN = "benign"  # the kind whose figure is a rate of false alarms, whatever the metric, and not part of means over sets
APART = (BENIGN, MISCLASSIFIED)  # kinds that are not part of means over sets
CONTROL = "pixels"  # the detector that does not use the network
CONTROLS = (CONTROL, "untrained")  # detectors that show what others owe to the images or to the architecture

GROUP = ["model", "network", "in_distribution", "images"]  # one table each
ROW = [*GROUP, "protocol", "source", "detector", "settings"]
SET = ["kind", "dataset", "content"]
REPEATS = ["checkpoint", "seed"]  # of one experiment: what means are over, ± the standard deviation
PLACE = [*SET, "level", *REPEATS]  # what a row has a cell for
SCOPE = [*GROUP, "scope", "of"]  # whose places count for a row
COST = ["ms_per_image", "overhead"]
MEAN, NAME = "mean", "detector"  # orders of rows: by the mean over all sets, which is the default, and by name
SPREAD = [f"{name}_spread" for name in COST]  # of their repeats, relative
LATER = (*SPREAD, "checkpoint", "aurc", "excess_aurc")  # of COLUMNS, which frames of an earlier oodbench lack


class Tally(NamedTuple):
    """Figures and the cells behind them: frames with the same rows (``ROW``) and columns.

    Columns are (kind, dataset, content) for each set, then ("mean", kind, "") for each kind present, then
    ("mean", "all", "").
    """

    values: pd.DataFrame  # fractions; NaN where no cell has a figure
    spread: pd.DataFrame  # their standard deviation over repeats, of those with all cells; NaN for a single one
    cells: pd.DataFrame  # how many cells have one
    present: pd.DataFrame  # how many cells there are, with a figure or a reason why not
    # Of the same model and in-distribution set. Transfer has places of its own: none on the set that it learns from.
    filled: pd.DataFrame  # how many places any detector has a figure for
    expected: pd.DataFrame  # how many places there are, with a figure or without


def tally(frame: pd.DataFrame, metric: str = "auroc", sort: str = MEAN) -> Tally:
    """Values and counts, the best row first within each model, in-distribution set and protocol.

    Rows are sorted by the mean over all sets, or by another of ``sorts``: a kind (its mean), a set, a column of ``COST``,
    or ``detector`` (the name). A row without all the cells that others have there comes after those that have them. Values
    of benign changes are rates of false alarms, whatever the metric. Kinds in ``APART`` are not part of the mean over all
    sets. A cell that
    occurs twice (in several runs) counts once, as it occurs last. Raises UsageError for an unknown metric, BadData where
    columns are missing.
    """
    cells = unique_cells(frame)
    measured = _measured(cells, metric)
    places, filled = (part.drop_duplicates([*SCOPE, *PLACE]) for part in map(_scoped, (cells, measured)))
    kinds = sorted(set(places["kind"]), key=_rank(KINDS))
    datasets = places[SET].drop_duplicates().itertuples(index=False, name=None)
    sets = sorted(datasets, key=lambda key: kinds.index(key[0]))  # stable: within a kind as in the frame
    means = [("mean", kind, "") for kind in [*kinds, "all"]]
    columns = pd.MultiIndex.from_tuples([*sets, *means], names=["group", "name", "content"])
    rows = cells[ROW].drop_duplicates()
    index = pd.MultiIndex.from_frame(rows)
    group = pd.MultiIndex.from_frame(_with_scope(rows)[SCOPE])
    counts = (_wide(_counts(part, ROW), columns).reindex(index) for part in (measured, cells))
    shared_counts = (_wide(_counts(part, SCOPE), columns).reindex(group).set_axis(index) for part in (filled, places))
    spread = _spread(measured, columns).reindex(index)
    values = _wide(_averages(measured), columns).reindex(index)
    found = Tally(values, spread, *(part.fillna(0).astype(int) for part in (*counts, *shared_counts)))
    order = _in_order(rows, *_sorted_by(found, cells, metric, order_of(cells, sort)))
    return Tally(*(part.reindex(order) for part in found))


def best_of(found: Tally, place: int, rows: Sequence[int], metric: str) -> tuple[int | None, list[int]]:
    """The best of these rows in a column, and all of them that have its cells; None where no row has all of them."""
    group, name, _ = (str(part) for part in found.values.columns[place])
    values, cells = found.values.iloc[:, place].tolist(), found.cells.iloc[:, place].tolist()
    whole = (found.filled if group == "mean" else found.expected).iloc[:, place].tolist()
    complete = [row for row in rows if cells[row] and cells[row] == whole[row]]
    choose = max if higher_is_better(metric, group, name) else min
    return choose(complete, key=lambda row: values[row], default=None), complete


def higher_is_better(metric: str, group: str, name: str) -> bool:
    """Of the figures in a column of a tally: those of benign changes are rates of false alarms, whatever the metric."""
    return METRICS[metric][1] and BENIGN not in (group, name)


def interval_ends(cells: pd.DataFrame, metric: str, like: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Low and high ends of the figures of a tally that come from one cell, ``like`` its values; NaN for the others.

    Raises BadData where the frame lacks the columns.
    """
    benign = cells["kind"] == BENIGN
    needed = list(dict.fromkeys(name for name, of in ((metric, ~benign), ("fpr95", benign)) if of.any()))
    if missing := [f"{name}_low" for name in needed if f"{name}_low" not in cells.columns]:
        raise BadData(f"the frame lacks the columns {', '.join(missing)}; take it from gather with intervals='{metric}'")
    measured = _measured(cells, metric)
    found = []
    for end, other in (("low", "high"), ("high", "low")):
        figures = [cells[f"{name}_{side}"].astype(float) for name, side in ((metric, end), ("fpr95", other)) if name in needed]
        ends = figures[0].where(~benign, 1 - figures[-1]).reindex(measured.index)
        by_set = measured.assign(value=ends).groupby([*ROW, *SET])["value"]
        single = by_set.mean().where(by_set.size() == 1)
        found.append(single.unstack(SET).reindex(index=like.index, columns=like.columns))
    return found[0], found[1]


def _spread(measured: pd.DataFrame, columns: pd.MultiIndex) -> pd.DataFrame:
    if len(measured[REPEATS].drop_duplicates()) < 2:
        return pd.DataFrame(columns=columns, dtype=float)
    by_repeat = [*ROW, *REPEATS]
    values, cells = (_wide(parts, columns) for parts in (_averages(measured, by_repeat), _counts(measured, by_repeat)))
    whole = cells == cells.groupby(level=ROW).transform("max")
    return values.where(whole).groupby(level=ROW).std()


def require_metric(metric: str) -> None:
    """Raise UsageError for an unknown metric."""
    if metric not in METRICS:
        raise UsageError(unknown("metric", metric, METRICS, f"it is one of {', '.join(METRICS)}"))


def _measured(cells: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The cells with a figure, ``value``: the metric, or for a benign change the share of images rejected at the
    threshold that accepts 95 % of the in-distribution images."""
    require_metric(metric)
    figures = cells[metric].where(cells["kind"] != BENIGN, 1 - cells["fpr95"])
    return cells.assign(value=figures)[(cells["status"] == "ok") & figures.notna()]


def _with_scope(rows: pd.DataFrame) -> pd.DataFrame:
    """With whose places count for a row: transfer's own by the set it learnt from, or those of all protocols."""
    transfer = rows["protocol"] == "transfer"
    return rows.assign(scope=rows["protocol"].where(transfer, ""), of=rows["source"].where(transfer, ""))


def _scoped(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells for the scope of all protocols, and transfer's again for its own."""
    scoped = _with_scope(cells)
    return pd.concat([cells.assign(scope="", of=""), scoped[scoped["scope"] != ""]])


def figures_by_set(frame: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """The figures that a mean over all sets is taken over: rows by ``ROW``, one column per (kind, set) that counts as one set.

    NaN where a row has no figure; a figure may be the mean of fewer cells than others have, see ``tally``.
    """
    measured = _measured(unique_cells(frame), metric)
    by_set = _by_counted_set(_by_dataset(measured[~measured["kind"].isin(APART)], ROW), ROW)
    return by_set.unstack(["kind", "set"])


def _averages(measured: pd.DataFrame, row: list[str] = ROW) -> list[pd.Series]:
    """Means by row and set, by row and kind, and by row."""
    by_dataset = _by_dataset(measured, row)
    by_set = _by_counted_set(by_dataset, row)
    separated = by_set[~by_set.index.get_level_values("kind").isin(APART)]
    return [by_dataset, by_set.groupby([*row, "kind"]).mean(), separated.groupby(row).mean()]


def _by_dataset(measured: pd.DataFrame, row: list[str]) -> pd.Series:
    by_level = measured.groupby([*row, *SET, "level"], dropna=False)["value"].mean()  # over repeats
    return by_level.groupby([*row, *SET]).mean()


def _by_counted_set(by_dataset: pd.Series, row: list[str]) -> pd.Series:
    """By row, kind and what counts as one set."""
    long = by_dataset.reset_index()
    sets = long[SET].drop_duplicates()
    separate = [counts_as(*key) for key in sets.itertuples(index=False, name=None)]
    long = long.merge(sets.assign(set=pd.Series(separate, sets.index)), on=SET, how="left", sort=False)
    return long.groupby([*row, "kind", "set"])["value"].mean()


def counts_as(kind: str, dataset: str, content: str) -> tuple[str, str]:
    """The set that a mean counts a dataset as: other content is another set, unless both are made from one base."""
    of = base(kind, dataset)
    return of, content if of == dataset else ""


def _counts(cells: pd.DataFrame, keys: list[str]) -> list[pd.Series]:
    """Cells by ``keys`` and set, by ``keys`` and kind, and by ``keys`` without those of kinds that stand apart."""
    separated = cells[~cells["kind"].isin(APART)]
    return [of.groupby([*keys, *by])["status"].size() for of, by in ((cells, SET), (cells, ["kind"]), (separated, []))]


def _wide(parts: list[pd.Series], columns: pd.MultiIndex) -> pd.DataFrame:
    """Series by set, by kind and by neither, side by side in ``columns``."""
    by_set, by_kind, over_all = parts
    means = pd.concat([by_kind.unstack("kind"), over_all.rename("all")], axis=1)
    means.columns = pd.MultiIndex.from_tuples([("mean", name, "") for name in means.columns])
    return pd.concat([by_set.unstack(SET), means], axis=1).reindex(columns=columns)


def sorts(frame: pd.DataFrame) -> list[str]:
    """What the rows of a frame can be sorted by."""
    kinds = sorted(frame["kind"].dropna().unique(), key=_rank(KINDS))
    return [MEAN, NAME, *COST, *kinds, *frame["dataset"].dropna().unique()]


def order_of(cells: pd.DataFrame, sort: str) -> str:
    """What rows are sorted by: the first kind in place of a mean over all sets that has none."""
    kinds = sorted(cells["kind"].unique(), key=_rank(KINDS))
    return str(kinds[0]) if sort == MEAN and kinds and {*kinds} <= {*APART} else sort


def _sorted_by(found: Tally, cells: pd.DataFrame, metric: str, sort: str) -> tuple[list[float], list[bool]]:
    """For each row of a tally, what it is sorted by, lower first, and whether cells are missing behind it."""
    if sort == NAME:
        return [0.0] * len(found.values), [False] * len(found.values)
    if sort in COST:
        paid = costs(cells)[sort].reindex(found.values.index)
        return paid.tolist(), paid.isna().tolist()
    columns: Any = found.values.columns
    sets = {name: (group, name, content) for group, name, content in reversed(columns) if group != "mean"}
    kinds = {name: ("mean", name, "") for name in cells["kind"].unique()}
    column = {**sets, **kinds}.get(sort, ("mean", "all", ""))
    figures = found.values[column] * (-1 if higher_is_better(metric, *column[:2]) else 1)
    return figures.tolist(), (found.cells[column] < found.filled[column]).tolist()


def _in_order(rows: pd.DataFrame, figures: list[float], incomplete: list[bool]) -> pd.MultiIndex:
    """The rows by model and in-distribution set as they come, then by protocol, whole ones first, then by figure and name."""
    keys = pd.DataFrame({name: pd.factorize(rows[name])[0] for name in GROUP}, index=rows.index)
    keys["protocol"] = rows["protocol"].map(_rank(PROTOCOLS))
    keys["source"] = rows["source"]
    keys["incomplete"] = incomplete
    keys["figure"] = figures
    keys["detector"] = rows["detector"]
    keys["settings"] = rows["settings"]
    return pd.MultiIndex.from_frame(rows.loc[keys.sort_values(list(keys.columns)).index])


def means(frame: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """One row per model, in-distribution set, detector and protocol: the mean over each kind of set and over all sets.

    Columns are ``model in_distribution protocol detector`` (and those of ``QUALIFIERS`` that the frame has), and for each
    kind that the frame holds, and for ``all`` without kinds in ``APART``: ``KIND`` (the mean, a fraction), ``KIND cells`` (how
    many cells stand behind it) and ``KIND expected`` (how many there are to fill). Repeats are averaged. Sorted as ``tally``.
    """
    found = tally(frame, metric)
    table = pd.DataFrame(index=found.values.index)
    for column in found.values.columns:
        if column[0] == "mean":
            table[column[1]] = found.values[column]
            table[f"{column[1]} cells"] = found.cells[column]
            table[f"{column[1]} expected"] = found.expected[column]
    return table.reset_index(without_qualifiers(table.index, frame)).reset_index(drop=True)


def pivot(frame: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """One row (the index) per detector and protocol, one column per set, then means, their counts and the cost.

    Columns are (kind, dataset), a corruption averaged over its levels; ("mean", kind) and ("mean", "all"); ("cells",
    kind) and ("cells", "all"); ("cost", "ms_per_image") and ("cost", "overhead"). Index and columns have the levels of
    ``QUALIFIERS`` that the frame has. Figures are fractions, NaN where a cell was skipped, failed or does not exist.
    """
    found = tally(frame, metric)
    counts = pd.concat({"cells": found.cells["mean"]}, axis=1, names=["group"])
    cost = costs(frame).reindex(found.values.index)
    cost.columns = pd.MultiIndex.from_tuples([("cost", name, "") for name in cost.columns], names=found.values.columns.names)
    table = pd.concat([found.values, counts, cost], axis=1)
    index: Any = table.index
    columns: Any = table.columns
    kept = without_qualifiers(index, frame)
    table.index = index.droplevel([str(name) for name in index.names if name not in kept])
    table.columns = columns if "content" in frame.columns else columns.droplevel("content")
    return table


def without_qualifiers(index: pd.Index, frame: pd.DataFrame) -> list[str]:
    """The names of an index's levels without those of ``QUALIFIERS`` that a frame lacks."""
    return [str(name) for name in index.names if name not in QUALIFIERS.values() or name in frame.columns]


def costs(frame: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds per image and multiples of a bare forward pass, by ``ROW``: the median over sets."""
    return unique_cells(frame).groupby(ROW)[COST].median()


def marks_of(frame: pd.DataFrame) -> dict[str, str]:
    """A letter for each ``machine`` that costs of a frame were measured on: a, b and so on, as they come."""
    machines = frame.loc[frame[COST].notna().any(axis=1), "machine"].unique()
    return {machine: chr(ord("a") + place) for place, machine in enumerate(machines)}


def cost_spreads(frame: pd.DataFrame) -> pd.DataFrame:
    """How far the repeats of these differ, relatively, by ``ROW`` and in the columns of ``costs``: the most over sets."""
    return unique_cells(frame).groupby(ROW)[SPREAD].max().set_axis(COST, axis=1)


def unique_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with each cell once, as it occurs last, and with all ``QUALIFIERS``. Raises BadData for missing columns."""
    cells = qualified(frame).drop_duplicates([*ROW, *PLACE], keep="last")
    return cells.astype(dict.fromkeys((*METRICS, *COST, *SPREAD, "level"), float))


def qualified(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with all ``QUALIFIERS`` and ``LATER``, empty where it lacks them.

    Raises BadData where others of ``COLUMNS`` are missing.
    """
    if missing := [name for name in COLUMNS if name not in (*frame.columns, *LATER)]:
        raise BadData(f"the frame lacks the columns {', '.join(missing)}; take it from a run folder's frame()")
    lacking: dict[str, Any] = dict.fromkeys((*QUALIFIERS.values(), "checkpoint"), "")
    lacking |= {name: float("nan") for name in LATER if name != "checkpoint"}
    lacking = {name: value for name, value in lacking.items() if name not in frame.columns}
    found = frame.reset_index(drop=True).assign(**lacking)  # frames that were put together may repeat their index
    return found.assign(checkpoint=found["checkpoint"].astype(object).fillna(""))


def base(kind: str, dataset: str) -> str:
    """The set that a dataset counts as in a mean: all corruptions of one base are one, and all attacks on it are one.

    Any other stands for itself.
    """
    return source_and_change(dataset)[0] if kind in ("corruption", "adversarial") else dataset


def corruption(dataset: str) -> str:
    """What a corrupted set is called beside others of its base: ``haze`` of ``cifar10+haze``, ``fog`` of ``cifar10c/fog``."""
    return source_and_change(dataset)[1] or dataset


def corruptions_of(of: str, datasets: Iterable[str]) -> str:
    """What a mean over the corruptions of one base is over, and whether they are official files or generated."""
    mine = {name for name in datasets if base("corruption", name) == of}
    names = {corruption(name) for name in mine}
    several = counted(len(names), "corruption")
    if all("+" in name for name in mine):
        return f"{several} of {of} (C-style, generated)"
    main, extra = len(names & set(MAIN)), len(names & set(EXTRA))
    if names == set(MAIN):
        return f"the {len(MAIN)} main corruptions of {of}"
    if main + extra == len(names):
        return f"{several} of {of} ({main} of the {len(MAIN)} main ones, {extra} of the {len(EXTRA)} extra ones)"
    return f"{several} of {of}"


def _rank(order: tuple[str, ...]) -> Callable[[str], tuple[int, str]]:
    """Sorts known names as in ``order``, others after them by name."""
    return lambda name: (order.index(name) if name in order else len(order), str(name))
