"""One frame from several run folders, and what must be said of them below a table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from oodbench.leaderboard.aggregate import COLUMNS
from oodbench.leaderboard.frame import frame_of

if TYPE_CHECKING:
    from oodbench.results.folder import RunFolder
    from oodbench.results.records import DetectionRecord

FIGURES = {"accuracy": "accuracy", "ece": "ECE", "nll": "NLL", "brier": "Brier score"}  # of extras: how tables call them

NORMS = {"mean_l2": "L2", "mean_linf": "L∞"}  # of a set's ``made``, in pixel units of [0, 1]


def gather(folders: Sequence["RunFolder"]) -> tuple[pd.DataFrame, list[str]]:
    """The cells of all folders, a row each, and notes for tables.

    Where one name stands for several networks, in-distribution sets (another limit, say) or anomalous sets (an attack with
    other settings), the name gets a part of the hash, so that no row mixes them; so does transfer get the set that it
    learnt from, and a detector the hyper-parameters that are not its defaults where its runs differ in them.
    """
    frames, notes = [], []
    for folder in folders:
        settings = folder.manifest().settings
        content_hashes = {"weights": settings["weights"], "images": settings["in-distribution images"]}
        cells = list(folder.records())
        changed = [cell.non_default for cell in cells]
        columns: dict[str, Any] = {"content": [cell.fingerprint for cell in cells], "changed": changed}
        frames.append(frame_of(folder)[list(COLUMNS)].assign(**content_hashes, source=settings.get("transfer_from"), **columns))
        where = f" ({folder.path})" if len(folders) > 1 else ""
        notes += [note + where for note in [*_transfer_notes(cells), *_attack_notes(cells), *_probability_notes(cells)]]
    frame = pd.concat(frames, ignore_index=True)
    for name, content in (("model", "weights"), ("in_distribution", "images")):
        ambiguous = frame.groupby(name)[content].transform("nunique") > 1
        frame.loc[ambiguous, name] = frame[name] + " #" + frame[content].str[:6]
    read = frame[frame["content"] != ""]
    place = ["model", "in_distribution", "dataset", "level", "seed"]
    made_twice = read[read.groupby(place, dropna=False)["content"].transform("nunique") > 1].index
    frame.loc[made_twice, "dataset"] = frame["dataset"] + " #" + frame["content"].str[:6]
    row = ["model", "in_distribution", "detector", "protocol"]
    frame["detector"] += frame.groupby(row)["changed"].transform(_told_apart)
    transfer = frame["protocol"] == "transfer"
    if frame[transfer]["source"].nunique() > 1:
        frame.loc[transfer, "protocol"] = "transfer from " + frame["source"]
    subsets = sorted({line for folder in folders for line in subsets_of(folder)})
    notes += [f"Parts of official sets, so not the whole sets' figures: {'; '.join(subsets)}."] if subsets else []
    return frame.drop(columns=["weights", "images", "source", "content", "changed"]), notes


def subsets_of(folder: "RunFolder") -> list[str]:
    """One line per set that is a part of the official one: it must never pass for the whole.

    All that is made of one number of a set's images is one line.
    """
    sizes = {name: size for cell in folder.records() for name, size in cell.sizes.items()}
    parts = {(_made_of(name), n, official) for name, (n, official) in sizes.items() if official and n != official}
    return [f"{name} {n:,} of {official:,} images" for name, n, official in sorted(parts)]


def _made_of(name: str) -> str:
    """``cifar10+noise@3 (test)`` -> ``corruptions and attacks of cifar10 (test)``; another set's name as it is."""
    base, plus, _ = name.partition("+")
    return f"corruptions and attacks of {base} {name[name.rindex('(') :]}" if plus else name


def _told_apart(changed: "pd.Series[Any]") -> "pd.Series[str]":
    """`` (k=200)`` by cell of one row: the hyper-parameters in which its cells differ, but those at their defaults."""
    names = dict.fromkeys(name for of in changed for name in of)
    differ = [name for name in names if changed.map(lambda of, name=name: repr(of.get(name))).nunique() > 1]
    parts = changed.map(lambda of: ", ".join(f"{name}={of[name][0]}" for name in differ if name in of))
    return parts.map(lambda part: f" ({part})" if part else "")


def _transfer_notes(cells: "Sequence[DetectionRecord]") -> list[str]:
    names = dict.fromkeys(cell.transfer_from for cell in cells if cell.transfer_from)
    return [f"transfer: heads learnt from {name} alone, which has no cell there and no part in the means." for name in names]


def _attack_notes(cells: "Sequence[DetectionRecord]") -> list[str]:
    """How strong each attack was, and what figures are against clean negatives alone, where noisy ones stand beside them."""
    made = {cell.set_name: cell.attack.model_dump() for cell in cells if cell.attack}
    notes = []
    if made:
        notes.append(
            "Attacks are made against the network, not against the detectors; they fool it on so many of the images that it had"
            f" right: {'; '.join(f'{name} {_strength(of)}' for name, of in made.items())}."
        )
    beside_noisy: dict[str, list[DetectionRecord]] = {}
    for cell in cells:
        if cell.metrics and cell.auroc_clean is not None:
            beside_noisy.setdefault(cell.set_name, []).append(cell)
    for name, of in beside_noisy.items():
        changes = [cell.auroc_clean - cell.metrics.auroc for cell in of if cell.metrics]
        most = max(range(len(of)), key=lambda place: abs(changes[place]))
        clean = of[most].auroc_clean
        notes.append(
            f"{name}: negatives are clean images and their noisy twins. Against the clean ones alone AUROC ×100 moves by"
            f" {100 * sum(changes) / len(of):+.1f} in the mean of {len(of)} rows, most for"
            f" {of[most].row} ({of[most].protocol}): {100 * (clean - changes[most]):.1f} to {100 * clean:.1f}."
        )
    return notes


def _strength(made: Mapping[str, Any]) -> str:
    """Success rate, the norms that are known, how many images the papers' filter left and how many did not change at all."""
    norms = [f"mean {title} {_short(made[name])}" for name, title in NORMS.items() if name in made]
    kept = [f"{made['kept']:,} images kept"] if made.get("settings", {}).get("filtered") else []
    same = [f"{100 * made['unchanged']:.1f} % of the images as they were"] if made.get("unchanged") else []
    details = ", ".join(norms + kept + same)
    return f"{100 * made['success_rate']:.1f} %" + (f" ({details})" if details else "")


def _probability_notes(cells: "Sequence[DetectionRecord]") -> list[str]:
    """Accuracy and calibration of detectors that are classifiers too, and the network's, as the last cell of each says."""
    found = {cell.detector: cell.calibration for cell in cells if cell.calibration}
    notes = []
    for detector, extras in found.items():
        parts = []
        for name, title in FIGURES.items():
            network = getattr(extras.network, name) if extras.network else None
            beside = "" if network is None else f" (network {_short(network)})"
            parts.append(f"{title} {_short(getattr(extras.detector, name))}{beside}")
        notes.append(f"{detector}, its own class probabilities: {', '.join(parts)}")
    return notes


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.3f}"
