"""What a leaderboard says: figures by set, means over sets, and how many cells stand behind each.

A frame holds a row a cell, in ``COLUMNS``. A mean is taken step by step, so that no set weighs more for having more
cells: seeds, then levels of one corruption, then corruptions of one base set, and attacks on it, then sets.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pandas as pd

from oodbench.datasets.name import EXTRA_CORRUPTIONS_C as EXTRA
from oodbench.datasets.name import MAIN_CORRUPTIONS_C as MAIN
from oodbench.errors import BadData, UsageError
from oodbench.registry import unknown
from oodbench.suite import PROTOCOLS

COLUMNS = (
    "model", "in_distribution", "detector", "protocol", "dataset", "kind", "level", "seed", "n_in", "n_out",
    "auroc", "auroc_low", "auroc_high", "aupr_out", "aupr_in", "fpr95", "detection_accuracy", "detection_error",
    "ms_per_image", "overhead", "peak_memory_mb", "wall_seconds", "status", "reason",
)  # fmt: skip
METRICS = {  # column: (what tables call it, whether higher is better)
    "auroc": ("AUROC", True),
    "aupr_out": ("AUPR of the anomalous side", True),
    "aupr_in": ("AUPR of the in-distribution side", True),
    "fpr95": ("FPR95", False),
    "detection_accuracy": ("detection accuracy", True),
    "detection_error": ("detection error", False),
}
KINDS = ("near-ood", "far-ood", "corruption", "adversarial", "anomaly")
CONTROL = "pixels"  # the detector that never sees the network

GROUP = ["model", "in_distribution"]  # one table each
ROW = [*GROUP, "protocol", "detector"]
SET = ["kind", "dataset"]
PLACE = [*SET, "level", "seed"]  # what a row has a cell for
COST = ["ms_per_image", "overhead"]


class Tally(NamedTuple):
    """Figures and the cells behind them: frames with the same rows (``ROW``) and columns.

    Columns are (kind, dataset) for each set, then ("mean", kind) for each kind there is, then ("mean", "all").
    """

    values: pd.DataFrame  # fractions; NaN where no cell has a figure
    cells: pd.DataFrame  # how many cells have one
    present: pd.DataFrame  # how many cells there are, with a figure or a reason why not
    # Of the same model and in-distribution set; transfer's own, for what it learns from is no place there:
    filled: pd.DataFrame  # how many places any detector has a figure for
    expected: pd.DataFrame  # how many places there are, whether or not anybody has a figure


def tally(frame: pd.DataFrame, metric: str = "auroc") -> Tally:
    """Values and counts, best mean over all sets first within each model, in-distribution set and protocol.

    A cell that occurs twice (in several runs) counts once, as it occurs last. Raises UsageError for a metric that does
    not exist, BadData where columns are missing.
    """
    if metric not in METRICS:
        raise UsageError(unknown("metric", metric, METRICS, f"it is one of {', '.join(METRICS)}"))
    cells = unique_cells(frame)
    measured = cells[(cells["status"] == "ok") & cells[metric].notna()]
    places, filled = (part.drop_duplicates([*GROUP, "scope", *PLACE]) for part in map(_scoped, (cells, measured)))
    kinds = sorted(set(places["kind"]), key=_rank(KINDS))
    datasets = places[SET].drop_duplicates().itertuples(index=False, name=None)
    sets = sorted(datasets, key=lambda key: kinds.index(key[0]))  # stable: within a kind as in the frame
    columns = pd.MultiIndex.from_tuples([*sets, *(("mean", kind) for kind in [*kinds, "all"])], names=["group", "name"])
    values = _wide(_averages(measured, metric), columns)
    rows = _in_order(cells[ROW].drop_duplicates(), values[("mean", "all")], METRICS[metric][1])
    index = pd.MultiIndex.from_frame(rows)
    group = pd.MultiIndex.from_frame(rows[GROUP].assign(scope=_scope(rows["protocol"])))
    counts = (_wide(_counts(part, ROW), columns).reindex(index) for part in (measured, cells))
    shared_counts = (
        _wide(_counts(part, [*GROUP, "scope"]), columns).reindex(group).set_axis(index) for part in (filled, places)
    )
    return Tally(values.reindex(index), *(part.fillna(0).astype(int) for part in (*counts, *shared_counts)))


def _scope(protocol: pd.Series) -> pd.Series:
    """Whose places count for a row: transfer's own, or those of all protocols."""
    return protocol.where(protocol.str.startswith("transfer"), "")


