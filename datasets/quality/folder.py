"""Any folder of images with a table of scores: ``folder:PATH``."""

from pathlib import Path

from oodbench.datasets.name import is_sound, recorded
from oodbench.datasets.quality.database import QualityDatabase
from oodbench.datasets.quality.layout import Opinion, finite, from_files, require_inside, user_path
from oodbench.datasets.quality.table import DIRECTIONS, read_table, score_column
from oodbench.errors import BadData
from oodbench.paths import DataRoots

TABLE_FILE = "scores.csv"


def load(path: str, *, data: DataRoots = None) -> QualityDatabase:
    """Load the images that ``PATH/scores.csv`` names, relative to the folder ``PATH``.

    The table has the columns ``image`` and ``reference``, one of ``score`` or ``mos`` (higher is better) or ``dmos`` (lower is
    better), and if known ``deviation``, ``distortion`` and ``level``.

    Raises UsageError for an empty path, MissingData if the folder is missing, and BadData for a table without these columns,
    text in place of a number, and images that are missing, named twice, outside of the folder or of another size than their
    reference.
    """
    folder = user_path("folder", path, data, folder=True)
    table = folder / TABLE_FILE
    if not table.is_file():
        raise BadData(f"{table} is missing; write one with the columns image, reference and score")
    columns = read_table(table, ("image", "reference"))
    scored = score_column(table, columns)
    seen: dict[Path, int] = {}
    opinions = []
    for row in range(len(columns["image"])):
        place = f"{table}, row {row + 1}"
        image, reference = (_file(folder, columns[column][row], place) for column in ("image", "reference"))
        if (other := seen.setdefault(image, row)) != row:
            raise BadData(f"{place}: {columns['image'][row]} is also in row {other + 1}; remove one of the two")
        deviation, level = (
            finite(columns[column][row], f"{place}, {column}") if columns.get(column, {row: ""})[row] else None
            for column in ("deviation", "level")
        )
        opinions.append(
            Opinion(
                image,
                reference,
                finite(columns[scored][row], f"{place}, {scored}"),
                deviation,
                columns["distortion"][row] if "distortion" in columns else "",
                level,
            )
        )
    return from_files(
        recorded(f"folder:{path}"),
        opinions,
        higher_is_better=DIRECTIONS[scored],
        score_name=scored if scored == "score" else scored.upper(),
        official_size=None,
        partial=False,
    )


def _file(folder: Path, name: str, place: str) -> Path:
    """The file of a name in a table. Raises BadData for one outside of the folder, and for one that is missing."""
    if not is_sound(name):
        raise BadData(f"{place}: '{name[:100]}' must be a path without '..' that is not absolute; write it from {folder}")
    path = folder / name
    require_inside(folder, path)
    if not path.is_file():
        raise BadData(f"{place}: '{name[:100]}' is not a file in {folder}; add it, or remove the row")
    return path
