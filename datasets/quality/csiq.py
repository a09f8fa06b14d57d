"""CSIQ: 30 references under six distortions at up to five levels (Larson & Chandler, J. of Electronic Imaging 19, 2010)."""

from oodbench.datasets.formats.layout import why
from oodbench.datasets.formats.xlsx_file import read_sheet
from oodbench.datasets.quality.database import QualityDatabase
from oodbench.datasets.quality.layout import Opinion, by_name, finite, from_files, lookup, official_folder
from oodbench.errors import BadData
from oodbench.paths import DataRoots

FOLDERS = ("csiq", "CSIQ")
OFFICIAL_SIZE = 866
SHEET = "all_by_image"
COLUMNS = ("image", "dst_type", "dst_lev", "dmos_std", "dmos")
# Names in the workbook, and the folder of images, which is also in their names.
DISTORTIONS = {
    **{"noise": "awgn", "jpeg": "jpeg", "jpeg 2000": "jpeg2000"},
    **{"fnoise": "fnoise", "blur": "blur", "contrast": "contrast"},
}


def load(path: str = "", *, data: DataRoots = None) -> QualityDatabase:
    """Load ``csiq/{src_imgs,dst_imgs/TYPE}``, with DMOS (lower is better) from the sheet all_by_image of ``csiq.DMOS.xlsx``.

    Images that are absent are left out.

    Raises UsageError for a path after the name, MissingData if the folder or all images are missing, and BadData for
    files that disagree.
    """
    folder = official_folder("csiq", path, data, FOLDERS)
    workbook = folder / "csiq.DMOS.xlsx"
    try:
        rows = read_sheet(workbook, SHEET)
    except (OSError, ValueError) as error:
        raise BadData(f"{workbook} cannot be read ({why(error)}); download it again") from error
    start = next((number for number, row in enumerate(rows) if {*COLUMNS} <= {*row.values()}), None)
    if start is None:
        raise BadData(f"{workbook}, sheet {SHEET}: no row with the names {', '.join(COLUMNS)}; download it again")
    letters = {name: letter for letter, name in rows[start].items()}
    references = by_name(folder / "src_imgs")
    images = {kind: by_name(folder / "dst_imgs" / kind) for kind in DISTORTIONS.values()}
    opinions = []
    for number, row in enumerate(rows[start + 1 :], start=1):
        image, kind, level, deviation, dmos = (row.get(letters[name], "") for name in COLUMNS)
        if not image:
            continue
        place = f"{workbook}, sheet {SHEET}, row {number} below the names"
        if kind not in DISTORTIONS:
            raise BadData(f"{place}: dst_type is '{kind[:50]}', not one of {', '.join(DISTORTIONS)}; download it again")
        image, step = image.removesuffix(".0"), finite(level, place)  # one reference is called 1600
        name = f"{image}.{DISTORTIONS[kind]}.{step:g}.png"
        opinions.append(
            Opinion(
                lookup(images[DISTORTIONS[kind]], folder / "dst_imgs" / DISTORTIONS[kind], name),
                lookup(references, folder / "src_imgs", f"{image}.png"),
                finite(dmos, place),
                finite(deviation, place),
                kind,
                step,
            )
        )
    if not opinions:
        raise BadData(f"{workbook}, sheet {SHEET}: no scores below the names; download it again")
    return from_files("csiq", opinions, higher_is_better=False, score_name="DMOS", official_size=OFFICIAL_SIZE)
