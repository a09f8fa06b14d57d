"""Recognition as frames and tables: how good the class probabilities of each source are on each set.

A frame holds one row per record, in ``COLUMNS``. Means are taken step by step, as those of detection are: over repeats (the
checkpoints of a study and seeds), then levels of one corruption, then corruptions of one base set (and attacks on it), then
sets of one kind.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd

from oodbench import calibration
from oodbench.errors import BadData, UsageError, counted
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import REPEATS, base
from oodbench.leaderboard.formats import cells_as, chosen, writer
from oodbench.leaderboard.frame import ordered
from oodbench.leaderboard.gather import accuracies, not_run, study_of
from oodbench.leaderboard.labels import label
from oodbench.leaderboard.notes import REMARKS, Note, network_notes
from oodbench.leaderboard.selection import Names, select
from oodbench.leaderboard.text_table import Column, TextTable, repeats_of
from oodbench.registry import unknown
from oodbench.results.folder import RunFolder
from oodbench.results.network import percent
from oodbench.results.records import IN_DISTRIBUTION, NETWORK, NETWORK_SOURCES, RecognitionRecord
from oodbench.suite import as_names

COLUMNS = (
    "model", "in_distribution", "source", "dataset", "kind", "level", "seed", "checkpoint", "n", "accuracy", "ece", "nll",
    "brier", "aurc", "status", "reason",
)  # fmt: skip
# What a table says beside its figures: hash of the in-distribution test images, what was calibrated on, and the study.
FACTS = ("images", "calibrated_on", "study")
GROUP = ["model", "network", "in_distribution", "images"]  # one table each
SETS, MEANS = PARTS = ("sets", "means")  # parts of a table
NO_RECORDS = "No records of recognition; run again with a detector that reads the network, on a set with its classes."


class Metric(NamedTuple):
    """What tables call a figure, whether higher is better, and how they show it."""

    name: str
    higher_is_better: bool
    factor: int
    digits: int


METRICS = {
    "accuracy": Metric("accuracy ×100", True, 100, 1),
    "ece": Metric(f"ECE ×100, {calibration.BINS} bins", False, 100, 1),
    "nll": Metric("NLL in nats", False, 1, 3),
    "brier": Metric("Brier score, from 0 to 2", False, 1, 3),
    "aurc": Metric("AURC ×100", False, 100, 2),
}


def recognition_frame(folder: RunFolder) -> pd.DataFrame:
    """One row per record of recognition: ``COLUMNS``, then ``FACTS``. The in-distribution images come first."""
    images = folder.manifest().settings.get("in-distribution images", "")
    columns: dict[str, list[object]] = {name: [] for name in (*COLUMNS, *FACTS)}
    for record in sorted(ordered(folder, folder.recognition()), key=lambda one: one.kind != IN_DISTRIBUTION):  # stable
        row = {**vars(record), **dict(record.figures or {}), "checkpoint": record.weights_hash, "images": images}
        row["study"] = study_of(folder)
        row["reason"] = _remark(record)
        for name, values in columns.items():
            values.append(escape.without_surrogates(row.get(name)))
    return pd.DataFrame(columns).astype(dict.fromkeys((*METRICS, "level", "n"), float))


def recognition_frames(folders: Sequence[RunFolder]) -> pd.DataFrame:
    """The frames of several run folders, one below the other."""
    return pd.concat([recognition_frame(folder) for folder in folders], ignore_index=True)


def _remark(record: RecognitionRecord) -> str:
    """Why there are no figures, or what a reader must know of the temperature."""
    if record.status != "ok" or record.temperature is None:
        return record.reason
    low, high = calibration.TEMPERATURES
    bound = {low: ", the lowest that is fitted", high: ", the highest that is fitted"}.get(record.temperature, "")
    seen = "calibrated on training images, which the network has seen" if record.calibrated_on == "training" else ""
    return REMARKS.join(filter(None, (f"temperature {record.temperature:.3g}{bound}", seen)))


def gather_recognition(
    folders: Sequence[RunFolder],
    *,
    labels: Mapping[Path, str] = MappingProxyType({}),
    sources: Names = (),
    datasets: Names = (),
    kinds: Names = (),
) -> tuple[pd.DataFrame, list[Note]]:
    """The records of recognition of all folders, one row each, and notes; where two hold the same record, the last counts.

    ``labels`` names runs, by path, in place of their model. ``sources``, ``datasets`` and ``kinds`` keep only these. Raises
    UsageError for a name that no record has.
    """
    frames = []
    for folder in folders:
        found = recognition_frame(folder)
        frames.append(
            found if folder.path not in labels else found.assign(model=escape.without_surrogates(labels[folder.path]))
        )
    whole = pd.concat(frames, ignore_index=True)
    if not whole.empty:
        selectable = whole.assign(detector=whole["source"], protocol="")
        whole = whole.loc[select(selectable, detectors=sources, datasets=datasets, kinds=kinds).index]
    return whole, [*not_run(folders), *network_notes(accuracies(folders))]


def render_recognition(
    frame: pd.DataFrame,
    format: str = "table",
    *,
    metric: str = "accuracy",
    width: int | None = 160,
    notes: Sequence[Note | str] = (),
    columns: Names = (),
) -> str:
    """A frame with one row per record as text; arguments as of ``formats.render``.

    ``metric`` is one of ``METRICS``; ``columns`` are ``sets`` and ``means`` in tables.

    Raises UsageError for an unknown format, metric or column, BadData where the frame lacks columns.
    """
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise BadData(f"the frame lacks the columns {', '.join(missing)}; take it from frame(table='recognition')")
    if metric not in METRICS:
        raise UsageError(unknown("recognition metric", metric, METRICS, f"it is one of {', '.join(METRICS)}"))
    names, cells = as_names(columns), each_once(frame)
    if format in ("csv", "json"):
        shown = cells.assign(
            model=_labels(cells, "model", "network"), in_distribution=_labels(cells, "in_distribution", "images")
        )
        return cells_as(format, shown, chosen(names, [*COLUMNS]))
    write = writer(format, width)
    parts = chosen(names, [*PARTS])
    if frame.empty:
        return f"% {NO_RECORDS}\n" if format == "tex" else f"{NO_RECORDS}\n"
    tables = [_text_table(of, metric, parts) for _, of in cells.groupby(GROUP, sort=False)]
    tables[-1].notes.extend(notes)
    return "\n".join(map(write, tables))


def each_once(frame: pd.DataFrame) -> pd.DataFrame:
    """Each record once, as it occurs last; ``network`` and ``images`` tell apart what has one name, else they are empty."""
    found = frame.reset_index(drop=True).assign(**{name: "" for name in FACTS if name not in frame.columns})
    networks = found["study"].where(found["study"] != "", found["checkpoint"])
    found["network"] = networks.where(networks.groupby(found["model"]).transform("nunique") > 1, "")
    of_seed = found.groupby(["in_distribution", "seed"])["images"].transform("nunique") > 1
    found["images"] = found["images"].where(of_seed, "")
    return found.drop_duplicates([*GROUP, "source", "kind", "dataset", "level", *REPEATS], keep="last")


def _labels(cells: pd.DataFrame, name: str, qualifier: str) -> list[str]:
    return [label(name, *pair) for pair in zip(cells[name], cells[qualifier], strict=True)]


class _Means(NamedTuple):
    """Figures, how many records stand behind each, and how many there are: one row per source, one column per set or mean."""

    values: pd.DataFrame
    spread: pd.DataFrame  # their standard deviation over repeats; NaN for a single one
    have: pd.DataFrame
    expected: "pd.Series[int]"


def means(frame: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """One row per source, one column per (kind, dataset) and then per ("mean", kind), of one model and in-distribution set."""
    return _means(each_once(frame), metric).values


def _means(cells: pd.DataFrame, metric: str) -> _Means:
    values, have, expected = _averages(cells, metric)
    repeats = [_averages(of, metric)[0] for _, of in cells.groupby(REPEATS, sort=False)]
    each = pd.concat(repeats, keys=range(len(repeats)), names=["repeat", "source"])
    spread = each.groupby(level="source").std().reindex(index=values.index, columns=values.columns)
    return _Means(values, spread, have, expected)


def _averages(cells: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, pd.DataFrame, "pd.Series[int]"]:
    """Values, how many records stand behind each, and how many there are."""
    bases = [base(kind, name) for kind, name in zip(cells["kind"], cells["dataset"], strict=True)]
    cells = cells.assign(value=cells[metric].where(cells["status"] == "ok"), base=bases, level=cells["level"].fillna(0))
    keys = ["source", "kind", "base", "dataset"]
    by_level = cells.groupby([*keys, "level"], sort=False)["value"].mean()  # over repeats
    by_set = by_level.groupby(level=keys, sort=False).mean()
    by_kind = by_set.groupby(level=keys[:3], sort=False).mean().groupby(level=keys[:2], sort=False).mean()
    sources = [*dict.fromkeys([*(s for s in NETWORK_SOURCES if s in set(cells["source"])), *cells["source"]])]
    sets = [*cells[["kind", "dataset"]].drop_duplicates().itertuples(index=False, name=None)]
    kinds = [*dict.fromkeys(kind for kind, _ in sets)]
    sets.sort(key=lambda of: kinds.index(of[0]))  # stable
    summed = [("mean", kind) for kind in kinds if kind != IN_DISTRIBUTION]
    values = {of: by_set.xs(of, level=("kind", "dataset")).droplevel("base") for of in sets}
    values |= {of: by_kind.xs(of[1], level="kind") for of in summed}
    parts = {of: cells[(cells["kind"] == of[0]) & (cells["dataset"] == of[1])] for of in sets}
    parts |= {of: cells[cells["kind"] == of[1]] for of in summed}
    have = {of: part.groupby("source")["value"].count() for of, part in parts.items()}
    expected = {of: len(part[["dataset", "level", *REPEATS]].drop_duplicates()) for of, part in parts.items()}
    table, counts = (pd.DataFrame(of, index=sources) for of in (values, have))
    return table, counts.fillna(0).astype(int), pd.Series(expected)


def _text_table(cells: pd.DataFrame, metric: str, parts: Sequence[str]) -> TextTable:
    about, found = METRICS[metric], _means(cells, metric)
    sources, shown = found.values.index.tolist(), []
    columns: Any = found.values.columns
    for place in columns:
        whole, values, have = int(found.expected[place]), found.values[place].tolist(), found.have[place].tolist()
        spread = found.spread[place].tolist()
        figures = [
            f"{about.factor * value:.{about.digits}f}" if count else "–" for value, count in zip(values, have, strict=True)
        ]
        complete = [row for row, count in enumerate(have) if count == whole]
        champion = (max if about.higher_is_better else min)(complete, key=values.__getitem__) if complete else None
        best = frozenset(row for row in complete if champion is not None and figures[row] == figures[champion])
        texts = [f"{text} ({count}/{whole})" if 0 < count < whole else text for text, count in zip(figures, have, strict=True)]
        added = ["" if pd.isna(of) else f" ±{about.factor * of:.{about.digits}f}" for of in spread]
        texts = [text + of for text, of in zip(texts, added, strict=True)]
        group, name = map(str, place)
        lines = (name, counted(whole, "record")) if group == "mean" else (name.removeprefix("folder:"),)
        shown.append(Column(group, lines, texts, best))
    calibrated = cells[cells["status"] == "ok"].groupby("source")["calibrated_on"].last()
    first = cells.iloc[0]
    model, inside = (label(name, first[name], first[of]) for name, of in (("model", "network"), ("in_distribution", "images")))
    return TextTable(
        title=f"{model}, recognition, in-distribution {inside}",
        caption=_caption(cells, about),
        labels=[
            Column("", ("source",), sources, is_label=True),
            Column("", ("calibrated on",), [calibrated.get(source, "") for source in sources], is_label=True),
        ],
        sets=[column for column in shown if column.group != "mean" and SETS in parts],
        summary=[column for column in shown if column.group == "mean" and MEANS in parts],
        breaks=[],
        notes=_notes(cells),
    )


def _caption(cells: pd.DataFrame, about: Metric) -> str:
    better = "higher" if about.higher_is_better else "lower"
    parts = [f"{about.name[0].upper()}{about.name[1:]} ({better} is better) of the class probabilities of each source."]
    if cells["level"].notna().any():
        parts.append("Corruptions: means over levels; in a mean, all corruptions of one base count as one set.")
    if repeats := repeats_of(cells):
        parts.append(f"Means of {repeats}, ± their standard deviation.")
    if (cells["status"] != "ok").any():
        parts.append("(k/n): only k of n records have figures.")
    return " ".join(parts)


def _notes(cells: pd.DataFrame) -> list[Note | str]:
    """What is said of the records of each source, and on which sets if not on all."""
    found: list[Note | str] = []
    for (source, reason), of in cells[cells["reason"] != ""].groupby(["source", "reason"], sort=False):
        sets = dict.fromkeys(of["dataset"])
        every = len(of) == (cells["source"] == source).sum()
        found.append(f"{source}{'' if every else f' on {_several(list(sets))}'}: {reason}")
    return found


def _several(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} sets"


def summary(frame: pd.DataFrame) -> str:
    """A line per network and in-distribution set: accuracy and ECE of the network there, and their means over corruptions.

    ``frame`` is that of the runs of one study. Empty where no network was judged.
    """
    judged = frame[(frame["source"] == NETWORK) & (frame["status"] == "ok")]
    lines = []
    for _, cells in judged.groupby(["model", "in_distribution"], sort=False):
        accuracy, ece = (means(cells, metric).loc[NETWORK] for metric in ("accuracy", "ece"))
        inside: Any = next((of for of in accuracy.index if of[0] == IN_DISTRIBUTION), None)
        shown = {inside: f"on {inside[1]}"} if inside else {}
        shown |= {("mean", "corruption"): "on average over corruptions"} if ("mean", "corruption") in accuracy else {}
        figures = [f"accuracy {percent(accuracy[of])} and ECE {percent(ece[of])} {where}" for of, where in shown.items()]
        lines += [f"{cells['model'].iloc[0]}: {', '.join(figures)}"] if figures else []
    return "\n".join(lines)
