"""The user's own databases: a folder with scores.csv, and a table of values; and the contract."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from image_files import random_images, save_image

from oodbench.datasets.quality import folder, scores, table
from oodbench.datasets.quality.database import QualityDatabase
from oodbench.errors import BadData, MissingData, UsageError

PICTURES = random_images(6, 6, 8)
HEADER = "image,reference,score,deviation,distortion,level\n"
LINES = "d/a.png,r/one.png,4.5,0.5,blur,1\nd/b.png,r/one.png,2,0.25,blur,3\nd/c.png,r/two.png,3,1,noise,2\n"


@pytest.fixture
def place(tmp_path):
    for number, name in enumerate(("r/one.png", "r/two.png", "d/a.png", "d/b.png", "d/c.png")):
        save_image(tmp_path / "mine" / name, PICTURES[number])
    (tmp_path / "mine" / "scores.csv").write_text(HEADER + LINES)
    return tmp_path / "mine"


def test_folder_is_read(place):
    found = folder.load("mine", data=place.parent)
    assert found.name == "folder:mine"
    assert found.scores.tolist() == [4.5, 2, 3]
    assert found.deviations.tolist() == [0.5, 0.25, 1]
    assert found.distortions == ["blur", "blur", "noise"]
    assert found.levels.tolist() == [1, 3, 2]
    assert found.reference_of.tolist() == [0, 0, 1]
    assert (found.higher_is_better, found.score_name, found.official_size) == (True, "score", None)
    assert torch.equal(found.references[1], torch.from_numpy(PICTURES[1]))
    assert torch.equal(found.distorted[2], torch.from_numpy(PICTURES[4]))
    absolute = folder.load(str(place), data=place.parent)
    assert (absolute.name, absolute.fingerprint) == ("folder:mine", found.fingerprint)


@pytest.mark.parametrize(("column", "higher"), [("score", True), ("MOS", True), ("dmos", False)])
def test_column_of_scores_tells_the_direction(place, column, higher):
    (place / "scores.csv").write_text(f"image,reference,{column}\n" + "d/a.png,r/one.png,1\nd/b.png,r/one.png,2\n")
    found = folder.load("mine", data=place.parent)
    assert found.higher_is_better == higher
    assert found.score_name == (column if column == "score" else column.upper())
    assert (found.deviations, found.levels, found.distortions) == (None, None, [])


def test_table_of_a_spreadsheet_is_read(place):
    content = HEADER.replace("image", "Image ") + "\n" + LINES.replace("d/a.png", '"d/a.png"') + ",,,,,\n"
    (place / "scores.csv").write_bytes(b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
    assert folder.load("mine", data=place.parent).scores.tolist() == [4.5, 2, 3]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reference", "original", "has no column 'reference'; its columns are image, original, score"),
        ("score", "points", "has no column of scores .*; name one column score or mos .higher is better., or dmos"),
        ("level", "mos", "has columns score and mos; name one column"),
        ("level", "score", "has two columns 'score'; rename one of them"),
        ("4.5", "good", "row 1, score: 'good' is not a finite number; correct it"),
        ("4.5", "inf", "row 1, score: 'inf' is not a finite number"),
        ("0.25", "x", "row 2, deviation: 'x' is not a finite number"),
        ("0.25", "", "1 of 3 images have no deviation; give it for all images or for none"),
        ("4.5,0.5", "4.5", "line 2: 5 columns, and the header has 6; correct it"),
        ("d/b.png", "d/a.png", "row 2: d/a.png is also in row 1; remove one of the two"),
        ("d/b.png", "d/none.png", "row 2: 'd/none.png' is not a file in .*; add it, or remove the row"),
        ("r/two.png", "r/none.png", "row 3: 'r/none.png' is not a file in"),
        ("d/b.png", "../out.png", "row 2: '../out.png' must be a path without '..' that is not absolute"),
        ("d/b.png", "/etc/passwd", "row 2: '/etc/passwd' must be a path without"),
        ("d/b.png", "C:/a.png", "row 2: 'C:/a.png' must be a path without"),
        ("r/two.png", "..\\\\two.png", "row 3: .* must be a path without"),
        ("d/b.png", "link.png", "link.png leads out of .* through a link; copy the file there"),
        ("4.5,0.5,blur,1\nd/b.png,r/one.png,2", "3,0.5,blur,1\nd/b.png,r/one.png,3", "all 3 scores are 3, so no metric"),
        (LINES, "", "has no rows below its header; add one per image"),
        (HEADER + LINES, "", "has no column 'image'; its columns are none"),
        ("noise", '"noise', "line 4: 5 columns, and the header has 6"),
    ],
)
def test_bad_tables_are_refused_in_one_line(place, old, new, message):
    save_image(place.parent / "out.png", PICTURES[5])
    (place / "link.png").symlink_to(place.parent / "out.png")
    (place / "scores.csv").write_text((HEADER + LINES).replace(old, new))
    with pytest.raises(BadData, match=message) as caught:
        folder.load("mine", data=place.parent)
    assert "\n" not in str(caught.value)


def test_bad_files_are_refused_in_one_line(place, monkeypatch):
    save_image(place / "d" / "b.png", random_images(1, 7, 8)[0])
    with pytest.raises(BadData, match=r"b.png has 8x7 pixels and its reference one.png 8x6; replace or remove one of the two"):
        folder.load("mine", data=place.parent)
    (place / "d" / "b.png").write_bytes(b"no image")
    with pytest.raises(BadData, match=r"b.png is not an image"):
        folder.load("mine", data=place.parent)
    (place / "scores.csv").write_bytes(b"image,reference,score\n\xff,a,1\n")
    with pytest.raises(BadData, match=r"scores.csv is not valid UTF-8; save it as UTF-8"):
        folder.load("mine", data=place.parent)
    monkeypatch.setattr(table, "MOST_ROWS", 2)
    (place / "scores.csv").write_text(HEADER + LINES)
    with pytest.raises(BadData, match="and 3 rows, more than 200 or 2; split it"):
        folder.load("mine", data=place.parent)
    with (place / "scores.csv").open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(BadData, match="has 16,777,217 bytes, more than"):
        folder.load("mine", data=place.parent)
    (place / "scores.csv").unlink()
    with pytest.raises(BadData, match=r"scores.csv is missing; write one with the columns image, reference and score"):
        folder.load("mine", data=place.parent)


@pytest.mark.parametrize(("load", "name", "what"), [(folder.load, "folder", "folder"), (scores.load, "scores", "file")])
def test_paths_that_lead_nowhere(load, name, what, tmp_path):
    with pytest.raises(UsageError, match=f"{name} needs a {what}; write {name}:PATH"):
        load("", data=tmp_path)
    for path in ("none", str(tmp_path / "none"), "n" * 5000):
        with pytest.raises(MissingData, match=f"is not a {what}; create it, or name another"):
            load(path, data=tmp_path)


VALUES = "row,dmos,psnr,ssim,author,reference\n1,10,30.5,0.9,me,b\n2,20,25,0.8,you,a\n3,30,20,0.7,me,b\n"


def test_table_of_values_is_read(tmp_path):
    (tmp_path / "v.csv").write_text(VALUES)
    found = scores.load("v.csv", data=tmp_path)
    assert found.name == "scores:v.csv"
    assert {name: values.tolist() for name, values in found.values.items()} == {"psnr": [30.5, 25, 20], "ssim": [0.9, 0.8, 0.7]}
    assert found.scores.tolist() == [10, 20, 30]
    assert found.reference_of.tolist() == [1, 0, 1]
    assert (found.score_name, found.higher_is_better, len(found.references), len(found.distorted)) == ("DMOS", False, 0, 0)
    (tmp_path / "v.csv").write_text(VALUES.replace(",reference", ",note"))
    assert scores.load("v.csv", data=tmp_path).reference_of.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("25", "many", "row 2, psnr: 'many' is not a finite number; correct it"),
        ("psnr,ssim", "level,deviation", "has no column with values of a metric beside 'dmos'"),
        ("dmos", "points", "has no column of scores"),
        ("20,25", "10,25", ""),
        ("20,20,0.7", "20,nan,0.7", "row 3, psnr: 'nan' is not a finite number"),
    ],
)
def test_bad_tables_of_values_are_refused(tmp_path, old, new, message):
    (tmp_path / "v.csv").write_text(VALUES.replace("3,30,20", "3,20,20").replace(old, new))
    if not message:  # two equal scores of three are no error
        assert scores.load("v.csv", data=tmp_path).scores.tolist() == [10, 10, 20]
        return
    with pytest.raises(BadData, match=message):
        scores.load("v.csv", data=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.arange(4.0)}, "small has 3 references of images and 4 scores; give one of each per image"),
        ({"distorted": [0, 1]}, "small has 2 distorted images and 3 scores"),
        ({"deviations": np.ones(2)}, "small has 2 deviations and 3 scores"),
        ({"distortions": ["a"]}, "small has 1 names of distortions and 3 scores"),
        ({"values": {"psnr": np.ones(5)}}, "small has 5 values of psnr and 3 scores"),
        ({"scores": np.array([1, np.nan, 2])}, "small: scores of image 1 is nan, not a finite number"),
        ({"scores": np.full(3, 2.5)}, "small: all 3 scores are 2.5, so no metric can be compared with them"),
        ({"reference_of": np.array([0, 1, 2])}, "small: an image names a reference that is not one of its 2"),
        ({"scores": np.empty(0), "reference_of": np.empty(0, int), "distorted": []}, "small holds no images; add some"),
    ],
)
def test_contract_is_checked(change, message):
    pictures = [torch.from_numpy(picture) for picture in PICTURES]
    sound = QualityDatabase(
        "small", pictures[:2], pictures[2:5], np.array([0, 0, 1]), np.array([1.0, 2, 3]), True, "MOS", fingerprint="0" * 16
    )
    assert len(sound) == 3
    with pytest.raises(BadData, match=message) as caught:
        replace(sound, **change)
    assert "\n" not in str(caught.value)
