"""The stored scores of one detector on one set, as a table with one row per tested image."""

import numpy as np
import pandas as pd

from oodbench.errors import BadData, UsageError
from oodbench.registry import unknown
from oodbench.results.folder import RunFolder


def scores_of(folder: RunFolder, detector: str, dataset: str, protocol: str = "unsupervised") -> pd.DataFrame:
    """The scores that the figures of a record are computed from, by image.

    Args:
        folder: a run folder.
        detector: a row of the table, such as ``knn`` or, for a variant, ``gradcon:recon``.
        dataset: the set with its level, such as ``photos`` or ``digits+noise@3``.
        protocol: ``unsupervised``, ``per-shift``, ``transfer`` or ``validation``.

    Returns a frame with one row per tested image. Its index is ``side`` (``in`` or ``out``) and ``row`` (int64, the image's
    row in the set of that side), the same for all detectors of a run, so scores pair by it. Its columns are
    ``score`` (float64, higher is more anomalous) and ``image`` (int64, equal for images that are one image: made from the
    same one, or with equal pixels).

    Raises UsageError for a name that the run does not hold, BadData where the record has no figures or lacks its scores.
    """
    records = list(folder.records())
    for what, name, names in (
        ("detector", detector, [record.row for record in records]),
        ("dataset", dataset, [record.set_name for record in records]),
        ("protocol", protocol, [record.protocol for record in records]),
    ):
        if name not in names:
            raise UsageError(
                unknown(what, name, dict.fromkeys(names), f"{folder.path} holds {', '.join(dict.fromkeys(names))}")
            )
    where = f"{detector} on {dataset} under {protocol}"
    wanted = (detector, dataset, protocol)
    found = [record for record in records if (record.row, record.set_name, record.protocol) == wanted]
    if not found:
        raise UsageError(f"{folder.path} does not hold {where}; run it, or ask for another protocol")
    if found[0].status != "ok":
        raise BadData(f"{where} has no scores ({found[0].reason})")
    arrays = folder.arrays(found[0])
    if missing := {"in_scores", "out_scores"} - arrays.keys():
        raise BadData(f"{where} stores no {min(missing)}; run it again")
    parts, first = [], 0
    for side in ("in", "out"):
        scores = arrays[f"{side}_scores"]
        rows = arrays.get(f"{side}_test", np.arange(len(scores)))
        images = arrays[f"{side}_base"][rows] if f"{side}_base" in arrays else first + rows
        first = int(rows.max()) + 1 if len(rows) else 0
        index = pd.MultiIndex.from_product([[side], rows], names=["side", "row"])
        parts.append(pd.DataFrame({"score": scores, "image": images}, index=index))
    return pd.concat(parts)
