"""Active learning as frames and tables: the accuracy of each strategy by the number of labelled images.

Means and standard deviations are over runs of one suite, which differ in their seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from oodbench.errors import BadData, counted
from oodbench.leaderboard import escape
from oodbench.leaderboard.formats import cells_as, chosen, writer
from oodbench.leaderboard.notes import Gap, Note
from oodbench.leaderboard.selection import Names
from oodbench.leaderboard.tasks.contents import Tested, names_of
from oodbench.leaderboard.text_table import Column, TextTable
from oodbench.results.folder import RunFolder
from oodbench.results.records import ActiveLearningRecord
from oodbench.suite import as_names

COLUMNS = (
    "model", "in_distribution", "protocol", "strategy", "features", "dataset", "round", "last_round", "labelled", "seed", "n",
    "accuracy", "accuracy_low", "accuracy_high", "train_accuracy", "epochs", "restarts", "seconds", "status", "reason",
)  # fmt: skip
GROUP = ["model", "in_distribution", "protocol", "dataset"]  # one table each
ROW = ["strategy", "features"]
ROUNDS, MEANS = PARTS = ("rounds", "means")
ONE_SEED = "1 seed"
INTERVALS = "In brackets: 95 % intervals over test images, for one seed."
NO_RECORDS = 'No records of active learning; run a suite with task = "active-learning".'


def active_learning_frame(folders: Sequence[RunFolder]) -> pd.DataFrame:
    """One row per record: ``COLUMNS``. Where two folders hold the same record, the last counts.

    Names of strategies and protocols say their settings where these differ between runs; names of sets are as of ``names_of``.
    """
    found = [
        record
        for folder in folders
        for record in sorted(folder.of_task(ActiveLearningRecord), key=lambda one: (one.set_name, one.round))
    ]
    columns: dict[str, list[object]] = {name: [getattr(record, name) for record in found] for name in COLUMNS}
    columns["strategy"] = _told_apart([(record.strategy, record.parameters) for record in found])
    columns["protocol"] = _told_apart([(record.protocol, record.rules) for record in found])
    tested = [Tested(one.dataset, one.fingerprint, one.n, (one.model, one.in_distribution), one.seed) for one in found]
    columns["dataset"] = list(names_of(tested))
    columns = {name: list(map(escape.without_surrogates, values)) for name, values in columns.items()}
    numbers = ["last_round", "labelled", "n", *COLUMNS[COLUMNS.index("accuracy") : COLUMNS.index("status")]]
    frame = pd.DataFrame(columns).astype(dict.fromkeys(numbers, float))
    return frame.drop_duplicates([*GROUP, *ROW, "round", "seed"], keep="last", ignore_index=True)


def _told_apart(named: Sequence[tuple[str, Mapping[str, Any]]]) -> list[object]:
    """Each name, with those of its settings that are not the same wherever the name occurs: ``bald (passes 5)``."""
    known: dict[str, dict[str, set[str]]] = {}
    for name, settings in named:
        for key, value in settings.items():
            known.setdefault(name, {}).setdefault(key, set()).add(repr(value))
    labels: list[object] = []
    for name, settings in named:
        differing = [f"{key} {value}" for key, value in settings.items() if len(known[name][key]) > 1]
        labels.append(f"{name} ({', '.join(differing)})" if differing else name)
    return labels


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds of the accuracy: one row per ``GROUP``, ``ROW`` and ``labelled``.

    ``low`` and ``high`` are the ends of the 95 % interval over test images where there is one seed, NaN elsewhere.
    """
    of = frame[frame["status"] == "ok"].groupby([*GROUP, *ROW, "labelled"], sort=False)
    found = of["accuracy"].agg(["mean", "std", "count"])
    ends = of[["accuracy_low", "accuracy_high"]].first().astype(float).where(found["count"] == 1)
    return found.assign(low=ends["accuracy_low"], high=ends["accuracy_high"]).reset_index()


