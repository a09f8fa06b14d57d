"""The official databases: layouts made here in part, files that disagree, and the real pieces."""

import csv
import shutil

import numpy as np
import pytest
import torch
from image_files import random_images, save_image
from quality_databases import LOADERS, MAKERS, PICTURES, make_csiq
from scipy.io import savemat
from scipy.stats import spearmanr

from oodbench import registry
from oodbench.datasets.quality import TABLE, csiq, kadid10k, multi, photos, tid2013
from oodbench.errors import BadData, MissingData, UsageError


@pytest.fixture
def root(tmp_path):
    for make in MAKERS.values():
        make(tmp_path)
    return tmp_path


def test_table_names_these_loaders():
    for name, load in LOADERS.items():
        assert registry.resolve(TABLE[name].target) is load
        assert TABLE[name].source.startswith("https://")


@pytest.mark.parametrize(
    ("name", "scores", "deviations", "references", "distortions", "levels", "higher", "official"),
    [
        ("tid2013", [4.5, 3.5], [0.1, 0.2], [0, 1], ["JPEG", "Gaussian blur"], [1, 5], True, 3000),
        ("live", [1, 633, 808], [0.01, 6.33, 8.08], [0, 1, 1], ["jp2k", "wn", "fastfading"], None, False, 779),
        ("multi", [0, 1, 0, 224], [1, 1, 1, 1], [0, 0, 0, 1], ["blurjpeg"] * 2 + ["blurnoise"] * 2, None, False, 450),
        ("kadid10k", [4.57, 1.5], [0.7, 0.5], [0, 1], ["Gaussian blur", "contrast"], [1, 5], True, 10_125),
        ("csiq", [0.062, 0.9], [0.061, 0.05], [0, 1], ["noise", "jpeg 2000"], [1, 5], False, 866),
    ],
)
def test_images_that_are_there_are_read(root, name, scores, deviations, references, distortions, levels, higher, official):
    found = LOADERS[name](data=root)
    assert found.name == name
    np.testing.assert_allclose(found.scores, scores)
    np.testing.assert_allclose(found.deviations, deviations)
    assert found.reference_of.tolist() == references
    assert found.distortions == distortions
    assert (None if found.levels is None else found.levels.tolist()) == levels
    assert (found.higher_is_better, found.official_size) == (higher, official)
    assert len(found) == len(found.distorted) == len(scores)
    assert torch.equal(found.references[0], torch.from_numpy(PICTURES[0]))
    assert torch.equal(found.references[1], torch.from_numpy(PICTURES[1]))
    assert torch.equal(found.distorted[0], torch.from_numpy(PICTURES[2]))


@pytest.mark.parametrize("name", LOADERS)
def test_fingerprint_is_of_bytes_and_scores(root, name):
    first = LOADERS[name](data=root)
    assert first.fingerprint == LOADERS[name](data=root).fingerprint
    path = first.distorted.paths[0]
    save_image(path, PICTURES[19])
    assert LOADERS[name](data=root).fingerprint != first.fingerprint


@pytest.mark.parametrize("name", LOADERS)
def test_second_data_root_is_searched(root, name, tmp_path_factory):
    assert len(LOADERS[name](data=[tmp_path_factory.mktemp("empty"), root])) == len(LOADERS[name](data=root))


@pytest.mark.parametrize("name", LOADERS)
def test_missing_database_says_where_to_get_it(name, tmp_path):
    with pytest.raises(MissingData, match=f"{name} is missing: no folder .*download it from {TABLE[name].source}.*--data DIR"):
        LOADERS[name](data=tmp_path)
    with pytest.raises(UsageError, match=f"write {name}"):
        LOADERS[name]("elsewhere", data=tmp_path)


@pytest.mark.parametrize("name", LOADERS)
def test_scores_without_images_are_missing_data(root, name):
    for path in LOADERS[name](data=root).distorted.paths:
        path.unlink()
    with pytest.raises(MissingData, match=f"{name} has scores but no distorted image"):
        LOADERS[name](data=root)


