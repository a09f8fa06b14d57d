"""Selects the cells that a leaderboard is made of, by detector, set, kind and protocol. The command and Python use it alike."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from oodbench import registry
from oodbench.datasets.name import BY_PATH, base_of, canonical
from oodbench.errors import UsageError
from oodbench.leaderboard.aggregate import KINDS
from oodbench.suite import PROTOCOLS, as_names

Names = str | Sequence[str]


class _Option(NamedTuple):
    """One way to select: what its names are called, those asked for, and the columns that may hold them, main one first."""

    what: str
    names: list[str]
    columns: "list[pd.Series[str]]"
    known: Callable[[str], bool]  # whether it is a name at all, though no run may hold it


def select(
    frame: pd.DataFrame, *, detectors: Names = (), datasets: Names = (), kinds: Names = (), protocols: Names = ()
) -> pd.DataFrame:
    """The rows of a frame (one per cell) that have one of the names in each option that is given; their index is kept.

    Args:
        frame: what ``Results.frame()`` gives, or several of them concatenated.
        detectors: ``gradcon`` selects its variants too, ``gradcon:recon`` is one row of the table.
        datasets: ``digits+haze`` selects all levels, ``digits+haze@3`` one.
        kinds: ``near-ood`` and the like.
        protocols: ``unsupervised``, ``per-shift``, ``transfer`` or ``validation``.

    Raises UsageError for a name that no cell has, with the names that there are, and where nothing is left.
    """
    if frame.empty:
        return frame
    at_level = frame["dataset"].where(frame["level"].isna(), frame["dataset"] + "@" + frame["level"].map(_whole))
    of_variants = frame["detector"].astype(str).str.partition(":")[0]
    options = [
        _Option("detector", as_names(detectors), [of_variants, frame["detector"]], registry.records("detectors").__contains__),
        _Option("dataset", [*map(canonical, as_names(datasets))], [frame["dataset"], at_level], _is_set),
        _Option("kind", as_names(kinds), [frame["kind"]], KINDS.__contains__),
        _Option("protocol", as_names(protocols), [frame["protocol"]], tuple[str, ...](PROTOCOLS).__contains__),
    ]
    chosen = pd.Series(True, frame.index)
    for option in options:
        _check(option)
        if option.names:
            chosen &= pd.concat([column.isin(option.names) for column in option.columns], axis=1).any(axis=1)
    if not chosen.any():
        asked = " and ".join(f"{one.what} {' or '.join(one.names)}" for one in options if one.names)
        raise UsageError(f"no cell is of {asked}; leave one of these options out")
    return frame[chosen]


def _check(option: _Option) -> None:
    """Raise UsageError for the first name that no cell has."""
    held = list(dict.fromkeys(option.columns[0].dropna()))
    there = set(held).union(*(column.dropna() for column in option.columns))
    for name in option.names:
        if name not in there:
            listing = f"the runs hold {', '.join(held) or 'no cells'}"
            if option.known(name):
                raise UsageError(f"none of the runs holds the {option.what} '{name}'; {listing}")
            raise UsageError(registry.unknown(option.what, name, [*held, *there.difference(held)], listing))


def _is_set(name: str) -> bool:
    return base_of(name) in BY_PATH or base_of(name) in registry.records("datasets")


def _whole(level: float) -> str:
    return "" if pd.isna(level) else f"{int(level)}"
