"""One frame from several run folders, and the notes on their facts."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from oodbench.datasets.name import CHANGED
from oodbench.leaderboard.aggregate import COLUMNS, QUALIFIERS
from oodbench.leaderboard.frame import frame_of
from oodbench.leaderboard.notes import Note, network_notes, run_notes, subsets
from oodbench.results.network import stored

if TYPE_CHECKING:
    from oodbench.results.folder import RunFolder


def gather(folders: Sequence["RunFolder"]) -> tuple[pd.DataFrame, list[Note]]:
    """The cells of all folders, one row each, in ``COLUMNS`` and ``QUALIFIERS``; and notes for tables.

    Where one name stands for several networks, in-distribution sets (another limit, say) or anomalous sets (an attack with
    other settings), its qualifier is the hash of the content, so that no row mixes them. That of transfer is the set that it
    learnt from, that of a detector the hyper-parameters in which its runs differ, where they are not its defaults.
    """
    frames, notes = [], network_notes({str(folder.path): stored(folder.manifest().provenance) for folder in folders})
    for folder in folders:
        found = frame_of(folder)
        notes += run_notes(found, str(folder.path) if len(folders) > 1 else "")
        frames.append(found.assign(images=_test_images(found)))
    frame = pd.concat(frames, ignore_index=True)
    frame = frame.assign(network=frame["weights"], source=frame["transfer_from"].fillna(""), content=frame["fingerprint"])
    frame["settings"] = ""
    seeds = ["seed"] if _as_many(frame) else []  # each may have drawn its own test images
    for columns, qualifier in (
        (["model"], "network"),
        (["in_distribution", *seeds], "images"),
        (["model", "network", "in_distribution", "images", "dataset", "level", "seed"], "content"),
    ):
        frame[qualifier] = _where_ambiguous(frame, columns, frame[qualifier].fillna(""))
    transfer = frame["protocol"] == "transfer"
    if frame.loc[transfer, "source"].nunique() < 2:
        frame["source"] = ""
    for _, of in frame.groupby(["model", "network", "in_distribution", "images", "detector", "protocol"], sort=False):
        frame.loc[of.index, "settings"] = of["non_default"].map(_told_apart(of["non_default"].unique().tolist()))
    return frame[[*COLUMNS, *QUALIFIERS.values()]], [*notes, *subsets(frame)]


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


def _where_ambiguous(frame: pd.DataFrame, columns: list[str], content: "pd.Series[str]") -> "pd.Series[str]":
    """The content where those of one name differ, empty where they do not or nothing is known."""
    known = content.where(content != "")
    ambiguous = known.groupby([frame[name] for name in columns], dropna=False).transform("nunique") > 1
    return content.where(ambiguous, "")


def _told_apart(non_default: list[str]) -> dict[str, str]:
    """For each set of hyper-parameters that are not defaults, those in which they differ; JSON, empty where none is left."""
    changed = {text: {name: value for name, (value, _) in json.loads(text or "{}").items()} for text in non_default}
    names = dict.fromkeys(name for of in changed.values() for name in of)
    differ = [name for name in names if len({repr(of.get(name)) for of in changed.values()}) > 1]
    kept = {text: {name: of[name] for name in differ if name in of} for text, of in changed.items()}
    return {text: json.dumps(of) if of else "" for text, of in kept.items()}
