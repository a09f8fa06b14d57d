"""Reads the cells of one sheet of an Excel workbook (Office Open XML), and trusts no size that the file states.

The standard library is enough for a table of text and numbers, so no library for workbooks is required.
"""

import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from oodbench.paths import read_small

MOST_BYTES = 2**24  # of each part of the workbook, unpacked
MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
COLUMN = re.compile(r"[A-Z]{1,3}")


def read_sheet(path: Path, name: str) -> list[dict[str, str]]:
    """Return the rows of a sheet that hold cells, each as text by column letter (``A``, ``B``, …), as the file stores it.

    Raises BadData for a file that is too large, and ValueError for one that is not a workbook or has no such sheet.
    """
    read_small(path, MOST_BYTES)
    try:
        with zipfile.ZipFile(path) as archive:
            sheets = _part(archive, "xl/workbook.xml").iterfind(f"{MAIN}sheets/{MAIN}sheet")
            identifiers = {sheet.get("name"): sheet.get(RELATION) for sheet in sheets}
            if name not in identifiers:
                raise ValueError(f"it has no sheet {name}")
            targets = {link.get("Id"): link.get("Target", "") for link in _part(archive, "xl/_rels/workbook.xml.rels")}
            target = targets[identifiers[name]]
            shared = []
            if "xl/sharedStrings.xml" in archive.namelist():
                shared = [_text(entry) for entry in _part(archive, "xl/sharedStrings.xml").iterfind(f"{MAIN}si")]
            rows = _part(archive, target.removeprefix("/") if target.startswith("/") else f"xl/{target}")
            return [_cells(row, shared) for row in rows.iterfind(f"{MAIN}sheetData/{MAIN}row")]
    except ValueError:
        raise
    except Exception as error:  # zipfile and its decoders raise errors of many kinds
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _part(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    with archive.open(name) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{name} has more than {MOST_BYTES:,} bytes")
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # workbooks have none; entities can expand to any size
        raise ValueError(f"{name} declares a document type")
    return ElementTree.fromstring(content)


def _cells(row: ElementTree.Element, shared: list[str]) -> dict[str, str]:
    found = {}
    for cell in row.iterfind(f"{MAIN}c"):
        column = COLUMN.match(cell.get("r", ""))
        if column is None:
            raise ValueError(f"a cell has the place {cell.get('r')!r}")
        value = cell.findtext(f"{MAIN}v")
        kind = cell.get("t")
        if kind == "inlineStr":
            found[column[0]] = _text(cell)
        elif value is not None:
            found[column[0]] = shared[int(value)] if kind == "s" else value
    return found


def _text(element: ElementTree.Element) -> str:
    return "".join(run.text or "" for run in element.iter(f"{MAIN}t"))
