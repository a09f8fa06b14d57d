"""Curves, areas and tables of active learning on a worked example."""

import io

import numpy as np
import pandas as pd
import pytest

from oodbench.errors import BadData, UsageError
from oodbench.leaderboard.tasks.active_learning import COLUMNS, areas, curves, render_active_learning

# Accuracy by strategy, seed and number of labelled images; the last step is three times as wide as the first.
CURVES = {
    "badge": {0: {10: 0.4, 20: 0.6, 50: 0.8}, 1: {10: 0.5, 20: 0.6, 50: 1.0}},
    "random": {0: {10: 0.4, 20: 0.5, 50: 0.6}, 1: {10: 0.5, 20: 0.7, 50: 0.6}},
}


def frame(given=CURVES, dataset="digits", **failed):
    """``failed``: the reason by strategy why its last round of seed 1 has no figures."""
    rows = []
    for strategy, seeds in given.items():
        for seed, curve in seeds.items():
            for number, (labelled, accuracy) in enumerate(curve.items()):
                row = dict.fromkeys(COLUMNS) | {
                    "model": "net", "in_distribution": "digits", "protocol": "gauss", "strategy": strategy,
                    "features": "feed-forward", "dataset": dataset, "round": number, "labelled": labelled, "seed": seed,
                    "last_round": len(curve) - 1, "accuracy": accuracy, "status": "ok", "reason": "",
                }  # fmt: skip
                if strategy in failed and (seed, number) == (1, 2):
                    row |= {"labelled": np.nan, "accuracy": np.nan, "status": "failed", "reason": failed[strategy]}
                rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(["last_round", "labelled", "accuracy"], float))


def line_of(text, name):
    return next(line for line in text.splitlines() if line.startswith(name)).split()[2:]


def test_areas_and_means_of_the_worked_example():
    found = areas(frame()).set_index(["strategy", "seed"])
    assert found["mean"].to_dict() == pytest.approx(
        {("badge", 0): 0.6, ("badge", 1): 0.7, ("random", 0): 0.5, ("random", 1): 0.6}
    )
    # (10 · (0.4 + 0.6)/2 + 30 · (0.6 + 0.8)/2) / 40 = (5 + 21) / 40
    assert found["area"].to_dict() == pytest.approx(
        {("badge", 0): 0.65, ("badge", 1): (5.5 + 24) / 40, ("random", 0): (4.5 + 16.5) / 40, ("random", 1): (6 + 19.5) / 40}
    )


def test_the_area_of_a_network_that_is_always_right_is_one():
    (area,) = areas(frame({"badge": {0: {7: 1.0, 9: 1.0, 100: 1.0}}}))["area"]
    assert area == pytest.approx(1)
    assert areas(frame({"badge": {0: {7: 0.5}}}))["area"].isna().all()


def test_curves_that_stop_early_have_no_area():
    assert areas(frame(badge="too slow"))[["strategy", "seed"]].values.tolist() == [["badge", 0], ["random", 0], ["random", 1]]


def test_the_order_of_rows_does_not_matter():
    shuffled = frame().sample(frac=1, random_state=0)
    keys = ["strategy", "seed"]
    pd.testing.assert_frame_equal(
        areas(shuffled).sort_values(keys, ignore_index=True), areas(frame()).sort_values(keys, ignore_index=True)
    )
    assert render_active_learning(shuffled) == render_active_learning(frame())


def test_curves_have_mean_and_deviation_over_seeds():
    found = curves(frame()).set_index(["strategy", "labelled"])
    assert found.loc[("badge", 50), ["mean", "count"]].tolist() == [0.9, 2]
    assert found.loc[("badge", 50), "std"] == pytest.approx(0.1 * 2**0.5)  # of two numbers that differ by 0.2
    assert found.loc[("badge", 20), "std"] == 0


def test_the_table_shows_means_and_deviations_the_best_first():
    text = render_active_learning(frame())
    assert "Means of 2 seeds, ± their standard deviation." in text
    assert line_of(text, "badge") == ["45.0", "±7.1", "60.0", "±0.0", "90.0", "±14.1", "65.0", "±7.1", "69.4", "±6.2"]
    assert line_of(text, "random") == ["45.0", "±7.1", "60.0", "±14.1", "60.0", "±0.0", "55.0", "±7.1", "58.1", "±8.0"]
    assert text.index("\nbadge") < text.index("\nrandom")
    assert render_active_learning(frame(), columns=["means"]).count("±") == 5  # one in the caption
    with pytest.raises(UsageError, match="median"):
        render_active_learning(frame(), columns=["median"])


def test_a_single_seed_has_no_deviation():
    text = render_active_learning(frame({name: {0: seeds[0]} for name, seeds in CURVES.items()}))
    assert "±" not in text
    assert line_of(text, "badge") == ["40.0", "60.0", "80.0", "60.0", "65.0"]


def test_a_curve_that_stops_early_is_in_no_mean_of_curves():
    text = render_active_learning(frame(random="out of luck"))
    assert line_of(text, "random") == ["45.0", "±7.1", "60.0", "±14.1", "60.0", "50.0", "52.5"]  # of seed 0 alone
    assert "– random (feed-forward) failed from round 2 on: out of luck" in text


def test_each_set_has_a_table():
    both = pd.concat([frame(), frame(dataset="digits+noise@3")])
    text = render_active_learning(both)
    assert text.count("net, active learning on digits (gauss), tested on ") == 2
    assert render_active_learning(frame()) in text


@pytest.mark.parametrize("format", ["md", "tex", "html"])
def test_other_formats_have_the_same_numbers(format):
    text = render_active_learning(frame(), format)
    assert all(number in text for number in ("69.4", "58.1", "14.1"))


def test_csv_has_the_columns_and_a_row_per_record():
    back = pd.read_csv(io.StringIO(render_active_learning(frame(), "csv")))
    assert list(back.columns) == list(COLUMNS)
    assert len(back) == 12
    assert back["accuracy"].tolist() == frame()["accuracy"].tolist()
    some = pd.read_csv(io.StringIO(render_active_learning(frame(), "csv", columns=["strategy", "accuracy"])))
    assert list(some.columns) == ["strategy", "accuracy"]


def test_no_records_and_other_frames():
    assert 'task = "active-learning"' in render_active_learning(frame().iloc[:0])
    with pytest.raises(BadData, match="lacks the columns accuracy; take it from"):
        render_active_learning(frame().drop(columns="accuracy"))
