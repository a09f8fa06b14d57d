"""Published figures: what the package carries is whole, and a damaged file is refused with file and line."""

import shutil
from collections import Counter

import pytest

from oodbench import registry
from oodbench.datasets.name import base_of, parse
from oodbench.errors import BadData
from oodbench.leaderboard import published
from oodbench.leaderboard.published import OWN, read_figures, read_papers


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(OWN, tmp_path / "published", ignore=shutil.ignore_patterns("__pycache__"))


def test_what_the_package_carries():
    figures = read_figures()
    # Lines of each file times figures of a line; of GradCON's the averages of the classes are left out.
    assert Counter(figure.file for figure in figures) == {
        "purview_ood.csv": 90,
        "purview_adversarial.csv": 84,
        "purview_corruption.csv": 160,
        "gradcon_cifar10.csv": 80,
        "introspective_ood.csv": 48,
        "openood_cifar10.csv": 16,
    }
    (one,) = (f for f in figures if (f.file, f.set, f.detector, f.metric) == ("purview_ood.csv", "svhn", "odin", "aupr_out"))
    assert (one.value, one.protocol, one.sets, one.in_distributions) == (
        0.9545, "per-shift", (("svhn", "folder:svhn-digits"),), ("cifar10",),
    )  # fmt: skip
    (mean,) = (f for f in figures if (f.file, f.set, f.detector) == ("openood_cifar10.csv", "near-ood", "energy"))
    assert (mean.value, mean.spread) == (pytest.approx(0.8758), pytest.approx(0.0046))
    assert [names[0] for names in mean.sets] == ["cifar100", "tinyimagenet:disjoint"]


def test_names_of_ours_are_names():
    """Detectors, and those sets of the papers that have a name here."""
    for figure in read_figures():
        assert figure.detector.partition(":")[0] in registry.records("detectors"), figure
        for name in (*figure.in_distributions, *(name for names in figure.sets for name in names)):
            if "*" not in name and name != "mnist":
                assert base_of(name) in ("folder", *registry.records("datasets")), figure
                parse(name if "+" not in name or figure.level is None else f"{name}@{figure.level}")


def test_every_file_has_a_source_and_is_carried():
    papers = read_papers()
    assert {path.name for path in OWN.glob("*.csv")} == papers.keys()
    for paper in papers.values():
        assert paper.source
        assert paper.suite or paper.task != "detection"


@pytest.mark.parametrize(
    ("name", "before", "after", "says"),
    [
        ("purview_ood.csv", "metric,value", "metric,figure", r"purview_ood\.csv, line 1: the column 'figure' is unknown"),
        ("purview_ood.csv", ",83.36", ",83.3.6", r"purview_ood\.csv, line 2: '83.3.6' is not a number from 0 to 100"),
        ("purview_ood.csv", ",83.36", ",8336", r"line 2: '8336' is not a number from 0 to 100"),
        ("purview_ood.csv", ",83.36", ",nan", r"line 2: 'nan' is not a number from 0 to 100"),
        ("purview_ood.csv", ",83.36", "", r"line 2: 4 fields in 5 columns"),
        ("purview_ood.csv", "svhn,msp,auroc", "svhm,msp,auroc", r"line 7: papers.toml has no oodbench name for 'svhm'"),
        ("purview_ood.csv", "svhn,msp,auroc", "svhn,msp,aurok", r"line 7: papers.toml has no oodbench name for 'aurok'"),
        ("purview_corruption.csv", "noise,1,", "noise,6,", r"line 2: papers.toml has no oodbench name for '6'"),
        ("introspective_iqa.csv", "0.013", "0,013", r"introspective_iqa\.csv, line 2: 5 fields in 4 columns"),
        ("introspective_iqa.csv", "0.013", "x", r"introspective_iqa\.csv, line 2: 'x' is not a number from 0 up"),
        ("papers.toml", "percent = true", "percents = true", r"papers\.toml: .*(Field required|not permitted)"),
        ("papers.toml", "percent = true", "percent = ", r"papers\.toml cannot be read"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(folder, name, before, after, says):
    path = folder / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(BadData, match=says) as found:
        read_figures(folder)
    assert "\n" not in str(found.value)


def test_a_file_without_a_table_is_refused(folder):
    (folder / "mine.csv").write_text("value\n1\n")
    with pytest.raises(BadData, match=r"mine\.csv: papers.toml does not say what it holds"):
        read_figures(folder)
    (folder / "mine.csv").unlink()
    (folder / "purview_ood.csv").unlink()
    with pytest.raises(BadData, match=r"purview_ood\.csv cannot be read"):
        read_figures(folder)


def test_figures_of_the_package_are_read_once():
    assert published.own_figures() is published.own_figures()
