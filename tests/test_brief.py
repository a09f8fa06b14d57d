"""What a run ends with: few lines, the best rows, the control, and what went wrong."""

import pandas as pd
import pytest

from oodbench.leaderboard.aggregate import COLUMNS
from oodbench.leaderboard.brief import brief
from oodbench.leaderboard.formats import render
from oodbench.leaderboard.notes import Subsets


def cell(detector, dataset="a", auroc=0.5, protocol="unsupervised", **more):
    row = {"model": "net", "in_distribution": "digits", "detector": detector, "protocol": protocol, "dataset": dataset}
    row |= {"kind": "far-ood", "seed": 0, "auroc": auroc, "overhead": 1.5, "status": "ok", "reason": ""} | more
    return row if row["status"] == "ok" else row | {"auroc": None, "overhead": None}


def frame(*cells):
    return pd.DataFrame(cells).reindex(columns=list(COLUMNS))


@pytest.fixture
def many():
    """Forty detectors, seven of which learn from a shift, and a control that sees every set of one kind."""
    rows = []
    for place in range(40):
        name = f"detector-with-a-long-name-{place}" if place else "pixels"
        for dataset, kind in (("a", "near-ood"), ("b", "far-ood"), ("b+haze", "corruption"), ("b+pgd", "adversarial")):
            rows.append(cell(name, dataset, 0.95 - place / 100 if place else 0.91 * (kind != "near-ood"), kind=kind))
            if place < 7:
                rows.append(cell(name, dataset, 0.5 + place / 100, "per-shift", kind=kind))
    return frame(*rows)


def test_the_best_ten_rows_of_each_protocol_and_the_control(many):
    lines = brief(many).splitlines()
    assert len(lines) <= 42
    assert max(map(len, lines)) <= 80
    assert lines[0] == "net, in-distribution digits: AUROC ×100, higher is better"
    assert [line.split("-" * 4)[0] for line in lines if line.startswith("---")] == [
        "--- unsupervised: best 10 of 40 rows, and the control ",
        "--- per-shift: 7 rows ",
    ]
    table = [line.split() for line in lines if line.startswith("detector-") or line.startswith("pixels (c")]
    assert [row[1:] for row in table[:1]] == [["94.0", "94.0", "94.0", "94.0", "94.0", "1.50×"]]
    assert len(table) == 10 + 1 + 7
    assert table[10][:3] == ["pixels", "(control)", "68.2"]
    assert lines[2].split() == ["detector", "sets", "ood", "ood", "corruption", "adversarial", "overhead"]
    text = " ".join(" ".join(lines).split())
    assert "pixels, the control, does not use the network, but reaches 90 on 3 of 4 sets (unsupervised): simple" in text


def test_both_controls_are_shown_wherever_they_rank():
    rows = [cell(f"d{place}", "a", 0.9 - place / 100) for place in range(20)]
    rows += [cell("pixels", "a", 0.5), cell("untrained", "a", 0.6)]
    lines = brief(frame(*rows)).splitlines()
    assert [line.split("-" * 4)[0] for line in lines if line.startswith("---")] == [
        "--- unsupervised: best 10 of 22 rows, and the controls "
    ]
    assert [line.split()[:3] for line in lines if "(control)" in line] == [
        ["untrained", "(control)", "60.0"],
        ["pixels", "(control)", "50.0"],
    ]


def test_reasons_are_whole_and_as_many_as_there_is_room_for(many):
    reason = "the set is not there; " + "fetch it with a rather long command " * 4
    lost = [cell("x", f"lost-{place}", status="skipped", reason=f"{place}: {reason}") for place in range(60)]
    few = brief(pd.concat([many, frame(*lost[:1])]))
    assert few[few.index("– 1 cell skipped") :].split() == f"– 1 cell skipped (x): 0: {reason}".split()
    for count, width in ((8, 80), (60, 80), (60, 50)):
        text = brief(pd.concat([many, frame(*lost[:count])]), width=width)
        lines = text.splitlines()
        assert len(lines) <= 42
        assert max(map(len, lines)) <= width
        shown = " ".join(text.split()).count(" ".join(f"the set is not there; {reason}".split()[5:]))
        assert shown >= 1
        assert lines[-1] == f"– and {count - shown} more reasons for missing figures"
        assert "…" not in text
    endless = [cell("x", "lost", status="failed", reason="word " * 400), cell("y", "lost", status="failed", reason="no")]
    lines = brief(pd.concat([many, frame(*endless)])).splitlines()
    assert len(lines) <= 42
    assert lines[-1] in ("– 2 reasons for missing figures", "– and 1 more reason for missing figures")


