"""Severity curves: means worked by hand, the text, and pictures that repeat themselves and take no name for a formula."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import pandas as pd
import pytest

from oodbench import cli
from oodbench.errors import BadData, UsageError
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import COLUMNS, EXTRA, MAIN, corruptions_of
from oodbench.leaderboard.formats import render
from oodbench.leaderboard.plots import FORMATS, draw, figure
from oodbench.leaderboard.plots import severity as severity_plot
from oodbench.leaderboard.severity import BLOCKS, curves, severity, sparkline, text_tables

HOSTILE = "$\\frac{1}{0}$ <script>alert(1)</script>\x1b--&\u202e"


def cell(detector, corruption, level, auroc, **more):
    row = {"model": "net", "in_distribution": "digits", "detector": detector, "protocol": "unsupervised", "seed": 0}
    row |= {"dataset": f"digits+{corruption}", "kind": "corruption", "level": level, "auroc": auroc}
    return row | {"status": "ok", "reason": ""} | more


def frame(*cells):
    return pd.DataFrame(cells).reindex(columns=list(COLUMNS))


@pytest.fixture
def small():
    """Haze and snow at levels 1, 2 and 5; energy's snow failed at 5; msp per-shift too; and a set without levels."""
    cells = []
    for level, haze, snow in ((1, 0.5, 0.6), (2, 0.6, 0.8), (5, 0.9, 1.0)):
        cells += [cell("msp", "snow", level, snow), cell("msp", "haze", level, haze)]
        cells += [cell("energy", "snow", level, snow - 0.1), cell("energy", "haze", level, haze - 0.1)]
        cells += [cell("msp", "haze", level, 0.95, protocol="per-shift")]
    cells[12] |= {"status": "failed", "auroc": None, "reason": "no"}
    cells.append(cell("msp", "", None, 0.7, dataset="photos", kind="far-ood"))
    return frame(*cells)


def test_curves_and_means_worked_by_hand(small):
    found = curves(small)
    assert list(found.columns) == [1, 2, 5]
    assert [key[2:] for key in found.index] == [
        ("unsupervised", "msp", "digits", "snow"),
        ("unsupervised", "msp", "digits", "haze"),
        ("unsupervised", "energy", "digits", "snow"),
        ("unsupervised", "energy", "digits", "haze"),
        ("per-shift", "msp", "digits", "haze"),
    ]
    assert found.iloc[0].tolist() == [0.6, 0.8, 1.0]
    assert found.iloc[2].isna().tolist() == [False, False, True]
    means = severity(small).set_index(["protocol", "detector"])
    msp = means.loc[("unsupervised", "msp")]
    assert msp[["1", "2", "5"]].tolist() == pytest.approx([0.55, 0.7, 0.95])
    assert msp[["1 corruptions", "2 corruptions", "5 corruptions", "corruptions"]].tolist() == [2, 2, 2, 2]
    energy = means.loc[("unsupervised", "energy")]
    assert energy[["1", "2", "5"]].tolist() == pytest.approx([0.45, 0.6, 0.8])
    assert energy[["1 corruptions", "2 corruptions", "5 corruptions", "corruptions"]].tolist() == [2, 2, 1, 2]
    assert means.loc[("per-shift", "msp"), ["1", "1 corruptions", "corruptions"]].tolist() == [0.95, 1, 2]
    assert severity(small, "auroc").equals(severity(small))


def test_seeds_are_averaged_and_a_cell_that_comes_again_counts_once():
    cells = [cell("msp", "haze", 1, 0.2), cell("msp", "haze", 1, 0.5), cell("msp", "haze", 1, 0.7, seed=1)]
    assert curves(frame(*cells)).iloc[0].tolist() == pytest.approx([0.6])


def test_rows_are_in_the_order_of_the_table_and_bases_apart(small):
    official = [cell("energy", "", level, 0.9, dataset=f"cifar10c/{c}") for level in (1, 5) for c in ("fog", "snow")]
    far = [cell("energy", "", None, 1.0, dataset="photos", kind="far-ood")]
    found = severity(pd.concat([small, frame(*official, *far)]))
    assert found[["detector", "protocol", "base"]].values.tolist() == [
        ["energy", "unsupervised", "digits"],
        ["energy", "unsupervised", "cifar10c"],
        ["msp", "unsupervised", "digits"],
        ["msp", "per-shift", "digits"],
    ]
    titles = [table.caption.split("mean over ")[1].split(".")[0] for table in text_tables(pd.concat([small, frame(*official)]))]
    assert titles == [
        "2 corruptions of digits (C-style, generated)",
        "2 corruptions of cifar10c (2 of the 15 main ones, 0 of the 4 extra ones)",
    ]


