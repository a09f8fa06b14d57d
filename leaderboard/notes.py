"""The notes below a table, as data until ``sentences`` puts it into words.

A note says what it is about and holds values. Notes are read from a frame: ``COLUMNS`` are enough for those of one table
(``table_notes``), ``FACTS`` for those of a run (``run_notes``).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from oodbench.datasets.name import source_and_change
from oodbench.datasets.overlaps import OVERLAPS, overlap_of
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import BENIGN, CONTROL, METRICS, PLACE, REPEATS, ROW, marks_of, tally
from oodbench.leaderboard.labels import label, labelled
from oodbench.results.network import NetworkAccuracy
from oodbench.results.precision import PrecisionShift

REMARKS = "; "  # stands between the remarks of one row
DRAWN_ONCE = "networks trained or drawn once, from the run's seed: other seeds give other figures"
LOOK_ALIKES = "tested images look like images that it learnt from, or like in-distribution images"  # after their number
CUE = 0.9  # AUROC of the control from which a table says that the image alone gives a set away
SAME = 5e-4  # figures that differ by less look alike in a table
PROBABILITIES = {"accuracy": "accuracy", "ece": "ECE", "nll": "NLL", "brier": "Brier score"}  # what tables call them
NORMS = {"mean_l2": "L2", "mean_linf": "L∞"}  # of an attack's changes, in pixel units of [0, 1]


@dataclass(frozen=True)
class Note:
    """Something to say about some detectors or sets."""

    about: tuple[str, ...]


@dataclass(frozen=True)
class Cue(Note):
    """Sets that the control alone tells from the in-distribution images."""

    protocol: str
    auroc: tuple[float, ...]  # one per set
    sets: int  # all that the control has a figure for


@dataclass(frozen=True)
class Remark(Note):
    """A remark on rows of detectors."""

    remark: str


@dataclass(frozen=True)
class Overlaps(Note):
    """A set that shares classes with the in-distribution set."""

    in_distribution: str
    classes: tuple[str, ...]
    remedy: str  # the set without them; empty where it has no labels


@dataclass(frozen=True)
class Missing(Note):
    """Cells without figures, and why."""

    status: str
    reason: str
    cells: int


@dataclass(frozen=True)
class Gap(Note):
    """Rows of another task than detection that lack figures, in words."""

    said: str


@dataclass(frozen=True)
class NotRun(Note):
    """A run of a study that is not finished, and why."""

    reason: str


@dataclass(frozen=True)
class Repeated(Note):
    """Cells that a later run holds again."""

    cells: int


@dataclass(frozen=True)
class Disagreement(Note):
    """Cells that several runs hold with different figures, by name."""

    figures: tuple[tuple[tuple[str, float], ...], ...]  # one per cell: (run, AUROC) of each run, the one that counts last


@dataclass(frozen=True)
class Machines(Note):
    """What costs that do not compare were measured on: marks, and what each is."""

    machines: tuple[str, ...]


@dataclass(frozen=True)
class MixedCode(Note):
    """Detectors whose figures come from several versions of their code, or of the harness's scoring."""

    run: str = ""


@dataclass(frozen=True)
class LookAlikes(Note):
    """Sets with tested images that look like one that heads learnt from, or, unsupervised, like an in-distribution one."""

    protocol: str
    images: tuple[tuple[int, int], ...]  # one per set: such images, and all that are tested
    run: str = ""


@dataclass(frozen=True)
class TransferSource(Note):
    """The set that heads learnt from under transfer."""

    run: str = ""


@dataclass(frozen=True)
class Chosen(Note):
    """Detectors whose hyper-parameters were chosen on one set, under validation."""

    on: str
    choices: tuple[tuple[str, float], ...]  # one per detector: the values as text, and AUROC on that set
    run: str = ""


@dataclass(frozen=True)
class AttackStrength(Note):
    """How strong the attacks that made the sets were: success rate, norms, images kept, images that did not change."""

    attacks: tuple[dict[str, Any], ...]  # one per set
    run: str = ""


