"""What notes say: each in plain words."""

from collections.abc import Iterable, Sequence
from functools import singledispatch
from typing import Any

from oodbench.datasets.name import heading
from oodbench.errors import counted
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import CONTROL
from oodbench.leaderboard.notes import (
    CUE,
    NORMS,
    PROBABILITIES,
    AttackStrength,
    Chosen,
    CleanNegatives,
    Cue,
    Disagreement,
    Gap,
    LookAlikes,
    Machines,
    Missing,
    MixedCode,
    NetworkNote,
    Note,
    NotRun,
    Overlaps,
    PrecisionNote,
    Probabilities,
    Remark,
    Repeated,
    Subsets,
    TransferSource,
)


def sentence(note: Note | str) -> str:
    """A note in words."""
    run = getattr(note, "run", "")
    return _words(note) + (f" ({run})" if run else "")


def listed(names: Iterable[str], at_most: int | None = None) -> str:
    """``a, b and 3 more``."""
    names = list(names)
    shown = names[:at_most]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")


@singledispatch
def _words(note: Any) -> str:
    return str(note)


@_words.register
def _(note: Cue) -> str:
    figures = (f"{heading(n)} ({100 * value:.1f})" for n, value in zip(note.about, note.auroc, strict=True))
    return (
        f"{CONTROL}, the control, does not use the network. Under {note.protocol} its AUROC ×100 is {100 * CUE:.0f} or more on"
        f" {listed(figures, 6)}: simple image statistics separate these sets, and any detector may rely on them."
    )


@_words.register
def _(note: Overlaps) -> str:
    remedy = f" {note.remedy} leaves them out." if note.remedy else ""
    return (
        f"{note.about[0]} shares {len(note.classes)} classes with {note.in_distribution} ({listed(note.classes, 4)}): images of"
        f" these are not anomalies.{remedy}"
    )


@_words.register
def _(note: Remark) -> str:
    return f"{listed(note.about)}: {escape.plain(note.remark)}"


@_words.register
def _(note: Missing) -> str:
    return f"{counted(note.cells, 'cell')} {note.status} ({listed(note.about, 3)}): {note.reason or 'no reason given'}"


@_words.register
def _(note: Gap) -> str:
    return note.said


@_words.register
def _(note: Repeated) -> str:
    return f"{counted(note.cells, 'cell')} left out, because a later run holds the same; the last run counts."


@_words.register
def _(note: Disagreement) -> str:
    each = []
    for name, figures in zip(note.about, note.figures, strict=True):
        shown = (f"{100 * value:.1f} in {run}" for run, value in figures)
        each.append(f"{name} ({', '.join(shown)})")
    cells = counted(len(each), "cell")
    return f"Runs disagree on {cells}, AUROC ×100: {listed(each, 6)}. The last run counts; name the runs apart with --label."


@_words.register
def _(note: NotRun) -> str:
    return f"{note.about[0]}, a run of the study: {note.reason}"


@_words.register
def _(note: Machines) -> str:
    each = "; ".join(f"{mark}: {machine}" for mark, machine in zip(note.about, note.machines, strict=True))
    return f"Costs were measured on different machines, so they do not compare. {each}."


@_words.register
def _(note: MixedCode) -> str:
    return (
        f"{listed(note.about, 3)}: the figures come from different versions of the code; run these detectors again on all"
        " sets and protocols, or start over with --fresh."
    )


@_words.register
def _(note: LookAlikes) -> str:
    counts = (f"{name} ({count:,} of {tested:,})" for name, (count, tested) in zip(note.about, note.images, strict=True))
    known = "an in-distribution image" if note.protocol == "unsupervised" else "an image that heads learnt from"
    return f"{note.protocol}: tested images that look like {known}, perhaps saved again or of one video: {listed(counts, 6)}."


@_words.register
def _(note: TransferSource) -> str:
    return f"transfer: heads learnt from {note.about[0]} alone, which has no cell there and is not part of the means."


@_words.register
def _(note: Chosen) -> str:
    made = (f"{name} {text} ({100 * auroc:.1f})" for name, (text, auroc) in zip(note.about, note.choices, strict=True))
    return (
        f"validation: hyper-parameters with the highest AUROC on {note.on}, which is not tested:"
        f" {'; '.join(made)}. Detectors without any to choose have no row."
    )


@_words.register
def _(note: AttackStrength) -> str:
    each = "; ".join(f"{name} {_strength(attack)}" for name, attack in zip(note.about, note.attacks, strict=True))
    return (
        "Attacks are made against the network, not against the detectors. Share of correctly classified images on which an"
        f" attack fools it: {each}."
    )


def _strength(attack: dict[str, Any]) -> str:
    """Success rate, the norms that are known, how many images the papers' filter left and how many did not change at all."""
    details = [f"mean {title} {short(attack[name])}" for name, title in NORMS.items() if name in attack]
    if attack.get("settings", {}).get("filtered"):
        details.append(f"{attack['kept']:,} images kept")
    if attack.get("unchanged"):
        unchanged = attack["unchanged"]  # on these a detector can only guess
        details.append(f"{100 * unchanged:.1f} % of the images unchanged: AUROC at most {100 * (1 - unchanged / 2):.1f}")
    return f"{100 * attack['success_rate']:.1f} %" + (f" ({', '.join(details)})" if details else "")


@_words.register
def _(note: CleanNegatives) -> str:
    return (
        f"{note.about[0]}: negatives are clean images and their noisy twins. Against the clean ones alone AUROC ×100 moves by"
        f" {100 * note.mean_change:+z.1f} on average over {note.rows} rows, most for {note.most[0]} ({note.most[1]}):"
        f" {100 * note.before:.1f} to {100 * note.after:.1f}."
    )


@_words.register
def _(note: Probabilities) -> str:
    parts = []
    for name, title in PROBABILITIES.items():
        network = note.figures.get(f"network_{name}")
        parts.append(f"{title} {short(note.figures[name])}" + ("" if network is None else f" (network {short(network)})"))
    return f"{note.about[0]}, its own class probabilities: {', '.join(parts)}"


@_words.register
def _(note: NetworkNote) -> str:
    return note.said


@_words.register
def _(note: PrecisionNote) -> str:
    return note.said


@_words.register
def _(note: Subsets) -> str:
    return f"Parts of official sets, so not the whole sets' figures: {'; '.join(parts_of(note))}."


def parts_of(note: Subsets) -> Sequence[str]:
    """One piece of text per set."""
    return [f"{name} {n:,} of {of:,} images" for name, (n, of) in zip(note.about, note.images, strict=True)]


def short(value: float) -> str:
    """Three digits behind the point, without a leading zero."""
    return f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.3f}"