def test_what_a_mean_is_over_is_said():
    files = [f"cifar10c/{name}" for name in MAIN]
    assert corruptions_of("cifar10c", [*files, "cifar10+haze"]) == "the 15 main corruptions of cifar10c"
    everything = [*files, *(f"cifar10c/{name}" for name in EXTRA)]
    found = corruptions_of("cifar10c", everything)
    assert found == "19 corruptions of cifar10c (15 of the 15 main ones, 4 of the 4 extra ones)"
    assert corruptions_of("curetsr", ["curetsr/Haze", "curetsr/Rain"]) == "2 corruptions of curetsr"
    assert corruptions_of("cifar10", ["cifar10+haze"]) == "1 corruption of cifar10 (C-style, generated)"
    text = " ".join(render(frame(cell("x", "haze", 1, 0.5), *(cell("x", "", 1, 0.5, dataset=d) for d in files))).split())
    assert "means over levels: 1 corruption of digits (C-style, generated); the 15 main corruptions of cifar10c." in text


def test_text_worked_by_hand(small):
    text = render(small, width=100)
    assert max(map(len, text.splitlines())) <= 100
    lines = text[text.index("Severity: net, in-distribution digits") :].splitlines()
    assert lines[1].startswith("AUROC ×100 by level of severity, mean over 2 corruptions of digits (C-style, generated).")
    assert "(k/n): only k of n corruptions have figures." in " ".join(lines)
    rows = [re.split(r"  +", line) for line in lines if line.startswith(("msp", "energy", "detector"))]
    assert rows == [
        ["detector", "protocol", "1", "2", "5", "curve"],
        ["msp", "unsupervised", "55.0", "70.0", "95.0", "▁▄█"],
        ["energy", "unsupervised", "45.0", "60.0", "80.0 (1/2)", "▁▂▅"],
        ["msp", "per-shift", "95.0 (1/2)", "95.0 (1/2)", "95.0 (1/2)", "███"],
    ]
    markdown = render(small, "md")
    assert "### Severity: net, in-distribution digits\n" in markdown
    assert re.search(r"\| msp +\| unsupervised +\| +55.0 \| +70.0 \| +95.0 \| +▁▄█ \|", markdown)
    for format in ("csv", "json", "tex"):
        assert "Severity" not in render(small, format)


def test_a_corruption_that_nobody_has_is_said_once(small):
    rows = [cell(name, "decolor", level, None, status="skipped", reason="no") for name in ("msp", "energy") for level in (1, 2)]
    found = pd.concat([small, frame(*rows)])
    text = " ".join(render(found).split())
    assert "mean over 2 corruptions of digits (C-style, generated); without figures: decolor." in text
    assert severity(found)["corruptions"].unique().tolist() == [2]
    assert "55.0 " in text
    assert "decolor" not in [name for name, _ in drawn_texts(found)]  # no legend of what is not there


def test_sparkline():
    assert sparkline([0.0, 0.5, 0.5624, 0.5626, 0.75, 0.9999, 1.0]) == "▁▁▁▂▅██"
    assert sparkline([float("nan"), 1.0]) == " █"
    assert escape.encodable(f"AUROC ×100 {BLOCKS}", "utf-8") == f"AUROC ×100 {BLOCKS}"
    for encoding in ("ascii", "latin-1", "cp437"):
        assert escape.encodable(f"×100 {BLOCKS} –", encoding) == "x100 _.-:=+*# -"
    assert escape.encodable("検 ×", "ascii") == "? x"


def test_without_two_levels_there_is_no_curve(small):
    for found in (small[small["kind"] == "far-ood"], small[small["level"] == 1]):
        assert text_tables(found) == []
        assert "Severity" not in render(found)
        with pytest.raises(BadData, match="no corruption has figures at two levels") as raised:
            draw("severity", found)
        assert "\n" not in str(raised.value)
    missing = small.assign(status="failed", auroc=None)
    assert "–" in render(missing)[render(missing).index("Severity") :]
    with pytest.raises(BadData, match="no corruption has figures"):
        draw("severity", missing)


@pytest.mark.parametrize("format", FORMATS)
def test_pictures_repeat_themselves(small, format, monkeypatch):
    before = small.copy()
    first = draw("severity", small, format)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")  # matplotlib would write this date
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20)  # somebody's matplotlibrc
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    assert draw("severity", small, format) == first
    assert first.startswith({"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF"}[format])
    pd.testing.assert_frame_equal(small, before)
    assert matplotlib.rcParams["font.size"] == 20