def _scoped(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells for the scope of all protocols, and transfer's again for its own."""
    scoped = cells.assign(scope=_scope(cells["protocol"]))
    return pd.concat([cells.assign(scope=""), scoped[scoped["scope"] != ""]])


def _averages(measured: pd.DataFrame, metric: str) -> list[pd.Series]:
    """Means by row and set, by row and kind, and by row."""
    by_level = measured.groupby([*ROW, *SET, "level"], dropna=False)[metric].mean()  # over seeds
    by_dataset = by_level.groupby([*ROW, *SET]).mean()
    long = by_dataset.rename("value").reset_index()
    long["set"] = [base(*key) for key in zip(long["kind"], long["dataset"], strict=True)]
    by_set = long.groupby([*ROW, "kind", "set"])["value"].mean()
    return [by_dataset, by_set.groupby([*ROW, "kind"]).mean(), by_set.groupby(ROW).mean()]


def _counts(cells: pd.DataFrame, keys: list[str]) -> list[pd.Series]:
    """Cells by ``keys`` and set, by ``keys`` and kind, and by ``keys``."""
    return [cells.groupby([*keys, *by])["status"].size() for by in (SET, ["kind"], [])]


def _wide(parts: list[pd.Series], columns: pd.MultiIndex) -> pd.DataFrame:
    """Series by set, by kind and by neither, side by side in ``columns``."""
    by_set, by_kind, over_all = parts
    means = pd.concat([by_kind.unstack("kind"), over_all.rename("all")], axis=1)
    return pd.concat([by_set.unstack(SET), pd.concat({"mean": means}, axis=1)], axis=1).reindex(columns=columns)


def _in_order(rows: pd.DataFrame, best: pd.Series, higher_is_better: bool) -> pd.DataFrame:
    """Rows by model and in-distribution set as they come, then by protocol, the best mean first; ties by name."""
    keys = pd.DataFrame(index=rows.index)
    for name in GROUP:
        keys[name] = pd.factorize(rows[name])[0]
    keys["protocol"] = rows["protocol"].map(_rank(PROTOCOLS))
    keys["best"] = best.reindex(pd.MultiIndex.from_frame(rows)).to_numpy() * (-1 if higher_is_better else 1)
    keys["detector"] = rows["detector"]
    return rows.loc[keys.sort_values(list(keys.columns)).index]


def means(frame: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """One row a model, in-distribution set, detector and protocol: the mean over each kind of set and over all sets.

    Columns are ``model in_distribution protocol detector``, and for each kind that the frame holds, and for ``all``:
    ``KIND`` (the mean, a fraction), ``KIND cells`` (how many cells stand behind it) and ``KIND expected`` (how many
    there are to fill). Seeds are averaged. Sorted as ``tally`` is.
    """
    found = tally(frame, metric)
    table = pd.DataFrame(index=found.values.index)
    for kind in found.values["mean"].columns:
        table[kind] = found.values[("mean", kind)]
        table[f"{kind} cells"] = found.cells[("mean", kind)]
        table[f"{kind} expected"] = found.expected[("mean", kind)]
    return table.reset_index()


def pivot(frame: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """One row (``ROW``, the index) a detector and protocol, one column a set, then means, their counts and the cost.

    Columns are (kind, dataset), a corruption averaged over its levels; ("mean", kind) and ("mean", "all"); ("cells",
    kind) and ("cells", "all"); ("cost", "ms_per_image") and ("cost", "overhead"). Figures are fractions, NaN where a
    cell was skipped, failed or is not there.
    """
    found = tally(frame, metric)
    counts = pd.concat({"cells": found.cells["mean"]}, axis=1)
    return pd.concat([found.values, counts, pd.concat({"cost": costs(frame).reindex(found.values.index)}, axis=1)], axis=1)


def costs(frame: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds an image and multiples of a bare forward pass, by ``ROW``: the median over sets."""
    return unique_cells(frame).groupby(ROW)[COST].median()


def unique_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with each cell once, as it occurs last. Raises BadData where columns are missing."""
    require_columns(frame)
    cells = frame.drop_duplicates([*ROW, *PLACE], keep="last")
    return cells.astype(dict.fromkeys((*METRICS, *COST, "level"), float))


def require_columns(frame: pd.DataFrame) -> None:
    """Raise BadData where a frame lacks some of ``COLUMNS``."""
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise BadData(f"the frame lacks the columns {', '.join(missing)}; take it from a run folder's frame()")


def base(kind: str, dataset: str) -> str:
    """The set that a dataset counts as in a mean: all corruptions of one base are one, and all attacks on it are one.

    Any other stands for itself.
    """
    return _taken_apart(dataset)[0] if kind in ("corruption", "adversarial") else dataset


def corruption(dataset: str) -> str:
    """What a corrupted set is called beside others of its base: ``haze`` of ``cifar10+haze``, ``fog`` of ``cifar10c/fog``."""
    return _taken_apart(dataset)[1] or dataset


def _taken_apart(dataset: str) -> tuple[str, str]:
    """Base and the rest: a slash is part of a folder's path, and before a part of any other set."""
    separator = "+" if dataset.startswith("folder:") or "/" not in dataset.partition("+")[0] else "/"
    of, _, change = dataset.partition(separator)
    return of, change


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