def test_nothing_is_cut_at_80_columns(many):
    names = ["ensemble:mutual-information", "d" * 45, "a-name/of:many_parts+and-more-of-them-than-there-is-room-for"]
    named = [cell(name, "b", 0.99, kind="far-ood") for name in names]
    long = {"model": "folder/with/a/long/name:" + "m" * 60, "in_distribution": "folder:" + "i" * 50}
    far = {"protocol": "transfer", "auroc": 0.9}
    found = pd.concat([many, frame(*named, *(cell(name, "b", **far) for name in names))]).assign(**long)
    notes = [Subsets(("a" * 30, "b" * 30, "c"), ((5, 10_000),) * 3)]
    for text in (brief(found, notes, lines=60), render(found, width=80, notes=notes)):
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80
        together = "".join(text.split())
        assert long["model"] in together
        assert "i" * 50 in together
        assert "a" * 30 in together
    pieces = [line.strip().split("  ")[0] for line in brief(found, lines=60).splitlines()]
    start = pieces.index("ensemble:mutual-")
    assert pieces[start + 1] == "information"
    assert "d" * 45 in "".join(piece for piece in pieces if set(piece) == {"d"})


def test_a_figure_without_all_its_cells_is_marked():
    rows = [cell("x"), cell("x", "b"), cell("y", "a", 0.7), cell("y", "b", status="failed", reason="bang")]
    text = brief(frame(*rows))
    assert [line.split()[:3] for line in text.splitlines() if line.startswith(("x ", "y "))] == [
        ["x", "50.0", "50.0"],
        ["y", "70.0*", "70.0*"],
    ]
    assert "*: mean of fewer cells" in text
    assert "– 1 cell failed (y): bang" in text
    assert "*" not in brief(frame(*rows[:2]))


def test_parts_of_official_sets_never_pass_for_the_whole():
    note = Subsets(("cifar10 (test)", "cifar10 (train)", "cifar100 (test)"), ((5, 10_000), (8_000, 50_000), (5, 10_000)))
    assert brief(frame(cell("x")), [note], width=200).splitlines()[-1] == (
        "Parts of official sets, so not the whole sets' figures: cifar10 (test) 5 of 10,000 images,"
        " cifar10 (train) 8,000 of 50,000 images and 1 more."
    )


def test_hostile_names_stay_on_their_line():
    text = brief(frame(cell("x\n\x1b[31m", model="n\r\n", status="failed", reason="a\nb\x1b")))
    assert not set(text) & set("\r\x1b")
    assert text.endswith("– 1 cell failed (x �[31m): a b�\n")


def test_top_limits_every_table_for_people_alone(many):
    levels = [cell(f"d{d}", "b+haze", 0.9 - d / 10, kind="corruption", level=level) for d in range(5) for level in (1, 2)]
    found = pd.concat([frame(*levels), frame(cell("pixels", "b+haze", 0.1, kind="corruption", level=1))])
    text = " ".join(render(found, top=2).split())
    assert text.count("Shown: 3 of 6 rows, the best of each protocol and the controls.") == 2  # the table, and severity
    assert [name in text for name in ("d0", "d1", "d2", "pixels (control)")] == [True, True, False, True]
    assert render(found, "csv", top=2) == render(found, "csv")
    assert "Shown" not in render(found, top=6)


def test_what_was_not_run_is_blank_and_what_has_no_figure_is_a_dash():
    cells = [cell("x"), cell("x", "b", kind="near-ood"), cell("y"), cell("z"), cell("z", "b", kind="near-ood", status="failed")]
    lines = {line.split()[0]: line.split()[1:] for line in brief(frame(*cells)).splitlines() if line[:2] in ("x ", "y ", "z ")}
    assert lines == {
        "x": ["50.0", "50.0", "50.0", "1.50×"],
        "y": ["50.0*", "50.0", "1.50×"],
        "z": ["50.0*", "–", "50.0", "1.50×"],
    }