@dataclass(frozen=True)
class CleanNegatives(Note):
    """How AUROC moves on a set when the noisy twins among its negatives are left out."""

    mean_change: float
    rows: int
    most: tuple[str, str]  # detector and protocol of the row that moves most
    before: float
    after: float
    run: str = ""


@dataclass(frozen=True)
class Probabilities(Note):
    """Accuracy and calibration of a detector that is a classifier too, and the network's."""

    figures: dict[str, float]
    run: str = ""


@dataclass(frozen=True)
class NetworkNote(Note):
    """How often the network is right on the in-distribution test images, or what is wrong with it."""

    said: str
    run: str = ""


@dataclass(frozen=True)
class PrecisionNote(Note):
    """How far a lower precision of forward passes moves AUROC of detectors."""

    said: str
    run: str = ""


@dataclass(frozen=True)
class Subsets(Note):
    """Sets that are parts of official ones: they must never pass for the whole."""

    images: tuple[tuple[int, int], ...]  # one per set: here, and in the official set


def table_notes(frame: pd.DataFrame, cells: pd.DataFrame) -> list[Note]:
    """Notes on one table: ``cells`` are the frame's, each once."""
    repeated = len(frame) - len(cells)
    notes = [*_cues(cells), *_overlaps(cells), *_remarks(cells), *_missing(cells)]
    return [*notes, *([Repeated((), repeated)] if repeated else [])]


def disagreements(frame: pd.DataFrame) -> list[Note]:
    """Cells of several runs that a table would show with different figures; the frame names the ``run`` of each."""
    key = [*ROW, *PLACE]
    figured = frame[(frame["status"] == "ok") & frame.duplicated(key, keep=False)]
    if figured.empty:
        return []
    of_cell = figured.astype(dict.fromkeys(METRICS, float)).groupby(key, dropna=False)[list(METRICS)]
    apart = of_cell.transform("max") - of_cell.transform("min")
    differing = labelled(figured[(apart > SAME).any(axis=1)])
    if differing.empty:
        return []
    by_cell: Any = differing.groupby(["detector", "protocol", "dataset", "level", *REPEATS], sort=False, dropna=False)
    names, figures = [], []
    for (detector, protocol, dataset, level, *_), of in by_cell:
        names.append(f"{detector} ({protocol}) on {_set_name(dataset, level)}")
        figures.append(tuple(zip(of["run"], of["auroc"].tolist(), strict=True)))
    return [Disagreement(tuple(names), tuple(figures))]


def machines(frame: pd.DataFrame) -> list[Note]:
    """The machines of a frame whose costs come from several."""
    marks = marks_of(frame)
    return [Machines(tuple(marks.values()), tuple(marks))] if len(marks) > 1 else []


def _overlaps(cells: pd.DataFrame) -> list[Note]:
    inside = cells["in_distribution"].iloc[0]
    notes: list[Note] = []
    for dataset in cells["dataset"].unique():
        if overlap := overlap_of(dataset, inside):
            remedy = f"{dataset}:{overlap.selection}" if (dataset, inside) in OVERLAPS else ""
            notes.append(Overlaps((dataset,), inside, tuple(overlap.classes.values()), remedy))
    return notes


def _cues(cells: pd.DataFrame) -> list[Note]:
    """Where the control alone tells the sets apart."""
    control = cells[(cells["detector"] == CONTROL) & (cells["kind"] != BENIGN)]
    if control.empty:
        return []
    found = tally(control).values.drop(columns="mean", level="group")
    names = [label("dataset", *key[1:]) for key in found.columns]
    notes: list[Note] = []
    for key, row in zip(found.index.to_frame(index=False).to_dict("records"), found.to_numpy(), strict=True):
        high = [(name, value) for name, value in zip(names, row, strict=True) if value >= CUE]
        if high:
            sets, auroc = zip(*high, strict=True)
            protocol = label("protocol", key["protocol"], key["source"])
            notes.append(Cue(sets, protocol, auroc, int(pd.notna(row).sum())))
    return notes