@pytest.mark.parametrize("name", LOADERS)
def test_missing_reference_is_named(root, name):
    path = LOADERS[name](data=root).references.paths[0]
    for twin in root.rglob(path.name):
        twin.unlink()
    with pytest.raises(BadData, match=f"{path.name} is missing, and {name} has images or scores that need it") as caught:
        LOADERS[name](data=root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LOADERS)
def test_image_of_another_size_than_its_reference_is_named(root, name):
    path = LOADERS[name](data=root).distorted.paths[1]
    save_image(path, random_images(1, 6, 7)[0])
    with pytest.raises(BadData, match=f"{path.name} has 7x6 pixels and its reference .* 8x6"):
        LOADERS[name](data=root)


def rewrite(old, new):
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tid2013/mos_std.txt", rewrite("0.3\n", ""), "mos_std.txt has 2 lines and mos_with_names.txt 3; unpack TID2013"),
        ("tid2013/mos_with_names.txt", rewrite("4.5", "x"), "mos_with_names.txt, line 1: 'x' is not a finite number"),
        ("tid2013/mos_with_names.txt", rewrite("4.5", "nan"), "line 1: 'nan' is not a finite number"),
        ("tid2013/mos_with_names.txt", rewrite("i01_10_1.bmp", "../i01_10_1.bmp"), "line 1: expected a score and a name"),
        ("tid2013/mos_with_names.txt", rewrite("i01_10", "i01_25"), "line 1: expected a score and a name"),
        ("tid2013/mos_with_names.txt", rewrite("3.5", "4.5"), "tid2013: all 2 scores are 4.5, so no metric can be compared"),
        ("kadid10k/dmos.csv", rewrite("4.57", ""), "dmos.csv, row 1: '' is not a finite number"),
        ("kadid10k/dmos.csv", rewrite("0.49", "-1"), "row 1: var is -1, below 0"),
        ("kadid10k/dmos.csv", rewrite(",var", ",variance"), "has no column 'var'"),
        ("kadid10k/dmos.csv", rewrite("I01_01_01.png", "/etc/passwd"), "row 1: dist_img is not a name like"),
        ("kadid10k/dmos.csv", rewrite("1.5,0.25", "1.5"), "line 4: 3 columns, and the header has 4"),
    ],
)
def test_files_that_disagree_are_refused_in_one_line(root, file, change, message):
    path = root / file
    path.write_text(change(path.read_text()))
    with pytest.raises(BadData, match=message) as caught:
        LOADERS[file.partition("/")[0]](data=root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["live", "multi"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "another"])
def test_damaged_matlab_files_are_refused(root, name, damage):
    for path in sorted((root / {"live": "databaserelease2", "multi": "LIVEmultidistortiondatabase"}[name]).rglob("*.mat")):
        before = path.read_bytes()
        if damage == "truncated":
            path.write_bytes(before[:-40])
        elif damage == "missing":
            path.unlink()
        else:
            savemat(path, {"dmos_new": np.arange(5.0), "ref4dist": np.arange(3), "distimgs": np.array([["a"]], dtype=object)})
        with pytest.raises(BadData, match=r"unpack (it|LIVE) again") as caught:
            LOADERS[name](data=root)
        assert "\n" not in str(caught.value)
        path.write_bytes(before)


def test_multi_refuses_a_reference_number_that_its_list_lacks(root):
    path = root / "LIVEmultidistortiondatabase" / "To_Release" / "Part 2" / "Imagelists.mat"
    names = np.array([[f"y{number}.bmp"] for number in range(225)], dtype=object)
    savemat(path, {"distimgs": names, "refimgs": np.array([["a.bmp"]], dtype=object), "ref4dist": np.full((225, 1), 2)})
    with pytest.raises(BadData, match="ref4dist names a reference that is not one of 1"):
        multi.load(data=root)