def banded(curves: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The curves of one picture with the ends of their bands, ``bottom`` and ``top``, and what a band is."""
    if (seeds := seeds_of(curves)) == ONE_SEED:
        ends = {"bottom": curves["low"].fillna(curves["mean"]), "top": curves["high"].fillna(curves["mean"])}
        return curves.assign(**ends), "One seed; bands: 95 % intervals over test images."
    spread = curves["std"].fillna(0)
    ends = {"bottom": (curves["mean"] - spread).clip(lower=0), "top": (curves["mean"] + spread).clip(upper=1)}
    return curves.assign(**ends), f"Mean of {seeds}; bands: ± one standard deviation."


def seeds_of(curves: pd.DataFrame) -> str:
    """Over how many seeds the means of these curves are: ``1 seed``, ``3 seeds`` or ``1 to 3 seeds``."""
    if curves.empty:
        return ONE_SEED
    least, most = int(curves["count"].min()), int(curves["count"].max())
    return f"{least} to {most} seeds" if least < most else counted(most, "seed")


def areas(frame: pd.DataFrame) -> pd.DataFrame:
    """By ``GROUP``, ``ROW`` and seed: the mean of the curve over rounds, and its area by the trapezoidal rule over the range
    of labelled images (1 for a network that is always right). Curves that stop early are left out: they have other means."""
    rows = []
    for key, of in frame[frame["status"] == "ok"].groupby([*GROUP, *ROW, "seed"], sort=False):
        of, last = of.sort_values("labelled"), of["last_round"].max()
        if len(of) <= last:
            continue
        steps = of["labelled"].diff().iloc[1:]
        heights = (of["accuracy"] + of["accuracy"].shift()).iloc[1:] / 2
        area = float((steps * heights).sum() / steps.sum()) if len(of) > 1 else float("nan")
        rows.append((*key, float(of["accuracy"].mean()), area))
    return pd.DataFrame(rows, columns=[*GROUP, *ROW, "seed", "mean", "area"])


def render_active_learning(
    frame: pd.DataFrame,
    format: str = "table",
    *,
    width: int | None = 160,
    notes: Sequence[Note | str] = (),
    columns: Names = (),
    intervals: bool = False,
) -> str:
    """A frame as text: one table per network, pool and test set; arguments as of ``formats.render``.

    In tables, ``columns`` are ``rounds`` and ``means``. Raises UsageError for an unknown format or column, and BadData if
    the frame lacks columns.
    """
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise BadData(f"the frame lacks the columns {', '.join(missing)}; take it from frame(table='active-learning')")
    if format in ("csv", "json"):
        return cells_as(format, frame, chosen(as_names(columns), [*COLUMNS]))
    write, parts = writer(format, width), chosen(as_names(columns), [*PARTS])
    if frame.empty:
        return f"% {NO_RECORDS}\n" if format == "tex" else f"{NO_RECORDS}\n"
    made = tables(frame, parts, intervals, bold=format != "table")
    made[-1].notes.extend(notes)
    return "\n".join(map(write, made))


def tables(frame: pd.DataFrame, parts: Sequence[str] = PARTS, intervals: bool = False, bold: bool = True) -> list[TextTable]:
    """One table per network, pool and test set, before it takes a format. ``bold``: whether the format shows the best.

    ``intervals``: whether accuracies of one seed have their 95 % interval over test images.
    """
    return [_text_table(of, parts, intervals, bold) for _, of in frame.groupby(GROUP, sort=False)]


def _text_table(cells: pd.DataFrame, parts: Sequence[str], intervals: bool, bold: bool) -> TextTable:
    first, found = cells.iloc[0], curves(cells)
    summary = areas(cells).groupby(ROW, sort=False)[["mean", "area"]].agg(["mean", "std", "count"])
    order = cells[ROW].drop_duplicates()
    keys = [tuple(key) for key in order.itertuples(index=False, name=None)]
    known = dict(zip(summary.index, summary["mean"]["mean"], strict=True)) if len(summary) else {}
    keys.sort(key=lambda key: -known.get(key, 0.0))
    seeds = seeds_of(found)

    def column(group: str, name: str, of: Any) -> Column:
        """``of``: mean, standard deviation and number of seeds by strategy and features, ``low`` and ``high`` if known."""
        aligned = of.reindex(pd.MultiIndex.from_tuples(keys))
        values, spreads = (aligned.iloc[:, place].tolist() for place in (0, 1))
        texts = ["–" if pd.isna(value) else f"{100 * value:.1f}" for value in values]
        texts = [t if pd.isna(s) else f"{t} ±{100 * s:.1f}" for t, s in zip(texts, spreads, strict=True)]
        if intervals and "low" in aligned:
            ends = zip(texts, aligned["low"], aligned["high"], strict=True)
            texts = [t if pd.isna(low) else f"{t} [{100 * low:.1f}, {100 * high:.1f}]" for t, low, high in ends]
        best = frozenset(row for row, value in enumerate(values) if value == aligned.iloc[:, 0].max())
        return Column(group, (name, seeds_of(of)) if " to " in seeds else (name,), texts, best)

    by_number = [
        column("labelled images", f"{number:,.0f}", of.set_index(ROW)[["mean", "std", "count", "low", "high"]])
        for number, of in found.groupby("labelled")
    ]
    means = [column("curve", name, summary[name]) for name in ("mean", "area")] if len(summary) else []
    each = ", as each column says," if " to " in seeds else ","
    order_of_rows = ", the best mean first" if known else ""
    remarks = [
        f"Accuracy ×100{_on(cells)} by the number of labelled images (higher is better){order_of_rows}.",
        *([f"Means of {seeds}{each} ± their standard deviation."] if seeds != ONE_SEED else []),
        *([INTERVALS] if intervals and found["low"].notna().any() else []),
        *(["Mean: over rounds. Area: under the curve, ×100."] if known and MEANS in parts else []),
        *(["Bold: the best of a column."] if bold else []),
    ]
    where = f"{first['in_distribution']} ({first['protocol']}), tested on {first['dataset']}"
    return TextTable(
        title=f"{first['model']}, active learning on {where}",
        caption=" ".join(remarks),
        labels=[
            Column("", ("strategy",), [strategy for strategy, _ in keys], is_label=True),
            Column("", ("features",), [features for _, features in keys], is_label=True),
        ],
        sets=by_number if ROUNDS in parts else [],
        summary=means if MEANS in parts else [],
        breaks=[],
        notes=_notes(cells),
    )


def _on(cells: pd.DataFrame) -> str:
    """`` on 300 images``; empty where nothing is known."""
    images = cells["n"].max()
    return "" if pd.isna(images) else f" on {counted(int(images), 'image')}"


def _notes(cells: pd.DataFrame) -> list[Note | str]:
    """Why strategies have no figures, once each, and whose rounds are not finished."""
    without = cells[cells["status"] != "ok"].drop_duplicates([*ROW, "reason"])
    notes: list[Note | str] = [
        Gap((str(row.strategy),), f"{row.strategy} ({row.features}) {row.status} from round {row.round} on: {row.reason}")
        for row in without.itertuples()
    ]
    ends = cells.groupby([*ROW, "seed"], sort=False)[["round", "last_round"]].max().dropna().reset_index()
    return notes + [
        Gap(
            (str(row.strategy),),
            f"{row.strategy} ({row.features}), seed {row.seed}: ends at round {row.round} of {row.last_round:.0f}; run the"
            " suite again to finish it",
        )
        for row in ends[ends["round"] < ends["last_round"]].itertuples()
    ]
