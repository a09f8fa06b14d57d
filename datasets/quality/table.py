"""Reads a table of scores, a CSV file that may come from anybody."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from oodbench.errors import BadData
from oodbench.paths import read_small

DIRECTIONS = {"score": True, "mos": True, "dmos": False}  # names of the column of scores: whether higher is better
MOST_COLUMNS, MOST_ROWS = 200, 50_000


def read_table(path: Path, needed: Sequence[str] = ()) -> dict[str, list[str]]:
    """Read the columns of a CSV file with a header, by name in lower case, each a list of as many texts.

    The first name may be empty, as that of the index that pandas writes.

    Raises BadData, naming the file and line, for a file that is too large, not UTF-8 or without rows, a line of another length,
    a column that is missing or occurs twice, and one without a name that is not the first.
    """
    try:
        text = read_small(path).decode("utf-8-sig")
    except OSError as error:
        raise BadData(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not valid UTF-8; save it as UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    rows: list[list[str]] = []
    names: list[str] = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if not names:
                names = [cell.lower() for cell in cells]
                continue
            if len(cells) != len(names):
                raise BadData(
                    f"{path}, line {reader.line_num}: {len(cells)} columns, and the header has {len(names)}; correct it"
                )
            rows.append(cells)
    except csv.Error as error:
        raise BadData(f"{path}, line {reader.line_num}: {error}; save it as CSV") from error
    if len(names) > MOST_COLUMNS or len(rows) > MOST_ROWS:
        raise BadData(
            f"{path} has {len(names)} columns and {len(rows):,} rows, more than {MOST_COLUMNS} or {MOST_ROWS:,}; split it"
        )
    if "" in names[1:]:
        raise BadData(f"{path}: column {names.index('', 1) + 1} has no name; give it one in the header, or remove the column")
    if twice := {name for name in names if names.count(name) > 1}:
        raise BadData(f"{path} has two columns '{min(twice)}'; rename one of them")
    if absent := [name for name in needed if name not in names]:
        raise BadData(f"{path} has no column '{absent[0]}'; its columns are {', '.join(names)[:200] or 'none'}; add it")
    if not rows:
        raise BadData(f"{path} has no rows below its header; add one per image")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def score_column(path: Path, columns: dict[str, list[str]]) -> str:
    """The name of the column of scores: the one of ``DIRECTIONS`` that is there. Raises BadData unless there is exactly one."""
    found = [name for name in DIRECTIONS if name in columns]
    if len(found) != 1:
        has = f"columns {' and '.join(found)}" if found else f"no column of scores (it has {', '.join(columns)[:200]})"
        raise BadData(f"{path} has {has}; name one column score or mos (higher is better), or dmos (lower is better)")
    return found[0]