def _remarks(cells: pd.DataFrame) -> list[Note]:
    """Remarks on rows with figures, such as hyper-parameters that are not their detector's defaults."""
    seeds = cells.groupby(ROW, dropna=False)["seed"].transform("nunique")
    with_seeds = cells.assign(one_seed=seeds < 2)
    remarked = labelled(with_seeds[(cells["status"] == "ok") & cells["reason"].fillna("").ne("")])
    single = remarked.assign(reason=remarked["reason"].str.split(REMARKS)).explode("reason")
    single = single[single["one_seed"] | (single["reason"] != DRAWN_ONCE)]  # figures of several seeds show their spread
    single = single[~single["reason"].str.endswith(LOOK_ALIKES)]  # these have a note of their own, by set
    by_remark = single.groupby("reason", sort=False)["detector"]
    return [Remark(tuple(sorted(of.unique())), str(remark)) for remark, of in by_remark]


def _missing(cells: pd.DataFrame) -> list[Missing]:
    """Each reason of a missing figure once, the most frequent first."""
    missing = labelled(cells[cells["status"] != "ok"])
    missing["reason"] = missing["reason"].fillna("").map(escape.plain)
    notes: list[Missing] = []
    by_reason: Any = missing.groupby(["status", "reason"], sort=False)
    for (status, reason), of in by_reason:
        detectors, sets = (tuple(of[name].unique()) for name in ("detector", "dataset"))
        notes.append(Missing(min(detectors, sets, key=len), status, reason, len(of)))
    return sorted(notes, key=lambda note: -note.cells)  # stable: equally frequent ones stay as in the frame


def run_notes(frame: pd.DataFrame, run: str = "") -> list[Note]:
    """Notes on the facts of one run: its frame needs ``FACTS``. ``run`` names it where there are several."""
    sources = frame.loc[frame["protocol"] == "transfer", "transfer_from"].dropna().unique()
    notes: list[Note] = [TransferSource((name,), run) for name in sources if name]
    notes += _chosen(frame, run)
    versions = frame.groupby("detector", sort=False)["computed_by"].nunique()
    mixed = tuple(versions.index[versions > 1])
    notes += [MixedCode(mixed, run)] if mixed else []
    notes += _look_alikes(frame, run)
    return [*notes, *_attacks(frame, run), *_clean_negatives(frame, run), *_probabilities(frame, run)]


def _chosen(frame: pd.DataFrame, run: str) -> list[Chosen]:
    """One per set that hyper-parameters were chosen on."""
    notes = []
    told = frame["choice"].map(lambda choice: isinstance(choice, str) and choice != "").astype(bool)
    made = frame[told].drop_duplicates(["detector", "transfer_from", "choice"])
    for on, of in made.groupby("transfer_from", sort=False):
        each = [(detector, json.loads(choice)) for detector, choice in zip(of["detector"], of["choice"], strict=True)]
        values = [", ".join(f"{name} {escape.plain(value)}" for name, value in of["setting"].items()) for _, of in each]
        choices = tuple((text, of["auroc"]) for text, (_, of) in zip(values, each, strict=True))
        notes.append(Chosen(tuple(name for name, _ in each), str(on), choices, run))
    return notes


def together(of_runs: Sequence[Sequence[Any]]) -> list[Note]:
    """The ``run_notes`` of several runs: equal ones are one, which names its runs unless all have it."""
    runs: dict[str, list[Any]] = {}
    for note in (note for of in of_runs for note in of):
        runs.setdefault(repr(replace(note, run="")), []).append(note)
    each = ((of[0], len(of) == len(of_runs) > 1, [note.run for note in of]) for of in runs.values())
    return [replace(note, run="" if of_all else ", ".join(names)) for note, of_all, names in each]


def network_notes(found: Mapping[str, NetworkAccuracy | None]) -> list[Note]:
    """Notes on the networks, by name of the run: runs with equal figures share theirs, which name them unless all do."""
    runs: dict[NetworkAccuracy, list[str]] = {}
    for run, accuracy in found.items():
        if accuracy is not None:
            runs.setdefault(accuracy, []).append(run)
    return [
        NetworkNote((accuracy.network,), line, "" if len(of) == len(found) else ", ".join(of))
        for accuracy, of in runs.items()
        for line in accuracy.lines()
    ]


