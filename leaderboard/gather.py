"""One frame from several run folders, and the notes on their facts."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from oodbench.datasets.name import CHANGED
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import COLUMNS, ENDS, QUALIFIERS
from oodbench.leaderboard.frame import OPTIONS, frame_of, in_order
from oodbench.leaderboard.intervals import with_intervals
from oodbench.leaderboard.notes import (
    Note,
    NotRun,
    disagreements,
    machines,
    network_notes,
    precision_notes,
    run_notes,
    subsets,
    together,
)
from oodbench.results.network import NetworkAccuracy, stored
from oodbench.results.precision import stored as shift_of

if TYPE_CHECKING:
    from oodbench.results.folder import RunFolder

FULL = "float32"


def gather(
    folders: Sequence["RunFolder"],
    *,
    labels: Mapping[Path, str] = MappingProxyType({}),
    keep: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame,
    intervals: str = "",
) -> tuple[pd.DataFrame, list[Note]]:
    """The cells of all folders, one row each, in ``COLUMNS`` and ``QUALIFIERS``; and notes for tables.

    Where one name stands for several networks, in-distribution sets or anomalous sets (an attack with other settings), its
    qualifier is the hash of the content, so that no row mixes them; for networks and in-distribution sets, it is the options
    in which the runs differ (``limit 300``) where these tell them apart. If runs were fitted on different training images,
    the qualifier of the in-distribution set also has the hash of these. The qualifier of transfer and validation is the set
    that they learnt from, that of a detector the hyper-parameters in which its runs differ, where they are not its defaults.
    Where the costs come from several machines, the column ``machine`` says which.

    Args:
        folders: run folders; where two hold the same cell, the last one counts.
        labels: names of runs, by path, in place of their model: a run with a label has tables of its own.
        keep: ``select`` with its options; figures, labels and notes are of the cells that it leaves.
        intervals: compute the ends of intervals too (``ENDS``): as far as tables of this metric show them, or ``all``.

    Raises UsageError for a metric without intervals, and BadData where the scores that they need are not there.
    """
    frames: list[pd.DataFrame] = []
    names = []
    for folder in folders:
        label = labels.get(folder.path)
        names.append(escape.without_surrogates(label or (_run_name(folder, folders) if len(folders) > 1 else "")))
        found = frame_of(folder)
        found = found.assign(images=_test_images(found), run=len(frames), study=study_of(folder))
        frames.append(found if label is None else found.assign(model=escape.without_surrogates(label)))
    whole = pd.concat(frames, ignore_index=True)
    seeds = ["seed"] if _as_many(whole) else []  # each may have drawn its own test images
    if not seeds:
        whole = whole.assign(images=_one_per_study(whole, whole["images"], _as_many))
    frame = keep(whole)
    # The checkpoints of a study are one network: its figures are means over them.
    frame = frame.assign(
        network=frame["study"].where(frame["study"] != "", frame["weights"] + _lower_precision(frame)),
        source=frame["transfer_from"].fillna(""),
        content=frame["fingerprint"],
    )
    frame["settings"] = ""
    for columns, qualifier in (
        (["model"], "network"),
        (["in_distribution", *seeds], "images"),
    ):
        frame[qualifier] = _where_ambiguous(frame, columns, frame[qualifier].fillna(""))
    of_set = ["model", "network", "in_distribution", "images", "dataset", "level", "checkpoint", "seed"]
    frame["content"] = _where_ambiguous(frame, of_set, frame["content"].fillna(""))
    for name, qualifier, options in (("model", "network", ("weights", "precision")), ("in_distribution", "images", OPTIONS)):
        frame[qualifier] = _in_words(frame, name, qualifier, options)
    frame["images"] = _with_training_images(frame)
    frame["source"] = _where_ambiguous(frame, ["protocol"], frame["source"])
    for _, of in frame.groupby(["model", "network", "in_distribution", "images", "detector", "protocol"], sort=False):
        frame.loc[of.index, "settings"] = of["non_default"].map(_told_apart(of["non_default"].unique().tolist()))
    notes = [*not_run(folders), *network_notes(accuracies(folders))]
    shifts = {name: shift_of(folder.manifest().provenance) for name, folder in zip(names, folders, strict=True)}
    notes += precision_notes(shifts)
    notes += together([run_notes(frame[frame["run"] == run], name) for run, name in enumerate(names)])
    notes += disagreements(frame.assign(run=frame["run"].map(dict(enumerate(names)))))
    of_costs = machines(frame)
    extra = ["machine"] if of_costs else []
    if intervals:
        records = [(folder, record) for folder in folders for record in in_order(folder)]
        frame, extra = with_intervals(frame, records, intervals), [*ENDS, *extra]
    return frame[[*COLUMNS, *QUALIFIERS.values(), *extra]], [*notes, *of_costs, *subsets(frame)]


def _lower_precision(frame: pd.DataFrame) -> "pd.Series[str]":
    """`` bf16`` for runs whose forward passes are in it, else nothing."""
    abouts = [json.loads(about) if isinstance(about, str) and about else {} for about in frame["about"]]
    names = [about.get("precision", FULL) for about in abouts]
    return pd.Series(["" if name == FULL else f" {name}" for name in names], index=frame.index, dtype=object)


def _run_name(folder: "RunFolder", folders: Sequence["RunFolder"]) -> str:
    """What notes call a run: its path, or among the runs of one study the name of its folder."""
    alone = folder.study is not None and all(other.study is folder.study for other in folders)
    return folder.path.name if alone else folder.name


def study_of(folder: "RunFolder") -> str:
    """What tables call the study of a run; empty for a run that was found alone."""
    return "" if folder.study is None else escape.without_surrogates(f"study {folder.study.path.name}")


def accuracies(folders: Sequence["RunFolder"]) -> dict[str, NetworkAccuracy | None]:
    """How often the network of each run is right, by what notes call the run."""
    return {_run_name(folder, folders): stored(folder.manifest().provenance) for folder in folders}


def not_run(folders: Sequence["RunFolder"]) -> list[Note]:
    """Runs of studies that their figures are without, and why."""
    studies = dict.fromkeys(folder.study for folder in folders)
    return [NotRun((name,), why) for study in studies if study for name, why in study.missing().items()]


def _test_images(frame: pd.DataFrame) -> "pd.Series[str]":
    """The content of the run's in-distribution set, by cell.

    Cells know their own negatives. Those of a corruption or an attack may be a part of the test images, or noisy twins of
    them, so what most of the other cells say counts.
    """
    made = frame["kind"].isin(CHANGED)
    plain = frame.assign(made=made).sort_values("made", kind="stable")
    plain = plain[plain["made"] == plain.groupby("in_distribution")["made"].transform("min")]
    most = plain.groupby("in_distribution")["in_fingerprint"].agg(lambda hashes: hashes.value_counts().index[0])
    return frame["in_distribution"].map(most)


def _as_many(frame: pd.DataFrame) -> bool:
    """Whether all runs with one in-distribution set have as many images of it."""
    drawn = frame[~frame["kind"].isin(CHANGED) & (frame["protocol"] == "unsupervised")]
    return bool((drawn.groupby("in_distribution")["n_in"].nunique() <= 1).all())


def _one_per_study(
    frame: pd.DataFrame, content: "pd.Series[str]", where: Callable[[pd.DataFrame], bool] = lambda cells: True
) -> "pd.Series[str]":
    """The content, but one for all runs of a study, because its figures are means over them; only ``where`` its cells allow."""
    found = content.copy()
    for _, cells in frame[frame["study"] != ""].groupby(["study", "in_distribution"], sort=False):
        if where(cells):
            found[cells.index] = "+".join(sorted(found[cells.index].unique()))
    return found


def _with_training_images(frame: pd.DataFrame) -> "pd.Series[str]":
    """The qualifier of the in-distribution set, with that of its training images where runs were fitted on others."""
    train = _one_per_study(frame, frame["train_fingerprint"].astype(str))
    train = _where_ambiguous(frame, ["model", "network", "in_distribution", "images"], train)
    images = ["" if not name else f"{name}, " if " " in name else f"#{name[:6]}, " for name in frame["images"]]
    words = [f"{name}training images #{content[:6]}" for name, content in zip(images, train, strict=True)]
    return frame["images"].where(train == "", pd.Series(words, frame.index, object))


def _where_ambiguous(frame: pd.DataFrame, columns: list[str], content: "pd.Series[str]") -> "pd.Series[str]":
    """The content where those of one name differ, empty where they do not or nothing is known."""
    known = content.where(content != "")
    ambiguous = known.groupby([frame[name] for name in columns], dropna=False).transform("nunique") > 1
    return content.where(ambiguous, "")


def _in_words(frame: pd.DataFrame, name: str, qualifier: str, options: Sequence[str]) -> "pd.Series[str]":
    """The qualifier with options of runs in place of hashes, such as ``limit 300``, where these tell the hashes apart."""
    found = frame[qualifier].copy()
    for _, of in frame[found != ""].groupby(name, sort=False):
        runs = of[[qualifier, "about"]].drop_duplicates().itertuples(index=False, name=None)
        abouts = [(content, json.loads(about) if isinstance(about, str) and about else {}) for content, about in runs]
        contents = {content for content, _ in abouts}
        values = {option: {(content, repr(about.get(option, ""))) for content, about in abouts} for option in options}
        # An option that differs among the runs of one content, as the seed does in a study, does not name that content.
        one_each = [option for option, of in values.items() if len(of) == len(contents)]
        differ = [option for option in one_each if len({value for _, value in values[option]}) > 1]
        texts: dict[str, set[str]] = {}
        for content, about in abouts:
            words = ", ".join(_option(option, about[option]) for option in differ if option in about)
            texts.setdefault(content, set()).add(words)
        each = {content: words.pop() for content, words in texts.items() if len(words) == 1}
        if len(set(each.values()) - {""}) == len(texts):
            found[of.index] = of[qualifier].map(each)
    return found


def _option(name: str, value: Any) -> str:
    """``limit 300`` or ``no limit``."""
    if value is None:
        return "default weights" if name == "weights" else f"no {name}"
    return f"{name} {escape.plain(value)}"


def _told_apart(non_default: list[str]) -> dict[str, str]:
    """For each set of hyper-parameters that are not defaults, those in which they differ; JSON, empty where none is left."""
    changed = {text: {name: value for name, (value, _) in json.loads(text or "{}").items()} for text in non_default}
    names = dict.fromkeys(name for of in changed.values() for name in of)
    differ = [name for name in names if len({repr(of.get(name)) for of in changed.values()}) > 1]
    kept = {text: {name: of[name] for name in differ if name in of} for text, of in changed.items()}
    return {text: json.dumps(of) if of else "" for text, of in kept.items()}
