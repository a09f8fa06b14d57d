"""The numbers of a leaderboard: figures by set, means over sets, and how many cells stand behind each.

A frame holds one row per cell, in ``COLUMNS``. A mean is taken step by step, so that no set weighs more because it has more
cells: over seeds, then levels of one corruption, then corruptions of one base set (and attacks on it), then sets.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pandas as pd

from oodbench.datasets.name import EXTRA_CORRUPTIONS_C as EXTRA
from oodbench.datasets.name import MAIN_CORRUPTIONS_C as MAIN
from oodbench.datasets.name import source_and_change
from oodbench.errors import BadData, UsageError
from oodbench.registry import unknown
from oodbench.suite import PROTOCOLS

COLUMNS = (
    "model", "in_distribution", "detector", "protocol", "dataset", "kind", "level", "seed", "n_in", "n_out",
    "auroc", "auroc_low", "auroc_high", "aupr_out", "aupr_in", "fpr95", "detection_accuracy", "detection_error",
    "ms_per_image", "overhead", "peak_memory_mb", "wall_seconds", "status", "reason",
    "ms_per_image_spread", "overhead_spread",
)  # fmt: skip
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
KINDS = ("near-ood", "far-ood", "corruption", "adversarial", "anomaly", "benign")
BENIGN = "benign"  # the kind whose figure is a rate of false alarms, whatever the metric, and not part of means over sets
CONTROL = "pixels"  # the detector that does not use the network
CONTROLS = (CONTROL, "untrained")  # detectors that show what others owe to the images or to the architecture

GROUP = ["model", "network", "in_distribution", "images"]  # one table each
ROW = [*GROUP, "protocol", "source", "detector", "settings"]
SET = ["kind", "dataset", "content"]
PLACE = [*SET, "level", "seed"]  # what a row has a cell for
SCOPE = [*GROUP, "scope", "of"]  # whose places count for a row
COST = ["ms_per_image", "overhead"]
SPREAD = [f"{name}_spread" for name in COST]  # of their repeats, relative; frames of an earlier oodbench lack it


class Tally(NamedTuple):
    """Figures and the cells behind them: frames with the same rows (``ROW``) and columns.

    Columns are (kind, dataset, content) for each set, then ("mean", kind, "") for each kind present, then
    ("mean", "all", "").
    """

    values: pd.DataFrame  # fractions; NaN where no cell has a figure
    spread: pd.DataFrame  # their standard deviation over seeds, of those with all cells; NaN for a single seed
    cells: pd.DataFrame  # how many cells have one
    present: pd.DataFrame  # how many cells there are, with a figure or a reason why not
    # Of the same model and in-distribution set. Transfer has places of its own: none on the set that it learns from.
    filled: pd.DataFrame  # how many places any detector has a figure for
    expected: pd.DataFrame  # how many places there are, with a figure or without


def tally(frame: pd.DataFrame, metric: str = "auroc") -> Tally:
    """Values and counts, best mean over all sets first within each model, in-distribution set and protocol.

    Values of benign changes are rates of false alarms, whatever the metric, and not part of the mean over all sets. A cell
    that occurs twice (in several runs) counts once, as it occurs last. Raises UsageError for an unknown metric, BadData
    where columns are missing.
    """
    cells = unique_cells(frame)
    measured = _measured(cells, metric)
    places, filled = (part.drop_duplicates([*SCOPE, *PLACE]) for part in map(_scoped, (cells, measured)))
    kinds = sorted(set(places["kind"]), key=_rank(KINDS))
    datasets = places[SET].drop_duplicates().itertuples(index=False, name=None)
    sets = sorted(datasets, key=lambda key: kinds.index(key[0]))  # stable: within a kind as in the frame
    means = [("mean", kind, "") for kind in [*kinds, "all"]]
    columns = pd.MultiIndex.from_tuples([*sets, *means], names=["group", "name", "content"])
    values = _wide(_averages(measured), columns)
    rows = _in_order(cells, values[("mean", "all", "")], METRICS[metric][1])
    index = pd.MultiIndex.from_frame(rows)
    group = pd.MultiIndex.from_frame(_with_scope(rows)[SCOPE])
    counts = (_wide(_counts(part, ROW), columns).reindex(index) for part in (measured, cells))
    shared_counts = (_wide(_counts(part, SCOPE), columns).reindex(group).set_axis(index) for part in (filled, places))
    spread = _spread(measured, columns).reindex(index)
    return Tally(values.reindex(index), spread, *(part.fillna(0).astype(int) for part in (*counts, *shared_counts)))


def _spread(measured: pd.DataFrame, columns: pd.MultiIndex) -> pd.DataFrame:
    if measured["seed"].nunique() < 2:
        return pd.DataFrame(columns=columns, dtype=float)
    by_seed = [*ROW, "seed"]
    values, cells = (_wide(parts, columns) for parts in (_averages(measured, by_seed), _counts(measured, by_seed)))
    whole = cells == cells.groupby(level=ROW).transform("max")
    return values.where(whole).groupby(level=ROW).std()


def row_order(frame: pd.DataFrame, metric: str = "auroc") -> pd.MultiIndex:
    """The rows (``ROW``) of ``tally``, without its figures."""
    cells = unique_cells(frame)
    best = _averages(_measured(cells, metric))[-1]
    return pd.MultiIndex.from_frame(_in_order(cells, best, METRICS[metric][1]))


def _measured(cells: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The cells with a figure, ``value``: the metric, or for a benign change the share of images rejected at the
    threshold that accepts 95 % of the in-distribution images."""
    if metric not in METRICS:
        raise UsageError(unknown("metric", metric, METRICS, f"it is one of {', '.join(METRICS)}"))
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