def precision_notes(found: Mapping[str, PrecisionShift | None]) -> list[Note]:
    """Notes on runs in a lower precision, by name of the run."""
    return [PrecisionNote(tuple(shift.auroc), shift.sentence(), run) for run, shift in found.items() if shift is not None]


def _look_alikes(frame: pd.DataFrame, run: str) -> list[Note]:
    alike = frame[frame["look_alikes"].fillna(0) > 0].drop_duplicates(["protocol", "dataset", "level"])
    notes: list[Note] = []
    by_protocol: Any = alike.groupby("protocol", sort=False)
    for protocol, of in by_protocol:
        tested = of["n_out"] + (0 if protocol == "unsupervised" else of["n_in"])  # only anomalous images are compared there
        images = [(int(count), int(of_all)) for count, of_all in zip(of["look_alikes"], tested, strict=True)]
        names = [_set_name(dataset, level) for dataset, level in zip(of["dataset"], of["level"], strict=True)]
        notes.append(LookAlikes(tuple(names), protocol, tuple(images), run))
    return notes


def _attacks(frame: pd.DataFrame, run: str) -> list[Note]:
    made = _facts(frame, "attack", ["dataset", "level"])
    strong = {_set_name(row.dataset, row.level): row.attack for row in made if "success_rate" in row.attack}
    return [AttackStrength(tuple(strong), tuple(strong.values()), run)] if strong else []


def _clean_negatives(frame: pd.DataFrame, run: str) -> list[Note]:
    beside_noisy = frame[frame["auroc_clean"].notna() & frame["auroc"].notna()]
    notes: list[Note] = []
    by_set: Any = beside_noisy.groupby(["dataset", "level"], sort=False, dropna=False)
    for (dataset, level), of in by_set:
        before, after = of["auroc"].to_numpy(float), of["auroc_clean"].to_numpy(float)
        changes = after - before
        most = int(abs(changes).argmax())
        row = (of["detector"].iloc[most], of["protocol"].iloc[most])
        mean = sum(changes.tolist()) / len(of)
        notes.append(
            CleanNegatives((_set_name(dataset, level),), mean, len(of), row, float(before[most]), float(after[most]), run)
        )
    return notes


def _probabilities(frame: pd.DataFrame, run: str) -> list[Note]:
    """As the last cell of each detector says."""
    rows = _facts(frame, "calibration", ["detector"])
    # A variant is another score of the same fit, so it has the same probabilities.
    found = {row.detector.partition(":")[0]: row.calibration for row in rows if row.calibration.keys() >= PROBABILITIES.keys()}
    return [Probabilities((detector,), figures, run) for detector, figures in found.items()]


def _facts(frame: pd.DataFrame, fact: str, keys: list[str]) -> list[Any]:
    """The last known value of a fact by ``keys``, read from its JSON, in the order of first appearance."""
    known = frame.loc[frame[fact].fillna("") != "", [*keys, fact]]
    first = known.drop_duplicates(keys)[keys]
    rows = first.merge(known.drop_duplicates(keys, keep="last"), on=keys, how="left")
    return list(rows.assign(**{fact: rows[fact].map(json.loads)}).itertuples(index=False))


def subsets(frame: pd.DataFrame) -> list[Note]:
    """The sets of all runs that are parts of official ones. All that is made of equally many images of a set is one line."""
    parts = set()
    for sizes in map(json.loads, frame.loc[frame["sizes"].fillna("") != "", "sizes"].unique()):
        parts |= {(_made_of(name), here, official) for name, (here, official) in sizes.items() if official not in (None, here)}
    names = tuple(name for name, *_ in sorted(parts))
    return [Subsets(names, tuple((here, official) for _, here, official in sorted(parts)))] if parts else []


def _made_of(name: str) -> str:
    """``cifar10+noise@3 (test)`` -> ``corruptions and attacks of cifar10 (test)``; another set's name as it is."""
    dataset, _, split = name.rpartition(" ")
    source, _ = source_and_change(dataset)
    return f"corruptions and attacks of {source} {split}" if dataset.startswith(f"{source}+") else name


def _set_name(dataset: str, level: float | None) -> str:
    return dataset if pd.isna(level) else f"{dataset}@{int(level)}"
