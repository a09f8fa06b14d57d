"""One frame from several run folders, and what must be said about the sets behind it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from oodbench.results import RunFolder


def gather(folders: Sequence["RunFolder"]) -> tuple[pd.DataFrame, list[str]]:
    """The cells of all folders, a row each, and notes for tables.

    Where one name stands for several networks or in-distribution sets (another limit, say), the name gets a part of the
    hash, so that no row mixes them.
    """
    frames = []
    for folder in folders:
        settings = folder.about()["settings"]
        frames.append(folder.frame().assign(weights=settings["weights"], images=settings["in-distribution images"]))
    frame = pd.concat(frames, ignore_index=True)
    for name, content in (("model", "weights"), ("in_distribution", "images")):
        ambiguous = frame.groupby(name)[content].transform("nunique") > 1
        frame.loc[ambiguous, name] = frame[name] + " #" + frame[content].str[:6]
    subsets = sorted({line for folder in folders for line in folder.subsets()})
    notes = [f"Parts of official sets, so not the whole sets' figures: {'; '.join(subsets)}."] if subsets else []
    return frame.drop(columns=["weights", "images"]), notes