def _averages(measured: pd.DataFrame, row: list[str] = ROW) -> list[pd.Series]:
    """Means by row and set, by row and kind, and by row."""
    by_level = measured.groupby([*row, *SET, "level"], dropna=False)["value"].mean()  # over seeds
    by_dataset = by_level.groupby([*row, *SET]).mean()
    long = by_dataset.reset_index()
    sets = long[SET].drop_duplicates()
    counts_as = [_counts_as(*key) for key in sets.itertuples(index=False, name=None)]
    long = long.merge(sets.assign(set=pd.Series(counts_as, sets.index)), on=SET, how="left", sort=False)
    by_set = long.groupby([*row, "kind", "set"])["value"].mean()
    separated = by_set[by_set.index.get_level_values("kind") != BENIGN]
    return [by_dataset, by_set.groupby([*row, "kind"]).mean(), separated.groupby(row).mean()]


def _counts_as(kind: str, dataset: str, content: str) -> tuple[str, str]:
    """The set that a mean counts a dataset as: other content is another set, unless both are made from one base."""
    of = base(kind, dataset)
    return of, content if of == dataset else ""


def _counts(cells: pd.DataFrame, keys: list[str]) -> list[pd.Series]:
    """Cells by ``keys`` and set, by ``keys`` and kind, and by ``keys`` without the benign ones."""
    separated = cells[cells["kind"] != BENIGN]
    return [of.groupby([*keys, *by])["status"].size() for of, by in ((cells, SET), (cells, ["kind"]), (separated, []))]


def _wide(parts: list[pd.Series], columns: pd.MultiIndex) -> pd.DataFrame:
    """Series by set, by kind and by neither, side by side in ``columns``."""
    by_set, by_kind, over_all = parts
    means = pd.concat([by_kind.unstack("kind"), over_all.rename("all")], axis=1)
    means.columns = pd.MultiIndex.from_tuples([("mean", name, "") for name in means.columns])
    return pd.concat([by_set.unstack(SET), means], axis=1).reindex(columns=columns)


def _in_order(cells: pd.DataFrame, best: pd.Series, higher_is_better: bool) -> pd.DataFrame:
    """The rows of cells by model and in-distribution set as they come, then by protocol, the best mean first; ties by name."""
    rows = cells[ROW].drop_duplicates()
    keys = pd.DataFrame(index=rows.index)
    for name in GROUP:
        keys[name] = pd.factorize(rows[name])[0]
    keys["protocol"] = rows["protocol"].map(_rank(PROTOCOLS))
    keys["source"] = rows["source"]
    keys["best"] = best.reindex(pd.MultiIndex.from_frame(rows)).to_numpy() * (-1 if higher_is_better else 1)
    keys["detector"] = rows["detector"]
    keys["settings"] = rows["settings"]
    return rows.loc[keys.sort_values(list(keys.columns)).index]


def means(frame: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """One row per model, in-distribution set, detector and protocol: the mean over each kind of set and over all sets.

    Columns are ``model in_distribution protocol detector`` (and those of ``QUALIFIERS`` that the frame has), and for each
    kind that the frame holds, and for ``all`` without benign changes: ``KIND`` (the mean, a fraction), ``KIND cells`` (how
    many cells stand behind it) and ``KIND expected`` (how many there are to fill). Seeds are averaged. Sorted as ``tally``.
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


def cost_spreads(frame: pd.DataFrame) -> pd.DataFrame:
    """How far the repeats of these differ, relatively, by ``ROW`` and in the columns of ``costs``: the most over sets."""
    return unique_cells(frame).groupby(ROW)[SPREAD].max().set_axis(COST, axis=1)


def unique_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with each cell once, as it occurs last, and with all ``QUALIFIERS``. Raises BadData for missing columns."""
    cells = qualified(frame).drop_duplicates([*ROW, *PLACE], keep="last")
    return cells.astype(dict.fromkeys((*METRICS, *COST, *SPREAD, "level"), float))


def qualified(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with all ``QUALIFIERS``, empty where it lacks them, and ``SPREAD``. Raises BadData for missing ``COLUMNS``."""
    if missing := [name for name in COLUMNS if name not in (*frame.columns, *SPREAD)]:
        raise BadData(f"the frame lacks the columns {', '.join(missing)}; take it from a run folder's frame()")
    lacking = dict.fromkeys(QUALIFIERS.values(), "") | dict.fromkeys(SPREAD, float("nan"))
    lacking = {name: value for name, value in lacking.items() if name not in frame.columns}
    return frame.reset_index(drop=True).assign(**lacking)  # frames that were put together may repeat their index


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
    counted = "1 corruption" if len(names) == 1 else f"{len(names)} corruptions"
    if all("+" in name for name in mine):
        return f"{counted} of {of} (C-style, generated)"
    main, extra = len(names & set(MAIN)), len(names & set(EXTRA))
    if names == set(MAIN):
        return f"the {len(MAIN)} main corruptions of {of}"
    if main + extra == len(names):
        return f"{counted} of {of} ({main} of the {len(MAIN)} main ones, {extra} of the {len(EXTRA)} extra ones)"
    return f"{counted} of {of}"


def _rank(order: tuple[str, ...]) -> Callable[[str], tuple[int, str]]:
    """Sorts known names as in ``order``, others after them by name."""
    return lambda name: (order.index(name) if name in order else len(order), str(name))