def test_csiq_without_its_columns_or_with_another_file_is_refused(root):
    make_csiq(root, header=("image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "score"))
    with pytest.raises(BadData, match="no row with the names image, dst_type, dst_lev, dmos_std, dmos"):
        csiq.load(data=root)
    (root / "csiq" / "csiq.DMOS.xlsx").write_bytes(b"nothing")
    with pytest.raises(BadData, match=r"csiq.DMOS.xlsx cannot be read .*; download it again"):
        csiq.load(data=root)


def test_names_that_differ_in_case_alone_are_refused(root):
    shutil.copy(root / "tid2013/reference_images/I01.BMP", root / "tid2013/reference_images/i01.bmp")
    if len(list((root / "tid2013/reference_images").iterdir())) == 2:
        pytest.skip("this file system does not tell case")
    with pytest.raises(BadData, match="differ only in case; remove one of the two"):
        tid2013.load(data=root)


def test_image_that_is_a_link_out_of_the_database_is_refused(root, tmp_path):
    path = root / "kadid10k" / "images" / "I01_01_01.png"
    path.rename(tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(BadData, match=r"leads out of .* through a link; copy the file there"):
        kadid10k.load(data=root)


def test_photos_are_480_tiles_in_order_of_level():
    found = photos.load()
    assert len(found) == found.official_size == 480
    assert len(found.references) == 12
    assert (found.score_name, found.higher_is_better) == ("level", False)
    assert sorted(set(found.scores.tolist())) == [1, 2, 3, 4, 5]
    assert {picture.shape for picture in (found.references[11], found.distorted[0], found.distorted[479])} == {(3, 176, 176)}
    assert len({tuple(found.references[row].flatten()[:500].tolist()) for row in range(12)}) == 12
    rows = [row for row in range(480) if found.distortions[row] == "noise"]
    assert len(rows) == 60
    errors = {}
    for row in rows:
        difference = found.distorted[row].double() - found.references[found.reference_of[row]].double()
        errors.setdefault(found.levels[row], []).append(float((difference**2).mean()))
    means = [np.mean(errors[level]) for level in (1, 2, 3, 4, 5)]
    assert means == sorted(means)
    assert means[0] > 0
    assert torch.equal(found.distorted[rows[7]], photos.load().distorted[rows[7]])
    assert found.fingerprint == photos.load().fingerprint
    with pytest.raises(UsageError, match="write photos"):
        photos.load("x")


def psnr(database):
    """Of all three channels (N,)."""
    found = []
    for row, reference in enumerate(database.reference_of):
        difference = database.references[reference].double() - database.distorted[row].double()
        found.append(10 * np.log10(255**2 / float((difference**2).mean())))
    return np.array(found)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "count", "table", "spearman"), [("live", 71, "scores", 0.9135), ("tid2013", 30, "origin", 0.8892)]
)
def test_real_pieces_agree_with_what_is_known_of_them(data_root, name, count, table, spearman):
    found = LOADERS[name](data=data_root)
    assert (len(found), len(found.references)) == (count, 6)
    values = psnr(found)
    assert abs(spearmanr(values, found.scores).statistic) == pytest.approx(spearman, abs=5e-5)
    # A list beside the official files has what each image was found to be.
    folder = data_root / {"live": "databaserelease2", "tid2013": "tid2013"}[name]
    with (folder / f"{table}.csv").open() as file:
        known = {row["image"].lower(): row for row in csv.DictReader(file)}
    for row, path in enumerate(found.distorted.paths):
        wanted = known[f"{path.parent.name}/{path.name}".lower()]
        score = "dmos" if name == "live" else "mos"
        assert found.scores[row] == pytest.approx(float(wanted[score]), abs=1e-5)
        assert found.deviations[row] == pytest.approx(float(wanted[f"{score}_std"]), abs=1e-5)
        assert found.references.paths[found.reference_of[row]].name.lower() == wanted["reference"].rpartition("/")[2].lower()
        assert values[row] == pytest.approx(float(wanted["psnr_rgb"]), abs=1e-3)
