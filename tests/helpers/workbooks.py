"""Excel workbooks of one sheet, written by hand: the project reads them without a library."""

import zipfile
from xml.sax.saxutils import escape

MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"


def workbook_parts(sheet, rows, first_row=1, first_column="D"):
    """The parts of a workbook by name: text is shared, except that starting with '=', which is stored inside its cell."""
    shared, lines = [], []
    for number, row in enumerate(rows, start=first_row):
        cells = []
        for column, value in enumerate(row, start=ord(first_column)):
            place = f"{chr(column)}{number}"
            if isinstance(value, str) and value.startswith("="):
                cells.append(f'<c r="{place}" t="inlineStr"><is><t>{escape(value[1:])}</t></is></c>')
            elif isinstance(value, str):
                shared.append(value)
                cells.append(f'<c r="{place}" t="s"><v>{len(shared) - 1}</v></c>')
            elif value is not None:
                cells.append(f'<c r="{place}"><v>{value}</v></c>')
        lines.append(f'<row r="{number}">{"".join(cells)}</row>')
    strings = "".join(f"<si><r><t>{escape(text[:1])}</t></r><r><t>{escape(text[1:])}</t></r></si>" for text in shared)
    return {
        "xl/workbook.xml": f'<workbook {MAIN} xmlns:r="{RELATIONS}"><sheets><sheet name="other" sheetId="1" r:id="r1"/>'
        f'<sheet name="{sheet}" sheetId="2" r:id="r2"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{PACKAGE}"><Relationship Id="r1" Target="worksheets/a.xml"/>'
        '<Relationship Id="r2" Target="worksheets/b.xml"/></Relationships>',
        "xl/worksheets/b.xml": f"<worksheet {MAIN}><sheetData>{''.join(lines)}</sheetData></worksheet>",
        "xl/sharedStrings.xml": f"<sst {MAIN}>{strings}</sst>",
    }


def save_parts(path, parts):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
