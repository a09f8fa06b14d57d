"""What people read in place of a key: a name, and behind it what tells it apart from others of that name."""

import json

import pandas as pd

from oodbench.leaderboard.aggregate import QUALIFIERS


def label(column: str, name: str, qualifier: str = "") -> str:
    """``digits+pgd #aaaaaa``, ``digits (limit 300)``, ``knn (k=200)``, ``transfer from photos`` or ``validation on photos
    (val)``; the name alone where it is enough. A qualifier with a blank is words, any other of a network or set a hash."""
    if not qualifier:
        return name
    if column == "protocol":
        return f"{name} {'on' if name == 'validation' else 'from'} {qualifier}"
    if column == "detector":
        return f"{name} ({', '.join(f'{setting}={value}' for setting, value in json.loads(qualifier).items())})"
    return f"{name} ({qualifier})" if " " in qualifier else f"{name} #{qualifier[:6]}"


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with labels in place of names, without the columns that they were made of."""
    found = frame.copy()
    for column, qualifier in QUALIFIERS.items():
        if qualifier in frame.columns and (told_apart := frame[qualifier] != "").any():
            pairs = zip(frame.loc[told_apart, column], frame.loc[told_apart, qualifier], strict=True)
            found.loc[told_apart, column] = [label(column, *pair) for pair in pairs]
    return found.drop(columns=[name for name in QUALIFIERS.values() if name in found.columns])