def drawn_texts(found):
    """Each text of the picture, and whether it may be a formula."""
    from matplotlib.text import Text

    return [(text.get_text(), text.get_parse_math()) for text in figure("severity", found).findobj(Text)]


def test_a_panel_a_row_in_the_order_of_the_table(small):
    texts = [text for text, _ in drawn_texts(small)]
    named = ("msp", "energy", "pixels (control)", "unsupervised", "per-shift")
    assert [text for text in texts if text in named[:3]] == ["msp", "energy", "msp"]
    assert [text for text in texts if text in named[3:]] == list(named[3:])
    for text in ("mean", "mean of some", "haze", "snow"):
        assert texts.count(text) == 1
    assert "Severity: net, in-distribution digits: 2 corruptions of digits (C-style, generated)" in texts


def test_names_are_drawn_as_they_are():
    rows = [cell(HOSTILE, HOSTILE, level, 0.6, model=HOSTILE, dataset=f"digits+{HOSTILE}") for level in (1, 2)]
    found = frame(*rows)
    root = ElementTree.fromstring(draw("severity", found, "svg"))  # well-formed
    tags = {element.tag.partition("}")[2] for element in root.iter()}
    assert not tags & {"script", "a", "image", "foreignObject"}
    assert not {name for element in root.iter() for name in element.attrib if name.lower().startswith("on")}
    texts = drawn_texts(found)
    hostile = [(text, math) for text, math in texts if "frac" in text]
    assert len(hostile) == 3  # title, panel and legend
    assert not any(math for _, math in hostile)
    assert not any(set(text) & set("\x1b\u202e") for text, _ in texts)


def test_each_of_many_corruptions_looks_its_own_way(monkeypatch):
    rows = [
        cell(f"detector-{d}", f"c{c}", level, 0.5 + level / 12, protocol=p)
        for p in ("unsupervised", "per-shift") for d in range(12) for c in range(19) for level in (1, 3, 5)
    ]  # fmt: skip
    blocks = []
    original = severity_plot._Block.draw
    monkeypatch.setattr(severity_plot._Block, "draw", lambda self, *a: (blocks.append(self), original(self, *a)))
    draw("severity", frame(*rows))
    looks = [(look["color"], str(look["linestyle"])) for look in blocks[0].looks.values()]
    assert len(looks) == len(set(looks)) == 19


def test_the_scale_is_that_of_the_tables(small):
    panel = figure("severity", small).axes[0]
    means = next(line for line in panel.lines if line.get_linewidth() == 1.8)
    assert means.get_ydata() == pytest.approx([55, 70, 95])
    assert panel.get_ylabel() == "AUROC ×100"
    assert panel.get_ylim()[1] > 100


def test_unknown_format_gets_one_line(small):
    with pytest.raises(UsageError, match="unknown picture format 'jpg'; did you mean 'png'"):
        draw("severity", small, "jpg")
    with pytest.raises(UsageError, match="unknown picture format ''"):
        draw("severity", small, "")


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, oodbench.leaderboard.formats, oodbench.leaderboard.plots; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_leaderboard_writes_the_picture(small, tmp_path, monkeypatch, capsys):
    from oodbench.leaderboard import gather

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"schema_version": 2, "settings": {}}')
    found = {"frame": small}
    monkeypatch.setattr(gather, "gather", lambda folders, **_: (found["frame"], []))

    def leaderboard(*options):
        monkeypatch.setattr(sys, "argv", ["oodbench", "leaderboard", str(tmp_path / "run"), *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code

    assert leaderboard("--plot", "severity", "--out", str(tmp_path / "new" / "s.svg")) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'new' / 's.svg'}\n"
    assert (tmp_path / "new" / "s.svg").read_bytes() == draw("severity", small, "svg")
    found["frame"] = small[small["kind"] == "far-ood"]
    assert leaderboard("--plot", "severity", "--out", str(tmp_path / "none.png")) == 1
    assert capsys.readouterr().err == (
        "oodbench: no corruption has figures at two levels, so there is no severity curve; run one at several levels\n"
    )
    assert not (tmp_path / "none.png").exists()
    assert leaderboard("--plot", "severity", "--out", str(tmp_path / "none.gif")) == 2
    monkeypatch.chdir(tmp_path)
    assert leaderboard("--plot", "bars") == 0
    assert (tmp_path / "bars.png").read_bytes() == draw("bars", found["frame"])
