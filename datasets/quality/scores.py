"""A table of people's scores and of metrics' values, without images: ``scores:FILE``."""

import numpy as np

from oodbench.datasets.name import recorded
from oodbench.datasets.quality.database import QualityDatabase, fingerprint
from oodbench.datasets.quality.layout import finite, user_path
from oodbench.datasets.quality.table import DIRECTIONS, read_table, score_column
from oodbench.errors import BadData
from oodbench.paths import DataRoots

DESCRIPTIONS = ("", "row", "image", "reference", "deviation", "distortion", "level")  # columns that are not values of a metric


def load(path: str, *, data: DataRoots = None) -> QualityDatabase:
    """Load a CSV file with one row per image.

    One column is ``score`` or ``mos`` (higher is better) or ``dmos`` (lower is better). The columns ``reference`` (a name, or
    a number), ``deviation``, ``distortion`` and ``level`` are used, ``row``, ``image`` and a first column without a name are
    left out, and every other column whose first cell is a number has the values of a metric with its name. Without
    ``reference``, each image has its own.

    Raises UsageError for an empty path, MissingData if the file is missing, and BadData for a table without scores or values,
    and for text in place of a number.
    """
    table = user_path("scores", path, data, folder=False)
    columns = read_table(table)
    scored = score_column(table, columns)

    def numbers(column: str) -> np.ndarray:
        return np.array([finite(text, f"{table}, row {row}, {column}") for row, text in enumerate(columns[column], start=1)])

    others = [name for name in columns if name not in (*DESCRIPTIONS, scored)]
    values = {name: numbers(name) for name in others if _is_number(columns[name][0])}
    if not values:
        raise BadData(f"{table} has no column with values of a metric beside '{scored}'; add one named after its metric")
    scores, count = numbers(scored), len(columns[scored])
    references = columns.get("reference", list(map(str, range(count))))
    reference_of = np.unique(references, return_inverse=True)[1].astype(np.int64)
    return QualityDatabase(
        recorded(f"scores:{path}"),
        (),
        (),
        reference_of,
        scores,
        DIRECTIONS[scored],
        scored if scored == "score" else scored.upper(),
        fingerprint([table], reference_of, scores),
        numbers("deviation") if "deviation" in columns else None,
        columns.get("distortion", []),
        numbers("level") if "level" in columns else None,
        values=values,
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
