"""Workbooks: the cells of a sheet as text, and nothing that unpacks or expands to more than it should."""

import pytest
from workbooks import save_parts, workbook_parts

from oodbench.datasets.formats import xlsx_file
from oodbench.datasets.formats.xlsx_file import read_sheet
from oodbench.errors import BadData

ROWS = [["image", "=dmos", None], [1600, 0.5, "a < b & c"], []]


@pytest.fixture
def parts():
    return workbook_parts("scores", ROWS)


def test_cells_are_read_as_text_by_column(tmp_path, parts):
    save_parts(tmp_path / "a.xlsx", parts)
    assert read_sheet(tmp_path / "a.xlsx", "scores") == [
        {"D": "image", "E": "dmos"},
        {"D": "1600", "E": "0.5", "F": "a < b & c"},
        {},
    ]


def test_target_may_be_absolute_and_strings_may_be_missing(tmp_path):
    parts = workbook_parts("scores", [["=a", 1]])
    del parts["xl/sharedStrings.xml"]
    parts["xl/_rels/workbook.xml.rels"] = parts["xl/_rels/workbook.xml.rels"].replace('"worksheets/b', '"/xl/worksheets/b')
    save_parts(tmp_path / "a.xlsx", parts)
    assert read_sheet(tmp_path / "a.xlsx", "scores") == [{"D": "a", "E": "1"}]


SHEET, STRINGS = "xl/worksheets/b.xml", "xl/sharedStrings.xml"


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("xl/workbook.xml", lambda text: text.replace('"scores"', '"else"'), "no sheet scores"),
        (SHEET, lambda text: '<!DOCTYPE a [<!ENTITY b "c">]>' + text, "declares a document type"),
        (SHEET, lambda text: text + " " * 2**20, "has more than 1,048,576 bytes"),
        (SHEET, lambda text: text[:-9], "ParseError"),
        (SHEET, lambda text: text.replace('"D1"', '"1"'), "a cell has the place '1'"),
        (STRINGS, lambda text: text.replace("<si>", "<no>").replace("</si>", "</no>"), "IndexError"),
        ("xl/_rels/workbook.xml.rels", lambda text: text.replace("r2", "r3"), "KeyError"),
        ("xl/_rels/workbook.xml.rels", lambda text: text.replace("b.xml", "../../../b.xml"), "KeyError"),
    ],
)
def test_damaged_and_hostile_workbooks_are_refused(tmp_path, parts, monkeypatch, part, change, says):
    monkeypatch.setattr(xlsx_file, "MOST_BYTES", 2**20)
    save_parts(tmp_path / "a.xlsx", parts | {part: change(parts[part])})
    with pytest.raises(ValueError, match=says):
        read_sheet(tmp_path / "a.xlsx", "scores")


def test_other_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a.xlsx").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="BadZipFile"):
        read_sheet(tmp_path / "a.xlsx", "scores")
    monkeypatch.setattr(xlsx_file, "MOST_BYTES", 5)
    with pytest.raises(BadData, match="has 10 bytes, more than 5"):
        read_sheet(tmp_path / "a.xlsx", "scores")
