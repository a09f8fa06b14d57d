"""One frame from a run folder: the columns that tables and files show, and behind them the facts that notes are made of."""

import json
from typing import Any

import pandas as pd

from oodbench.leaderboard.aggregate import COLUMNS
from oodbench.results.folder import RunFolder, cost_key

# What a table says beside its figures, one value per record. Facts are JSON text, empty where there are none.
FACTS = (
    "weights",  # hash of the network's weights
    "in_fingerprint",  # content of the in-distribution side: the test images, or a set's own negatives
    "fingerprint",  # content of the set; empty where it could not be read
    "transfer_from",  # the set that the head learnt from, under transfer
    "non_default",  # {hyper-parameter: [value, default]}
    "attack",  # settings, success rate and norms of an attack
    "calibration",  # accuracy and calibration of the detector's own class probabilities, and the network's
    "auroc_clean",  # a number: AUROC against the clean negatives alone, where noisy ones stand beside them
    "sizes",  # {set: [images here, images in the official set]}
)


def frame_of(folder: RunFolder) -> pd.DataFrame:
    """One row per record: ``COLUMNS``, then ``FACTS``."""
    costs = folder.costs()
    rows = []
    for cell in folder.cells():
        cost = costs.get(cost_key(cell.detector, cell.parameters, cell.setting), {}) if cell.status == "ok" else {}
        calibration = {name: value for name, value in cell.extras.items() if name != "auroc_clean"}
        facts = {
            "weights": cell.weights_hash,
            "non_default": _json(cell.changed),
            "attack": _json(cell.made),
            "calibration": _json(calibration),
            "auroc_clean": cell.extras.get("auroc_clean"),
            "sizes": _json(cell.sizes),
        }
        names = {"detector": cell.row, "reason": cell.remark}
        rows.append({**cell.model_dump(), **facts, **names, **(cell.metrics or {}), **cost})
    return pd.DataFrame(rows).reindex(columns=[*COLUMNS, *FACTS])


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True) if facts else ""
